//! dprof's kernel programs: what the TCP stack says about messages, as records in a ring.
//!
//! Each hook is a few lines over the helpers: [`sock`] reads kernel structures, [`payload`] user memory,
//! [`filter`] decides, [`emit`] writes the ring, [`maps`] holds every map. What a reader would get wrong: offsets
//! of kernel members are not compiled in. They come in [`maps::CONFIG`], frozen before the verifier runs, so that
//! a load at "pointer + constant from the map" is a checked, plain load.
#![no_std]
#![no_main]

mod emit;
mod filter;
mod hooks {
    pub(crate) mod arrival;
    pub(crate) mod conn;
    pub(crate) mod listeners;
    pub(crate) mod recv;
    pub(crate) mod retransmit;
    pub(crate) mod send;
}
mod maps;
mod payload;
mod sock;

/// The kernel gives several helpers only to GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never reached: the verifier refuses an object in which a panic could be.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
