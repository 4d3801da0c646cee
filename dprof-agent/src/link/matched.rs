//! Calls whose reply was found to be the answer of a request: on one connection they come in the order of their causes,
//! so a new one must fit between those before.
//!
//! What a reader would get wrong: replies on a connection come in the order of its calls, so a new one nearly always
//! lies behind all others; only where it does not are they looked through.

/// Matched calls with which the next one is compared.
const MATCHED_MAX: usize = 64;

/// A matched call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matched {
    /// The call's connection and number.
    pub(crate) sock: u64,
    pub(crate) call: u64,
    /// The request's number.
    pub(crate) request: u64,
}

/// The last matched calls, in no order.
#[derive(Debug, Default)]
pub(crate) struct LastMatched {
    calls: Vec<Matched>,
    /// The oldest, once there are [`MATCHED_MAX`].
    oldest: usize,
    /// Per connection the highest number of a call and of a request, of all that are kept or were.
    furthest: Vec<Matched>,
}

impl LastMatched {
    /// Adds one, in place of the oldest if there are too many.
    pub(crate) fn push(&mut self, matched: Matched) {
        if self.calls.len() < MATCHED_MAX {
            self.calls.push(matched);
        } else {
            self.calls[self.oldest] = matched;
            self.oldest = (self.oldest + 1) % MATCHED_MAX;
        }
        if let Some(furthest) = self.furthest.iter_mut().find(|one| one.sock == matched.sock) {
            furthest.call = furthest.call.max(matched.call);
            furthest.request = furthest.request.max(matched.request);
            return;
        }
        if self.furthest.len() >= MATCHED_MAX {
            // Connections of which none is kept have nothing to say.
            let calls = &self.calls;
            self.furthest.retain(|one| calls.iter().any(|call| call.sock == one.sock));
        }
        self.furthest.push(matched);
    }

    /// Whether calls on `sock` keep the order of their causes if the one of number `call` is of `request`.
    pub(crate) fn keep_order(&self, sock: u64, call: u64, request: u64) -> bool {
        match self.furthest.iter().find(|one| one.sock == sock) {
            None => true,
            Some(furthest) if furthest.call < call && furthest.request < request => true,
            Some(_) => {
                let mut same = self.calls.iter().filter(|one| one.sock == sock);
                same.all(|one| (one.call < call) == (one.request < request))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule as it is said: of the last ones on this connection all keep the order.
    fn said(all: &[Matched], new: Matched) -> bool {
        let last = &all[all.len().saturating_sub(MATCHED_MAX)..];
        let mut same = last.iter().filter(|one| one.sock == new.sock);
        same.all(|one| (one.call < new.call) == (one.request < new.request))
    }

    #[test]
    fn what_lies_behind_all_others_is_told_without_looking_at_them() {
        let (mut kept, mut all) = (LastMatched::default(), Vec::new());
        let mut seed = 7_u64;
        let mut random = |below: u64| {
            // Knuth's MMIX.
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let mut n_kept = 0;
        for n in 0..20_000 {
            // More connections than are remembered, and few, in turn.
            let sock = if n % 4000 < 2000 { random(3) } else { random(200) };
            let new = Matched { sock, call: n + random(4), request: n + random(4) };
            let keeps = kept.keep_order(new.sock, new.call, new.request);
            assert_eq!(keeps, said(&all, new), "{n}");
            n_kept += u64::from(keeps);
            kept.push(new);
            all.push(new);
        }
        assert!((5000..20_000).contains(&n_kept), "{n_kept}");
        assert!(kept.furthest.len() <= MATCHED_MAX + 1);
    }
}
