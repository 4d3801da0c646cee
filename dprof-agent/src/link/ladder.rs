//! All kinds of evidence, strongest first. One after the other is asked by its type, not through a pointer: what a kind
//! does not care for costs nothing, and four in five of these calls are of that sort.

use dprof_common::model::EvidenceKind;

use super::confidence::EvidenceSet;
use super::content::RelayedContent;
use super::explicit::ExplicitId;
use super::order::Order;
use super::relay::StreamRelay;
use super::table::{Ref, Table};
use super::thread::SameThread;
use super::{Evidence, Observation, Proposal};
use crate::stream::Chunk;

/// Those that are used.
#[derive(Debug)]
pub(super) struct Ladder {
    explicit: Option<ExplicitId>,
    relay: Option<StreamRelay>,
    content: Option<RelayedContent>,
    order: Option<Order>,
    thread: Option<SameThread>,
}

/// Does something with every kind that is used.
macro_rules! every {
    ($ladder:expr, $kind:ident => $does:expr) => {{
        let Ladder { explicit, relay, content, order, thread } = $ladder;
        if let Some($kind) = explicit {
            $does;
        }
        if let Some($kind) = relay {
            $does;
        }
        if let Some($kind) = content {
            $does;
        }
        if let Some($kind) = order {
            $does;
        }
        if let Some($kind) = thread {
            $does;
        }
    }};
}

/// What the kinds say of a call.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// The strongest that knows a cause, and which.
    pub(super) chosen: Option<(EvidenceKind, Proposal)>,
    /// The thread, where another kind was chosen.
    pub(super) thread: Option<Proposal>,
}

impl Ladder {
    /// These kinds, that have seen nothing.
    pub(super) fn new(used: EvidenceSet) -> Self {
        fn of<T: Evidence + Default>(used: EvidenceSet) -> Option<T> {
            let kind = T::default();
            used.contains(kind.kind()).then_some(kind)
        }
        Self { explicit: of(used), relay: of(used), content: of(used), order: of(used), thread: of(used) }
    }

    /// [`Evidence::request_read`] of every kind.
    pub(super) fn request_read(&mut self, table: &mut Table, request: Ref, seen: &Observation<'_>) {
        every!(self, kind => kind.request_read(table, request, seen));
    }

    /// [`Evidence::call_made`] of one after the other until one knows. The thread is always asked: it must know of every
    /// send, and is compared with stronger evidence.
    pub(super) fn call_made(&mut self, table: &mut Table, call: Ref, seen: &Observation<'_>) -> Said {
        let mut said = Said::default();
        let Self { explicit, relay, content, order, thread } = self;
        said.ask(explicit.as_mut(), table, call, seen);
        said.ask(relay.as_mut(), table, call, seen);
        said.ask(content.as_mut(), table, call, seen);
        said.ask(order.as_mut(), table, call, seen);
        if let Some(thread) = thread {
            let proposal = thread.call_made(table, call, seen);
            if said.chosen.is_none() {
                said.chosen = proposal.map(|proposal| (thread.kind(), proposal));
            } else {
                said.thread = proposal;
            }
        }
        said
    }

    /// [`Evidence::tells_later`] of every kind: whether one of them does.
    pub(super) fn tells_later(&mut self, table: &mut Table, call: Ref, seen: &Observation<'_>) -> bool {
        let mut later = false;
        every!(self, kind => later |= kind.tells_later(table, call, seen));
        later
    }

    /// [`Evidence::reply_read`] of every kind.
    pub(super) fn reply_read(&mut self, table: &mut Table, call: Ref, seen: &Observation<'_>) {
        every!(self, kind => kind.reply_read(table, call, seen));
    }

    /// [`Evidence::request_done`] of every kind.
    pub(super) fn request_done(&mut self, table: &mut Table, request: Ref, seen: Option<&Observation<'_>>) {
        every!(self, kind => kind.request_done(table, request, seen));
    }

    /// [`Evidence::disturbed`] of every kind.
    pub(super) fn disturbed(&mut self, tgid: u32) {
        every!(self, kind => kind.disturbed(tgid));
    }

    /// [`Evidence::bytes`] of every kind.
    pub(super) fn bytes(&mut self, sock: u64, chunk: &Chunk<'_>) {
        every!(self, kind => kind.bytes(sock, chunk));
    }

    /// [`Evidence::closed`] of every kind.
    pub(super) fn closed(&mut self, sock: u64) {
        every!(self, kind => kind.closed(sock));
    }
}

impl Said {
    fn ask(
        &mut self,
        kind: Option<&mut impl Evidence>,
        table: &mut Table,
        call: Ref,
        seen: &Observation<'_>,
    ) {
        if self.chosen.is_none()
            && let Some(kind) = kind
        {
            self.chosen = kind.call_made(table, call, seen).map(|proposal| (kind.kind(), proposal));
        }
    }
}
