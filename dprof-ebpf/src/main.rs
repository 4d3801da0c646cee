//! dprof's kernel programs: what the TCP stack says about messages, as records in a ring.
//!
//! [`hooks`] has the programs, a few lines each, by how they attach; [`body`] what they do, by matter, once for all
//! of them. Below: [`access`] reads kernel memory, [`sock`] sockets, [`payload`] user memory; [`state`] keeps what is
//! known of a socket, [`filter`] decides, [`emit`] writes events, [`maps`] holds every map. What a reader would get
//! wrong: offsets of kernel members are not compiled in. They come in [`maps::CONFIG`], frozen before the verifier
//! runs, so that a load at "pointer + constant from the map" is a checked, plain load; and branches that a constant
//! there closes are gone before a program runs, with the helpers in them that this kernel may lack.
#![no_std]
#![no_main]
// For one instruction that the target's atomics do not offer (`emit::cpu_buffer`).
#![feature(asm_experimental_arch)]

mod access;
mod body {
    pub(crate) mod arrival;
    pub(crate) mod conn;
    pub(crate) mod recv;
    pub(crate) mod release;
    pub(crate) mod retransmit;
    pub(crate) mod send;
}
mod emit;
mod filter;
mod hooks {
    pub(crate) mod facts;
    pub(crate) mod fentry;
    pub(crate) mod floor;
    pub(crate) mod kprobe;
    pub(crate) mod listeners;
    pub(crate) mod tp_btf;
}
mod maps;
mod payload;
mod sock;
mod state;

/// The kernel gives several helpers only to GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never reached: the verifier refuses an object in which a panic could be.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
