//! Answers to the questions of an editor.

use super::super::orbs::Orbs;
use super::documents::{Document, Documents};
use super::places::{offset, position, range};
use compiler::editor::{self, CandidateKind};
use ls_types::{
    self as lsp, CodeAction, CodeActionKind, CodeActionOrCommand, CompletionItem, CompletionItemKind,
    CompletionResponse, CompletionTextEdit, Documentation, GotoDefinitionResponse, HoverContents, Location,
    MarkupContent, MarkupKind, PrepareRenameResponse, TextDocumentPositionParams, TextEdit, Uri,
    WorkspaceEdit,
    request::{
        CodeActionRequest, Completion, GotoDefinition, HoverRequest, PrepareRenameRequest, Rename,
        Request as _,
    },
};
use lsp_server::{ErrorCode, Request, Response};
use orb_folder::OrbCache;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::HashMap;

/// What went wrong: whose fault, and how.
struct Problem(ErrorCode, String);

type Answer<T> = Result<T, Problem>;

/// Answers one question.
pub(super) fn answer(documents: &Documents, orbs: &Orbs, cache: &OrbCache, request: Request) -> Response {
    let Request { id, method, params } = request;
    let scene = Scene { documents, orbs, cache };
    let result = match method.as_str() {
        HoverRequest::METHOD => scene.say(params, Scene::hover),
        Completion::METHOD => scene.say(params, Scene::complete),
        GotoDefinition::METHOD => scene.say(params, Scene::define),
        PrepareRenameRequest::METHOD => scene.say(params, Scene::prepare_rename),
        Rename::METHOD => scene.say(params, Scene::rename),
        CodeActionRequest::METHOD => scene.say(params, Scene::fixes),
        _ => Err(Problem(ErrorCode::MethodNotFound, format!("{method} is not answered here"))),
    };
    match result {
        Ok(value) => Response::new_ok(id, value),
        Err(Problem(code, message)) => Response::new_err(id, code as i32, message),
    }
}

struct Scene<'s> {
    documents: &'s Documents,
    orbs: &'s Orbs,
    /// Where sources of orbs are put so that they can be shown.
    cache: &'s OrbCache,
}

impl Scene<'_> {
    fn say<P: DeserializeOwned, T: Serialize>(
        &self,
        params: serde_json::Value,
        with: impl FnOnce(&Self, P) -> Answer<T>,
    ) -> Answer<serde_json::Value> {
        let params = serde_json::from_value(params)
            .map_err(|error| Problem(ErrorCode::InvalidParams, error.to_string()))?;
        let value = with(self, params)?;
        serde_json::to_value(value).map_err(|error| Problem(ErrorCode::InternalError, error.to_string()))
    }

    fn document(&self, uri: &Uri) -> Answer<&Document> {
        let unknown = || Problem(ErrorCode::InvalidParams, format!("{} is not open", uri.as_str()));
        self.documents.get(uri).ok_or_else(unknown)
    }

    fn at(&self, place: &TextDocumentPositionParams) -> Answer<(&Document, usize)> {
        let document = self.document(&place.text_document.uri)?;
        Ok((document, offset(&document.text, place.position)))
    }

    fn hover(&self, params: lsp::HoverParams) -> Answer<Option<lsp::Hover>> {
        let (document, at) = self.at(&params.text_document_position_params)?;
        let found = editor::hover(&document.input(self.orbs), at);
        Ok(found.map(|hover| lsp::Hover {
            contents: HoverContents::Markup(markdown(hover.text)),
            range: Some(range(&document.text, &hover.range)),
        }))
    }

    fn complete(&self, params: lsp::CompletionParams) -> Answer<CompletionResponse> {
        let (document, at) = self.at(&params.text_document_position)?;
        let found = editor::complete(&document.input(self.orbs), at);
        let item = |candidate: editor::Candidate| CompletionItem {
            kind: Some(kind(candidate.kind)),
            documentation: (!candidate.about.is_empty())
                .then(|| Documentation::MarkupContent(markdown(candidate.about))),
            text_edit: Some(CompletionTextEdit::Edit(TextEdit {
                range: range(&document.text, &candidate.range),
                new_text: candidate.text.clone(),
            })),
            label: candidate.text,
            ..CompletionItem::default()
        };
        Ok(CompletionResponse::Array(found.into_iter().map(item).collect()))
    }

    fn define(&self, params: lsp::GotoDefinitionParams) -> Answer<Option<GotoDefinitionResponse>> {
        let (document, at) = self.at(&params.text_document_position_params)?;
        let Some(target) = editor::definition(&document.input(self.orbs), at) else { return Ok(None) };
        let location = match target.orb {
            None => Location { uri: document.uri.clone(), range: range(&document.text, &target.range) },
            Some((resolved, text)) => {
                let failed = |error: String| {
                    Problem(
                        ErrorCode::RequestFailed,
                        format!("the source of {resolved} cannot be shown: {error}"),
                    )
                };
                let path = self.cache.file(&resolved, &text).map_err(|error| failed(error.to_string()))?;
                let uri = Uri::from_file_path(&path).ok_or_else(|| failed(path.display().to_string()))?;
                let start = position(&text, target.range.start);
                Location { uri, range: lsp::Range { start, end: position(&text, target.range.end) } }
            }
        };
        Ok(Some(GotoDefinitionResponse::Scalar(location)))
    }

    fn prepare_rename(&self, place: TextDocumentPositionParams) -> Answer<Option<PrepareRenameResponse>> {
        let (document, at) = self.at(&place)?;
        let found = editor::renameable(&document.input(self.orbs), at);
        Ok(found.map(|found| PrepareRenameResponse::Range(range(&document.text, &found))))
    }

    fn rename(&self, params: lsp::RenameParams) -> Answer<WorkspaceEdit> {
        let (document, at) = self.at(&params.text_document_position)?;
        let places = editor::rename(&document.input(self.orbs), at, &params.new_name)
            .map_err(|error| Problem(ErrorCode::RequestFailed, error.to_string()))?;
        let edit =
            |place| TextEdit { range: range(&document.text, place), new_text: params.new_name.clone() };
        Ok(changes(document, places.iter().map(edit).collect()))
    }

    /// What findings in the range leave no choice about.
    fn fixes(&self, params: lsp::CodeActionParams) -> Answer<Vec<CodeActionOrCommand>> {
        let document = self.document(&params.text_document.uri)?;
        let mut actions = Vec::new();
        for found in document.look(self.orbs) {
            let shown = document.finding(&found);
            let meets = shown.range.start <= params.range.end && params.range.start <= shown.range.end;
            let Some(fix) = found.fix.filter(|_| meets) else { continue };
            let edit = TextEdit {
                range: range(&document.text, &(fix.start..fix.end)),
                new_text: fix.replacement.clone(),
            };
            actions.push(CodeActionOrCommand::CodeAction(CodeAction {
                title: format!("Write `{}`", fix.replacement.trim()),
                kind: Some(CodeActionKind::QUICKFIX),
                diagnostics: Some(vec![shown]),
                edit: Some(changes(document, vec![edit])),
                is_preferred: Some(true),
                ..CodeAction::default()
            }));
        }
        Ok(actions)
    }
}

fn changes(document: &Document, edits: Vec<TextEdit>) -> WorkspaceEdit {
    let changes = HashMap::from([(document.uri.clone(), edits)]);
    WorkspaceEdit { changes: Some(changes), ..WorkspaceEdit::default() }
}

fn markdown(value: String) -> MarkupContent {
    MarkupContent { kind: MarkupKind::Markdown, value }
}

fn kind(kind: CandidateKind) -> CompletionItemKind {
    match kind {
        CandidateKind::Key => CompletionItemKind::PROPERTY,
        CandidateKind::Word => CompletionItemKind::ENUM_MEMBER,
        CandidateKind::Job => CompletionItemKind::CLASS,
        CandidateKind::Command => CompletionItemKind::FUNCTION,
        CandidateKind::Executor => CompletionItemKind::MODULE,
        CandidateKind::Parameter => CompletionItemKind::VARIABLE,
        CandidateKind::Value => CompletionItemKind::CONSTANT,
        CandidateKind::Anchor => CompletionItemKind::REFERENCE,
    }
}
