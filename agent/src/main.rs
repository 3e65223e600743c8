//! The `gantry-runner` binary: the agent, the standing runner that starts agents, its helper processes, and the `circleci` command inside jobs.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

fn main() -> ExitCode {
    // Helpers enter namespaces, which a process of several threads cannot: nothing may come before this.
    if let Some(code) = executors::helper_main() {
        return exit(code);
    }
    let mut args = std::env::args_os();
    let name = args.next().map(PathBuf::from).unwrap_or_default();
    let name = name.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let args: Vec<String> = args.map(|a| a.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match (name, words.as_slice()) {
        ("circleci" | "circleci-agent" | "gantry-agent", words) => exit(gantry_runner::injob::run(words)),
        (_, [gantry_runner::files::NAME, request]) => exit(gantry_runner::files::main(request)),
        (_, [gantry_runner::socket::NAME, path]) => exit(gantry_runner::socket::main(path)),
        (_, [gantry_runner::reach::NAME]) => exit(gantry_runner::reach::main()),
        (_, [gantry_runner::ssh::sftp::NAME]) => exit(gantry_runner::ssh::sftp::main()),
        (_, [gantry_runner::ssh::forward::NAME, host, port]) => {
            exit(gantry_runner::ssh::forward::main(host, port))
        }
        (_, ["--task-dir", dir]) => exit(gantry_runner::run(PathBuf::from(dir))),
        (_, ["--placed", dir, identity]) => {
            exit(gantry_runner::placed::run(Path::new(dir), Path::new(identity)))
        }
        (_, ["--config", file]) => exit(gantry_runner::standing::run(Path::new(file))),
        (_, ["--version" | "-V"]) => {
            println!("gantry-runner {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!(
                "usage: gantry-runner --config FILE | --task-dir DIR | --placed DIR IDENTITY | --version"
            );
            ExitCode::from(2)
        }
    }
}

fn exit(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
