//! `docker-compose.yml`: what can be said of it without its images, and its services in one that is made here.

mod image;

use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// How Compose is called here.
fn compose() -> Option<&'static [&'static str]> {
    let all: [&[&str]; 2] = [&["docker", "compose"], &["docker-compose"]];
    let known =
        |words: &&[&str]| run(&[*words, &["version"]].concat()).is_some_and(|output| output.status.success());
    all.into_iter().find(known)
}

fn run(words: &[&str]) -> Option<Output> {
    Command::new(words[0]).args(&words[1..]).current_dir(root()).output().ok()
}

/// The file as Compose reads it; `None`: there is no Compose here.
fn config() -> Option<Value> {
    let Some(words) = compose() else {
        eprintln!("SKIPPED: Docker Compose is not installed here; see scripts/setup");
        assert!(
            std::env::var_os("GANTRY_REAL_SERVERS").is_none(),
            "Docker Compose is not installed, and GANTRY_REAL_SERVERS asks for everything"
        );
        return None;
    };
    let output = run(&[words, &["config"]].concat()).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_saphyr::from_str(&String::from_utf8(output.stdout).unwrap()).unwrap())
}

fn names(value: &Value) -> BTreeSet<&str> {
    value.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn every_role_is_a_service_with_a_health_check_and_secrets_by_file() {
    let Some(config) = config() else { return };
    let services = names(&config["services"]);
    let listed = Command::new(gantry_e2e::binary()).args(["serve", "--list"]).output().unwrap();
    let roles = String::from_utf8(listed.stdout).unwrap();
    assert!(!roles.is_empty(), "`gantry serve --list` says nothing");
    for role in roles.lines() {
        assert!(services.contains(role), "{role} is no service");
        let words = config["services"][role]["command"].as_array().unwrap();
        assert!(words.iter().any(|word| word == role), "{role} runs {words:?}");
    }
    let secrets = names(&config["secrets"]);
    for (name, service) in config["services"].as_object().unwrap() {
        let once = name == "migrate" || name.ends_with("-prepared");
        assert!(once || service["healthcheck"]["test"].is_array(), "{name} has no health check");
        assert!(service["image"].is_string(), "{name} has no image");
        for secret in service["secrets"].as_array().into_iter().flatten() {
            let source = secret["source"].as_str().or(secret.as_str()).unwrap();
            assert!(secrets.contains(source), "{name} wants the secret {source}, which is not declared");
        }
        for (variable, value) in service["environment"].as_object().into_iter().flatten() {
            let secret = ["PASS", "SECRET", "TOKEN", "_URL"].iter().any(|word| variable.contains(word));
            let file = variable.ends_with("_FILE")
                && value.as_str().is_some_and(|text| text.starts_with("/run/secrets/"));
            assert!(!secret || file, "{name} has {variable} in the file: give it as a secret");
        }
    }
    for (name, secret) in config["secrets"].as_object().unwrap() {
        let file = secret["file"].as_str().unwrap();
        assert!(file.contains("deploy/compose/secrets/"), "{name} is {file}");
        let made = fs::read_to_string(root().join("deploy/compose/secrets.sh")).unwrap();
        assert!(made.contains(name.as_str()), "deploy/compose/secrets.sh does not make {name}");
    }
    // Only who delivers secrets may open them, and only who places tasks may submit jobs.
    for (variable, role) in
        [("GANTRY_SECRETS_DELIVER_SECRET_ID_FILE", "contexts"), ("GANTRY_COMPUTE_TOKEN_FILE", "scheduler")]
    {
        let holders: Vec<&str> = services
            .iter()
            .filter(|name| config["services"][**name]["environment"].get(variable).is_some())
            .copied()
            .collect();
        assert_eq!(holders, [role], "{variable}");
    }
}

/// A drain: the balancers notice within 5 s, and what is held is finished within 25 s after it.
const DRAIN_SECONDS: u64 = 30;

#[test]
fn services_have_time_to_drain_and_one_key() {
    let Some(config) = config() else { return };
    let listed = Command::new(gantry_e2e::binary()).args(["serve", "--list"]).output().unwrap();
    for role in String::from_utf8(listed.stdout).unwrap().lines() {
        let service = &config["services"][role];
        let grace = service["stop_grace_period"].as_str().and_then(|text| text.strip_suffix('s'));
        let grace: u64 = grace.and_then(|text| text.parse().ok()).unwrap_or_default();
        assert!(grace > DRAIN_SECONDS, "{role} is killed {grace} s after it was told to end");
        assert_eq!(service["environment"]["GANTRY_KEYS_SIGNING"], "/run/secrets/signing_key", "{role}");
        let secrets = service["secrets"].as_array().unwrap();
        let given = secrets.iter().any(|secret| secret["source"] == "signing_key" || secret == "signing_key");
        assert!(given, "{role} does not get the signing key");
    }
}

/// URLs are signed for an address, and whoever follows them is no container of this file.
#[test]
fn agents_and_browsers_reach_the_store_where_urls_lead() {
    let Some(config) = config() else { return };
    let ours = fs::read_to_string(root().join("deploy/compose/gantry.toml")).unwrap();
    let of = |key: &str| {
        let line = ours.lines().find_map(|line| line.strip_prefix(&format!("{key} = \"http://")));
        line.unwrap_or_else(|| panic!("{key} is not set")).trim_end_matches('"').to_owned()
    };
    let (public, agents) = (of("public_endpoint"), of("url"));
    let (host, port) = public.split_once(':').unwrap();
    assert_eq!(host, agents.split_once(':').unwrap().0, "agents reach one address of this machine");
    let published = config["services"]["s3"]["ports"].as_array().expect("the store publishes no port");
    // A text or a table, by the version of Compose.
    let leads = published.iter().any(|one| {
        let text = one.to_string();
        text.contains(host) && text.contains(port)
    });
    assert!(leads, "{public} is none of {published:?}");
}

#[test]
fn secrets_are_made_once_and_for_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("secrets.sh");
    fs::copy(root().join("deploy/compose/secrets.sh"), &script).unwrap();
    let make = || assert!(Command::new(&script).status().unwrap().success());
    make();
    let secrets = folder.path().join("secrets");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&secrets).unwrap().permissions());
    assert_eq!(mode & 0o077, 0, "nobody else enters the folder");
    let read = |name: &str| fs::read_to_string(secrets.join(name)).unwrap();
    let password = read("postgres");
    assert!(password.len() >= 32, "{} characters", password.len());
    assert!(read("database_url").contains(&password));
    assert_ne!(password, read("rabbitmq"));
    let key = read("signing_key");
    assert!(key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit()), "{} characters", key.len());
    fs::write(secrets.join("nomad"), "a token").unwrap();
    make();
    assert_eq!(read("signing_key"), key);
    assert_eq!((read("postgres"), read("nomad")), (password, "a token".to_owned()));
}

/// The balancers' rules, `to_<service>` with what follows.
fn rules(file: &str) -> BTreeSet<(String, String)> {
    let text = fs::read_to_string(root().join(file)).unwrap();
    let rules = text.lines().filter_map(|line| line.trim().strip_prefix("acl to_")?.split_once(' '));
    rules.map(|(to, rule)| (to.replace('_', "-"), rule.to_owned())).collect()
}

/// Routes of a service that agents call, as its source has them.
fn routes(service: &str) -> Vec<String> {
    let mut folders = vec![root().join("services").join(service).join("src")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(path).unwrap();
            let routes = text.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next());
            found.extend(routes.map(|route| route.replace("{task}", "T")));
        }
    }
    found
}

/// The little of HAProxy's rules that is used: a path, its beginning, or `^/v1/tasks/[^/]+/(a|b)$`.
fn sends(rule: &str, path: &str) -> bool {
    match rule.split_once(' ').unwrap() {
        ("path", whole) => path == whole,
        ("path_beg", begin) => path.starts_with(begin),
        ("path_reg", pattern) => {
            let last = pattern.strip_prefix("^/v1/tasks/[^/]+/").and_then(|rest| rest.strip_suffix('$'));
            let last = last.unwrap_or_else(|| panic!("teach this test {pattern}"));
            let words = last.trim_start_matches('(').trim_end_matches(')');
            path.strip_prefix("/v1/tasks/T/").is_some_and(|end| words.split('|').any(|word| word == end))
        }
        (other, _) => panic!("teach this test {other}"),
    }
}

/// What no rule names goes to the output processor.
#[test]
fn balancers_send_agents_to_whom_answers() {
    let ours = rules("deploy/compose/haproxy.cfg");
    assert_eq!(ours, rules("scripts/stack"), "who calls what is said in two places");
    for service in ["dispatcher", "contexts", "test-results", "scheduler", "output-processor"] {
        let routes = routes(service);
        assert!(!routes.is_empty(), "{service} answers no agent");
        for route in routes {
            let to: Vec<&str> =
                ours.iter().filter(|(_, rule)| sends(rule, &route)).map(|(to, _)| to.as_str()).collect();
            let wanted: &[&str] = if service == "output-processor" { &[] } else { &[service] };
            assert_eq!(to, wanted, "{route} is answered by {service}");
        }
    }
}
