//! Messages → open requests: requests open, responses find theirs, and evidence watches both.

use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::sync::Arc;

use dprof_common::model::{MessageId, ProcessInfo, RootKind, Side, SpanId, Status};
use rustc_hash::FxBuildHasher;

use super::Engine;
use crate::link::linker::{Decided, Verdict};
use crate::link::{Observation, Ref};
use crate::protocol::{
    BLOCKING_ATTRIBUTE, Correlation, Direction, FORWARD_ATTRIBUTE, Message, MessageKind, Parsed,
};
use crate::span::Timed;
use crate::span::open::OpenHalf;
use crate::span::pair::{EARLY_MAX, Pairing, Taken};
use crate::span::times::Ended;
use crate::span::window::Sight;
use crate::stream::socket::{Role, Socket};
use crate::stream::speech::Transition;

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
                Parsed::Origin { client, server } => socket.origin = Some((client, server)),
                Parsed::Encrypted { at, request_direction, attributes } => {
                    *transition = Some(Transition::Encrypted { at, request_direction, attributes });
                }
                Parsed::Switch { at } => *transition = Some(Transition::Switch(at)),
                Parsed::Opaque { .. } => *transition = Some(Transition::Opaque),
                Parsed::Mistaken => *transition = Some(Transition::Mistaken),
            }
        }
        parsed.clear();
    }

    /// Answers that wait for their request have none.
    pub(super) fn drop_early(&mut self, socket: &mut Socket) {
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
        self.linker.disturbed(socket.last_tgid);
        self.drop_early(socket);
        for slot in socket.pairing.all() {
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
            return;
        }
        // A lost answer: the newest request waits for the next one, unless a newer one is under way. A lost request:
        // none that is open waits.
        let is_newest = socket.is_between_messages(direction.reverse());
        let n_kept = usize::from(answers == Some(direction) && is_newest);
        self.answered_unseen(socket, n_kept);
    }

    /// Of a connection that asks one thing at a time, all requests but the newest `n_kept` were answered unseen.
    fn answered_unseen(&mut self, socket: &mut Socket, n_kept: usize) {
        let answered = socket.pairing.all_but(n_kept);
        socket.pairing.suspect();
        let next_slots: Vec<u32> =
            answered.iter().copied().skip(1).chain(socket.pairing.in_order()).collect();
        let now_ns = socket.after_gap_ns.unwrap_or(socket.last_call_ns);
        for (idx, slot) in answered.into_iter().enumerate() {
            self.counters.unpaired_after_loss += 1;
            let next = next_slots.get(idx).and_then(|next| self.open.get_mut(*next));
            let asked_ns = next.map_or(now_ns, |half| half.request.first.hook_ns);
            self.finish_half(socket, slot, &Ended::At(asked_ns), Status::Unknown);
        }
    }

    #[inline(never)]
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
            MessageKind::Response | MessageKind::Silence => self.response(socket, timed),
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
        if std::mem::take(&mut socket.is_unproven)
            && side == Side::Server
            && request.message.start != socket.joined_at
        {
            self.doubt(request.last.tgid);
        }
        let idle_ns = match socket.first_call.take() {
            Some((way, start, silence_ns)) if (way, start) == (direction, request.message.start) => {
                silence_ns
            }
            _ => socket.last_call_ns.saturating_sub(socket.previous_call_ns),
        };
        if request.message.correlation == Correlation::Fifo && !socket.pairing.is_known_at_request(idle_ns) {
            self.counters.window_dropped += 1;
            return;
        }
        // Bytes that a parser passed over to find this request may have been others.
        let follows = socket.positions.next(direction).is_none_or(|next| request.message.start <= next);
        if follows
            && socket.after_gap_ns.is_none()
            && socket.is_between_messages(direction.reverse())
            && socket.pairing.may_resync(idle_ns)
            && !self.waits_by_its_own_wish(socket)
        {
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
        let (linked_at, verdict) = self.observe_request(socket, side, span_id, &request);
        if side == Side::Server {
            self.serving.insert(request.last.tgid);
        }
        let root =
            if self.serving.contains(&request.last.tgid) { RootKind::Unlinked } else { RootKind::Edge };
        let (link, undecided, further) = match verdict {
            Verdict::Now(decided) => (decided.link, false, decided.further),
            Verdict::Later => (None, true, Vec::new()),
        };
        self.counters.links += u64::from(link.is_some());
        self.window.sight(Sight {
            span_id,
            side,
            link,
            further,
            undecided,
            root,
            explicit: request.message.explicit_id.map(|(trace, _)| trace).filter(|id| *id != 0),
            far_is_local: self.is_local(socket.peer.ip()),
            now_ns: self.clock.now_ns(),
        });
        // What went out again before the message was whole.
        let retransmits = match side {
            Side::Client => socket.resent.touching(request.message.start, request.message.end),
            Side::Server => 0,
        };
        let correlation = request.message.correlation;
        let one_way = request.message.kind == MessageKind::OneWay;
        // A hole hid whether and how often it is answered.
        let answers_unknown = request.message.answers_unknown;
        if answers_unknown && correlation == Correlation::Fifo && !one_way {
            socket.pairing.lose();
        }
        let batch = request.batch;
        let process = self.process(request.last.tgid, socket);
        let slot = self.open.insert(OpenHalf {
            cookie: socket.cookie,
            side,
            span_id,
            linked_at,
            request,
            process,
            offset: self.clock.offset(),
            // The first after a loss may get the answer to what was lost; one that seems to want none may have got one.
            touched: (correlation == Correlation::Fifo && socket.pairing.is_suspect())
                || (one_way && answers_unknown),
            retransmits,
            connect_ns: if side == Side::Client { socket.connect_ns.take() } else { None },
            seen_ns: self.clock.now_ns(),
        });
        if one_way {
            self.finish_half(socket, slot, &Ended::OneWay, Status::OneWay);
            return;
        }
        if batch > 1 {
            socket.pairing.note_batch();
        }
        match self.change_pairing(socket, |pairing| pairing.push(correlation, slot)) {
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

    /// Whether a request is open whose answer may take as long as it likes: silence says nothing then.
    fn waits_by_its_own_wish(&mut self, socket: &Socket) -> bool {
        socket
            .pairing
            .in_order()
            .any(|slot| self.open.get_mut(slot).is_some_and(|half| is_blocking(&half.request.message)))
    }

    /// Changes the order of a connection; if it is lost by that, every open request is touched.
    fn change_pairing<T>(&mut self, socket: &mut Socket, change: impl FnOnce(&mut Pairing) -> T) -> T {
        let was_certain = !socket.pairing.is_uncertain();
        let result = change(&mut socket.pairing);
        if was_certain && socket.pairing.is_uncertain() {
            self.touch_all(socket);
        }
        result
    }

    /// Every request that is open may get another's answer.
    fn touch_all(&mut self, socket: &Socket) {
        for slot in socket.pairing.in_order() {
            if let Some(half) = self.open.get_mut(slot) {
                half.touched = true;
            }
        }
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
            let is_sequential = socket.pairing.is_sequential();
            socket.pairing.doubt(is_sequential);
            self.touch_all(socket);
        }
    }

    fn response(&mut self, socket: &mut Socket, response: Timed) {
        let asked_by = if response.message.direction == Direction::In { Side::Client } else { Side::Server };
        if socket.side.is_some_and(|side| side != asked_by) {
            self.counters.responses_without_request += 1;
            return;
        }
        if response.message.correlation == Correlation::Fifo && !socket.pairing.is_known_at_response() {
            return;
        }
        // After a loss, an answer that comes within a request is that one's: what is open was answered unseen.
        if response.message.correlation == Correlation::Fifo
            && socket.pairing.has_lost()
            && socket.pairing.is_sequential()
            && !socket.is_between_messages(response.message.direction.reverse())
        {
            self.answered_unseen(socket, 0);
        }
        let was_sequential = socket.pairing.is_sequential();
        match self.change_pairing(socket, |pairing| pairing.take(response.message.correlation)) {
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
                } else if let Some(half) = self.open.get_mut(slot)
                    && !is_blocking(&half.request.message)
                {
                    let asked_ns = half.request.last.hook_ns;
                    socket.pairing.note_latency(response.first.hook_ns.saturating_sub(asked_ns));
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
                    // One at a time, its request was lost, or a part that the next request will show; else who knows.
                    if response.message.correlation == Correlation::Fifo {
                        socket.pairing.doubt(was_sequential);
                    }
                }
            }
        }
    }

    /// Tells the linker of a request: its place there, and its cause.
    fn observe_request(
        &mut self,
        socket: &Socket,
        side: Side,
        span_id: SpanId,
        request: &Timed,
    ) -> (Ref, Verdict) {
        let seen = observation(socket, span_id, request);
        match side {
            Side::Server => (self.linker.request_read(&seen), Verdict::Now(Decided::none(span_id))),
            Side::Client => self.linker.call_made(&seen, self.clock.now_ns()),
        }
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
}

/// Whether a request waits by its own wish, or may.
fn is_blocking(message: &Message) -> bool {
    message.attributes.iter().any(|(name, _)| name == BLOCKING_ATTRIBUTE)
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

/// What evidence is told of a message.
pub(super) fn observation<'a>(socket: &Socket, span_id: SpanId, timed: &'a Timed) -> Observation<'a> {
    let message = &timed.message;
    Observation {
        span_id,
        tgid: timed.last.tgid,
        tid: timed.last.tid,
        sock: socket.cookie,
        peer: peer_number(socket.peer),
        protocol: socket.protocol(),
        operation: operation_number(message),
        time_ns: timed.done_ns(),
        batch: timed.batch,
        start: message.start,
        content: message.content_hash.filter(|_| !message.incomplete),
        parts: if message.incomplete { &[] } else { message.parts.as_slice() },
        explicit_id: message.explicit_id,
        request_id: message.request_id,
    }
}

/// What a request asks for as a number, the last bit of which says whether it is to be handed on.
fn operation_number(message: &Message) -> u64 {
    if message.operation.is_empty() {
        return 0;
    }
    let is_forwarded = message.attributes.iter().any(|(name, _)| name == FORWARD_ATTRIBUTE);
    FxBuildHasher.hash_one(&*message.operation) & !1 | u64::from(is_forwarded)
}

/// An address and port as a number: two different ones may share one only across address families, or IPv6 networks.
fn peer_number(peer: std::net::SocketAddr) -> u64 {
    let address = match peer.ip() {
        IpAddr::V4(ip) => u64::from(u32::from(ip)),
        IpAddr::V6(ip) => {
            let ip = u128::from(ip);
            (ip as u64) ^ ((ip >> 64) as u64).rotate_left(24)
        }
    };
    (address << 16) ^ u64::from(peer.port())
}
