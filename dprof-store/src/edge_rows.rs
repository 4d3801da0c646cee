//! Edges to blobs and back, with their names in a dictionary of the blob's own.
//!
//! What a reader would get wrong: protobuf, so that a later dprof may add optional fields and no table changes.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use dprof_common::model::{Edge, EdgeEnd, EdgeKey, Sketch};
use prost::Message;
use rustc_hash::FxHashMap;

use crate::rows::RowError;

/// Bytes of a blob at most.
const BLOB_BYTES_MAX: usize = 256 << 10;

/// An end: a service by its place among the names, or an address.
#[derive(Clone, PartialEq, Message)]
struct PackedEnd {
    /// One more than the place; 0 = an address.
    #[prost(uint32, tag = "1")]
    service: u32,
    #[prost(message, optional, tag = "2")]
    address: Option<PackedAddress>,
}

/// An address: 4 or 16 bytes, and a port; 0 = any.
#[derive(Clone, PartialEq, Message)]
struct PackedAddress {
    #[prost(bytes = "vec", tag = "1")]
    ip: Vec<u8>,
    #[prost(uint32, tag = "2")]
    port: u32,
}

/// An edge as stored.
#[derive(Clone, PartialEq, Message)]
struct PackedEdge {
    #[prost(uint64, tag = "1")]
    minute_unix_s: u64,
    #[prost(message, optional, tag = "2")]
    caller: Option<PackedEnd>,
    #[prost(message, optional, tag = "3")]
    callee: Option<PackedEnd>,
    #[prost(message, optional, tag = "4")]
    near: Option<PackedAddress>,
    #[prost(uint32, tag = "5")]
    protocol: u32,
    #[prost(uint64, tag = "6")]
    calls: u64,
    #[prost(uint64, tag = "7")]
    errors: u64,
    #[prost(uint64, tag = "8")]
    sum_ns: u64,
    #[prost(uint64, tag = "9")]
    min_ns: u64,
    #[prost(uint64, tag = "10")]
    max_ns: u64,
    #[prost(uint64, tag = "11")]
    request_bytes: u64,
    #[prost(uint64, tag = "12")]
    response_bytes: u64,
    #[prost(uint64, tag = "13")]
    retransmits: u64,
    #[prost(bytes = "vec", tag = "14")]
    sketch: Vec<u8>,
}

/// Edges with their names.
#[derive(Clone, PartialEq, Message)]
struct PackedEdges {
    #[prost(string, repeated, tag = "1")]
    texts: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    edges: Vec<PackedEdge>,
}

fn pack_address(address: SocketAddr) -> PackedAddress {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    PackedAddress { ip, port: u32::from(address.port()) }
}

fn unpack_address(packed: &PackedAddress) -> Option<SocketAddr> {
    let ip = match *packed.ip.as_slice() {
        [a, b, c, d] => IpAddr::from([a, b, c, d]),
        ref bytes => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    };
    Some(SocketAddr::new(ip, u16::try_from(packed.port).ok()?))
}

/// As many blobs as needed, each below the limit, and the first and the last minute of each.
pub(crate) fn pack(edges: &[Edge]) -> Vec<(u64, u64, Vec<u8>)> {
    let mut blobs = Vec::new();
    let mut packed = PackedEdges::default();
    let mut places: FxHashMap<&str, u32> = FxHashMap::default();
    let mut bytes = 0;
    for edge in edges {
        let mut text = |text| {
            *places.entry(text).or_insert_with(|| {
                packed.texts.push(text.to_owned());
                packed.texts.len() as u32 - 1
            })
        };
        let mut end = |end| match end {
            &EdgeEnd::Caller(ip) => {
                PackedEnd { service: 0, address: Some(pack_address(SocketAddr::new(ip, 0))) }
            }
            &EdgeEnd::Server(address) => PackedEnd { service: 0, address: Some(pack_address(address)) },
            EdgeEnd::Service(service) => PackedEnd { service: text(service) + 1, address: None },
        };
        let EdgeKey { minute_unix_s, caller, callee, near, protocol } = &edge.key;
        let row = PackedEdge {
            minute_unix_s: *minute_unix_s,
            caller: Some(end(caller)),
            callee: Some(end(callee)),
            near: Some(pack_address(*near)),
            protocol: text(protocol),
            calls: edge.calls,
            errors: edge.errors,
            sum_ns: edge.sum_ns,
            min_ns: edge.min_ns,
            max_ns: edge.max_ns,
            request_bytes: edge.request_bytes,
            response_bytes: edge.response_bytes,
            retransmits: edge.retransmits,
            sketch: edge.sketch.encode(),
        };
        bytes += row.encoded_len() + 64;
        packed.edges.push(row);
        if bytes >= BLOB_BYTES_MAX {
            blobs.push(finished(&std::mem::take(&mut packed)));
            places.clear();
            bytes = 0;
        }
    }
    if !packed.edges.is_empty() {
        blobs.push(finished(&packed));
    }
    blobs
}

fn finished(packed: &PackedEdges) -> (u64, u64, Vec<u8>) {
    let minutes = || packed.edges.iter().map(|edge| edge.minute_unix_s);
    (minutes().min().unwrap_or(0), minutes().max().unwrap_or(0), packed.encode_to_vec())
}

/// [`pack`]'s bytes back.
pub(crate) fn unpack(bytes: &[u8]) -> Result<Vec<Edge>, RowError> {
    let damaged = |cause: &'static str| RowError(cause.into());
    let packed = PackedEdges::decode(bytes).map_err(|error| RowError(error.to_string().into()))?;
    let text = |place: u32| {
        packed.texts.get(place as usize).cloned().ok_or_else(|| damaged("unknown name in an edge"))
    };
    let address = |packed: Option<&PackedAddress>| {
        packed.and_then(unpack_address).ok_or_else(|| damaged("no address in an edge"))
    };
    let end = |packed: Option<&PackedEnd>, by_address: fn(SocketAddr) -> EdgeEnd| {
        let packed = packed.ok_or_else(|| damaged("an edge lacks an end"))?;
        match packed.service {
            0 => Ok(by_address(address(packed.address.as_ref())?)),
            place => Ok(EdgeEnd::Service(text(place - 1)?)),
        }
    };
    packed
        .edges
        .iter()
        .map(|row| {
            Ok(Edge {
                key: EdgeKey {
                    minute_unix_s: row.minute_unix_s,
                    caller: end(row.caller.as_ref(), |address| EdgeEnd::Caller(address.ip()))?,
                    callee: end(row.callee.as_ref(), EdgeEnd::Server)?,
                    near: address(row.near.as_ref())?,
                    protocol: text(row.protocol)?.into(),
                },
                calls: row.calls,
                errors: row.errors,
                sum_ns: row.sum_ns,
                min_ns: row.min_ns,
                max_ns: row.max_ns,
                request_bytes: row.request_bytes,
                response_bytes: row.response_bytes,
                retransmits: row.retransmits,
                sketch: Sketch::decode(&row.sketch).map_err(|_| damaged("a sketch"))?,
            })
        })
        .collect()
}

/// Adds up what several rows have of one key of one run, from and until minutes (`since <= minute < until`).
#[derive(Default)]
pub(crate) struct Sums(std::collections::BTreeMap<(EdgeKey, u128), Edge>);

impl Sums {
    /// Adds the edges of a blob of a run.
    pub(crate) fn add(
        &mut self,
        run_id: dprof_common::model::RunId,
        bytes: &[u8],
        (since_s, until_s): (u64, u64),
    ) -> Result<(), RowError> {
        for edge in unpack(bytes)? {
            if (since_s..until_s).contains(&edge.key.minute_unix_s) {
                let sum = self.0.entry((edge.key.clone(), run_id.0));
                sum.or_insert_with(|| Edge::new(edge.key.clone())).merge(&edge);
            }
        }
        Ok(())
    }

    /// The sums, in order of their keys.
    pub(crate) fn rows(self) -> Vec<crate::RunEdge> {
        let row = |((_, run_id), edge)| crate::RunEdge { run_id: dprof_common::model::RunId(run_id), edge };
        self.0.into_iter().map(row).collect()
    }
}

/// The minutes that a window asks for: the one that holds its start is included.
pub(crate) fn minutes_of(since_unix_ns: u64, until_unix_ns: u64) -> (u64, u64) {
    (since_unix_ns / 1_000_000_000 / 60 * 60, until_unix_ns.div_ceil(1_000_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Fleet;

    #[test]
    fn edges_survive_packing() {
        let fleet = Fleet::generate(1, 50);
        let mut n = 0;
        for (_, batch) in &fleet.batches {
            let blobs = pack(&batch.edges);
            let back: Vec<Edge> =
                blobs.iter().flat_map(|(_, _, blob)| unpack(blob).expect("just packed")).collect();
            assert_eq!(back, batch.edges);
            n += back.len();
        }
        assert!(n > 10, "{n} edges");
        assert!(pack(&[]).is_empty());
        assert!(unpack(&[0xff, 1, 2]).is_err());
    }

    #[test]
    fn many_edges_come_in_several_blobs() {
        let fleet = Fleet::generate(1, 50);
        let edge = &fleet.batches[0].1.edges[0];
        let many: Vec<Edge> = (0..5_000).map(|_| edge.clone()).collect();
        let blobs = pack(&many);
        assert!(blobs.len() > 1 && blobs.iter().all(|(_, _, blob)| blob.len() <= BLOB_BYTES_MAX));
        let back: Vec<Edge> = blobs.iter().flat_map(|(_, _, blob)| unpack(blob).expect("packed")).collect();
        assert_eq!(back, many);
    }
}
