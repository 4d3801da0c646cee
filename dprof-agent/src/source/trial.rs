//! Facts that only the kernel's own answer gives: what it says when a tiny program or map is handed to it. Nothing
//! here is attached.

use std::path::Path;

use aya::Ebpf;

use super::btf::Btf;
use super::hooks::{Attach, Events, Hook};
use super::load;
use super::offsets::offsets;
use super::plan::Facts;

/// The smallest ring: a page.
const RING_BYTES: u32 = 4096;

/// Where the kernel says whether it has kprobes that belong to a descriptor.
const KPROBE_PMU: &str = "/sys/bus/event_source/devices/kprobe/type";

/// Loads what tells, and fills the facts in.
pub(super) fn fill(facts: &mut Facts, btf: &Btf) {
    facts.kprobe_error =
        (!Path::new(KPROBE_PMU).exists()).then(|| "this kernel is built without kprobes".to_owned());
    let Ok(offsets) = offsets(btf) else { return };
    let Ok(types) = load::types() else { return };
    let config = dprof_common::probe_config::ProbeConfig { offsets, ..Default::default() };
    let open = |events| {
        let shape =
            load::Shape { events, ring_bytes: RING_BYTES, state_by_address: false, notes_calls: false };
        load::object(&config, shape, &types)
    };
    let object = match open(Events::Ring) {
        Ok(object) => Ok(object),
        Err(error) => {
            facts.ring_error = Some(format!("{error:#}"));
            open(Events::Perf)
        }
    };
    let Ok(mut object) = object else { return };
    let mut takes = |program, attach| load_one(&mut object, program, attach, &types);
    let tracepoint = Attach::TpBtf("inet_sock_set_state");
    facts.socket_storage = takes("fact_socket_storage", tracepoint).is_ok();
    facts.socket_cookie = takes("fact_socket_cookie", tracepoint).is_ok();
    facts.typed_registers = takes("fact_typed_registers", tracepoint).is_ok();
    facts.probed_registers = takes("fact_probed_registers", Attach::Kprobe("release_sock")).is_ok();
    facts.fentry_error = takes("fact_fentry", Attach::Fentry("tcp_v4_destroy_sock"))
        .err()
        .map(|error| format!("this kernel does not take fentry programs ({})", error.root_cause()));
}

fn load_one(
    object: &mut Ebpf,
    program: &'static str,
    attach: Attach,
    types: &aya::Btf,
) -> anyhow::Result<()> {
    load::program(object, &Hook { program, attach, parameters: &[] }, types)
}
