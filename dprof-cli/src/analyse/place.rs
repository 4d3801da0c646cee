//! Where to draw each RPC on one time line, though clocks of different hosts cannot be compared.
//!
//! Within one host times are true. A server half on another host than its client half is drawn inside it with
//! the network split evenly: only the sum of both ways is known. Where a trace has several RPCs between two hosts, each
//! bounds how far their clocks are apart ([`super::skew`]), and all are drawn by what is in the middle of the bounds.
//! Nothing here changes a stored time.

use dprof_common::model::{Half, Span, split};

use super::latency::Part;
use super::skew::SteadySkew;
use super::tree::Tree;

/// A stretch of a bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What the time was spent on.
    pub part: Part,
    /// Where it ends, nanoseconds on the drawn line; it starts where the one before ends.
    pub until: i64,
}

/// Where an RPC is drawn, nanoseconds after the first root's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Start of the bar.
    pub start: i64,
    /// Its stretches; the last one's end is the bar's.
    pub segments: Vec<Segment>,
    /// What to add to the client half's times to draw them.
    pub client_shift: Option<i64>,
    /// What to add to the server half's times.
    pub server_shift: Option<i64>,
    /// Neither a shared clock nor its parent says where it belongs: only hosts' wall clocks were compared.
    pub is_guess: bool,
}

impl Placed {
    /// End of the bar.
    pub fn end(&self) -> i64 {
        self.segments.last().map_or(self.start, |segment| segment.until)
    }
}

const fn shifted(unix_ns: u64, shift: i64) -> i64 {
    (unix_ns as i64).wrapping_add(shift)
}

/// Places every node of `tree`, in the order of its nodes.
pub fn place(tree: &Tree<'_>) -> Vec<Placed> {
    let empty =
        Placed { start: 0, segments: Vec::new(), client_shift: None, server_shift: None, is_guess: false };
    let mut placed = vec![empty; tree.nodes.len()];
    let skew = SteadySkew::of(tree.nodes.iter().map(|node| node.span));
    let mut first_root: Option<usize> = None;
    for idx in tree.preorder() {
        let node = &tree.nodes[idx];
        let Some(anchor) = node.span.widest() else { continue };
        let mut is_guess = false;
        let shift = match node.parent {
            Some(parent) => below(anchor, tree.nodes[parent].span, &placed[parent]),
            None => match first_root {
                None => (anchor.times.start_ns as i64).wrapping_neg(),
                Some(first) => {
                    let span = tree.nodes[first].span;
                    on_same_host(anchor, span, &placed[first]).unwrap_or_else(|| {
                        is_guess = true;
                        by_wall_clock(anchor, &placed[first])
                    })
                }
            },
        };
        if node.parent.is_none() && first_root.is_none() {
            first_root = Some(idx);
        }
        placed[idx] = with_halves(node.span, shift, &skew);
        placed[idx].is_guess = is_guess;
    }
    placed
}

/// Shift of a half on the host of one of the halves of `span`, which is placed.
fn on_same_host(half: &Half, span: &Span, placed: &Placed) -> Option<i64> {
    [(&span.server, placed.server_shift), (&span.client, placed.client_shift)]
        .into_iter()
        .find(|(other, _)| other.as_ref().is_some_and(|other| other.host.host == half.host.host))
        .and_then(|(_, shift)| shift)
}

/// Shift of a tree that nothing ties to the first one: the wall clock's, unless the clocks are so far apart that
/// it would leave the picture; then centred.
fn by_wall_clock(half: &Half, first: &Placed) -> i64 {
    let shift = first.client_shift.or(first.server_shift).unwrap_or(0);
    let length = first.end() - first.start;
    let start = shifted(half.times.start_ns, shift);
    if (first.start - length..=first.end() + length).contains(&start) {
        shift
    } else {
        centred(half, first.start, first.end())
    }
}

/// Shift of a call below its parent: the same clock if the caller is the parent's server, else centred in it.
fn below(half: &Half, parent: &Span, placed: &Placed) -> i64 {
    on_same_host(half, parent, placed).unwrap_or_else(|| centred(half, placed.start, placed.end()))
}

/// Shift that centres `half` between two drawn times.
fn centred(half: &Half, start: i64, end: i64) -> i64 {
    let slack = (end - start) - half.times.duration_ns() as i64;
    (start + slack / 2).wrapping_sub(half.times.start_ns as i64)
}

fn with_halves(span: &Span, shift: i64, skew: &SteadySkew) -> Placed {
    let (client_shift, server_shift) = match (&span.client, &span.server) {
        (Some(client), Some(server)) if client.host.host == server.host.host => (Some(shift), Some(shift)),
        (Some(client), Some(server)) => (Some(shift), Some(inside(span, client, server, shift, skew))),
        (Some(_), None) => (Some(shift), None),
        (None, _) => (None, Some(shift)),
    };
    let widest = span.widest();
    let start = shifted(widest.map_or(0, |half| half.times.start_ns), shift);
    let end = shifted(widest.map_or(0, |half| half.times.end_ns), shift);
    let mut bar = Bar { at: start, end: end.max(start), segments: Vec::new(), missing: None };
    match (&span.client, &span.server) {
        (Some(client), Some(server)) => {
            let (c, s) = (&client.times, &server.times);
            let at_client = |ns: Option<u64>| ns.map(|ns| shifted(ns, shift));
            let at_server = |ns: Option<u64>| ns.map(|ns| shifted(ns, server_shift.unwrap_or(shift)));
            bar.part(Part::Send, at_client(c.request_last_ns));
            bar.part(Part::Network, at_server(s.request_last_ns));
            bar.part(Part::Queue, at_server(s.request_read_ns));
            bar.part(Part::Service, at_server(s.response_first_ns));
            bar.part(Part::Streaming, at_server(s.response_last_ns));
            bar.part(Part::Network, at_client(c.response_last_ns));
            bar.last(Part::ReplyQueue, s.response_first_ns.is_some());
        }
        (Some(client), None) => {
            let at = |ns: Option<u64>| ns.map(|ns| shifted(ns, shift));
            bar.part(Part::Send, at(client.times.request_last_ns));
            bar.part(Part::Remote, at(client.times.response_first_ns));
            bar.part(Part::Streaming, at(client.times.response_last_ns));
            bar.last(Part::ReplyQueue, client.times.response_first_ns.is_some());
        }
        (None, Some(server)) => {
            let at = |ns: Option<u64>| ns.map(|ns| shifted(ns, shift));
            bar.part(Part::Send, at(server.times.request_last_ns));
            bar.part(Part::Queue, at(server.times.request_read_ns));
            bar.part(Part::Service, at(server.times.response_first_ns));
            bar.last(Part::Streaming, server.times.response_first_ns.is_some());
        }
        (None, None) => {}
    }
    Placed { start, segments: bar.segments, client_shift, server_shift, is_guess: false }
}

/// Shift of a server half inside its client half: by the clocks, else half of the network before the request's last
/// byte arrives.
fn inside(span: &Span, client: &Half, server: &Half, client_shift: i64, skew: &SteadySkew) -> i64 {
    match (split(span).network_ns, server.times.request_last_ns) {
        (Some(network), Some(arrived)) => {
            let departed =
                shifted(client.times.request_last_ns.unwrap_or(client.times.start_ns), client_shift);
            let by_clock = skew
                .offset_ns(&client.host.host, &server.host.host)
                .map(|ahead| shifted(arrived, client_shift.wrapping_sub(ahead)))
                .filter(|arrival| (departed..=departed + network).contains(arrival));
            by_clock.unwrap_or(departed + network / 2).wrapping_sub(arrived as i64)
        }
        _ => centred(
            server,
            shifted(client.times.start_ns, client_shift),
            shifted(client.times.end_ns, client_shift),
        ),
    }
}

/// Builds a bar's segments; times never run backwards on it, and a stretch whose inner bound is not known is
/// drawn as [`Part::Remote`] rather than as one of the parts it may hold.
struct Bar {
    at: i64,
    end: i64,
    segments: Vec<Segment>,
    missing: Option<Part>,
}

impl Bar {
    fn part(&mut self, part: Part, until: Option<i64>) {
        match until {
            Some(until) => {
                let part = if self.missing.take().is_some() { Part::Remote } else { part };
                self.push(part, until);
            }
            None => self.missing = Some(self.missing.map_or(part, |_| Part::Remote)),
        }
    }

    /// The stretch up to the end. Without an answer it belongs to the first part that had no end.
    fn last(&mut self, part: Part, answered: bool) {
        let part = match self.missing {
            None => part,
            Some(_) if answered => Part::Remote,
            Some(_) => self.first_open(),
        };
        self.push(part, self.end);
    }

    fn first_open(&self) -> Part {
        match self.segments.last().map(|segment| segment.part) {
            Some(Part::Queue) => Part::Service,
            _ => Part::Remote,
        }
    }

    fn push(&mut self, part: Part, until: i64) {
        let until = until.clamp(self.at, self.end);
        if until > self.at {
            self.segments.push(Segment { part, until });
        }
        self.at = until;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;
    use dprof_common::model::Status;

    /// Bars in microseconds: `start[part until …]`.
    #[track_caller]
    fn check(spans: &[Span], expected: &[&str]) {
        let tree = Tree::new(spans);
        let drawn: Vec<String> = place(&tree)
            .iter()
            .map(|placed| {
                let segments: Vec<String> = placed
                    .segments
                    .iter()
                    .map(|segment| format!("{} {}", segment.part.name(), segment.until / 1_000))
                    .collect();
                let mark = if placed.is_guess { "~" } else { "" };
                format!("{mark}{}: {}", placed.start / 1_000, segments.join(", "))
            })
            .collect();
        assert_eq!(drawn, expected);
    }

    #[test]
    fn halves_on_two_hosts_share_the_network_evenly() {
        // The server's clock is 5 s ahead; the true times come out all the same.
        check(
            &[rpc(1).build()],
            &[
                "0: send 20, network 100, queue 200, service 800, streaming 900, network 980, reply queue 1000",
            ],
        );
    }

    #[test]
    fn of_several_rpcs_between_two_hosts_the_shortest_says_where_the_others_are() {
        // The second one's answer took 500 us longer on its way: all of it is drawn there.
        let first = rpc(1).build();
        let mut late = rpc(2).under(1).at(100, 1_000).build();
        let times = &mut late.client.as_mut().expect("seen").times;
        for ns in [&mut times.response_first_ns, &mut times.response_last_ns, &mut times.response_read_ns] {
            *ns = ns.map(|ns| ns + 500_000);
        }
        times.end_ns += 500_000;
        let spans = [first, late];
        let tree = Tree::new(&spans);
        let placed = place(&tree);
        let ends: Vec<i64> = placed[1].segments.iter().map(|segment| segment.until / 1_000).collect();
        assert_eq!(ends, [120, 200, 300, 900, 1_000, 1_580, 1_600]);
    }

    #[test]
    fn one_half_alone_shows_what_it_saw() {
        check(&[rpc(1).client_only().build()], &["0: send 20, remote 880, streaming 980, reply queue 1000"]);
        check(&[rpc(1).server_only().build()], &["0: send 20, queue 120, service 720, streaming 820"]);
    }

    #[test]
    fn calls_are_placed_by_their_callers_clock() {
        check(
            &[rpc(1).build(), rpc(2).under(1).hosts("db-1", "db-1").at(5_000_300, 100).build()],
            &[
                "0: send 20, network 100, queue 200, service 800, streaming 900, network 980, reply queue 1000",
                "300: send 302, network 310, queue 320, service 380, streaming 390, network 398, reply queue 400",
            ],
        );
    }

    #[test]
    fn a_call_from_an_unknown_clock_is_centred_in_its_parent() {
        let spans = [rpc(1).build(), rpc(2).under(1).client_only().hosts("x", "y").at(77_000, 100).build()];
        let tree = Tree::new(&spans);
        let placed = place(&tree);
        assert_eq!((placed[1].start, placed[1].end()), (450_000, 550_000));
    }

    #[test]
    fn a_second_root_elsewhere_is_placed_by_wall_clock_if_that_is_near() {
        let spans = [
            rpc(1).client_only().build(),
            rpc(2).client_only().at(500, 100).build(),
            rpc(3).client_only().hosts("x", "y").at(700, 100).build(),
            rpc(4).client_only().hosts("z", "y").at(2_001, 100).build(),
        ];
        let starts: Vec<_> =
            place(&Tree::new(&spans)).iter().map(|placed| (placed.start, placed.is_guess)).collect();
        assert_eq!(starts, [(0, false), (500_000, false), (700_000, true), (450_000, true)]);
    }

    #[test]
    fn missing_times_are_not_guessed() {
        // Without the arrival the network is not known either: the server half is centred.
        let mut span = rpc(1).build();
        span.server.as_mut().expect("seen").times.request_last_ns = None;
        check(
            &[span],
            &["0: send 20, remote 210, service 810, streaming 910, network 980, reply queue 1000"],
        );
        let mut span = rpc(1).status(Status::Timeout).server_only().build();
        let times = &mut span.server.as_mut().expect("seen").times;
        (times.response_first_ns, times.response_last_ns) = (None, None);
        check(&[span], &["0: send 20, queue 120, service 820"]);
    }
}
