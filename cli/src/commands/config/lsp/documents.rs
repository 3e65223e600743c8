//! The files that are open in the editor, and what is found in them.

use super::super::orbs::Orbs;
use super::places::of_column;
use compiler::check::{self, Kind};
use compiler::{Diagnostic, Input, Severity};
use ls_types::{
    self as lsp, DiagnosticRelatedInformation, DiagnosticSeverity, Location, NumberOrString, Range, Uri,
    notification::{
        DidChangeTextDocument, DidCloseTextDocument, DidOpenTextDocument, Notification, PublishDiagnostics,
    },
};
use std::collections::{HashMap, HashSet};

/// Texts by their addresses.
#[derive(Default)]
pub(super) struct Documents {
    open: HashMap<String, Document>,
    /// Those that were changed since they were last looked at.
    changed: HashSet<String>,
}

pub(super) struct Document {
    pub uri: Uri,
    pub text: String,
    /// What messages call it.
    pub shown: String,
    version: i32,
}

impl Document {
    fn new(uri: Uri, text: String, version: i32) -> Self {
        let shown =
            uri.to_file_path().map_or_else(|| uri.as_str().to_owned(), |path| path.display().to_string());
        Self { uri, text, shown, version }
    }

    /// What the compiler is given.
    pub fn input<'d>(&'d self, orbs: &'d Orbs) -> Input<'d> {
        let event = super::super::event::Options::default().values();
        Input { orbs, values: event.unwrap_or_default(), ..Input::new(&self.shown, &self.text) }
    }

    /// All errors and warnings. Other YAML files have none.
    pub fn look(&self, orbs: &Orbs) -> Vec<Diagnostic> {
        let input = self.input(orbs);
        let kind = match check::kind(&self.text) {
            Kind::Other if self.shown.contains(".circleci/config.") => Kind::Configuration,
            kind => kind,
        };
        match kind {
            Kind::Configuration => match compiler::compile(&input) {
                Ok(compiled) => compiled.warnings,
                Err(errors) => errors,
            },
            Kind::Orb => check::orb(&input).map_or_else(|errors| errors, |(warnings, _)| warnings),
            Kind::Other => Vec::new(),
        }
    }

    /// A finding as editors show it. One in an orb is shown where this file led there.
    pub fn finding(&self, found: &Diagnostic) -> lsp::Diagnostic {
        let place = |line, column, end_line, end_column| Range {
            start: of_column(&self.text, line, column),
            end: of_column(&self.text, end_line, end_column),
        };
        let own = found.file == self.shown;
        let here = found.related.iter().find(|related| related.file == self.shown);
        let (range, mut message) = match here {
            _ if own => {
                let range = place(found.line, found.column, found.end_line, found.end_column);
                (range, found.message.clone())
            }
            Some(call) => {
                let range = place(call.line, call.column, call.line, call.column + 1);
                (range, format!("in {}:{}: {}", found.file, found.line, found.message))
            }
            None => (Range::default(), format!("in {}:{}: {}", found.file, found.line, found.message)),
        };
        if let Some(hint) = &found.hint {
            message.push_str(&format!("\n{hint}"));
        }
        let related = found.related.iter().filter(|related| related.file == self.shown && own);
        let related: Vec<DiagnosticRelatedInformation> = related
            .map(|related| {
                let range = place(related.line, related.column, related.line, related.column + 1);
                let location = Location { uri: self.uri.clone(), range };
                DiagnosticRelatedInformation { location, message: related.message.clone() }
            })
            .collect();
        lsp::Diagnostic {
            range,
            severity: Some(match found.severity {
                Severity::Error => DiagnosticSeverity::ERROR,
                Severity::Warning => DiagnosticSeverity::WARNING,
            }),
            code: Some(NumberOrString::String(found.code.to_owned())),
            source: Some("gantry".to_owned()),
            message,
            related_information: (!related.is_empty()).then_some(related),
            ..lsp::Diagnostic::default()
        }
    }
}

impl Documents {
    pub fn get(&self, uri: &Uri) -> Option<&Document> {
        self.open.get(uri.as_str())
    }

    /// Takes over what the editor says of a file; what cannot be read changes nothing.
    pub fn take(&mut self, notification: lsp_server::Notification) {
        let lsp_server::Notification { method, params } = notification;
        match method.as_str() {
            DidOpenTextDocument::METHOD => {
                let Ok(lsp::DidOpenTextDocumentParams { text_document }) = serde_json::from_value(params)
                else {
                    return;
                };
                self.put(Document::new(text_document.uri, text_document.text, text_document.version));
            }
            DidChangeTextDocument::METHOD => {
                let Ok(lsp::DidChangeTextDocumentParams { text_document, content_changes }) =
                    serde_json::from_value(params)
                else {
                    return;
                };
                // Each holds the whole text.
                if let Some(last) = content_changes.into_iter().next_back() {
                    self.put(Document::new(text_document.uri, last.text, text_document.version));
                }
            }
            DidCloseTextDocument::METHOD => {
                if let Ok(lsp::DidCloseTextDocumentParams { text_document }) = serde_json::from_value(params)
                {
                    self.open.remove(text_document.uri.as_str());
                    self.changed.remove(text_document.uri.as_str());
                }
            }
            _ => {}
        }
    }

    fn put(&mut self, document: Document) {
        let key = document.uri.as_str().to_owned();
        self.changed.insert(key.clone());
        self.open.insert(key, document);
    }

    /// What is found in the files that were changed, as messages to the editor.
    pub fn findings(&mut self, orbs: &Orbs) -> Vec<lsp_server::Notification> {
        let changed = std::mem::take(&mut self.changed);
        let documents = changed.iter().filter_map(|key| self.open.get(key));
        let message = |document: &Document| {
            let diagnostics = document.look(orbs).iter().map(|found| document.finding(found)).collect();
            let params = lsp::PublishDiagnosticsParams {
                uri: document.uri.clone(),
                diagnostics,
                version: Some(document.version),
            };
            lsp_server::Notification::new(PublishDiagnostics::METHOD.to_owned(), params)
        };
        documents.map(message).collect()
    }
}
