//! The page that maps rules to the scenarios and tests that show them. A rule that nothing shows, a name that is no
//! rule, and a page that is not up to date fail. `GANTRY_UPDATE=1` writes the page.

use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    id: String,
    section: String,
    rule: String,
    /// Why nothing shows it yet.
    missing: Option<String>,
}

#[derive(Deserialize)]
struct Expected {
    rules: Vec<String>,
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn rules() -> Vec<Rule> {
    let text = fs::read_to_string(here("rules.yml")).expect("rules.yml can be read");
    serde_saphyr::from_str(&text).expect("rules.yml is a list of rules")
}

/// Rule → scenarios and tests that say they show it.
fn shown() -> BTreeMap<String, BTreeSet<String>> {
    let mut shown: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for folder in fs::read_dir(here("scenarios")).expect("there are scenarios") {
        let folder = folder.expect("a folder");
        let name = folder.file_name().into_string().expect("a plain name");
        let text = fs::read_to_string(folder.path().join("expected.yml")).expect("expected.yml can be read");
        let expected: Expected = serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        for rule in expected.rules {
            shown.entry(rule).or_default().insert(format!("[{name}](../../e2e/scenarios/{name})"));
        }
    }
    tests(&here("tests"), &mut shown);
    shown
}

/// A test names its rules in a comment of its own: `// Rules: a, b`.
fn tests(folder: &Path, shown: &mut BTreeMap<String, BTreeSet<String>>) {
    for entry in fs::read_dir(folder).expect("there are tests") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            tests(&path, shown);
            continue;
        }
        let text = fs::read_to_string(&path).expect("a test can be read");
        let place = path.strip_prefix(here("")).expect("below the crate").display().to_string();
        for line in text.lines().filter_map(|line| line.trim().strip_prefix("// Rules: ")) {
            for rule in line.split(',') {
                let link = format!("[{place}](../../e2e/{place})");
                shown.entry(rule.trim().to_owned()).or_default().insert(link);
            }
        }
    }
}

fn page(rules: &[Rule], shown: &BTreeMap<String, BTreeSet<String>>) -> String {
    let open = rules.iter().filter(|rule| rule.missing.is_some()).count();
    let mut page = format!(
        "# Which scenario shows which rule\n\nMade from `e2e/rules.yml` by `GANTRY_UPDATE=1 cargo test --profile ci -p gantry-e2e --test \
         coverage`; do not edit it.\n\n{} rules, {} of them not shown by any scenario yet.\n",
        rules.len(),
        open
    );
    let mut section = "";
    for rule in rules {
        if rule.section != section {
            section = &rule.section;
            write!(page, "\n## {section}\n\n| id | rule | shown by |\n|---|---|---|\n")
                .expect("a text grows");
        }
        let by = match &rule.missing {
            Some(why) => format!("**nothing yet.** {why}"),
            None => {
                let all = shown.get(&rule.id).cloned().unwrap_or_default();
                all.into_iter().collect::<Vec<_>>().join(", ")
            }
        };
        writeln!(page, "| `{}` | {} | {by} |", rule.id, rule.rule.replace('|', "\\|")).expect("a text grows");
    }
    page
}

#[test]
fn every_rule_is_shown_and_the_page_says_by_what() {
    let (rules, shown) = (rules(), shown());
    let known: BTreeSet<&str> = rules.iter().map(|rule| rule.id.as_str()).collect();
    assert_eq!(known.len(), rules.len(), "two rules have the same id");
    let mut problems = Vec::new();
    for rule in &rules {
        match (&rule.missing, shown.get(&rule.id)) {
            (None, None) => problems.push(format!("nothing shows {}: {}", rule.id, rule.rule)),
            (Some(_), Some(by)) => problems.push(format!("{} is marked as missing, but {by:?}", rule.id)),
            _ => {}
        }
    }
    for (name, by) in shown.iter().filter(|(name, _)| !known.contains(name.as_str())) {
        problems.push(format!("{name} is no rule of rules.yml, but {by:?} name it"));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    let path = here("../docs/reference/scenario-coverage.md");
    let page = page(&rules, &shown);
    if std::env::var_os("GANTRY_UPDATE").is_some() {
        fs::write(&path, &page).expect("the page can be written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page, "{} is stale; make it again with GANTRY_UPDATE=1", path.display());
}
