//! YAML by the rules of the language, and the layout of files.
#![no_main]

#[path = "../../tests/support/feed.rs"]
#[allow(dead_code)]
mod feed;

libfuzzer_sys::fuzz_target!(|source: &str| {
    if let Err(errors) = gantry_compiler::data("config.yml", source) {
        assert!(!errors.is_empty(), "refused without a reason");
        errors.iter().for_each(|error| _ = error.render(source, false));
    }
    feed::formats_once(source);
});
