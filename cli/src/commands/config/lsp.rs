//! `gantry config lsp`: the language server. It speaks to one editor over standard input and output.

mod answers;
mod documents;
mod places;

use super::orbs::{self, Orbs};
use super::server::cache;
use crate::{Exit, Failure, Global};
use answers::answer;
use clap::Args;
use documents::Documents;
use ls_types::{
    CodeActionProviderCapability, CompletionOptions, HoverProviderCapability, OneOf, RenameOptions,
    ServerCapabilities, TextDocumentSyncCapability, TextDocumentSyncKind, WorkDoneProgressOptions,
};
use lsp_server::{Connection, Message, ProtocolError};
use orb_folder::OrbCache;

pub(super) const HELP: &str = "Examples:\n  gantry config lsp\n  gantry config lsp --orb-dir ~/orbs\n\nExits with 0 when the editor says goodbye, 1 when it leaves without.\n\nIn Neovim:\n  vim.lsp.start({ name = \"gantry\", cmd = { \"gantry\", \"config\", \"lsp\" } })";

#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Over standard input and output, which is the only way; editors like to say it
    #[arg(long)]
    stdio: bool,
    #[command(flatten)]
    orbs: orbs::Options,
}

impl Arguments {
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        // Said or not, there is no other way.
        let _ = self.stdio;
        let orbs = self.orbs.open(global)?;
        let (connection, threads) = Connection::stdio();
        let ended = serve(&connection, &orbs, &cache());
        // The thread that writes ends when nobody can send any more.
        drop(connection);
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(Exit::Connection, format!("the connection to the editor broke: {error}"))
        };
        ended.map_err(|error| failed(&error))?;
        threads.join().map_err(|error| failed(&error))?;
        Ok(Exit::Success)
    }
}

fn capabilities() -> ServerCapabilities {
    ServerCapabilities {
        text_document_sync: Some(TextDocumentSyncCapability::Kind(TextDocumentSyncKind::FULL)),
        hover_provider: Some(HoverProviderCapability::Simple(true)),
        completion_provider: Some(CompletionOptions {
            trigger_characters: Some(["/", ".", "<", "*"].map(str::to_owned).to_vec()),
            ..CompletionOptions::default()
        }),
        definition_provider: Some(OneOf::Left(true)),
        rename_provider: Some(OneOf::Right(RenameOptions {
            prepare_provider: Some(true),
            work_done_progress_options: WorkDoneProgressOptions::default(),
        })),
        code_action_provider: Some(CodeActionProviderCapability::Simple(true)),
        ..ServerCapabilities::default()
    }
}

/// Serves until the editor says that it is done.
fn serve(connection: &Connection, orbs: &Orbs, cache: &OrbCache) -> Result<(), ProtocolError> {
    connection.initialize(serde_json::to_value(capabilities()).unwrap_or_default())?;
    let mut documents = Documents::default();
    for message in &connection.receiver {
        match message {
            Message::Request(request) => {
                if connection.handle_shutdown(&request)? {
                    return Ok(());
                }
                let response = answer(&documents, orbs, cache, request);
                if connection.sender.send(Message::Response(response)).is_err() {
                    return Ok(());
                }
            }
            Message::Notification(notification) => documents.take(notification),
            Message::Response(_) => {}
        }
        // While somebody types, only the last text counts.
        if connection.receiver.is_empty() {
            for findings in documents.findings(orbs) {
                if connection.sender.send(Message::Notification(findings)).is_err() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use lsp_server::{Notification, Request, RequestId, Response};
    use serde_json::{Value, json};
    use std::time::Duration;

    /// A client that is connected to a server of its own.
    struct Editor {
        connection: Connection,
        server: Option<std::thread::JoinHandle<()>>,
        asked: i32,
    }

    const LIMIT: Duration = Duration::from_secs(30);
    const URI: &str = "file:///project/.circleci/config.yml";

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        own: Arguments,
    }

    impl Editor {
        fn start(orb_dir: &std::path::Path) -> Self {
            let (ours, theirs) = Connection::memory();
            let dir = orb_dir.display().to_string();
            let line = Line::try_parse_from(["lsp", "--stdio", "--orb-dir", &dir]).expect("arguments");
            let kept = OrbCache::new(orb_dir.join("kept"));
            let server = std::thread::spawn(move || {
                let global = Global { data: Some("/nowhere".into()), ..Global::default() };
                let orbs = line.own.orbs.open(&global).expect("orbs");
                serve(&theirs, &orbs, &kept).expect("served");
            });
            let mut editor = Self { connection: ours, server: Some(server), asked: 0 };
            let answer = editor.ask("initialize", json!({ "capabilities": {} })).expect("capabilities");
            assert_eq!(answer["capabilities"]["renameProvider"]["prepareProvider"], true);
            editor.tell("initialized", json!({}));
            editor
        }

        fn tell(&self, method: &str, params: Value) {
            let message = Notification::new(method.to_owned(), params);
            self.connection.sender.send(message.into()).expect("the server is there");
        }

        fn next(&self) -> Message {
            self.connection.receiver.recv_timeout(LIMIT).expect("an answer in time")
        }

        fn ask(&mut self, method: &str, params: Value) -> Result<Value, String> {
            self.asked += 1;
            let id = RequestId::from(self.asked);
            let request = Request::new(id.clone(), method.to_owned(), params);
            self.connection.sender.send(request.into()).expect("the server is there");
            loop {
                if let Message::Response(Response { id: of, response_result }) = self.next()
                    && of == id
                {
                    return response_result.map_err(|error| error.message);
                }
            }
        }

        fn open(&self, text: &str) -> Vec<Value> {
            let item = json!({ "uri": URI, "languageId": "yaml", "version": 1, "text": text });
            self.tell("textDocument/didOpen", json!({ "textDocument": item }));
            self.findings(1)
        }

        fn change(&self, version: i32, text: &str) -> Vec<Value> {
            let document = json!({ "uri": URI, "version": version });
            self.tell(
                "textDocument/didChange",
                json!({ "textDocument": document, "contentChanges": [{ "text": text }] }),
            );
            self.findings(version)
        }

        /// What is found in this version of the file.
        fn findings(&self, version: i32) -> Vec<Value> {
            loop {
                if let Message::Notification(Notification { params, .. }) = self.next()
                    && params["version"] == version
                {
                    return params["diagnostics"].as_array().cloned().unwrap_or_default();
                }
            }
        }

        fn at(&mut self, method: &str, line: u32, character: u32) -> Result<Value, String> {
            let place = json!({ "textDocument": { "uri": URI }, "position": { "line": line, "character": character } });
            self.ask(method, place)
        }
    }

    impl Drop for Editor {
        fn drop(&mut self) {
            if std::thread::panicking() {
                return;
            }
            self.ask("shutdown", Value::Null).expect("shut down");
            self.tell("exit", Value::Null);
            self.server.take().expect("a server").join().expect("the server ended well");
        }
    }

    const TEXT: &str = "version: 2.1\norbs:\n  tool: acme/tool@1\njobs:\n  build:\n    machine: true\n    steps:\n      - tool/say: {word: hi}\n      - chekout\nworkflows:\n  w:\n    jobs:\n      - build\n";

    #[test]
    fn an_editor_is_served_from_start_to_end() {
        let folder = tempfile::tempdir().expect("folder");
        let orb = "version: 2.1\ncommands:\n  say:\n    description: Says it.\n    parameters: {word: {type: string}}\n    steps: [{run: echo << parameters.word >>}]\n";
        std::fs::create_dir(folder.path().join("acme")).expect("folder");
        std::fs::write(folder.path().join("acme/tool@1.0.0.yml"), orb).expect("orb");
        let mut editor = Editor::start(folder.path());

        let found = editor.open(TEXT);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            (&found[0]["code"], &found[0]["range"]["start"]["line"]),
            (&json!("unknown-command"), &json!(8))
        );
        let range = found[0]["range"].clone();
        let params =
            json!({ "textDocument": { "uri": URI }, "range": range, "context": { "diagnostics": [] } });
        let actions = editor.ask("textDocument/codeAction", params).expect("actions");
        assert_eq!(actions[0]["edit"]["changes"][URI][0]["newText"], "checkout");
        assert_eq!(editor.change(2, &TEXT.replace("chekout", "checkout")), Vec::<Value>::new());

        let hover = editor.at("textDocument/hover", 7, 14).expect("hover");
        assert!(hover["contents"]["value"].as_str().is_some_and(|text| text.contains("Says it.")), "{hover}");
        let target = editor.at("textDocument/definition", 7, 14).expect("definition");
        assert_eq!(target["range"]["start"], json!({ "line": 2, "character": 2 }));
        let uri = target["uri"].as_str().expect("an address");
        let path = uri.parse::<ls_types::Uri>().expect("an address");
        let path = path.to_file_path().expect("a file").into_owned();
        assert_eq!(std::fs::read_to_string(path).expect("the orb"), orb);
        let own = editor.at("textDocument/definition", 12, 9).expect("definition");
        assert_eq!((&own["uri"], &own["range"]["start"]["line"]), (&json!(URI), &json!(4)));

        let range = editor.at("textDocument/prepareRename", 12, 9).expect("can be renamed");
        assert_eq!(range["start"], json!({ "line": 12, "character": 8 }));
        let params = json!({ "textDocument": { "uri": URI }, "position": { "line": 12, "character": 9 }, "newName": "make" });
        let edit = editor.ask("textDocument/rename", params.clone()).expect("renamed");
        assert_eq!(edit["changes"][URI].as_array().map(Vec::len), Some(2));
        let mut bad = params;
        bad["newName"] = json!("a/b");
        assert!(editor.ask("textDocument/rename", bad).expect_err("no name").contains("letters"));

        let begun = TEXT.replace("      - chekout\n", "      - tool/\n");
        assert!(!editor.change(3, &begun).is_empty());
        let items = editor.at("textDocument/completion", 8, 13).expect("completion");
        let labels: Vec<&str> =
            items.as_array().into_iter().flatten().filter_map(|i| i["label"].as_str()).collect();
        assert!(labels.contains(&"tool/say") && labels.contains(&"checkout"), "{labels:?}");
        assert!(editor.ask("textDocument/unknown", Value::Null).is_err());
        assert!(editor.change(4, "jobs: [\n")[0]["message"].as_str().is_some());
    }
}
