//! libFuzzer's entry point to the target `nbd_requests` of `quod_fuzz::targets`, where it is explained.
//!
//! Knows: its name. Must never know: what it checks.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| quod_fuzz::targets::must("nbd_requests", input));
