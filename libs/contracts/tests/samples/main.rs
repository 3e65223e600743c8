//! A sample of every event type and version, and of every request: what was once written stays readable, and a
//! message does not change its shape unnoticed.
//!
//! `GANTRY_BLESS=1` writes the samples that are missing. It never touches one that exists: a sample that was
//! released is what lies in somebody's database.

mod catalogue;
mod invent;

use contracts::{Event, envelope::read, request::Ask};
use gantry_contracts as contracts;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("samples")
}

fn bless() -> bool {
    std::env::var_os("GANTRY_BLESS").is_some()
}

fn write(path: &Path, value: &Value) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, serde_json::to_string_pretty(value).unwrap() + "\n").unwrap();
}

fn load(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Samples of a type as (schema, number, path), oldest first: `1.json`, `1-2.json`, `2.json` …
fn of_type(folder: &Path) -> Vec<(u32, u32, PathBuf)> {
    let mut found: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let (schema, number) = name.split_once('-').unwrap_or((&name, "1"));
            (schema.parse().unwrap(), number.parse().unwrap(), path)
        })
        .collect();
    found.sort();
    found
}

/// Whether everything in `old` is in `new`, too: lists element by element, texts and numbers exactly.
fn kept(old: &Value, new: &Value) -> Result<(), String> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            old.iter().try_for_each(|(key, old)| match new.get(key) {
                Some(new) => kept(old, new).map_err(|at| format!("{key}.{at}")),
                None => Err(key.clone()),
            })
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            old.iter().zip(new).try_for_each(|(old, new)| kept(old, new))
        }
        (old, new) if old == new => Ok(()),
        _ => Err(String::new()),
    }
}

#[derive(Default)]
struct Events {
    seen: BTreeSet<String>,
    wrong: Vec<String>,
}

impl catalogue::Visit for Events {
    fn event<E: Event>(&mut self) {
        assert!(self.seen.insert(E::TYPE.to_owned()), "{} is listed twice", E::TYPE);
        let folder = samples().join("events").join(E::TYPE);
        let now = serde_json::to_value(invent::value::<E>(E::TYPE)).unwrap();
        let mut all = of_type(&folder);
        let newest = all.iter().rfind(|(schema, ..)| *schema == E::SCHEMA).map(|(.., path)| load(path));
        if newest.as_ref() != Some(&now) {
            let number = all.iter().filter(|(schema, ..)| *schema == E::SCHEMA).count() as u32 + 1;
            let name = match number {
                1 => format!("{}.json", E::SCHEMA),
                _ => format!("{}-{number}.json", E::SCHEMA),
            };
            if bless() {
                write(&folder.join(&name), &now);
                all = of_type(&folder);
            } else {
                self.wrong.push(format!(
                    "{} has another shape than its newest sample. If fields were only added, GANTRY_BLESS=1 writes {name}; \
                     else raise its schema and write an upcaster",
                    E::TYPE
                ));
            }
        }
        for schema in 1..=E::SCHEMA {
            if !all.iter().any(|(found, ..)| *found == schema) {
                self.wrong.push(format!("{} has no sample of schema {schema}", E::TYPE));
            }
        }
        for (schema, _, path) in &all {
            let old = load(path);
            match read::<E>(*schema, &old) {
                Err(error) => self.wrong.push(format!("{} cannot be read any more: {error}", path.display())),
                // Of the same schema nothing may get lost by being read.
                Ok(event) if *schema == E::SCHEMA => {
                    if let Err(at) = kept(&old, &serde_json::to_value(&event).unwrap()) {
                        self.wrong.push(format!("{}: {at} is lost by reading it", path.display()));
                    }
                }
                Ok(_) => {}
            }
        }
        let future = read::<E>(E::SCHEMA + 1, &now);
        if future.is_ok() {
            self.wrong.push(format!("{} of a schema that is not known yet is read", E::TYPE));
        }
    }
}

#[derive(Default)]
struct Requests {
    seen: BTreeSet<String>,
    wrong: Vec<String>,
}

impl catalogue::VisitRequest for Requests {
    fn request<A: Ask>(&mut self) {
        let name = format!("{}.{}", A::SERVICE, A::NAME);
        assert!(self.seen.insert(name.clone()), "{name} is listed twice");
        let path = samples().join("requests").join(format!("{name}.json"));
        let now = serde_json::json!({
            "body": serde_json::to_value(invent::value::<A>(&name)).unwrap(),
            "reply": serde_json::to_value(invent::value::<A::Reply>(&name)).unwrap(),
        });
        if !path.exists() && bless() {
            write(&path, &now);
        }
        if !path.exists() {
            self.wrong.push(format!("{name} has no sample: GANTRY_BLESS=1 writes it"));
            return;
        }
        // A process of the release before still asks and answers in its form.
        let old = load(&path);
        let body =
            serde_json::from_value::<A>(old["body"].clone()).map(|body| serde_json::to_value(body).unwrap());
        let reply = serde_json::from_value::<A::Reply>(old["reply"].clone())
            .map(|reply| serde_json::to_value(reply).unwrap());
        for (part, new) in [("body", body), ("reply", reply)] {
            match new {
                Err(error) => {
                    self.wrong.push(format!("{name}: the {part} of its sample cannot be read: {error}"))
                }
                Ok(new) => {
                    if let Err(at) = kept(&old[part], &new) {
                        self.wrong.push(format!("{name}: {part}.{at} is lost by reading it"));
                    }
                }
            }
        }
        if old != now {
            self.wrong.push(format!(
                "{name} has another shape than its sample {}: if fields were only added, delete the sample and write it anew \
                 with GANTRY_BLESS=1",
                path.display()
            ));
        }
    }
}

/// Names in `event!` and `ask!` of all modules.
fn declared(macro_name: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        // The definition of the macro itself, and its documentation, stand at no line's beginning.
        for part in text.split(&format!("\n{macro_name}!(")).skip(1) {
            let part = &part[..part.find(");").unwrap()];
            let strings: Vec<&str> = part.split('"').skip(1).step_by(2).collect();
            names.insert(strings.join("."));
        }
    }
    names
}

#[test]
fn every_event_has_a_sample_of_every_version_and_each_is_read() {
    let mut events = Events::default();
    catalogue::events(&mut events);
    assert_eq!(events.seen, declared("event"), "the catalogue lists what is declared");
    assert!(events.wrong.is_empty(), "{}", events.wrong.join("\n"));
}

#[test]
fn every_request_has_a_sample_and_keeps_its_shape() {
    let mut requests = Requests::default();
    catalogue::requests(&mut requests);
    assert_eq!(requests.seen, declared("ask"), "the catalogue lists what is declared");
    assert!(requests.wrong.is_empty(), "{}", requests.wrong.join("\n"));
}

#[test]
fn an_older_schema_is_read_through_its_upcaster() {
    use serde::{Deserialize, Serialize};
    /// As it is now: a list. It once was one name.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Named {
        names: Vec<String>,
    }
    impl Event for Named {
        const TYPE: &'static str = "thing.named";
        const SCHEMA: u32 = 2;
        fn upcast(schema: u32, mut body: Value) -> Result<Value, contracts::UnknownSchema> {
            match schema {
                1 => Ok(serde_json::json!({ "names": [body["name"].take()] })),
                _ => Err(contracts::UnknownSchema { kind: Self::TYPE, schema, newest: Self::SCHEMA }),
            }
        }
    }
    let named = |names: &[&str]| Named { names: names.iter().map(|name| (*name).to_owned()).collect() };
    assert_eq!(read::<Named>(1, &serde_json::json!({ "name": "a" })).unwrap(), named(&["a"]));
    assert_eq!(read::<Named>(2, &serde_json::json!({ "names": ["a", "b"] })).unwrap(), named(&["a", "b"]));
    for schema in [0, 3] {
        let error = read::<Named>(schema, &serde_json::json!({ "names": [] })).unwrap_err().to_string();
        assert!(error.contains("thing.named") && error.contains(&schema.to_string()), "{error}");
    }
}
