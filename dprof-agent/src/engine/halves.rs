//! Open requests → halves: how each ends, what is then said of it, and who is told.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dprof_common::model::{Half, HalfFlags, MessageId, Side, Status, rpc_identity};

use super::messages::observation;
use super::{Engine, Output, TICK_NS};
use crate::keep::{LongOpen, operation_number};
use crate::protocol::{BLOCKING_ATTRIBUTE, Correlation, MessageKind};
use crate::rollup::Named;
use crate::span::Timed;
use crate::span::open::OpenHalf;
use crate::span::times::{Ended, half_times};
use crate::stream::resent::Answered;
use crate::stream::socket::Socket;

impl Engine {
    /// A request ended: its half is counted, and goes to the window.
    pub(super) fn finish_half(&mut self, socket: &mut Socket, slot: u32, ended: &Ended<'_>, status: Status) {
        let Some(open) = self.open.remove(slot) else { return };
        let (side, span_id, linked_at) = (open.side, open.span_id, open.linked_at);
        if let Ended::Response(response) = ended {
            let seen = observation(socket, span_id, response);
            if side == Side::Client {
                self.linker.reply_read(linked_at, &seen);
            } else {
                self.linker.request_done(linked_at, Some(&seen), self.clock.now_ns());
                let (start, end) = (response.message.start, response.message.end);
                socket.resent.note_answered(Answered { span_id, start, end });
            }
        } else {
            self.tell_unanswered(&open);
        }
        let answered =
            if let Ended::Response(response) = ended { response.message.value_bytes } else { None };
        let request = &open.request.message;
        let named = Named { keys: request.keys, value_bytes: answered.or(request.value_bytes) };
        let (half, contradictory) = self.half(socket, open, ended, status);
        self.counters.times_contradictory += u64::from(contradictory);
        self.counters.halves += 1;
        self.counters.halves_without_clock += u64::from(!self.clock.is_set());
        self.rollups.add(side, &half, named);
        self.window.finish(span_id, side, half, self.clock.now_ns());
    }

    /// Tells the linker that a request ended without an answer.
    pub(super) fn tell_unanswered(&mut self, open: &OpenHalf) {
        match open.side {
            Side::Server => self.linker.request_done(open.linked_at, None, self.clock.now_ns()),
            Side::Client => self.linker.call_ended(open.linked_at),
        }
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
        // An id pairs whatever was lost between; without an answer, that may have been lost too.
        let by_id = matches!(request.message.correlation, Correlation::Id(_));
        let touched = open.touched && !(by_id && response.is_some());
        flag(touched && response.is_some(), HalfFlags::PAIRED_ACROSS_GAP);
        let incomplete = request.message.incomplete || response.is_some_and(|timed| timed.message.incomplete);
        flag(touched || incomplete, HalfFlags::INCOMPLETE);
        flag(socket.positions.is_counted(), HalfFlags::NO_STREAM_POSITION);
        flag(socket.role_guessed, HalfFlags::ROLE_GUESSED);
        let answered_again = response
            .filter(|_| open.side == Side::Server)
            .map_or(0, |timed| socket.resent.touching(timed.message.start, timed.message.end));
        let retransmits = open.retransmits + answered_again;
        flag(retransmits > 0, HalfFlags::RETRANSMITTED);

        let bytes = |timed: &Timed| match timed.message.kind {
            MessageKind::Silence => 0,
            _ => timed.message.end.saturating_sub(timed.message.start),
        };
        let mut attributes = request.message.attributes;
        if let Some(timed) = response {
            attributes.extend_from_slice(&timed.message.attributes);
        }
        if let Some((client, server)) = socket.origin {
            attributes.extend([
                (Cow::Borrowed("client.address"), client.ip().to_string()),
                (Cow::Borrowed("client.port"), client.port().to_string()),
                (Cow::Borrowed("dprof.proxy.destination"), server.to_string()),
            ]);
        }
        flag(socket.is_encrypted(), HalfFlags::TLS);
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

    /// Ends every request that is open on a connection.
    pub(super) fn end_requests(&mut self, socket: &mut Socket, status: Status, at_ns: u64) {
        let mut ordered = socket.pairing.drain();
        ordered.sort_by_key(|slot| self.open.get_mut(*slot).map(|half| half.request.id));
        self.drop_early(socket);
        let uncertain = socket.pairing.is_uncertain();
        for slot in ordered {
            // Where something was lost, the answer may have been among it.
            let touched = self.open.get_mut(slot).is_some_and(|half| {
                half.touched |= uncertain;
                half.touched
            });
            let status = if touched && status == Status::NoReply { Status::Unknown } else { status };
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
                self.tell_unanswered(&open);
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

    /// Requests that have been open for half the hold time since the last look: their traces are slow. One that waits
    /// by its own wish is not. What nothing was heard of is forgotten.
    pub(super) fn keep_long_open(&mut self, out: &mut Output) {
        let now_ns = self.clock.now_ns();
        let half_hold_ns = self.config.hold_ns / 2;
        let is_due = |open: &OpenHalf| {
            let age_ns = now_ns.saturating_sub(open.seen_ns);
            (half_hold_ns..half_hold_ns + TICK_NS).contains(&age_ns)
        };
        let waits = |open: &OpenHalf| {
            open.request.message.attributes.iter().any(|(name, _)| name == BLOCKING_ATTRIBUTE)
        };
        let (window, mut long) = (&mut self.window, Vec::new());
        for open in self.open.iter().filter(|open| is_due(open) && !waits(open)) {
            if let Some((trace, is_fragment)) = window.trace_of(open.span_id, now_ns) {
                let operation = operation_number(&open.process.service, &open.request.message.operation);
                let process = Arc::clone(&open.process);
                long.push(LongOpen { trace, is_fragment, operation, process });
            }
        }
        self.keep(out, |keeper, settled, out, now_ns| {
            keeper.sift(settled, out, now_ns);
            for long in &long {
                keeper.keep_long(long, out, now_ns);
            }
            keeper.expire(out, now_ns);
        });
    }

    /// Ends the request in `slot` as timed out; its place in the order stays. `current` is the connection that is
    /// being worked on, and so not in the table.
    pub(super) fn give_up_slot(&mut self, current: Option<&mut Socket>, slot: u32) {
        let now_ns = self.clock.now_ns();
        let Some((cookie, correlation)) =
            self.open.get_mut(slot).map(|half| (half.cookie, half.request.message.correlation))
        else {
            return;
        };
        let end = |engine: &mut Self, socket: &mut Socket, correlation: Correlation| {
            socket.pairing.give_up(correlation, slot);
            // Where something was lost, the answer may have been among it.
            let touched = engine.open.get_mut(slot).is_some_and(|half| {
                half.touched |= correlation == Correlation::Fifo && socket.pairing.is_uncertain();
                half.touched
            });
            let status = if touched { Status::Unknown } else { Status::Timeout };
            engine.finish_half(socket, slot, &Ended::At(now_ns), status);
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
                        self.tell_unanswered(&open);
                        self.window.forget(open.span_id, open.side);
                    }
                }
            },
        }
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
