//! Edges of the capture window: what crosses one is dropped and counted, and connections are taken up again.
//!
//! What a reader would get wrong: this is not a loss. Nothing is known of what passed outside, so a request that was
//! open when the window closed gets no status and no span, and an answer that comes first when it opens belongs to
//! nobody. A connection on which nothing passed meanwhile goes on as if there had been no edge.

use dprof_common::event::{OpenEvent, WindowEvent, flag};
use dprof_common::model::Side;

use super::{Engine, Output};
use crate::protocol::Direction;
use crate::stream::socket::Socket;

const MS: u64 = 1_000_000;

/// The protocol whose clients ask one thing at a time on a connection, though they need not.
const HTTP: &str = "http";

impl Engine {
    /// The window opened or closed.
    pub(super) fn edge(&mut self, edge: &WindowEvent, out: &mut Output) {
        self.see(edge.time_ns);
        let opened = edge.header.flags & flag::OPENED != 0;
        if let Some((since_ns, was_open)) = self.last_edge.replace((edge.time_ns, opened)) {
            let ms = edge.time_ns.saturating_sub(since_ns) / MS;
            *if was_open {
                &mut self.counters.windows_open_ms
            } else {
                &mut self.counters.windows_closed_ms
            } += ms;
        }
        self.counters.windows += u64::from(opened);
        let cookies: Vec<u64> = self.sockets.keys().copied().collect();
        for cookie in cookies {
            let Some(mut socket) = self.sockets.remove(&cookie) else { continue };
            if !opened {
                if !socket.held.is_empty() {
                    self.give_up(&mut socket, out);
                }
                for slot in socket.pairing.give_up_all() {
                    self.drop_request(slot);
                }
            }
            socket.cut(edge.time_ns);
            self.sockets.insert(cookie, socket);
        }
        self.seen_since_ns = Some(edge.time_ns);
        self.linker.disturbed(0);
    }

    /// Whether bytes of this connection may have passed before the window opened.
    pub(super) fn is_before_window(&self, open: &OpenEvent) -> bool {
        self.last_edge.is_some_and(|(edge_ns, _)| open.established_ns < edge_ns)
    }

    /// `missing` bytes before `start` passed outside the window.
    pub(super) fn skip_unseen(
        &mut self,
        socket: &mut Socket,
        direction: Direction,
        start: u64,
        missing: u64,
    ) {
        self.counters.window_gaps += 1;
        let mut parsed = std::mem::take(&mut self.parsed);
        socket.skip(direction, start - missing, missing, &mut parsed);
        socket.positions.advance(direction, start);
        self.parsed(socket, None, &mut parsed);
        self.parsed = parsed;
        let (requests, responses) = match (socket.side, direction) {
            (None, _) => (true, true),
            (Some(Side::Client), Direction::Out) | (Some(Side::Server), Direction::In) => (true, false),
            (Some(Side::Client), Direction::In) | (Some(Side::Server), Direction::Out) => (false, true),
        };
        if requests {
            // Answers that wait for their request: it passed unseen.
            self.drop_early(socket);
        }
        // Hardly a client of HTTP/1.1 pipelines: waiting for proof would leave out all requests that take a good part of a
        // window.
        let by_custom = socket.protocol() == HTTP;
        for slot in socket.pairing.skip_unseen(requests, responses, by_custom) {
            self.drop_request(slot);
        }
    }

    /// A request of which the rest will not be seen.
    fn drop_request(&mut self, slot: u32) {
        self.counters.window_dropped += u64::from(self.abandon(slot));
    }
}
