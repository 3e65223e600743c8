//! The `gantry` binary: a doorway. It parses, hands over, and maps the result to an exit code.

use gantry_server::{
    admin,
    command::{self, Arguments, Command},
    config::Invalid,
    down, help, rotate, serve, up,
};
use signal_hook::consts::SIGPIPE;
use std::{
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

fn main() -> ExitCode {
    let Arguments { global, command } = command::parse(std::env::args_os());
    if !matches!(command, Some(Command::Up(_) | Command::Serve(_) | Command::Admin(_))) {
        end_with_the_reader();
    }
    // What needs no runtime and no network answers at once.
    let command = match command {
        None => {
            println!("{}", command::tree().render_help());
            return ExitCode::SUCCESS;
        }
        Some(Command::Help(arguments)) => return help::run(&arguments, global.json),
        Some(Command::Completion(completion)) => {
            completion.print();
            return ExitCode::SUCCESS;
        }
        Some(command) => command,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("gantry: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    // The first provider installed wins; a second attempt is harmless.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let result = runtime.block_on(async {
        match command {
            Command::Up(arguments) => up::run(arguments, global.data.clone(), global.json).await,
            Command::Serve(arguments) => serve::run(arguments, global.data.clone(), global.json).await,
            Command::Down(arguments) => down::run(arguments, global.data.clone(), global.json).await,
            Command::Admin(command) => admin::run(command, &global).await,
            Command::Version => version(&global).await,
            Command::Client(cli::Command::Token(cli::Token::Rotate { admin: _ })) => {
                rotate::run(&global).await
            }
            Command::Client(command) => Ok(ExitCode::from(cli::run(&global, command).await.code())),
            Command::Help(_) | Command::Completion(_) => Ok(ExitCode::SUCCESS),
        }
    });
    // Blocking reads of a pipe must not hold the process back.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| {
        let (code, word) = match error.downcast_ref::<cli::Failure>() {
            Some(failure) => (failure.exit.code(), failure.exit.word()),
            None if error.downcast_ref::<Invalid>().is_some() => (78, "invalid_configuration"),
            None => (1, "failed"),
        };
        if global.json {
            let text = format!("{error:#}");
            eprintln!("{}", serde_json::json!({ "error": { "code": word, "message": text } }));
        } else {
            eprintln!("gantry: {error:#}");
        }
        ExitCode::from(code)
    })
}

/// Who has seen enough (`| head`) ends the command, quietly, as a shell would say it: 128 and the signal. Not what
/// serves: a pipe of its own may break.
fn end_with_the_reader() {
    let always = Arc::new(AtomicBool::new(true));
    // Where it cannot be had, the command ends with more noise.
    let _ = signal_hook::flag::register_conditional_shutdown(SIGPIPE, 128 + SIGPIPE, always);
}

async fn version(global: &cli::Global) -> anyhow::Result<ExitCode> {
    let own = env!("CARGO_PKG_VERSION");
    let server = match &global.server {
        Some(_) => {
            let answer = cli::Client::connect(global)?.get("/version").await?;
            answer.get("version").and_then(serde_json::Value::as_str).map(str::to_owned)
        }
        None => None,
    };
    if global.json {
        println!("{}", serde_json::json!({ "version": own, "server": server }));
    } else {
        println!("gantry {own}");
        if let Some(server) = server {
            println!("server {server}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
