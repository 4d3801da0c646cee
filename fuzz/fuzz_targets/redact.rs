//! The target `redact` for libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dprof_fuzz::run("redact", data));
