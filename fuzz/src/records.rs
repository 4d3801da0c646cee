//! Records as a kernel or a recording gives them, damaged in any way: counters change, memory stays bounded.

use std::collections::BTreeMap;
use std::sync::Arc;

use dprof_agent::decode::decode;
use dprof_agent::engine::{Engine, EngineConfig, Output};
use dprof_agent::link::LinkOptions;
use dprof_agent::source::BlockBuilder;
use dprof_common::model::{HostInfo, RunId};

fn config() -> EngineConfig {
    EngineConfig {
        host: Arc::new(HostInfo { host: "h".into(), run_id: RunId(1), labels: BTreeMap::new() }),
        unknown: true,
        max_open_ns: 1000,
        hold_ns: 500,
        open_requests_max: 16,
        held_max: 8,
        connections_max: 4,
        clock_offset_ns: 0,
        clock_drift_ppm: 0.0,
        link: LinkOptions::default(),
    }
}

/// Records one after another, each behind its length.
pub(crate) fn events(mut data: &[u8]) {
    let (mut engine, mut out) = (Engine::new(config()), Output::default());
    let mut builder = BlockBuilder::default();
    while let Some((&len, rest)) = data.split_first() {
        let (record, rest) = rest.split_at(usize::from(len).min(rest.len()));
        data = rest;
        let _ = decode(record);
        builder.push(&[record]);
        engine.push(&builder.take(), &mut out);
        let counters = engine.counters();
        assert!(counters.connections <= 4 && counters.open_requests <= 16 && counters.held <= 8);
    }
    engine.finish(&mut out);
    let counters = engine.counters();
    assert!(counters.spans <= counters.halves);
}

/// A record of every kind and of many lengths, and the socket number 1 throughout.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let record = |kind: u8, flags: u8, payload: &[u8], body_bytes: usize| {
        let mut record = vec![kind, flags];
        record.extend_from_slice(&(payload.len() as u16).to_ne_bytes());
        record.extend_from_slice(&(payload.len() as u32).to_ne_bytes());
        record.extend_from_slice(&1u64.to_ne_bytes());
        record.resize(body_bytes, 0);
        record.extend_from_slice(payload);
        let mut input = vec![record.len() as u8];
        input.append(&mut record);
        input
    };
    let mut seeds = Vec::new();
    for kind in 0..16 {
        for body_bytes in [16, 32, 40, 48, 56, 64, 120, 136] {
            let open = record(1, 1, b"", 136);
            let this = record(kind, 0, b"*1\r\n$4\r\nPING\r\n", body_bytes);
            seeds.push([open, this.clone(), this].concat());
        }
    }
    seeds
}
