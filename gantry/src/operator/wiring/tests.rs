//! The facts, from the code: groups are asked by starting every service, requests are found in the sources.

use super::{Asks, OPERATOR, Wiring};
use crate::{
    config::Config,
    isolation::Isolation,
    layout::Layout,
    serve::{CALLED_BY_AGENTS, ROLES},
    suite::{Place, Suite},
};
use bus::{Bus, Subscription};
use kit::keys::Keys;
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every type of event that there is: each has a folder of samples.
fn kinds() -> Vec<String> {
    let folder = root().join("libs/contracts/samples/events");
    let mut kinds: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    kinds.sort();
    kinds
}

/// What the groups of all services read.
async fn reads() -> Vec<Subscription> {
    let pool = testkit::postgres().await.pool;
    let databases = pool.clone().into();
    crate::migrate::all(&databases).await.unwrap();
    let data = tempfile::tempdir().unwrap();
    let layout = Layout::open(data.path()).unwrap();
    let mut config = Config::default();
    // Nothing is placed here: any program will do.
    config.agents.binary = env::current_exe().unwrap().display().to_string();
    let place = Place {
        url: "http://127.0.0.1:1".to_owned(),
        git_url: "http://127.0.0.1:1".to_owned(),
        layout: layout.clone(),
        isolation: Some(Isolation::None),
        peer_url: None,
        phase: watch::Sender::new(String::new()),
    };
    let (bus, stop) = (Bus::local(pool), CancellationToken::new());
    let keys = Keys::from_bytes([7; 32]);
    let suite =
        Suite::start(&config, &place, &keys, &databases, bus.clone(), &ROLES, stop.clone()).await.unwrap();
    let reads = bus.subscriptions(&kinds());
    stop.cancel();
    suite.join().await;
    fs::remove_dir_all(layout.run).unwrap();
    reads
}

/// The texts of a folder's sources, without comments.
fn sources(folder: &Path) -> Vec<String> {
    let (mut folders, mut texts) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = fs::read_to_string(path).unwrap();
                let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                texts.push(code.collect::<Vec<_>>().join("\n"));
            }
        }
    }
    texts
}

/// Every request: the type that carries it, who answers, and its name.
fn requests() -> BTreeMap<String, (String, String)> {
    let mut all = BTreeMap::new();
    for text in sources(&root().join("libs/contracts/src")) {
        for declared in text.split("ask!(").skip(1).filter(|rest| !rest.starts_with('$')) {
            let words: Vec<&str> = declared.splitn(4, ',').map(str::trim).collect();
            let [kind, service, name, _] = words.as_slice() else { continue };
            let plain = |text: &str| text.trim_matches('"').to_owned();
            let kind = kind.rsplit(' ').next().unwrap().to_owned();
            let before = all.insert(kind.clone(), (plain(service), plain(name)));
            assert!(before.is_none(), "two requests are called {kind}: which of them is asked for?");
        }
    }
    all
}

/// Who names a request that another answers, asks it: a contract serves for nothing else.
fn asks() -> Vec<Asks> {
    let requests = requests();
    let services = ROLES.map(|role| (role, root().join("services").join(role).join("src")));
    let mut found: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for (from, folder) in services.into_iter().chain([(OPERATOR, root().join("gantry/src"))]) {
        for text in sources(&folder) {
            let words = text.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
            for (to, name) in words.filter_map(|word| requests.get(word)).filter(|(to, _)| to != from) {
                found.entry((from.to_owned(), to.clone())).or_default().insert(name.clone());
            }
        }
    }
    found
        .into_iter()
        .map(|((from, to), requests)| Asks { from, to, requests: requests.into_iter().collect() })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wiring_and_its_page_are_what_the_code_says() {
    let agents = CALLED_BY_AGENTS.map(str::to_owned).to_vec();
    let wiring = Wiring { reads: reads().await, asks: asks(), agents };
    for asks in &wiring.asks {
        assert!(ROLES.contains(&asks.to.as_str()), "{} is no service, and nobody answers {asks:?}", asks.to);
    }
    for read in &wiring.reads {
        assert!(!read.events.is_empty(), "{} wants nothing of {}", read.group, read.source);
    }
    let json = format!("{}\n", serde_json::to_string_pretty(&wiring).unwrap());
    for (file, wanted) in
        [("gantry/src/operator/wiring.json", json), ("docs/reference/topology.md", wiring.page())]
    {
        let path = root().join(file);
        if env::var_os("GANTRY_UPDATE_DOCS").is_some() {
            fs::write(&path, &wanted).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == wanted,
            "{file} is out of date; make it again with GANTRY_UPDATE_DOCS=1 cargo test --profile ci -p gantry-server --lib wiring"
        );
    }
}

#[test]
fn a_picture_tells_who_is_behind() {
    let read = |service: &str, source: &str| Subscription {
        service: service.to_owned(),
        group: format!("{service}.{source}"),
        source: source.to_owned(),
        events: vec!["job.ready".to_owned()],
    };
    let wiring = Wiring {
        reads: vec![
            read("dispatcher", "conductor"),
            read("conductor", "conductor"),
            read("api", "conductor"),
        ],
        asks: vec![Asks { from: "api".into(), to: "conductor".into(), requests: vec!["job.cancel".into()] }],
        agents: vec!["dispatcher".into()],
    };
    let picture = wiring.picture(|_, reader| (reader == "dispatcher").then(|| "7 behind".to_owned()));
    assert_eq!(
        picture,
        "flowchart LR\n  people([people]) --> api\n  agents([agents]) --> dispatcher\n  conductor --> api\n  \
         conductor -- \"7 behind\" --> dispatcher\n  api -.-> conductor\n"
    );
}
