//! Perfetto's trace format (TracePacket with TrackEvent, protobuf): opens in its UI and answers its SQL.
//!
//! One track per process holds lanes; a lane is a stack of slices that nest. RPCs that overlap without nesting (a
//! pipelined connection, parallel calls) go to another lane, since slices that cross on one track are drawn wrongly.
//! Arrows (flows) go from the caller's slice to the server's.
//!
//! What a reader would get wrong: times are the wall clocks of the hosts as they are; nothing is moved to make two
//! hosts fit.

use std::collections::HashMap;
use std::io::{self, Write};

use dprof_common::model::{Half, Side, Span};
use prost::Message;

use super::Exporter;
use super::attributes::attributes;
use crate::analyse::latency::parts;

/// All packets are of one writer.
const SEQUENCE_ID: u32 = 1;

/// Lanes per process at most; what finds none is in the last one. A thousand RPCs at once is no picture.
const LANES_MAX: usize = 1_000;

const SLICE_BEGIN: i32 = 1;
const SLICE_END: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct Trace {
    #[prost(message, repeated, tag = "1")]
    packet: Vec<Packet>,
}

#[derive(Clone, PartialEq, Message)]
struct Packet {
    #[prost(uint64, optional, tag = "8")]
    timestamp: Option<u64>,
    #[prost(uint32, tag = "10")]
    trusted_packet_sequence_id: u32,
    #[prost(message, optional, tag = "11")]
    track_event: Option<TrackEvent>,
    #[prost(message, optional, tag = "60")]
    track_descriptor: Option<TrackDescriptor>,
}

#[derive(Clone, PartialEq, Message)]
struct TrackDescriptor {
    #[prost(uint64, tag = "1")]
    uuid: u64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, optional, tag = "3")]
    process: Option<ProcessDescriptor>,
    #[prost(uint64, optional, tag = "5")]
    parent_uuid: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct ProcessDescriptor {
    #[prost(int32, tag = "1")]
    pid: i32,
    #[prost(string, tag = "6")]
    process_name: String,
}

#[derive(Clone, PartialEq, Message)]
struct TrackEvent {
    #[prost(message, repeated, tag = "4")]
    debug_annotations: Vec<Annotation>,
    #[prost(int32, tag = "9")]
    kind: i32,
    #[prost(uint64, tag = "11")]
    track_uuid: u64,
    #[prost(string, repeated, tag = "22")]
    categories: Vec<String>,
    #[prost(string, optional, tag = "23")]
    name: Option<String>,
    #[prost(fixed64, repeated, tag = "47")]
    flow_ids: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct Annotation {
    #[prost(int64, optional, tag = "4")]
    int_value: Option<i64>,
    #[prost(string, optional, tag = "6")]
    string_value: Option<String>,
    #[prost(string, tag = "10")]
    name: String,
}

/// A process' lanes: of each the ends of the slices that are open where it stands.
#[derive(Default)]
struct Lanes {
    process: u64,
    open: Vec<Vec<u64>>,
}

/// Writes Perfetto's format. Traces come newest first, but lanes are filled in the order of time, so slices are
/// collected and written at the end: about 500 bytes each.
#[derive(Default)]
pub(crate) struct Perfetto {
    slices: Vec<Slice>,
    processes: HashMap<(String, u32, String), usize>,
}

struct Slice {
    process: usize,
    start_ns: u64,
    end_ns: u64,
    event: TrackEvent,
}

impl Exporter for Perfetto {
    fn begin(&mut self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    fn page(&mut self, spans: &[Span], _: &mut dyn Write) -> io::Result<()> {
        for span in spans {
            for (side, half) in [(Side::Client, &span.client), (Side::Server, &span.server)] {
                let Some(half) = half else { continue };
                let key = (half.host.host.clone(), half.process.pid, half.process.service.clone());
                let next = self.processes.len();
                let process = *self.processes.entry(key).or_insert(next);
                self.slices.push(Slice {
                    process,
                    start_ns: half.times.start_ns,
                    // A slice without a length would end before it begins once sorted.
                    end_ns: half.times.end_ns.max(half.times.start_ns + 1),
                    event: event(span, side, half),
                });
            }
        }
        Ok(())
    }

    fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let mut packets = Vec::new();
        let mut processes: Vec<(&(String, u32, String), &usize)> = self.processes.iter().collect();
        processes.sort_by_key(|(_, number)| **number);
        let mut next_uuid = 1_u64;
        let mut lanes: Vec<Lanes> = Vec::new();
        for ((host, pid, service), _) in processes {
            packets.push(descriptor(TrackDescriptor {
                uuid: next_uuid,
                name: format!("{service} on {host}"),
                process: Some(ProcessDescriptor {
                    // Process ids of two hosts may be the same; the track tells them apart by a number of its own.
                    pid: next_uuid as i32,
                    process_name: format!("{service} on {host} (pid {pid})"),
                }),
                parent_uuid: None,
            }));
            lanes.push(Lanes { process: next_uuid, open: Vec::new() });
            next_uuid += 1 + LANES_MAX as u64;
        }
        // Outer slices before the inner ones that start with them.
        self.slices.sort_by_key(|slice| (slice.start_ns, std::cmp::Reverse(slice.end_ns)));
        let mut events: Vec<(u64, u8, u64, Packet)> = Vec::new();
        for slice in self.slices.drain(..) {
            let process = &mut lanes[slice.process];
            let lane = process.lane(slice.start_ns, slice.end_ns);
            let track_uuid = process.process + 1 + lane as u64;
            let begin = TrackEvent { track_uuid, ..slice.event };
            let end = TrackEvent { track_uuid, kind: SLICE_END, ..TrackEvent::default() };
            // At one instant inner slices end first, then new ones begin.
            events.push((slice.end_ns, 0, u64::MAX - slice.start_ns, packet(slice.end_ns, end)));
            events.push((slice.start_ns, 1, u64::MAX - slice.end_ns, packet(slice.start_ns, begin)));
        }
        for process in &lanes {
            for lane in 0..process.open.len() {
                packets.push(descriptor(TrackDescriptor {
                    uuid: process.process + 1 + lane as u64,
                    name: format!("lane {}", lane + 1),
                    process: None,
                    parent_uuid: Some(process.process),
                }));
            }
        }
        events.sort_by_key(|(at, order, inner, _)| (*at, *order, *inner));
        packets.extend(events.into_iter().map(|(_, _, _, packet)| packet));
        // A file is one message; messages written one after the other are the same as one with all packets.
        for packet in packets {
            out.write_all(&Trace { packet: vec![packet] }.encode_to_vec())?;
        }
        Ok(())
    }
}

impl Lanes {
    /// The first lane on which the slice follows or nests; slices come in order of start.
    fn lane(&mut self, start_ns: u64, end_ns: u64) -> usize {
        for (idx, open) in self.open.iter_mut().enumerate() {
            while open.last().is_some_and(|end| *end <= start_ns) {
                open.pop();
            }
            if open.last().is_none_or(|end| end_ns <= *end) || idx + 1 == LANES_MAX {
                open.push(end_ns);
                return idx;
            }
        }
        self.open.push(vec![end_ns]);
        self.open.len() - 1
    }
}

fn descriptor(track: TrackDescriptor) -> Packet {
    Packet { trusted_packet_sequence_id: SEQUENCE_ID, track_descriptor: Some(track), ..Packet::default() }
}

fn packet(timestamp: u64, event: TrackEvent) -> Packet {
    Packet {
        timestamp: Some(timestamp),
        trusted_packet_sequence_id: SEQUENCE_ID,
        track_event: Some(event),
        track_descriptor: None,
    }
}

fn event(span: &Span, side: Side, half: &Half) -> TrackEvent {
    let text = |name: &str, value: String| Annotation {
        int_value: None,
        string_value: Some(value),
        name: name.to_owned(),
    };
    let mut notes = vec![
        text("trace_id", span.trace_id.to_string()),
        text("span_id", span.span_id.to_string()),
        text("status", half.status.name().to_owned()),
    ];
    notes.extend(attributes(half, side).into_iter().map(|(name, value)| text(name, value.into_owned())));
    if span.client.is_none() || side == Side::Client {
        notes.extend(parts(span).into_iter().map(|(part, ns)| Annotation {
            int_value: Some(ns),
            string_value: None,
            name: format!("{}_ns", part.name().replace(' ', "_")),
        }));
    }
    TrackEvent {
        debug_annotations: notes,
        kind: SLICE_BEGIN,
        track_uuid: 0,
        categories: vec![side.name().to_owned()],
        name: Some(format!("{} {}", half.protocol, half.operation)),
        // Both ends carry the RPC's id: an arrow.
        flow_ids: vec![span.span_id.0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;

    #[test]
    fn slices_nest_on_every_track_and_arrows_join_both_ends() {
        // Pipelined: overlapping without nesting, and one inside another.
        let spans: Vec<Span> = [(0, 100), (50, 100), (60, 40), (100, 10), (150, 5), (150, 5)]
            .into_iter()
            .enumerate()
            .map(|(n, (start, us))| rpc(n as u64 + 1).hosts("one", "two").at(start, us).build())
            .collect();
        let mut exporter = Perfetto::default();
        let mut out = Vec::new();
        exporter.page(&spans, &mut out).expect("memory");
        exporter.end(&mut out).expect("memory");
        let trace = Trace::decode(out.as_slice()).expect("protobuf");
        let mut open: HashMap<u64, usize> = HashMap::new();
        let mut flows: HashMap<u64, usize> = HashMap::new();
        let mut last_ns = 0;
        for packet in &trace.packet {
            let Some(event) = &packet.track_event else { continue };
            let at = packet.timestamp.expect("events have times");
            assert!(at >= last_ns, "in order of time");
            last_ns = at;
            let depth = open.entry(event.track_uuid).or_default();
            if event.kind == SLICE_BEGIN {
                *depth += 1;
                *flows.entry(event.flow_ids[0]).or_default() += 1;
            } else {
                assert!(*depth > 0, "an end without a beginning");
                *depth -= 1;
            }
        }
        assert!(open.values().all(|depth| *depth == 0));
        assert_eq!(flows.len(), 6);
        assert!(flows.values().all(|ends| *ends == 2));
        let tracks = trace.packet.iter().filter_map(|packet| packet.track_descriptor.as_ref());
        let (processes, lanes): (Vec<_>, Vec<_>) = tracks.partition(|track| track.process.is_some());
        assert_eq!(processes.len(), 2);
        assert!(lanes.iter().all(|lane| lane.parent_uuid.is_some_and(|uuid| uuid < lane.uuid)));
        assert!(lanes.len() >= 4, "overlapping slices have lanes of their own: {}", lanes.len());
    }

    #[test]
    fn a_slice_that_crosses_another_gets_another_lane() {
        let mut lanes = Lanes::default();
        let given: Vec<usize> =
            [(0, 10), (2, 5), (4, 12), (10, 20), (11, 15)].iter().map(|(a, b)| lanes.lane(*a, *b)).collect();
        assert_eq!(given, [0, 0, 1, 0, 0]);
    }
}
