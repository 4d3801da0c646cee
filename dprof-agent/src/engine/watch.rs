//! What is no longer watched: connections with other ports than those that are chosen, and protocols that are turned
//! off.
//!
//! What a reader would get wrong: this is neither a loss nor an end. Of a request that was open nobody will see the
//! answer, so it gets no status and no span, and is counted. What is watched again is taken up as what is older than
//! the agent: from the next message on.

use dprof_common::event::{PortsEvent, flag};
use dprof_common::settings::Protocols;

use super::{Engine, Output};
use crate::decode::Ports;
use crate::stream::socket::Socket;
use crate::stream::worth;

impl Engine {
    /// Other ports are watched: told when the programs are, and again when nothing from before is to come.
    pub(super) fn choose_ports(&mut self, event: &PortsEvent, ports: Ports<'_>, out: &mut Output) {
        self.see(event.time_ns);
        if event.header.flags & flag::BEGINS != 0 {
            // Connections that appear from now on were not seen before, however long they have been silent.
            self.seen_since_ns = Some(event.time_ns);
            self.linker.disturbed(0);
            return;
        }
        if event.header.flags & flag::ALL != 0 {
            return;
        }
        let ports: rustc_hash::FxHashSet<u16> = ports.iter().collect();
        let is_watched =
            |socket: &Socket| [socket.local, socket.peer].iter().any(|end| ports.contains(&end.port()));
        for cookie in self.cookies() {
            let Some(mut socket) = self.sockets.remove(&cookie) else { continue };
            if is_watched(&socket) {
                self.sockets.insert(cookie, socket);
                continue;
            }
            self.counters.connections_unwatched += 1;
            self.leave(&mut socket);
            self.linker.closed(cookie);
            // What was asked for is forgotten, should it be watched again.
            out.payload_limits.push((cookie, worth::START));
        }
    }

    /// These protocols are looked into from now on.
    pub(super) fn choose_protocols(&mut self, chosen: Protocols, out: &mut Output) {
        if self.grammar.chosen == chosen {
            return;
        }
        self.grammar.chosen = chosen;
        let now_ns = self.clock.now_ns();
        for cookie in self.cookies() {
            let Some(mut socket) = self.sockets.remove(&cookie) else { continue };
            if socket.choose(chosen, now_ns) {
                if socket.is_off() {
                    self.counters.protocols_off += 1;
                    self.leave(&mut socket);
                } else {
                    self.linker.joined(socket.last_tgid, now_ns, now_ns);
                }
                if let Some(bytes) = socket.changed_payload_limit() {
                    out.payload_limits.push((cookie, bytes));
                }
            }
            self.sockets.insert(cookie, socket);
        }
        self.linker.disturbed(0);
    }

    /// Of all connections, in the order of their numbers: what comes of it must not depend on a hash.
    fn cookies(&self) -> Vec<u64> {
        let mut cookies: Vec<u64> = self.sockets.keys().copied().collect();
        cookies.sort_unstable();
        cookies
    }

    /// Nothing of this connection is followed any more.
    fn leave(&mut self, socket: &mut Socket) {
        for slot in socket.pairing.give_up_all() {
            self.counters.requests_unwatched += u64::from(self.abandon(slot));
        }
    }

    /// Forgets an open request of which the rest will not be seen. Whether it was there.
    pub(super) fn abandon(&mut self, slot: u32) -> bool {
        let Some(open) = self.open.remove(slot) else { return false };
        self.tell_unanswered(&open);
        self.window.abandon(open.span_id);
        true
    }
}
