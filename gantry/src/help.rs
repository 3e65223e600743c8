//! `gantry help`: commands, and topics that belong to no single one.

use crate::command::tree;
use clap::Args;
use serde_json::{Value, json};
use std::process::ExitCode;

/// `gantry help …`
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  gantry help exit-codes\n  gantry help admin dead-letter replay\n  gantry help --all"
)]
pub struct Arguments {
    /// A topic (exit-codes, environment, formatting, auth, filters, config-files) or a command
    words: Vec<String>,
    /// Every command on one page; with config-files every key
    #[arg(long)]
    all: bool,
}

/// A topic: its name, one line, and its text.
struct Topic {
    name: &'static str,
    about: &'static str,
    text: &'static str,
}

const TOPICS: [Topic; 6] = [
    Topic {
        name: "exit-codes",
        about: "what a command ends with",
        text: include_str!("help/exit-codes.txt"),
    },
    Topic {
        name: "environment",
        about: "variables that commands and the server read",
        text: include_str!("help/environment.txt"),
    },
    Topic {
        name: "formatting",
        about: "output for people and for programs",
        text: include_str!("help/formatting.txt"),
    },
    Topic { name: "auth", about: "tokens, and how to sign in", text: include_str!("help/auth.txt") },
    Topic { name: "filters", about: "which pushes start what", text: include_str!("help/filters.txt") },
    Topic {
        name: "config-files",
        about: "the server's file, and a project's",
        text: include_str!("help/config-files.txt"),
    },
];

/// Prints what was asked for; 2 when there is neither such a topic nor such a command.
pub fn run(arguments: &Arguments, as_json: bool) -> ExitCode {
    if as_json {
        println!("{}", described(&tree()));
        return ExitCode::SUCCESS;
    }
    if arguments.all {
        match arguments.words.first().map(String::as_str) {
            Some("config-files") => print!("{}", crate::reference::configuration()),
            _ => print!("{}", crate::reference::commands()),
        }
        return ExitCode::SUCCESS;
    }
    let Some(first) = arguments.words.first() else {
        println!("{}", tree().render_long_help());
        println!("Topics (gantry help TOPIC):");
        TOPICS.iter().for_each(|topic| println!("  {:<14} {}", topic.name, topic.about));
        return ExitCode::SUCCESS;
    };
    if let (Some(topic), 1) = (TOPICS.iter().find(|topic| topic.name == first), arguments.words.len()) {
        print!("{}", topic.text);
        return ExitCode::SUCCESS;
    }
    let mut found = tree();
    found.build();
    for word in &arguments.words {
        let Some(next) = found.find_subcommand(word).cloned() else {
            eprintln!(
                "gantry: there is no topic or command {word}{}; `gantry help` lists them",
                nearest(&found, word)
            );
            return ExitCode::from(2);
        };
        found = next;
    }
    println!("{}", found.render_long_help());
    ExitCode::SUCCESS
}

fn nearest(command: &clap::Command, word: &str) -> String {
    let names = command.get_subcommands().map(|found| found.get_name().to_owned());
    let topics = TOPICS.iter().map(|topic| topic.name.to_owned());
    let close = names.chain(topics).max_by(|a, b| strsim::jaro(a, word).total_cmp(&strsim::jaro(b, word)));
    close.map(|close| format!("; did you mean {close}?")).unwrap_or_default()
}

/// The machine form: name, purpose, arguments and commands below.
fn described(command: &clap::Command) -> Value {
    let arguments: Vec<Value> = command
        .get_arguments()
        .filter(|argument| !argument.is_hide_set())
        .map(|argument| {
            json!({
                "name": argument.get_id().as_str(),
                "long": argument.get_long(),
                "help": argument.get_help().map(ToString::to_string),
                "required": argument.is_required_set(),
            })
        })
        .collect();
    json!({
        "name": command.get_name(),
        "about": command.get_about().map(ToString::to_string),
        "arguments": arguments,
        "commands": command.get_subcommands().map(described).collect::<Vec<_>>(),
    })
}
