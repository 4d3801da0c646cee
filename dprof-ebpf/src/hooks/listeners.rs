//! Sockets older than the agent: who listened decides who is the server.

use aya_ebpf::helpers::generated::bpf_seq_write;
use dprof_common::event::{EventHeader, EventKind, ListenEvent};

use crate::access::{Ptr, Typed};
use crate::maps::config;
use crate::sock::TCP_LISTEN;

/// `struct bpf_iter__tcp`.
#[repr(C)]
struct IterContext {
    meta: u64,
    sk_common: u64,
    uid: u32,
}

/// `iter/tcp` (5.9): called for each TCP socket of the namespace in which the iterator was opened; writes one
/// [`ListenEvent`] per listening socket to the iterator's file.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
fn each_listener(ctx: *mut core::ffi::c_void) -> i32 {
    // SAFETY: the kernel passes this structure; the verifier checks the loads.
    let (meta, sk) = unsafe {
        let ctx = ctx.cast::<IterContext>();
        (
            core::ptr::read_volatile(&raw const (*ctx).meta),
            core::ptr::read_volatile(&raw const (*ctx).sk_common),
        )
    };
    if sk == 0 {
        return 0;
    }
    let sk = Ptr::<Typed>::new(sk);
    let state: u8 = sk.load(config!(offsets.skc_state));
    if state != TCP_LISTEN {
        return 0;
    }
    let net: u64 = sk.load(config!(offsets.skc_net));
    let event = ListenEvent {
        header: EventHeader { kind: EventKind::Listen as u8, flags: 0, payload_len: 0, size: 0 },
        time_ns: 0,
        netns: Ptr::<Typed>::new(net).load(config!(offsets.net_inum)),
        port: sk.load(config!(offsets.skc_num)),
        padding: 0,
    };
    // SAFETY: `seq` is the first member of `bpf_iter_meta`; the helper copies the record.
    unsafe {
        let seq: u64 = Ptr::<Typed>::new(meta).load(0);
        bpf_seq_write(seq as *mut _, (&raw const event).cast_mut().cast(), size_of::<ListenEvent>() as u32);
    }
    0
}
