//! A reader who goes away.

use std::{
    io::{pipe, read_to_string},
    process::Command,
};

#[test]
fn a_command_ends_quietly_with_its_reader() {
    for arguments in [&["help"][..], &["help", "--json"], &["version"]] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let (errors, said) = pipe().unwrap();
        let status = Command::new(env!("CARGO_BIN_EXE_gantry"))
            .args(arguments)
            .stdout(writer)
            .stderr(said)
            .status()
            .unwrap();
        let said = read_to_string(errors).unwrap();
        assert_eq!((status.code(), said.as_str()), (Some(141), ""), "{arguments:?}");
    }
}
