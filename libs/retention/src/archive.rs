//! What an archive looks like: lines of JSON, compressed with zstd.
//!
//! The first line names format, service and archive; then come final rows (`{"state": …}`) and events (`{"event": …}`, as on
//! the bus, each aggregate's in the order of their versions). The personal part of an event is sealed under a key of its
//! aggregate that lies in the database: deleting the key erases it here too.

use anyhow::{Context, ensure};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};
use contracts::Envelope;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
};
use uuid::Uuid;

const FORMAT: u32 = 1;
/// zstd's own default: twice as fast as what saves a tenth more.
const LEVEL: i32 = 3;

/// A final row of an archived aggregate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Kind of the aggregate, or of a part of it, for example `job`.
    pub kind: String,
    /// Its id.
    pub id: Uuid,
    /// The row's columns.
    pub row: Value,
}

/// A line of an archive.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// A final row.
    State(State),
    /// An event; its personal part, if it has one, is readable where its key is still there.
    Event(Box<Envelope>),
}

#[derive(Serialize, Deserialize)]
struct Head {
    archive: u32,
    service: String,
    id: Uuid,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    State(State),
    Event(Box<Envelope>),
}

/// Keys of personal parts, by aggregate.
pub(crate) type Keys = BTreeMap<(String, Uuid), Vec<u8>>;

/// An archive in the making.
pub(crate) struct Writer {
    out: zstd::Encoder<'static, Vec<u8>>,
    written: Written,
}

/// What an archive holds.
#[derive(Default)]
pub(crate) struct Written {
    pub(crate) keys: Keys,
    /// Last version of each aggregate.
    pub(crate) versions: BTreeMap<(String, Uuid), i64>,
    pub(crate) events: i64,
}

impl Writer {
    pub(crate) fn new(service: &str, id: Uuid) -> anyhow::Result<Self> {
        let out = zstd::Encoder::new(Vec::new(), LEVEL)?;
        let mut writer = Self { out, written: Written::default() };
        writer.line(&Head { archive: FORMAT, service: service.to_owned(), id })?;
        Ok(writer)
    }

    fn line(&mut self, line: &impl Serialize) -> anyhow::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        Ok(self.out.write_all(b"\n")?)
    }

    pub(crate) fn state(&mut self, state: State) -> anyhow::Result<()> {
        self.line(&Line::State(state))
    }

    /// Events of an aggregate come in the order of their versions, from the first one on.
    pub(crate) fn event(&mut self, mut event: Envelope) -> anyhow::Result<()> {
        let aggregate = (event.aggregate.kind.clone(), event.aggregate.id);
        let last = self.written.versions.entry(aggregate.clone()).or_default();
        ensure!(
            event.aggregate.version == *last + 1,
            "{} {}: version {} follows {last}: a history with a hole is not archived",
            aggregate.0,
            aggregate.1,
            event.aggregate.version
        );
        *last += 1;
        if let Some(personal) = event.personal.take() {
            let key = match self.written.keys.entry(aggregate) {
                std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::btree_map::Entry::Vacant(new) => {
                    let mut key = vec![0; AES_256_GCM.key_len()];
                    rand::fill(&mut key)?;
                    new.insert(key)
                }
            };
            event.personal = Some(json!({ "sealed": seal(key, event.id.uuid(), &personal)? }));
        }
        self.written.events += 1;
        self.line(&Line::Event(Box::new(event)))
    }

    pub(crate) fn finish(self) -> anyhow::Result<(Vec<u8>, Written)> {
        Ok((self.out.finish()?, self.written))
    }
}

/// Nonce and ciphertext, hex; the event's id is bound to it.
fn seal(key: &[u8], event: Uuid, personal: &Value) -> anyhow::Result<String> {
    let key = RandomizedNonceKey::new(&AES_256_GCM, key)?;
    let mut text = personal.to_string().into_bytes();
    let nonce = key.seal_in_place_append_tag(Aad::from(event.as_bytes()), &mut text)?;
    let mut sealed = nonce.as_ref().to_vec();
    sealed.append(&mut text);
    Ok(hex::encode(sealed))
}

fn open(key: &[u8], event: Uuid, sealed: &str) -> anyhow::Result<Value> {
    let key = RandomizedNonceKey::new(&AES_256_GCM, key)?;
    let mut bytes = hex::decode(sealed)?;
    ensure!(bytes.len() > NONCE_LEN, "a sealed part is too short");
    let mut text = bytes.split_off(NONCE_LEN);
    let nonce = Nonce::try_assume_unique_for_key(&bytes)?;
    Ok(serde_json::from_slice(key.open_in_place(nonce, Aad::from(event.as_bytes()), &mut text)?)?)
}

/// Reads an archive; each line goes to `each`. A personal part without its key is left out, as if it had been erased from
/// the log.
///
/// # Errors
/// The bytes are no archive of this service and id, a personal part does not open under its key, or `each` fails.
pub fn read(
    bytes: &[u8],
    (service, id): (&str, Uuid),
    keys: &BTreeMap<(String, Uuid), Vec<u8>>,
    mut each: impl FnMut(Entry) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut lines = BufReader::new(zstd::Decoder::new(bytes)?).lines();
    let head: Head = serde_json::from_str(&lines.next().context("it is empty")??)?;
    ensure!(
        head.archive == FORMAT && head.service == service && head.id == id,
        "it is archive {} of {} in format {}",
        head.id,
        head.service,
        head.archive
    );
    for line in lines {
        let entry = match serde_json::from_str(&line?)? {
            Line::State(state) => Entry::State(state),
            Line::Event(mut event) => {
                let sealed = event.personal.take();
                let sealed = sealed.as_ref().and_then(|part| part.get("sealed")).and_then(Value::as_str);
                let key = keys.get(&(event.aggregate.kind.clone(), event.aggregate.id));
                if let (Some(sealed), Some(key)) = (sealed, key) {
                    let opened = open(key, event.id.uuid(), sealed);
                    event.personal = Some(opened.with_context(|| format!("event {}", event.id))?);
                }
                Entry::Event(event)
            }
        };
        each(entry)?;
    }
    Ok(())
}
