//! Rollups to blobs and back, with their names in a dictionary of the blob's own.
//!
//! What a reader would get wrong: protobuf, so that a later dprof may add optional fields and no table changes.

use dprof_common::model::{KeyStats, Rollup, RollupKey, Side, Sketch};
use prost::Message;
use rustc_hash::FxHashMap;

use crate::rows::RowError;

/// Bytes of a blob at most.
const BLOB_BYTES_MAX: usize = 256 << 10;

/// A rollup as stored. Further optional fields need no change of the tables.
#[derive(Clone, PartialEq, Message)]
struct PackedRollup {
    #[prost(uint64, tag = "1")]
    minute_unix_s: u64,
    #[prost(uint32, tag = "2")]
    service: u32,
    #[prost(uint32, tag = "3")]
    operation: u32,
    #[prost(uint32, tag = "4")]
    side: u32,
    #[prost(uint32, tag = "5")]
    protocol: u32,
    #[prost(uint64, tag = "6")]
    count: u64,
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
    #[prost(bytes = "vec", tag = "13")]
    sketch: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "14")]
    keys: Option<Vec<u8>>,
}

/// Rollups with their names.
#[derive(Clone, PartialEq, Message)]
struct PackedRollups {
    #[prost(string, repeated, tag = "1")]
    texts: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    rollups: Vec<PackedRollup>,
}

/// As many blobs as needed, each below the limit.
pub(crate) fn pack<'a>(rollups: impl IntoIterator<Item = &'a Rollup>) -> Vec<Vec<u8>> {
    let mut blobs = Vec::new();
    let mut packed = PackedRollups::default();
    let mut places: FxHashMap<String, u32> = FxHashMap::default();
    let mut bytes = 0;
    for rollup in rollups {
        let mut text = |text: &str| {
            places.get(text).copied().unwrap_or_else(|| {
                let place = packed.texts.len() as u32;
                bytes += text.len() + 2;
                packed.texts.push(text.to_owned());
                places.insert(text.to_owned(), place);
                place
            })
        };
        let row = PackedRollup {
            minute_unix_s: rollup.key.minute_unix_s,
            service: text(&rollup.key.service),
            operation: text(&rollup.key.operation),
            side: rollup.key.side as u32,
            protocol: text(&rollup.key.protocol),
            count: rollup.count,
            errors: rollup.errors,
            sum_ns: rollup.sum_ns,
            min_ns: rollup.min_ns,
            max_ns: rollup.max_ns,
            request_bytes: rollup.request_bytes,
            response_bytes: rollup.response_bytes,
            sketch: rollup.sketch.encode(),
            keys: rollup.keys.as_ref().map(|keys| keys.encode()),
        };
        bytes += row.encoded_len() + 4;
        packed.rollups.push(row);
        if bytes >= BLOB_BYTES_MAX {
            blobs.push(std::mem::take(&mut packed).encode_to_vec());
            places.clear();
            bytes = 0;
        }
    }
    if !packed.rollups.is_empty() {
        blobs.push(packed.encode_to_vec());
    }
    blobs
}

/// [`pack`]'s bytes back.
pub(crate) fn unpack(bytes: &[u8]) -> Result<Vec<Rollup>, RowError> {
    let damaged = |cause: &'static str| RowError(cause.into());
    let packed = PackedRollups::decode(bytes).map_err(|error| RowError(error.to_string().into()))?;
    let text = |place: u32| {
        packed.texts.get(place as usize).cloned().ok_or_else(|| damaged("unknown name in a rollup"))
    };
    packed
        .rollups
        .iter()
        .map(|row| {
            Ok(Rollup {
                key: RollupKey {
                    minute_unix_s: row.minute_unix_s,
                    service: text(row.service)?,
                    operation: text(row.operation)?,
                    side: side_of(row.side).ok_or_else(|| damaged("unknown side in a rollup"))?,
                    protocol: text(row.protocol)?.into(),
                },
                count: row.count,
                errors: row.errors,
                sum_ns: row.sum_ns,
                min_ns: row.min_ns,
                max_ns: row.max_ns,
                request_bytes: row.request_bytes,
                response_bytes: row.response_bytes,
                sketch: Sketch::decode(&row.sketch).map_err(|_| damaged("a sketch"))?,
                keys: match &row.keys {
                    Some(keys) => Some(Box::new(KeyStats::decode(keys).map_err(|_| damaged("keys"))?)),
                    None => None,
                },
            })
        })
        .collect()
}

/// The side with this stored number.
const fn side_of(number: u32) -> Option<Side> {
    match number {
        1 => Some(Side::Client),
        2 => Some(Side::Server),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Fleet;

    #[test]
    fn rollups_survive_packing() {
        let fleet = Fleet::generate(1, 50);
        for (_, batch) in &fleet.batches {
            let blobs = pack(&batch.rollups);
            let back: Vec<Rollup> =
                blobs.iter().flat_map(|blob| unpack(blob).expect("just packed")).collect();
            assert_eq!(back, batch.rollups);
        }
        assert!(pack([]).is_empty());
        assert!(unpack(&[0xff, 1, 2]).is_err());
    }
}
