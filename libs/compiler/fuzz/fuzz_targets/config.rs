//! The whole compiler and its tools.
#![no_main]

#[path = "../../tests/support/feed.rs"]
mod feed;

libfuzzer_sys::fuzz_target!(|source: &str| feed::feed(source));
