//! Connections: sockets appear, move bytes, and end.

use bytes::Bytes;
use dprof_common::event::{CloseEvent, OpenEvent, RecvEvent, SendEvent, flag};
use dprof_common::model::Status;

use super::{Engine, LOCAL_ADDRESSES_MAX, Output};
use crate::protocol::{Direction, Parsed};
use crate::stream::position::{HELD_CALLS_MAX, HELD_NS, Place};
use crate::stream::socket::{Role, Socket};
use crate::stream::speech::Transition;
use crate::stream::{Call, Chunk, Wire};

/// A connection that ended with data in its receive queue is kept this long, nanoseconds: the data can still be
/// read.
const LINGER_NS: u64 = 1_000_000_000;
/// Connections that linger at once.
const LINGERING_MAX: usize = 4096;
/// A loss of events this long ago may still explain a gap, nanoseconds.
const LOSS_MEMORY_NS: u64 = 1_000_000_000;
/// Changes of protocol within one call: an upgrade, or a mistake and a second thought.
const TRANSITIONS_MAX: usize = 4;

impl Engine {
    /// A socket is seen for the first time (or its announcement comes again).
    pub(super) fn announce(&mut self, open: &OpenEvent) {
        self.see(open.time_ns);
        if self.sockets.get(&open.sock).is_some_and(|socket| socket.is_same(open)) {
            return;
        }
        if let Some(mut old) = self.sockets.remove(&open.sock) {
            // The same socket was connected anew and the close between was lost.
            self.end_requests(&mut old, Status::NoReply, open.time_ns);
            self.linker.closed(open.sock);
        }
        self.make_room();
        let mut socket = Box::new(Socket::new(open));
        if self.local_addresses.len() < LOCAL_ADDRESSES_MAX {
            self.local_addresses.insert(socket.local.ip());
        }
        socket.last_used = self.counters.records;
        if self.is_before_window(open) {
            socket.cut(open.time_ns);
        }
        if socket.role == Role::Unknown {
            // It has been silent for as long as everything was seen.
            socket.last_call_ns = self.seen_since_ns.unwrap_or(open.time_ns).min(open.time_ns);
            self.linker.joined((open.pid_tgid >> 32) as u32, socket.last_call_ns, self.clock.now_ns());
        }
        self.sockets.insert(open.sock, socket);
    }

    /// Forgets the connections that were not used for longest when there are too many: an eighth at once, so that
    /// the search is paid by many announcements.
    fn make_room(&mut self) {
        if self.sockets.len() < self.config.connections_max {
            return;
        }
        // There are more than the limit once it has been lowered.
        let surplus = self.sockets.len() - self.config.connections_max;
        let mut by_use: Vec<(u64, u64)> =
            self.sockets.values().map(|socket| (socket.last_used, socket.cookie)).collect();
        by_use.sort_unstable();
        by_use.truncate(surplus + self.config.connections_max / 8 + 1);
        for (_, cookie) in by_use {
            if let Some(mut socket) = self.sockets.remove(&cookie) {
                self.counters.connections_forgotten += 1;
                self.end_requests(&mut socket, Status::Unknown, self.clock.now_ns());
                self.linker.closed(cookie);
            }
        }
    }

    pub(super) fn send(&mut self, send: &SendEvent, payload: &[u8], out: &mut Output) {
        self.see(send.time_ns);
        self.judge_stream(send.sock, send.header.flags);
        let departed = send.unsent < send.header.size;
        let call = Call {
            direction: Direction::Out,
            end_pos: send.end_pos,
            size: send.header.size,
            tgid: (send.pid_tgid >> 32) as u32,
            tid: send.pid_tgid as u32,
            hook_ns: send.time_ns,
            wire: Wire::Departed {
                unsent: if departed { send.unsent } else { send.header.size },
                first_ns: 0,
            },
            approximate: send.header.flags & flag::APPROXIMATE != 0,
        };
        self.call(send.sock, call, send.srtt_us, payload, out);
    }

    pub(super) fn recv(&mut self, recv: &RecvEvent, payload: &[u8], out: &mut Output) {
        self.see(recv.read_ns);
        self.judge_stream(recv.sock, recv.header.flags);
        let wire = if recv.header.flags & flag::NO_ARRIVAL != 0 {
            Wire::Unknown
        } else {
            Wire::Arrived { first_ns: recv.arrived_first_ns, last_ns: recv.arrived_last_ns }
        };
        let call = Call {
            direction: Direction::In,
            end_pos: recv.end_pos,
            size: recv.header.size,
            tgid: (recv.pid_tgid >> 32) as u32,
            tid: recv.pid_tgid as u32,
            hook_ns: recv.read_ns,
            wire,
            approximate: recv.header.flags & flag::APPROXIMATE != 0,
        };
        self.call(recv.sock, call, 0, payload, out);
    }

    /// Where the kernel says that a socket's stream is not the wire's, sizes are counted from now on.
    fn judge_stream(&mut self, cookie: u64, flags: u8) {
        if flags & flag::NO_STREAM_POSITION != 0
            && let Some(socket) = self.sockets.get_mut(&cookie)
            && !socket.positions.is_counted()
        {
            socket.positions.count();
            self.counters.positions_counted += 1;
        }
    }

    /// One call: its place in the stream is found at once, or it waits with those that follow.
    fn call(&mut self, cookie: u64, mut call: Call, srtt_us: u32, payload: &[u8], out: &mut Output) {
        let Some(mut socket) = self.sockets.remove(&cookie) else {
            self.counters.calls_without_socket += 1;
            self.linker.disturbed(call.tgid);
            return;
        };
        socket.last_used = self.counters.records;
        if srtt_us != 0 {
            socket.srtt_us = srtt_us;
        }
        if let Wire::Departed { first_ns, .. } = &mut call.wire
            && let Some((start, time_ns)) = socket.departing.take()
            && start == call.end_pos.wrapping_sub(u64::from(call.size))
        {
            *first_ns = time_ns;
        }
        if call.size == 0 {
            socket.arrivals.clear();
        } else if socket.held.is_empty() {
            match socket.place(&call) {
                Place::Fits { start } => {
                    socket.positions.fitted(call.direction);
                    let chunk = Chunk { call, start, size: u64::from(call.size), payload };
                    self.deliver(&mut socket, &chunk, out);
                }
                Place::AfterGap { start, missing } if socket.missed[call.direction.idx()] => {
                    self.skip_unseen(&mut socket, call.direction, start, missing);
                    let chunk = Chunk { call, start, size: u64::from(call.size), payload };
                    self.deliver(&mut socket, &chunk, out);
                }
                Place::AfterGap { .. } | Place::Overlaps { .. } => {
                    socket.hold(call, payload);
                    self.held.push(cookie);
                    self.held_due_ns = self.held_due_ns.min(self.clock.now_ns().saturating_add(HELD_NS));
                }
                Place::Impossible => self.counters.positions_impossible += 1,
            }
        } else {
            socket.hold(call, payload);
            let positions = socket.positions;
            if positions.resolve(&mut socket.held) {
                self.counters.reordered += 1;
                self.deliver_held(&mut socket, out);
            } else if socket.held.len() >= HELD_CALLS_MAX {
                self.give_up(&mut socket, out);
            }
        }
        self.sockets.insert(cookie, socket);
    }

    /// Gives up waiting on every socket whose calls have waited long enough by `now_ns`.
    pub(super) fn give_up_held(&mut self, now_ns: u64, out: &mut Output) {
        let mut waiting = std::mem::take(&mut self.held);
        self.held_due_ns = u64::MAX;
        waiting.sort_unstable();
        waiting.dedup();
        for cookie in waiting {
            let Some(mut socket) = self.sockets.remove(&cookie) else { continue };
            if let Some(first) = socket.held.first() {
                let due_ns = first.call.hook_ns.saturating_add(HELD_NS);
                if due_ns <= now_ns {
                    self.give_up(&mut socket, out);
                } else {
                    self.held.push(cookie);
                    self.held_due_ns = self.held_due_ns.min(due_ns);
                }
            }
            self.sockets.insert(cookie, socket);
        }
    }

    pub(super) fn give_up(&mut self, socket: &mut Socket, out: &mut Output) {
        let now_ns = self.clock.now_ns();
        let lost = self.last_lost_ns.is_some_and(|lost_ns| now_ns.saturating_sub(lost_ns) < LOSS_MEMORY_NS);
        let mut positions = socket.positions;
        positions.give_up(&mut socket.held, lost);
        self.counters.positions_counted +=
            u64::from(positions.is_counted() && !socket.positions.is_counted());
        socket.positions = positions;
        self.deliver_held(socket, out);
    }

    fn deliver_held(&mut self, socket: &mut Socket, out: &mut Output) {
        for held in std::mem::take(&mut socket.held) {
            let (call, payload): (Call, Bytes) = (held.call, held.payload);
            socket.arrivals = held.arrivals;
            let chunk = |start| Chunk { call, start, size: u64::from(call.size), payload: &payload };
            match socket.place(&call) {
                Place::Fits { start } => self.deliver(socket, &chunk(start), out),
                Place::AfterGap { start, missing } => {
                    self.counters.gaps += 1;
                    self.counters.gap_bytes += missing;
                    self.linker.disturbed(call.tgid);
                    socket.after_gap_ns = Some(call.hook_ns);
                    socket.timelines[call.direction.idx()].gap(start, &call);
                    let mut parsed = std::mem::take(&mut self.parsed);
                    socket.gap(call.direction, start - missing, missing, &mut parsed);
                    socket.positions.advance(call.direction, start);
                    self.parsed(socket, None, &mut parsed);
                    self.parsed = parsed;
                    self.deliver(socket, &chunk(start), out);
                    socket.after_gap_ns = None;
                }
                Place::Overlaps { start } => {
                    self.counters.overlaps += 1;
                    let next = socket.positions.next(call.direction).unwrap_or(start);
                    let rest = chunk(start).after(next);
                    if rest.size > 0 {
                        self.deliver(socket, &rest, out);
                    }
                }
                Place::Impossible => self.counters.positions_impossible += 1,
            }
        }
    }

    /// A call's bytes, at their place.
    fn deliver(&mut self, socket: &mut Socket, chunk: &Chunk<'_>, out: &mut Output) {
        let direction = chunk.call.direction;
        if socket.is_ignored() {
            socket.positions.advance(direction, chunk.end());
            socket.arrivals.clear();
            return;
        }
        self.learn_role(socket);
        let mut none = Vec::new();
        let arrivals = if direction == Direction::In { &mut socket.arrivals } else { &mut none };
        let merged = socket.timelines[direction.idx()].push(chunk, arrivals);
        self.counters.timelines_merged += u64::from(merged);
        socket.missed[direction.idx()] = false;
        socket.previous_call_ns = socket.last_call_ns;
        socket.last_call_ns = chunk.call.hook_ns;
        socket.last_tgid = chunk.call.tgid;
        if socket.is_unproven && socket.first_call.is_none() {
            let silence_ns = socket.last_call_ns.saturating_sub(socket.previous_call_ns);
            socket.first_call = Some((direction, chunk.start, silence_ns));
        }
        self.linker.bytes(socket.cookie, chunk);
        let was_undecided = socket.is_undecided();
        let mut parsed = std::mem::take(&mut self.parsed);
        socket.feed(chunk, self.grammar, &mut parsed);
        socket.worth.judge(chunk.size, parsed.len());
        self.parsed(socket, Some(chunk), &mut parsed);
        self.parsed = parsed;
        if was_undecided || socket.is_undecided() {
            self.linker.hides(socket.cookie, chunk.call.tgid, socket.holds_back(Direction::In));
        }
        if socket.is_unproven && direction == Direction::In {
            self.doubt(chunk.call.tgid);
        }
        socket.positions.advance(direction, chunk.end());
        socket.trim();
        if let Some(bytes) = socket.changed_payload_limit() {
            self.counters.unrecognised += u64::from(socket.newly_unrecognised());
            // Nothing is fed to one that was off before.
            self.counters.protocols_off += u64::from(socket.is_off());
            out.payload_limits.push((socket.cookie, bytes));
        }
    }

    /// A process read what may have been requests: for a while nothing is certain there.
    pub(super) fn doubt(&mut self, tgid: u32) {
        let now_ns = self.clock.now_ns();
        self.linker.joined(tgid, now_ns, now_ns);
    }

    /// Who listens on the port is the accepting side. A peer of this host is looked up in every namespace.
    fn learn_role(&self, socket: &mut Socket) {
        if socket.role != Role::Unknown {
            return;
        }
        if self.listeners.contains(&(socket.netns, socket.local.port())) {
            socket.role = Role::Passive;
        } else if self.is_local(socket.peer.ip())
            && self.listeners.iter().any(|(_, port)| *port == socket.peer.port())
        {
            socket.role = Role::Active;
        }
    }

    /// What a parser said. Changes of protocol feed the rest of `chunk` again.
    pub(super) fn parsed(
        &mut self,
        socket: &mut Socket,
        chunk: Option<&Chunk<'_>>,
        parsed: &mut Vec<Parsed>,
    ) {
        for _ in 0..TRANSITIONS_MAX {
            let mut transition = None;
            self.messages(socket, parsed, &mut transition);
            let Some(transition) = transition else { return };
            match &transition {
                Transition::Mistaken => {
                    self.counters.mistaken += 1;
                    self.forget_requests(socket);
                }
                // What is open is no request: a stream's direction was taken for that of requests.
                Transition::Opaque => self.forget_requests(socket),
                Transition::Switch(_) | Transition::Encrypted { .. } => {}
            }
            let Some(chunk) = chunk else {
                socket.change(transition, Direction::Out);
                return;
            };
            let Some(again) = socket.change(transition, chunk.call.direction) else { return };
            let rest = chunk.after(again);
            if rest.size > 0 {
                socket.feed(&rest, self.grammar, parsed);
            }
        }
    }

    /// A connection ended, perhaps with data that its process still reads.
    pub(super) fn closing(&mut self, close: CloseEvent, out: &mut Output) {
        self.see(close.time_ns);
        let Some(socket) = self.sockets.get(&close.sock) else { return };
        // A FIN counts as a byte.
        let unread =
            socket.positions.next(Direction::In).is_some_and(|next| next.saturating_add(1) < close.recv_pos);
        if unread && close.header.flags & flag::RESET == 0 && self.lingering.len() < LINGERING_MAX {
            self.lingering.push_back((close.time_ns.saturating_add(LINGER_NS), close));
        } else {
            self.close(&close, out);
        }
    }

    /// A connection is over.
    pub(super) fn close(&mut self, close: &CloseEvent, out: &mut Output) {
        let Some(mut socket) = self.sockets.remove(&close.sock) else { return };
        if !socket.held.is_empty() {
            self.give_up(&mut socket, out);
        }
        let mut parsed = std::mem::take(&mut self.parsed);
        socket.end(&mut parsed);
        self.parsed(&mut socket, None, &mut parsed);
        self.parsed = parsed;
        let mut status = if close.header.flags & flag::RESET != 0 { Status::Reset } else { Status::NoReply };
        if socket.has_unseen(close.send_pos, close.recv_pos) {
            // An answer may have been among the bytes that moved unseen.
            self.counters.gaps += 1;
            status = Status::Unknown;
            for slot in socket.pairing.all() {
                if let Some(half) = self.open.get_mut(slot) {
                    half.touched = true;
                }
            }
        }
        self.end_requests(&mut socket, status, close.time_ns);
        self.linker.closed(close.sock);
    }

    /// Time-outs, turns, minutes.
    pub(super) fn tick(&mut self, now_ns: u64, out: &mut Output) {
        while self.lingering.front().is_some_and(|(due_ns, _)| *due_ns <= now_ns) {
            if let Some((_, close)) = self.lingering.pop_front() {
                self.close(&close, out);
            }
        }
        let turns: Vec<u64> =
            self.sockets.values().filter(|socket| socket.is_turns()).map(|socket| socket.cookie).collect();
        for cookie in turns {
            let Some(mut socket) = self.sockets.remove(&cookie) else { continue };
            let mut parsed = std::mem::take(&mut self.parsed);
            socket.flush_turn(now_ns, &mut parsed);
            self.parsed(&mut socket, None, &mut parsed);
            self.parsed = parsed;
            self.sockets.insert(cookie, socket);
        }
        self.time_out(now_ns);
        if !self.keeper.keeps_all() {
            self.keep_long_open(out);
        }
        self.rollups.take_due(now_ns, &mut out.rollups);
        self.edges.take_due(now_ns, &mut out.edges);
    }
}
