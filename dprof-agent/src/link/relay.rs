//! Stream relay: what a process reads from one connection it sends on another, byte for byte, so that the two
//! streams' positions differ by a constant (HAProxy and Envoy at TCP level). Once that is proven, a message's place
//! in the one stream names its place in the other: equal commands and messages of which no byte was captured
//! included. A PROXY protocol header before the first byte is part of the constant.
//!
//! *The simpler idea*, equal bytes at a constant distance, fails where commands repeat: k equal messages are equal at
//! every distance of whole messages, and with every connection that brings them. What does prove it:
//!
//! 1. *The place.* A relay opens the second connection for the first, so both streams begin together: positions, which
//!    count from the beginning of a connection, differ by a header at most. A connection that many share has carried
//!    the others' bytes too, and lies elsewhere.
//! 2. *The rate.* Nothing is sent before it was read, nor after it was answered. A stream that also carries others' bytes
//!    runs ahead of each; one that carries a part of its source's falls behind.
//! 3. *The bytes*, as far as they tell: a chunk counts if no other chunk read lately begins as it does.
//! 4. *The contest.* Where requests of other connections are open, any of them may have caused the call. Only a pair
//!    that has passed [`CONTESTS_MIN`] chunks under such conditions is believed then: a chunk that is another's fits
//!    by chance in fewer than half of the cases.
//! 5. *The way back.* A relay keeps no reply: when it answers, all that the second connection brought has gone out on
//!    the first. Where it has not, somebody else was answered in between, and the link is not certain.
//!
//! Checking never stops. *What stays uncertain*: a command proxy with a single client looks the same and is linked the
//! same, rightly; the first byte of a second client ends it.
//!
//! What a reader would get wrong: chunks come before the messages in them, so a pair is refuted before a call on it
//! is asked about.

use std::collections::VecDeque;

use dprof_common::model::EvidenceKind;
use rustc_hash::FxHashMap;

use super::head::{COMPARE_BYTES, Head, proxy_header};
use super::table::{Call, Ref, Table};
use super::{Certainty, Evidence, Observation, Proposal};
use crate::protocol::Direction;
use crate::stream::Chunk;

/// Chunks that must be equal.
const PROOF_CHUNKS: u32 = 3;
/// Bytes that must be equal, over all chunks.
const PROOF_BYTES: u64 = 64;
/// Chunks that must have passed while requests of other connections were open: 2^-24 by chance.
const CONTESTS_MIN: u32 = 24;
/// Longest header before the first byte: what a receiver of the PROXY protocol must have room for.
const HEADER_BYTES_MAX: u64 = 536;
/// The SYN of the connecting side, which its positions may count.
const SYN_MAX: u64 = 1;
/// A chunk must be this long to suggest a candidate: shorter ones are equal by chance.
const HEAD_BYTES: usize = 8;
/// Chunks read lately per process that may be the source of what is sent now.
const RECENT_MAX: usize = 128;
/// Candidates of one connection: as many clients may have sent the same.
const CANDIDATES_MAX: usize = 128;
/// Heads kept per source, for comparison with what is sent later.
const HEADS_MAX: usize = 64;
/// Requests kept per source: a pipeline's worth.
const REQUESTS_MAX: usize = 4096;
/// Chunks without a candidate before a connection is taken for no relay's.
const TRIES_MAX: u8 = 16;
/// Connections watched; of more, new ones are not looked at.
const SOCKETS_MAX: usize = 64 * 1024;
/// Connections that are no relay's before their process counts as none.
const REFUSED_MIN: u32 = 8;

/// Features.
pub(crate) mod feature {
    /// The only pair left, by place, but not proven where others could be meant.
    pub(crate) const STANDING: u8 = 0;
}

/// A connection that may be read from to be sent on.
#[derive(Debug, Default)]
struct Source {
    /// Position after the last byte read.
    read_to: u64,
    /// Position after the last byte of its answers.
    answered_to: u64,
    heads: VecDeque<Head>,
    requests: VecDeque<(u64, Ref)>,
    /// Of those, how many are open.
    n_open: u32,
    /// Connections that have it among their candidates.
    n_users: u32,
}

impl Source {
    fn keep(&mut self, head: Head) {
        if self.heads.len() >= HEADS_MAX {
            self.heads.pop_front();
        }
        self.heads.push_back(head);
    }
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    source: u64,
    /// Position in what is sent less position in what was read.
    distance: u64,
    /// Both streams begin together: the distance is not an inference from bytes.
    is_anchored: bool,
    n_chunks: u32,
    n_bytes: u64,
    /// Chunks that no other chunk read lately begins like; not counted where [`Self::is_anchored`].
    n_distinct: u32,
    /// Chunks with calls for which requests of other connections were open.
    n_contested: u32,
    /// The last of those, as a number of chunks sent.
    contested_at: u64,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Its source is looked for, or one of several.
    #[default]
    Looking,
    /// One is left.
    Standing,
    /// It is no relay's.
    Refused,
}

/// A connection that may carry on what another brought.
#[derive(Debug, Default)]
struct Target {
    tgid: u32,
    candidates: Vec<Candidate>,
    tries: u8,
    state: State,
    /// Chunks sent.
    n_sent: u64,
    /// Position after the last byte of the replies.
    replied_to: u64,
}

/// What is known of a process.
#[derive(Debug, Default)]
struct Recent {
    /// Heads of chunks read lately.
    heads: VecDeque<(u64, Head)>,
    /// Connections by [`State`].
    n_targets: [u32; 3],
}

impl Recent {
    /// Whether what is read may be a source: not in a process that has shown to be no relay.
    const fn is_useful(&self) -> bool {
        self.n_targets[State::Looking as usize] > 0
            || self.n_targets[State::Standing as usize] > 0
            || self.n_targets[State::Refused as usize] < REFUSED_MIN
    }

    /// Whether at most one chunk read lately begins like this.
    fn is_distinct(&self, bytes: &[u8]) -> bool {
        let begins_alike = |head: &Head| {
            let len = head.bytes().len().min(bytes.len());
            head.bytes()[..len] == bytes[..len]
        };
        self.heads.iter().filter(|(_, head)| begins_alike(head)).nth(1).is_none()
    }

    const fn change(&mut self, from: Option<State>, to: Option<State>) {
        if let Some(from) = from {
            self.n_targets[from as usize] = self.n_targets[from as usize].saturating_sub(1);
        }
        if let Some(to) = to {
            self.n_targets[to as usize] += 1;
        }
    }
}

impl Target {
    fn standing(&self) -> Option<Candidate> {
        match &self.candidates[..] {
            [one]
                if one.n_chunks >= PROOF_CHUNKS
                    && one.n_bytes >= PROOF_BYTES
                    && (one.is_anchored || one.n_distinct >= PROOF_CHUNKS) =>
            {
                Some(*one)
            }
            _ => None,
        }
    }
}

/// Evidence by position.
#[derive(Debug, Default)]
pub(crate) struct StreamRelay {
    sources: FxHashMap<u64, Source>,
    targets: FxHashMap<u64, Target>,
    recent: FxHashMap<u32, Recent>,
}

impl StreamRelay {
    fn read(&mut self, sock: u64, chunk: &Chunk<'_>) {
        if self.recent.len() >= SOCKETS_MAX && !self.recent.contains_key(&chunk.call.tgid) {
            return;
        }
        let recent = self.recent.entry(chunk.call.tgid).or_default();
        if !recent.is_useful() {
            return;
        }
        let head = Head::of(chunk.start, chunk.payload);
        if recent.heads.len() >= RECENT_MAX {
            recent.heads.pop_front();
        }
        recent.heads.push_back((sock, head));
        if let Some(target) = self.targets.get_mut(&sock) {
            target.replied_to = chunk.end();
        }
        if let Some(source) = self.sources.get_mut(&sock) {
            source.read_to = chunk.start + chunk.size;
            source.keep(head);
        }
    }

    /// What is sent was answered before it was sent, so the stream lags behind its source: that is no relay's.
    fn refute(&mut self, sock: u64) {
        let Some(target) = self.targets.get_mut(&sock) else { return };
        for candidate in target.candidates.drain(..) {
            leave(&mut self.sources, candidate.source);
        }
        if let Some(recent) = self.recent.get_mut(&target.tgid) {
            recent.change(Some(target.state), Some(State::Refused));
        }
        (target.tries, target.state) = (TRIES_MAX + 1, State::Refused);
    }

    fn sent(&mut self, sock: u64, chunk: &Chunk<'_>) {
        let tgid = chunk.call.tgid;
        if let Some(source) = self.sources.get_mut(&sock) {
            source.answered_to = chunk.end();
        }
        if self.targets.len() >= SOCKETS_MAX && !self.targets.contains_key(&sock) {
            return;
        }
        let target = self.targets.entry(sock).or_default();
        if target.state == State::Refused {
            return;
        }
        let recent = self.recent.entry(tgid).or_default();
        if target.tgid == 0 {
            target.tgid = tgid;
            recent.change(None, Some(State::Looking));
        }
        target.n_sent += 1;
        let (sources, mut gone) = (&mut self.sources, Vec::new());
        target.candidates.retain_mut(|candidate| {
            let stays =
                sources.get(&candidate.source).is_some_and(|source| fits(candidate, source, recent, chunk));
            if !stays {
                gone.push(candidate.source);
            }
            stays
        });
        for source in gone {
            leave(sources, source);
        }
        if target.candidates.is_empty() {
            target.tries += 1;
            if target.tries <= TRIES_MAX {
                suggest(target, recent, sources, sock, chunk);
            }
        }
        let state = match target.standing() {
            Some(_) => State::Standing,
            None if target.tries > TRIES_MAX => State::Refused,
            None => State::Looking,
        };
        if state != target.state {
            recent.change(Some(target.state), Some(state));
            target.state = state;
        }
    }
}

/// Finds chunks read lately that start as this one does.
fn suggest(
    target: &mut Target,
    recent: &Recent,
    sources: &mut FxHashMap<u64, Source>,
    sock: u64,
    chunk: &Chunk<'_>,
) {
    let header = proxy_header(chunk.payload);
    let sent = &chunk.payload[header..];
    let head = &sent[..sent.len().min(COMPARE_BYTES)];
    if head.len() < HEAD_BYTES {
        return;
    }
    for (from, read) in recent.heads.iter().rev().filter(|(from, _)| *from != sock) {
        let begins = chunk.start.wrapping_sub(read.start);
        let distance = begins.wrapping_add(header as u64);
        if distance > HEADER_BYTES_MAX + SYN_MAX {
            continue;
        }
        let len = head.len().min(read.bytes().len());
        if len < HEAD_BYTES || head[..len] != read.bytes()[..len] {
            continue;
        }
        if target.candidates.iter().any(|candidate| candidate.source == *from) {
            continue;
        }
        if target.candidates.len() >= CANDIDATES_MAX {
            break;
        }
        target.candidates.push(Candidate {
            source: *from,
            distance,
            is_anchored: begins <= SYN_MAX,
            n_chunks: 1,
            n_bytes: len as u64,
            n_distinct: u32::from(begins > SYN_MAX && recent.is_distinct(&head[..len])),
            n_contested: 0,
            contested_at: 0,
        });
        let source = sources.entry(*from).or_default();
        source.n_users += 1;
        source.read_to = source.read_to.max(read.start + u64::from(read.len));
        source.keep(*read);
    }
}

/// Whether a chunk may be what `source` brought; counts what is equal.
fn fits(candidate: &mut Candidate, source: &Source, recent: &Recent, chunk: &Chunk<'_>) -> bool {
    let start = chunk.start.wrapping_sub(candidate.distance);
    if start.wrapping_add(chunk.size) > source.read_to {
        return false;
    }
    let bytes = &chunk.payload[..chunk.payload.len().min(COMPARE_BYTES)];
    let mut equal = false;
    for head in source.heads.iter().rev() {
        match head.agrees(start, bytes) {
            Some(false) => return false,
            Some(true) => equal = true,
            None if equal => break,
            None => {}
        }
    }
    if equal {
        candidate.n_chunks += 1;
        candidate.n_bytes += bytes.len() as u64;
        // Where both streams begin together, and once enough are counted, nothing depends on it.
        let counts = !candidate.is_anchored && candidate.n_distinct < PROOF_CHUNKS;
        candidate.n_distinct += u32::from(counts && recent.is_distinct(bytes));
    }
    true
}

fn leave(sources: &mut FxHashMap<u64, Source>, sock: u64) {
    if let Some(source) = sources.get_mut(&sock) {
        source.n_users -= 1;
        if source.n_users == 0 {
            sources.remove(&sock);
        }
    }
}

impl Evidence for StreamRelay {
    fn kind(&self) -> EvidenceKind {
        EvidenceKind::StreamRelay
    }

    fn request_read(&mut self, table: &mut Table, request: Ref, seen: &Observation<'_>) {
        let Some(source) = self.sources.get_mut(&seen.sock) else { return };
        source.requests.push_back((seen.start, request));
        source.n_open += 1;
        while source.requests.len() > REQUESTS_MAX
            || source.requests.front().is_some_and(|(_, at)| table.request(*at).is_none())
        {
            source.requests.pop_front();
        }
    }

    fn call_made(&mut self, table: &mut Table, call: Ref, seen: &Observation<'_>) -> Option<Proposal> {
        let target = self.targets.get_mut(&seen.sock)?;
        let pair = target.standing()?;
        let source = self.sources.get(&pair.source)?;
        let start = seen.start.wrapping_sub(pair.distance);
        let idx = source.requests.binary_search_by_key(&start, |(start, _)| *start).ok()?;
        let (_, parent) = source.requests[idx];
        if !table.request(parent)?.is_open() {
            self.refute(seen.sock);
            return None;
        }
        let is_contested = table.process(seen.tgid).n_open > source.n_open;
        if is_contested
            && pair.contested_at != target.n_sent
            && let [one] = &mut target.candidates[..]
        {
            one.n_contested = one.n_contested.saturating_add(1);
            one.contested_at = target.n_sent;
        }
        let is_believed = source.n_users == 1 && (!is_contested || pair.n_contested >= CONTESTS_MIN);
        if is_believed {
            return Some(Proposal::one(parent, Certainty::IfReplyPasses));
        }
        // What only one request says is for stronger evidence.
        let content = table.shared(table.call(call).and_then(|call| call.content_at));
        content
            .is_none_or(|shared| shared.n > 1)
            .then(|| Proposal::one(parent, Certainty::Probable(feature::STANDING)))
    }

    fn request_done(&mut self, table: &mut Table, request: Ref, seen: Option<&Observation<'_>>) {
        let Some(sock) = table.request(request).map(|request| request.sock) else { return };
        let Some(source) = self.sources.get_mut(&sock) else { return };
        source.n_open = source.n_open.saturating_sub(1);
        if seen.is_none() {
            return;
        }
        let keeps_nothing = |call: &Call| {
            let target = self.targets.get(&call.sock);
            target.is_some_and(|target| {
                target.replied_to == source.answered_to
                    && target.standing().is_some_and(|pair| pair.source == sock)
            })
        };
        let Some(entry) = table.request(request) else { return };
        let relayed = table.newest_calls_of(entry).find(|(_, call)| {
            call.kind == EvidenceKind::StreamRelay
                && call.certainty == Certainty::IfReplyPasses
                && keeps_nothing(call)
        });
        let relayed = relayed.map(|(at, _)| at);
        if let Some(call) = relayed.and_then(|at| table.call_mut(at)) {
            call.certainty = Certainty::Certain;
        }
    }

    fn bytes(&mut self, sock: u64, chunk: &Chunk<'_>) {
        match chunk.call.direction {
            Direction::In => self.read(sock, chunk),
            Direction::Out => self.sent(sock, chunk),
        }
    }

    fn closed(&mut self, sock: u64) {
        if let Some(target) = self.targets.remove(&sock) {
            if let Some(recent) = self.recent.get_mut(&target.tgid) {
                recent.change(Some(target.state), None);
            }
            for candidate in target.candidates {
                leave(&mut self.sources, candidate.source);
            }
        }
        self.sources.remove(&sock);
    }

    fn disturbed(&mut self, tgid: u32) {
        // What was read may not have been seen; where it was, positions go on.
        if tgid == 0 {
            self.recent.clear();
        }
    }
}
