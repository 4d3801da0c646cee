//! Messages → halves: requests open, responses close them, and evidence watches both.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dprof_common::model::{
    Half, HalfFlags, Link, MessageId, ProcessInfo, RootKind, Side, SpanId, Status, rpc_identity,
};

use super::Engine;
use crate::link::Observation;
use crate::protocol::{Correlation, Direction, Message, MessageKind, Parsed};
use crate::span::Timed;
use crate::span::open::OpenHalf;
use crate::span::pair::{EARLY_MAX, Taken};
use crate::span::times::{Ended, half_times};
use crate::span::window::Sight;
use crate::stream::socket::{Answered, Role, Socket, Transition};

/// An answer that was read this long before its request was seen to leave belongs to nothing.
const EARLY_NS: u64 = 50_000_000;

impl Engine {
    /// Takes everything that a parser said out of `parsed`, up to a change of protocol.
    pub(super) fn messages(
        &mut self,
        socket: &mut Socket,
        parsed: &mut Vec<Parsed>,
        transition: &mut Option<Transition>,
    ) {
        // Usually all end in the call that was just fed, but bytes kept for detection are of several calls.
        let (mut batch, mut batch_end) = (0, 0);
        for idx in 0..parsed.len() {
            if idx >= batch_end {
                (batch, batch_end) = batch_from(socket, &parsed[idx..]);
                batch_end += idx;
            }
            match std::mem::replace(&mut parsed[idx], Parsed::Mistaken) {
                Parsed::Message(message) => self.message(socket, message, batch),
                Parsed::Lost { direction, .. } => self.lost_boundary(socket, direction),
                Parsed::Switch { at } => *transition = Some(Transition::Switch(at)),
                Parsed::Opaque { .. } => *transition = Some(Transition::Opaque),
                Parsed::Mistaken => *transition = Some(Transition::Mistaken),
            }
        }
        parsed.clear();
    }

    /// Answers that wait for their request have none.
    fn drop_early(&mut self, socket: &mut Socket) {
        self.counters.responses_without_request += socket.pairing.early.len() as u64;
        socket.pairing.early = Vec::new();
    }

    /// Whether an address is one of this host.
    pub(super) fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.local_addresses.contains(&address)
    }

    /// The parser lost the boundary: in FIFO order, what is open may get another's answer. Unless the connection
    /// asks one thing at a time: then all but the newest request were answered unseen, and the next answer is its.
    fn lost_boundary(&mut self, socket: &mut Socket, direction: Direction) {
        self.counters.boundaries_lost += 1;
        self.drop_early(socket);
        // Ids pair whatever is lost.
        for slot in socket.pairing.in_order() {
            if let Some(half) = self.open.get_mut(slot) {
                half.touched = true;
            }
        }
        let answers = match socket.side {
            Some(Side::Client) => Some(Direction::In),
            Some(Side::Server) => Some(Direction::Out),
            None => None,
        };
        if !socket.pairing.is_sequential() {
            socket.pairing.lose();
        } else if answers == Some(direction) {
            let answered = socket.pairing.all_but_newest();
            let next_slots: Vec<u32> =
                answered.iter().copied().skip(1).chain(socket.pairing.in_order()).collect();
            for (slot, next) in answered.into_iter().zip(next_slots) {
                self.counters.unpaired_after_loss += 1;
                let asked_ns = self.open.get_mut(next).map_or(0, |half| half.request.first.hook_ns);
                self.finish_half(socket, slot, &Ended::At(asked_ns), Status::Unknown);
            }
        }
    }

    fn message(&mut self, socket: &mut Socket, message: Message, batch: u32) {
        self.counters.messages += 1;
        let id = MessageId(self.next_message_id);
        self.next_message_id += 1;
        let timeline = &socket.timelines[message.direction.idx()];
        let first = timeline.at(message.start);
        let last = timeline.at(message.end.max(message.start + 1) - 1);
        let timed = Timed { message, first, last, batch, id };
        match timed.message.kind {
            MessageKind::Push => self.counters.pushes += 1,
            MessageKind::Request | MessageKind::OneWay => self.request(socket, timed),
            MessageKind::Response => self.response(socket, timed),
        }
    }

    fn request(&mut self, socket: &mut Socket, request: Timed) {
        let direction = request.message.direction;
        let side = if direction == Direction::Out { Side::Client } else { Side::Server };
        if *socket.side.get_or_insert(side) != side {
            self.counters.requests_reversed += 1;
            return;
        }
        if socket.role == Role::Unknown {
            socket.role = if side == Side::Client { Role::Active } else { Role::Passive };
            socket.role_guessed = true;
        }
        let idle_ns = socket.last_call_ns.saturating_sub(socket.previous_call_ns);
        if socket.pairing.may_resync(idle_ns) {
            let slots: Vec<u32> = socket.pairing.resync().collect();
            for slot in slots {
                self.counters.unpaired_after_loss += 1;
                self.finish_half(socket, slot, &Ended::At(socket.previous_call_ns), Status::Unknown);
            }
        }
        while self.open.len() >= self.config.open_requests_max
            && let Some(slot) = self.open.oldest(u64::MAX)
        {
            self.counters.requests_beyond_limit += 1;
            self.give_up_slot(Some(&mut *socket), slot);
        }
        let span_id = socket.identity(direction, request.message.start);
        let link = self.observe_request(socket, side, span_id, &request);
        if side == Side::Server {
            self.serving.insert(request.last.tgid);
        }
        let root = match link {
            Some(_) => None,
            None if self.serving.contains(&request.last.tgid) => Some(RootKind::Unlinked),
            None => Some(RootKind::Edge),
        };
        self.counters.links += u64::from(link.is_some());
        self.window.sight(&Sight {
            span_id,
            side,
            link,
            root,
            explicit: request.message.explicit_id.map(|(trace, _)| trace).filter(|id| *id != 0),
            far_is_local: self.is_local(socket.peer.ip()),
            now_ns: self.clock.now_ns(),
        });
        // What went out again before the message was whole.
        let retransmits = match side {
            Side::Client => socket.resent_in(request.message.start, request.message.end),
            Side::Server => 0,
        };
        let correlation = request.message.correlation;
        let one_way = request.message.kind == MessageKind::OneWay;
        let process = self.process(request.last.tgid, socket);
        let slot = self.open.insert(OpenHalf {
            cookie: socket.cookie,
            side,
            span_id,
            request,
            process,
            offset: self.clock.offset(),
            touched: false,
            retransmits,
            connect_ns: if side == Side::Client { socket.connect_ns.take() } else { None },
            seen_ns: self.clock.now_ns(),
        });
        if one_way {
            self.finish_half(socket, slot, &Ended::OneWay, Status::OneWay);
            return;
        }
        match socket.pairing.push(correlation, slot) {
            Ok(None) => {}
            Ok(Some(old)) => {
                self.counters.no_reply += 1;
                let now_ns = self.clock.now_ns();
                self.finish_half(socket, old, &Ended::At(now_ns), Status::NoReply);
            }
            Err(slot) => {
                self.counters.requests_beyond_limit += 1;
                let now_ns = self.clock.now_ns();
                self.finish_half(socket, slot, &Ended::At(now_ns), Status::Unknown);
                return;
            }
        }
        self.take_early(socket, slot);
    }

    /// An answer that was read before its request was seen to leave: another thread sent the request and lost the
    /// CPU before its hook ran. It counts only if it arrived after the request had departed.
    fn take_early(&mut self, socket: &mut Socket, slot: u32) {
        if socket.pairing.early.is_empty() {
            return;
        }
        let Some(left_ns) = self.open.get_mut(slot).map(|half| half.request.done_ns()) else { return };
        let early = socket.pairing.early.remove(0);
        let arrived_ns = early.first.wire_ns.unwrap_or(early.first.hook_ns);
        if left_ns <= arrived_ns && arrived_ns - left_ns <= EARLY_NS {
            self.counters.responses_early += 1;
            self.response(socket, early);
        } else {
            self.counters.responses_without_request += 1;
            self.drop_early(socket);
        }
    }

    fn response(&mut self, socket: &mut Socket, response: Timed) {
        let asked_by = if response.message.direction == Direction::In { Side::Client } else { Side::Server };
        if socket.side.is_some_and(|side| side != asked_by) {
            self.counters.responses_without_request += 1;
            return;
        }
        match socket.pairing.take(response.message.correlation) {
            Taken::Slot(slot) => {
                let status = if socket.is_turns() || response.message.incomplete {
                    Status::Unknown
                } else if response.message.is_error {
                    Status::Error
                } else {
                    Status::Ok
                };
                let fifo = response.message.correlation == Correlation::Fifo;
                if fifo
                    && socket.pairing.is_uncertain()
                    && let Some(half) = self.open.get_mut(slot)
                {
                    self.counters.paired_across_gap += 1;
                    half.touched = true;
                }
                self.finish_half(socket, slot, &Ended::Response(&response), status);
            }
            Taken::GivenUp => self.counters.responses_late += 1,
            Taken::Nothing => {
                let may_be_early = socket.side == Some(Side::Client)
                    && response.message.correlation == Correlation::Fifo
                    && !socket.pairing.is_uncertain()
                    && socket.pairing.early.len() < EARLY_MAX;
                if may_be_early {
                    socket.pairing.early.push(response);
                } else {
                    self.counters.responses_without_request += 1;
                }
            }
        }
    }

    fn observe_request(
        &mut self,
        socket: &Socket,
        side: Side,
        span_id: SpanId,
        request: &Timed,
    ) -> Option<Link> {
        let seen = observation(socket, span_id, request);
        match side {
            Side::Server => {
                for evidence in &mut self.evidence {
                    evidence.request_read(&seen);
                }
                None
            }
            Side::Client => {
                let mut link = None;
                for evidence in &mut self.evidence {
                    if let Some(candidate) = evidence.call_made(&seen)
                        && link.is_none()
                        && candidate.parent != span_id
                    {
                        let (parent, confidence) = (candidate.parent, candidate.confidence);
                        link = Some(Link { parent, evidence: evidence.kind(), confidence });
                    }
                }
                link
            }
        }
    }

    /// A request ended: its half is counted, and goes to the window.
    fn finish_half(&mut self, socket: &mut Socket, slot: u32, ended: &Ended<'_>, status: Status) {
        let Some(open) = self.open.remove(slot) else { return };
        let (side, span_id) = (open.side, open.span_id);
        let (tgid, tid) = (open.request.last.tgid, open.request.last.tid);
        if let Ended::Response(response) = ended {
            let seen = observation(socket, span_id, response);
            if side == Side::Client {
                for evidence in &mut self.evidence {
                    evidence.reply_read(&seen);
                }
            } else {
                let (start, end) = (response.message.start, response.message.end);
                socket.note_answered(Answered { span_id, start, end });
            }
        }
        if side == Side::Server {
            for evidence in &mut self.evidence {
                evidence.request_done(span_id, tgid, tid);
            }
        }
        let (half, contradictory) = self.half(socket, open, ended, status);
        self.counters.times_contradictory += u64::from(contradictory);
        self.counters.halves += 1;
        self.counters.halves_without_clock += u64::from(!self.clock.is_set());
        self.rollups.add(side, &half);
        self.window.finish(span_id, side, half, self.clock.now_ns());
    }

    fn half(&self, socket: &Socket, open: OpenHalf, ended: &Ended<'_>, status: Status) -> (Half, bool) {
        let (times, contradictory) = half_times(open.side, &open.request, ended, open.offset);
        let response = if let Ended::Response(response) = ended { Some(*response) } else { None };
        let request = open.request;
        // A time that is not known is `None`, and says so itself.
        let doubtful = |timed: &Timed| timed.first.approximate || timed.last.approximate;
        let mut flags = HalfFlags::default();
        let mut flag = |on: bool, bit: HalfFlags| {
            if on {
                flags.insert(bit);
            }
        };
        flag(doubtful(&request) || contradictory, HalfFlags::REQUEST_TIME_APPROXIMATE);
        flag(response.is_some_and(doubtful), HalfFlags::RESPONSE_TIME_APPROXIMATE);
        flag(open.touched && response.is_some(), HalfFlags::PAIRED_ACROSS_GAP);
        let incomplete = request.message.incomplete || response.is_some_and(|timed| timed.message.incomplete);
        flag(open.touched || incomplete, HalfFlags::INCOMPLETE);
        flag(socket.positions.is_counted(), HalfFlags::NO_STREAM_POSITION);
        flag(socket.role_guessed, HalfFlags::ROLE_GUESSED);
        let answered_again = response
            .filter(|_| open.side == Side::Server)
            .map_or(0, |timed| socket.resent_in(timed.message.start, timed.message.end));
        let retransmits = open.retransmits + answered_again;
        flag(retransmits > 0, HalfFlags::RETRANSMITTED);

        let bytes = |timed: &Timed| timed.message.end.saturating_sub(timed.message.start);
        let mut attributes = request.message.attributes;
        attributes.extend(response.into_iter().flat_map(|timed| timed.message.attributes.iter().cloned()));
        let half = Half {
            host: Arc::clone(&self.config.host),
            process: open.process,
            tid: request.last.tid,
            local: socket.local,
            peer: socket.peer,
            netns: socket.netns,
            tuple_key: if self.is_local(socket.peer.ip()) {
                0
            } else {
                tuple_key(
                    socket,
                    open.side,
                    socket.wire_pos(request.message.direction, request.message.start),
                )
            },
            protocol: Cow::Borrowed(socket.protocol()),
            operation: request.message.operation.into_owned(),
            query_text: request.message.text,
            status,
            status_code: response.map_or_else(String::new, |timed| timed.message.status_code.to_string()),
            attributes,
            times,
            request_bytes: request.message.end.saturating_sub(request.message.start),
            response_bytes: response.map_or(0, bytes),
            request_message_id: request.id,
            response_message_id: response.map_or(MessageId(0), |timed| timed.id),
            batch: request.batch,
            flags,
            retransmits,
            srtt_us: socket.srtt_us,
            connect_ns: open.connect_ns,
        };
        (half, contradictory)
    }

    /// The process's description; made of the socket's own words when none came.
    fn process(&mut self, tgid: u32, socket: &Socket) -> Arc<ProcessInfo> {
        let make = || {
            let comm = socket.comm.split(|byte| *byte == 0).next().unwrap_or_default();
            let comm = String::from_utf8_lossy(comm).into_owned();
            Arc::new(ProcessInfo { pid: tgid, service: comm.clone(), comm, container: None })
        };
        Arc::clone(self.processes.entry(tgid).or_insert_with(make))
    }

    /// Ends every request that is open on a connection.
    pub(super) fn end_requests(&mut self, socket: &mut Socket, status: Status, at_ns: u64) {
        let mut ordered = socket.pairing.drain();
        ordered.sort_by_key(|slot| self.open.get_mut(*slot).map(|half| half.request.id));
        self.drop_early(socket);
        for slot in ordered {
            match status {
                Status::Reset => self.counters.reset += 1,
                Status::NoReply => self.counters.no_reply += 1,
                _ => self.counters.unpaired_after_loss += 1,
            }
            self.finish_half(socket, slot, &Ended::At(at_ns), status);
        }
    }

    /// Forgets what a wrong protocol's parser took for requests.
    pub(super) fn forget_requests(&mut self, socket: &mut Socket) {
        for slot in socket.pairing.drain() {
            if let Some(open) = self.open.remove(slot) {
                if open.side == Side::Server {
                    for evidence in &mut self.evidence {
                        evidence.request_done(open.span_id, open.request.last.tgid, open.request.last.tid);
                    }
                }
                self.window.forget(open.span_id, open.side);
            }
        }
        socket.side = None;
    }

    /// Ends requests that are open for too long.
    pub(super) fn time_out(&mut self, now_ns: u64) {
        let limit_ns = now_ns.saturating_sub(self.config.max_open_ns);
        if limit_ns == 0 {
            return;
        }
        while let Some(slot) = self.open.oldest(limit_ns) {
            self.counters.timeouts += 1;
            self.give_up_slot(None, slot);
        }
    }

    /// Ends the request in `slot` as timed out; its place in the order stays. `current` is the connection that is
    /// being worked on, and so not in the table.
    fn give_up_slot(&mut self, current: Option<&mut Socket>, slot: u32) {
        let now_ns = self.clock.now_ns();
        let Some((cookie, correlation)) =
            self.open.get_mut(slot).map(|half| (half.cookie, half.request.message.correlation))
        else {
            return;
        };
        let end = |engine: &mut Self, socket: &mut Socket, correlation: Correlation| {
            socket.pairing.give_up(correlation, slot);
            engine.finish_half(socket, slot, &Ended::At(now_ns), Status::Timeout);
        };
        match current {
            Some(socket) if socket.cookie == cookie => end(self, socket, correlation),
            _ => match self.sockets.remove(&cookie) {
                Some(mut socket) => {
                    end(self, &mut socket, correlation);
                    self.sockets.insert(cookie, socket);
                }
                // Its connection is gone: so is what could be said of it.
                None => {
                    if let Some(open) = self.open.remove(slot) {
                        self.window.forget(open.span_id, open.side);
                    }
                }
            },
        }
    }
}

/// How many requests end in the same call as the first of `parsed`, and how many messages that spans.
fn batch_from(socket: &Socket, parsed: &[Parsed]) -> (u32, usize) {
    let mut call = None;
    let mut n_requests = 0;
    for (idx, parsed) in parsed.iter().enumerate() {
        let Parsed::Message(message) = parsed else { continue };
        if !matches!(message.kind, MessageKind::Request | MessageKind::OneWay) {
            continue;
        }
        let last = message.end.max(message.start + 1) - 1;
        let this = (message.direction, socket.timelines[message.direction.idx()].at(last).call_end);
        if *call.get_or_insert(this) != this {
            return (n_requests.max(1), idx);
        }
        n_requests += 1;
    }
    (n_requests.max(1), parsed.len())
}

fn observation<'a>(socket: &Socket, span_id: SpanId, timed: &'a Timed) -> Observation<'a> {
    Observation {
        span_id,
        tgid: timed.last.tgid,
        tid: timed.last.tid,
        sock: socket.cookie,
        time_ns: timed.done_ns(),
        batch: timed.batch,
        message: &timed.message,
    }
}

/// Second key of an RPC for paths that rewrite sequence numbers: client, server and position. FNV-1a (Fowler,
/// Noll, Vo) over the addresses, then the mix of the identity.
fn tuple_key(socket: &Socket, side: Side, start: u64) -> u64 {
    let (client, server): (SocketAddr, SocketAddr) =
        if side == Side::Client { (socket.local, socket.peer) } else { (socket.peer, socket.local) };
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for address in [client, server] {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        for byte in ip.octets().into_iter().chain(address.port().to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    rpc_identity((hash >> 32) as u32, hash as u32, start).0
}
