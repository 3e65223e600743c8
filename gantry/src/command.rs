//! The command line as a whole: every command, with what all of them share.

use crate::{admin, down, help, serve, up};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;

/// Gantry: a self-hosted CI server for `.circleci/config.yml`
#[derive(Parser, Debug)]
#[command(
    name = "gantry",
    version,
    max_term_width = 110,
    disable_help_subcommand = true,
    after_help = "Examples:\n  gantry up                        start everything on this machine\n  gantry try                       a sample project, pushed and watched\n  gantry watch                     the newest run of this folder's project\n  gantry log 7 --follow            the output of job 7\n  gantry config validate           check .circleci/config.yml offline\n\n`gantry help` lists topics; `gantry help --all` prints every command."
)]
pub struct Arguments {
    /// Where the server is and how to print.
    #[command(flatten)]
    pub global: cli::Global,
    /// What to do; nothing: show the help.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Every command.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Start the whole suite in one process tree on embedded defaults
    Up(up::Arguments),
    /// Start one or several services on the stores that the configuration names
    Serve(serve::Arguments),
    /// Stop a running instance
    Down(down::Arguments),
    /// Look after an instance
    #[command(subcommand)]
    Admin(admin::Command),
    /// Print the version of this program, and with --server that of a server
    #[command(after_help = "Examples:\n  gantry version\n  gantry version --json")]
    Version,
    /// Explain a command or a topic
    Help(help::Arguments),
    /// Print the completions of a shell
    #[command(
        after_help = "Examples:\n  gantry completion bash > ~/.local/share/bash-completion/completions/gantry\n  gantry completion fish > ~/.config/fish/completions/gantry.fish"
    )]
    Completion(Completion),
    /// The client commands.
    #[command(flatten)]
    Client(cli::Command),
}

/// `gantry completion SHELL`
#[derive(Args, Debug)]
pub struct Completion {
    /// Which shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

impl Completion {
    /// Writes the script to standard output.
    pub fn print(&self) {
        clap_complete::generate(self.shell, &mut tree(), "gantry", &mut std::io::stdout());
    }

    /// Names of all shells, for the documentation.
    pub fn shells() -> Vec<String> {
        let all = clap_complete::Shell::value_variants().iter();
        all.map(ToString::to_string).collect()
    }
}

/// The tree of commands; each leaf says where its exit codes are explained.
pub fn tree() -> clap::Command {
    finish(Arguments::command())
}

fn finish(command: clap::Command) -> clap::Command {
    let names: Vec<String> = command.get_subcommands().map(|found| found.get_name().to_owned()).collect();
    if names.is_empty() {
        let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let more = "Exit codes: 0 done, 2 wrong usage; all of them: gantry help exit-codes";
        let text = if examples.contains("Exit") {
            examples
        } else if examples.is_empty() {
            more.to_owned()
        } else {
            format!("{examples}\n\n{more}")
        };
        return command.after_help(text);
    }
    names.iter().fold(command, |command, name| command.mut_subcommand(name, finish))
}

/// Parses the words of a command line; ends the program with 2 when they make no command, with 0 after a help.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Arguments {
    let matches = tree().get_matches_from(words);
    Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}
