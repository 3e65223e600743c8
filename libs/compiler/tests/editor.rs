//! What an editor is told: by a mark in a file, and by names that are changed in every file of the tests.

use gantry_compiler::editor::{RenameError, Target, complete, definition, hover, rename, renameable};
use gantry_compiler::{Input, OrbError, OrbRef, OrbSource, OrbText, compile};
use std::path::Path;

#[path = "support/corpus.rs"]
mod corpus;
use corpus::Corpus;

/// One orb.
struct Orb;

const ORB: &str = "version: 2.1\ncommands:\n  install:\n    description: Installs it.\n    parameters:\n      to: {type: string, default: /opt, description: Where it goes.}\n    steps: [{run: install << parameters.to >>}]\njobs:\n  scan:\n    machine: true\n    steps: [install]\n";

impl OrbSource for Orb {
    fn fetch(&self, reference: &OrbRef) -> Result<OrbText, OrbError> {
        match reference.to_string().as_str() {
            "acme/tool@1" => Ok(OrbText::new("acme/tool@1.0.0", ORB, "a")),
            _ => Err(OrbError::NotFound(None)),
        }
    }
}

const FILE: &str = r#"version: 2.1
orbs:
  tool: acme/tool@1
parameters:
  fast: {type: boolean, default: false, description: Leaves out the slow part.}
x-common: &common
  working_directory: ~/here
executors:
  box:
    parameters: {tag: {type: string, default: stable}}
    docker: [{image: "base:<< parameters.tag >>"}]
commands:
  greet:
    description: Says hello.
    parameters:
      who: {type: string, default: world}
      after: {type: steps, default: []}
    steps:
      - run: echo "<< parameters.who >>"
      - steps: << parameters.after >>
jobs:
  build:
    <<: *common
    parameters:
      level: {type: integer, default: 1}
    executor: {name: box, tag: edge}
    steps:
      - checkout
      - greet: {who: you, after: [greet, tool/install]}
      - tool/install:
          to: /usr
      - run: make << parameters.level >> << pipeline.number >>
  ship:
    executor: box
    steps: [greet]
workflows:
  main:
    when: << pipeline.parameters.fast >>
    jobs:
      - build:
          matrix:
            parameters: {level: [1, 2]}
      - ship:
          requires: [build]
      - hold: {type: approval, requires: [ship]}
      - ship: {name: again, requires: [hold]}
      - tool/scan: {requires: [again]}
"#;

/// The offset of `needle` in `text`, at the `|` in it.
fn at(text: &str, needle: &str) -> usize {
    let bar = needle.find('|').expect("a mark");
    let word = needle.replacen('|', "", 1);
    text.find(&word).unwrap_or_else(|| panic!("{word}")) + bar
}

fn input(source: &str) -> Input<'_> {
    Input { orbs: &Orb, ..Input::new("config.yml", source) }
}

#[test]
fn the_file_of_these_tests_is_valid() {
    compile(&input(FILE)).expect("valid");
}

#[test]
fn definitions_of_all_kinds() {
    let cases = [
        ("- gre|et: {who", "  |greet:\n    desc"),
        ("after: [gr|eet", "  |greet:\n    desc"),
        ("{w|ho: you", "      |who: {type"),
        ("<< parameters.wh|o", "      |who: {type"),
        ("executor: {name: b|ox", "  |box:"),
        ("executor: bo|x", "  |box:"),
        ("ta|g: edge", "{|tag: {type"),
        ("*com|mon", "&|common"),
        ("make << parameters.lev|el", "      |level: {type"),
        ("parameters: {lev|el: [", "      |level: {type"),
        ("pipeline.parameters.fa|st", "  |fast: {type"),
        ("- bui|ld:\n", "  |build:\n    <<"),
        ("requires: [bu|ild", "  |build:\n    <<"),
        ("requires: [ag|ain", "name: |again"),
        ("requires: [ho|ld", "- |hold: {type"),
    ];
    for (from, to) in cases {
        let found = definition(&input(FILE), at(FILE, from)).unwrap_or_else(|| panic!("{from}"));
        assert_eq!(found.orb, None, "{from}");
        assert_eq!(found.range.start, at(FILE, to), "{from}");
    }
    assert_eq!(definition(&input(FILE), at(FILE, "versi|on")), None);
}

#[test]
fn definitions_in_orbs() {
    let cases = [
        ("tool/ins|tall:\n", "  |install:\n"),
        ("after: [greet, tool/ins|tall", "  |install:\n"),
        ("t|o: /usr", "      |to: {type"),
        ("- tool/sc|an", "  |scan:\n"),
        ("to|ol/install:\n", "|version"),
        ("acme/to|ol@1", "|version"),
    ];
    for (from, to) in cases {
        let Target { orb, range } =
            definition(&input(FILE), at(FILE, from)).unwrap_or_else(|| panic!("{from}"));
        let (name, text) = orb.unwrap_or_else(|| panic!("{from} is in the file"));
        assert_eq!((name.as_str(), text.as_ref()), ("acme/tool@1.0.0", ORB), "{from}");
        assert_eq!(range.start, at(ORB, to), "{from}");
    }
}

#[test]
fn hovers_say_what_it_is_and_where_it_comes_from() {
    let cases: [(&str, &[&str]); 10] = [
        ("gre|et: {who", &["**command** `greet`", "Says hello.", "`who`: string, `world` by default"]),
        ("<< parameters.w|ho", &["of the command `greet`", "config.yml:16", "`you` is given at line 29"]),
        ("<< parameters.lev|el", &["of the job `build`", "`[1, 2]` is given at line 42"]),
        ("parameters.fa|st", &["of the pipeline", "boolean", "Leaves out"]),
        ("tool/ins|tall:\n", &["of the orb `acme/tool@1.0.0`", "Installs it.", "Where it goes."]),
        ("to|ol/install:\n", &["**orb** `acme/tool@1.0.0`", "jobs: `scan`", "commands: `install`"]),
        ("chec|kout", &["Checks out the repository"]),
        ("requi|res: [build", &["must end first"]),
        ("pipeline.num|ber", &["value of the pipeline"]),
        ("*comm|on", &["line 6"]),
    ];
    for (place, said) in cases {
        let found = hover(&input(FILE), at(FILE, place)).unwrap_or_else(|| panic!("{place}"));
        said.iter().for_each(|part| assert!(found.text.contains(part), "{place}: {}", found.text));
        assert!(found.range.contains(&at(FILE, place)), "{place}");
    }
}

/// What is offered where `|` stands in the line that takes the place of `line`.
fn offered(line: &str, instead: &str) -> Vec<String> {
    let bar = instead.find('|').expect("a mark");
    let start = FILE.find(line).unwrap_or_else(|| panic!("{line}"));
    let source = FILE.replacen(line, &instead.replacen('|', "", 1), 1);
    complete(&input(&source), start + bar).into_iter().map(|candidate| candidate.text).collect()
}

#[test]
fn what_may_stand_at_a_place() {
    let cases: [(&str, &str, &[&str], &[&str]); 18] = [
        ("      - checkout\n", "      - che|\n", &["checkout", "greet", "tool/install", "run"], &["docker"]),
        ("      - checkout\n", "      - |\n", &["checkout", "greet", "tool/install", "run"], &["docker"]),
        ("      - checkout\n", "      - tool/|\n", &["tool/install"], &[]),
        ("    executor: box\n", "    |\n", &["docker", "resource_class", "executor"], &["steps", "who"]),
        ("    executor: box\n", "    ex|: box\n", &["executor"], &["steps"]),
        ("    executor: box\n", "    executor: |\n", &["box"], &["docker"]),
        ("          to: /usr\n", "          |\n", &["to"], &["who", "run"]),
        ("{who: you, after", "{w|, after", &["who"], &["after", "to"]),
        ("      - run: make <<", "      - run: |make <<", &[], &["checkout"]),
        (
            "make << parameters.level",
            "make << par|",
            &["parameters.level", "pipeline.number"],
            &["parameters.who"],
        ),
        (
            "echo \"<< parameters.who >>",
            "echo \"<< |",
            &["parameters.who", "pipeline.parameters.fast"],
            &["parameters.level"],
        ),
        ("requires: [build]", "requires: [|]", &["build", "ship", "again", "hold", "tool/scan"], &["greet"]),
        (
            "      - hold: {type: approval, requires: [ship]}\n",
            "      - |\n",
            &["build", "ship", "tool/scan"],
            &["greet"],
        ),
        (
            "    when: << pipeline.parameters.fast >>\n",
            "    |\n",
            &["when", "unless", "triggers"],
            &["jobs", "steps"],
        ),
        ("    <<: *common\n", "    <<: *|\n", &["common"], &[]),
        ("          requires: [build]\n", "          |\n", &["requires", "filters", "context"], &["steps"]),
        (
            "            parameters: {level: [1, 2]}\n",
            "            parameters:\n              |\n",
            &["level"],
            &["exclude"],
        ),
        ("type: boolean, default: false", "type: |", &["boolean", "enum", "string"], &["default"]),
    ];
    for (line, instead, wanted, unwanted) in cases {
        let found = offered(line, instead);
        for word in wanted {
            assert!(found.iter().any(|text| text == word), "{instead}: {word} is not among {found:?}");
        }
        for word in unwanted {
            assert!(!found.iter().any(|text| text == word), "{instead}: {word} is among {found:?}");
        }
    }
    assert!(offered("version: 2.1\n", "version: 2.1\n|").contains(&"job-groups".to_owned()));
}

fn renamed(source: &str, offset: usize, new: &str) -> String {
    let mut text = source.to_owned();
    for range in rename(&input(source), offset, new).expect("can be renamed").into_iter().rev() {
        text.replace_range(range, new);
    }
    text
}

#[test]
fn a_new_name_goes_everywhere() {
    let text = renamed(FILE, at(FILE, "- gre|et: {who"), "salute");
    assert!(!text.contains("greet"), "{text}");
    let text = renamed(FILE, at(FILE, "<< parameters.lev|el"), "depth");
    assert!(!text.contains("level"), "{text}");
    let text = renamed(FILE, at(FILE, "requires: [bu|ild"), "make");
    assert!(!text.contains("build"), "{text}");
    compile(&input(&text)).expect("still valid");
    let text = renamed(FILE, at(FILE, "name: aga|in"), "twice");
    assert!(text.contains("tool/scan: {requires: [twice]}"), "{text}");
    let refused =
        |place: &str, new: &str| rename(&input(FILE), at(FILE, place), new).expect_err(place).to_string();
    assert!(refused("- gre|et: {who", "run").contains("a step of the language"));
    assert!(refused("- gre|et: {who", "a/b").contains("letters"));
    assert!(refused("requires: [bu|ild", "ship").contains("something else has it"));
    assert!(refused("- tool/ins|tall", "x").contains("of this file"));
    assert_eq!(renameable(&input(FILE), at(FILE, "- tool/ins|tall")), None);
    assert!(renameable(&input(FILE), at(FILE, "- gre|et: {who")).is_some());
    let shared = "version: 2.1\njobs:\n  a: &a\n    parameters: {x: {type: string, default: b}}\n    machine: true\n    steps: [{run: << parameters.x >>}]\n  b: *a\n";
    let problem = rename(&input(shared), at(shared, "parameters.|x"), "y").expect_err("two owners");
    assert!(problem.to_string().contains("belongs to several"), "{problem}");
}

/// Every name of every good file gets another one: the file means the same then. Of the corpus too, where it is.
#[test]
fn another_name_changes_nothing() {
    let corpus = Corpus::open();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/good");
    let mut files = vec![("this one".to_owned(), FILE.to_owned())];
    for entry in std::fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        files.push((path.display().to_string(), std::fs::read_to_string(&path).expect("text")));
    }
    let configs = corpus.iter().flat_map(Corpus::configs);
    files.extend(configs.map(|file| (file.path.clone(), file.text.clone())));
    let orbs: &dyn OrbSource = corpus.as_ref().map_or(&Orb, |corpus| &corpus.orbs);
    let (mut count, mut broken, mut changed) = (0, 0, Vec::new());
    for (name, source) in &files {
        let orbs: &dyn OrbSource = if name == "this one" { &Orb } else { orbs };
        let (old, mut text) = (Input { orbs, ..Input::new("c.yml", source) }, String::new());
        let Ok(before) = compile(&old) else { continue };
        // Names of jobs are part of the plan.
        let plain = |plan: &_| serde_json::to_string(plan).expect("data").replace("-renamed", "");
        let mut seen = Vec::new();
        // Long files say no more than others.
        for (start, word) in keys(source).into_iter().take(40) {
            if seen.iter().flatten().any(|place: &std::ops::Range<usize>| place.contains(&start)) {
                continue;
            }
            let Some(place) = renameable(&old, start) else { continue };
            let new = format!("{}-renamed", &source[place]);
            let places = match rename(&old, start, &new) {
                Ok(places) => places,
                Err(RenameError::Breaks(_)) => {
                    broken += 1;
                    continue;
                }
                Err(_) => continue,
            };
            text.clone_from(source);
            places.iter().rev().for_each(|range| text.replace_range(range.clone(), &new));
            count += 1;
            match compile(&Input { orbs, ..Input::new("c.yml", &text) }) {
                Ok(after) if plain(&before.plan) == plain(&after.plan) => {}
                Ok(_) => changed.push(format!("{name}: {word}: another plan")),
                Err(errors) => changed.push(format!("{name}: {word}: {}", errors[0].one_line())),
            }
            seen.push(places);
        }
    }
    println!("{count} names of {} files, {broken} not", files.len());
    // The files beside the test alone have 27.
    assert!(count > 20, "only {count} names were changed");
    assert!(changed.is_empty(), "{} of {count}:\n{}", changed.len(), changed.join("\n"));
}

/// Keys at the beginning of lines, not far from the margin, by their offsets.
fn keys(source: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut start = 0;
    for line in source.split_inclusive('\n') {
        let text = line.trim_start_matches(' ');
        let indent = line.len() - text.len();
        if let Some((word, _)) = text.split_once(':')
            && (2..=8).contains(&indent)
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b' '))
        {
            found.push((start + indent, word));
        }
        start += line.len();
    }
    found
}
