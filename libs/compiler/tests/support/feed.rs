//! Everything that reads a configuration, as the tests with damaged files and the fuzz targets call it.

use gantry_compiler::format::format;
use gantry_compiler::simulate::simulate;
use gantry_compiler::{Input, PipelineValues, check, compile};

/// Whatever the source is, each tool answers, and what they say of it agrees.
pub fn feed(source: &str) {
    let values = PipelineValues { branch: Some("main".into()), ..PipelineValues::default() };
    let input = Input { values, ..Input::new("config.yml", source) };
    match compile(&input) {
        Ok(compiled) => {
            serde_json::to_string(&compiled.plan).expect("a plan is data");
            simulate(&input).expect("what compiles can be simulated");
        }
        Err(errors) => {
            assert!(!errors.is_empty(), "refused without a reason");
            errors.iter().for_each(|error| _ = error.render(source, true));
        }
    }
    let _ = check::orb(&input);
    formats_once(source);
}

/// A file that is laid out already is left alone.
pub fn formats_once(source: &str) {
    if let Ok(formatted) = format("config.yml", source) {
        let again = format("config.yml", &formatted).ok();
        assert_eq!(again.as_deref(), Some(formatted.as_str()), "formats once");
    }
}
