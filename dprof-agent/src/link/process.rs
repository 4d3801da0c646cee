//! What a process shows of itself as it serves and calls: whether it relays, fans out, or only answers.

/// Links that the check of replies must have passed before a process counts as one that passes replies on unchanged:
/// then nine in ten must pass.
const RELAYS_MIN: u32 = 16;

/// What is known of a process as a whole.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Process {
    /// Open requests.
    pub(crate) n_open: u32,
    /// Open requests whose content is not known: nothing is unique beside them.
    pub(crate) n_unhashed: u32,
    /// Connections that may have brought requests which are not known yet: nothing is unique beside them either.
    pub(crate) n_hiding: u32,
    pub(super) losses: u32,
    pub(super) doubted_until_ns: u64,
    replies_passed: u32,
    replies_failed: u32,
    /// Requests served, and calls of the same protocol made, both halved now and then.
    pub(super) n_requests: u32,
    pub(super) n_calls: u32,
    /// Calls whose content some request had.
    pub(super) n_known: u32,
    /// It has made a call, ever.
    pub(super) has_called: bool,
    pub(super) operations: Operations,
}

/// Requests and calls of the first operations that a process was seen to have to do with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Operations {
    counts: [(u64, u32, u32); OPERATIONS_MAX],
}

/// More operations than these are not compared.
const OPERATIONS_MAX: usize = 4;

impl Operations {
    fn of(&mut self, operation: u64) -> Option<&mut (u64, u32, u32)> {
        self.counts.iter_mut().find(|(of, n, m)| *of == operation || *n + *m == 0)
    }

    pub(super) fn read(&mut self, operation: u64) {
        if let Some(count) = self.of(operation) {
            *count = (operation, count.1 + 1, count.2);
        }
    }

    pub(super) fn called(&mut self, operation: u64) {
        if let Some(count) = self.of(operation) {
            *count = (operation, count.1, count.2 + 1);
            if count.2 >= COUNTED_MAX {
                *count = (operation, count.1 / 2, count.2 / 2);
            }
        }
    }
}

/// Requests after which a process that made no call is taken for one that makes none.
const LEAF_MIN: u32 = 256;

/// Counts are halved here, so that they follow a process that changes.
const COUNTED_MAX: u32 = 4096;

impl Process {
    /// Counts a reply checked on a link whose cause is beyond doubt.
    pub(crate) fn note_reply(&mut self, passed: bool) {
        if passed {
            self.replies_passed += 1;
        } else {
            self.replies_failed += 1;
        }
        if self.replies_passed + self.replies_failed >= COUNTED_MAX {
            self.replies_passed /= 2;
            self.replies_failed /= 2;
        }
    }

    /// Whether it has shown that it passes replies on unchanged.
    pub(crate) const fn relays_replies(&self) -> bool {
        self.replies_passed >= RELAYS_MIN && self.replies_passed / 9 >= self.replies_failed
    }

    /// Whether it may have a request open of which it is not known what it says.
    pub(crate) const fn hides_requests(&self) -> bool {
        self.n_unhashed > 0 || self.n_hiding > 0
    }

    /// Whether it serves and calls nobody: then its answered requests cause nothing late, and are not kept.
    pub(crate) const fn is_leaf(&self) -> bool {
        !self.has_called && self.n_requests >= LEAF_MIN
    }

    /// Counts a request.
    pub(super) fn note_request(&mut self) {
        self.n_requests += 1;
        if self.n_requests >= COUNTED_MAX {
            self.n_requests /= 2;
            self.n_calls /= 2;
            self.n_known /= 2;
        }
    }

    /// Whether it makes about one call per request, and the bytes of its calls are not those of its requests: a relay
    /// whose content cannot be seen.
    pub(crate) fn is_blind_relay(&self) -> bool {
        self.is_plain() && self.hides_content()
    }

    /// Whether it makes about one call per request, of the same content: that and the order of requests tell.
    pub(crate) fn is_open_relay(&self) -> bool {
        self.is_plain() && !self.hides_content()
    }

    /// Whether what its calls say is not what its requests say.
    pub(crate) fn hides_content(&self) -> bool {
        u64::from(self.n_known) * 10 <= u64::from(self.n_calls)
    }

    /// Whether it makes about one call per request.
    pub(crate) fn is_plain(&self) -> bool {
        let (requests, calls) = (u64::from(self.n_requests), u64::from(self.n_calls));
        // Calls lag behind by those in flight.
        calls >= 8 && calls * 10 <= requests * 11 && (calls + u64::from(self.n_open)) * 10 >= requests * 9
    }

    /// Whether it makes as many calls of each operation as it has requests of it.
    pub(crate) fn relays_operations(&self) -> bool {
        self.operations
            .counts
            .iter()
            .all(|(_, read, called)| (called + self.n_open) * 10 >= read * 9 && called * 10 <= read * 11 + 10)
    }

    /// Whether a request usually causes several calls.
    pub(crate) const fn fans_out(&self) -> bool {
        self.n_calls >= 8 && self.n_calls / 3 * 2 >= self.n_requests
    }
}
