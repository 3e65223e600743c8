//! Are messages any good? Valid configurations of the corpus are broken in typical ways; the first message must
//! be at the broken line and name the fix.

use gantry_compiler::{Compiled, Diagnostic, Input, PipelineValues, code, compile};
use std::collections::BTreeMap;

#[path = "support/corpus.rs"]
mod corpus;
#[path = "support/mutate.rs"]
mod mutate;
use corpus::Corpus;
use mutate::{Broken, MUTATIONS, Mutation};

/// Configurations that are broken, and the lines that are tried in each for one way to break it.
const CONFIGS: usize = 200;
const TRIES: usize = 8;

fn run(corpus: &Corpus, source: &str) -> Result<Compiled, Vec<Diagnostic>> {
    let values = PipelineValues { branch: Some("main".into()), number: 7, ..PipelineValues::default() };
    compile(&Input { values, orbs: &corpus.orbs, ..Input::new("config.yml", source) })
}

fn is_missing_orb(error: &Diagnostic) -> bool {
    [code::ORB_NOT_FOUND, code::ORB_UNAVAILABLE].contains(&error.code)
}

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % end.max(1) as u64).unwrap_or(0)
    }
}

/// Which lines are part of a script, or of another text of many lines.
fn in_text(lines: &[&str]) -> Vec<bool> {
    let mut inside = vec![false; lines.len()];
    let mut header: Option<usize> = None;
    for (n, line) in lines.iter().enumerate() {
        let blank = line.trim().is_empty();
        if let Some(column) = header {
            inside[n] = blank || mutate::indent(line) > column;
            if inside[n] {
                continue;
            }
        }
        let item = line.trim_start().starts_with("- ") && !line.contains(": ");
        let text = line.split(" #").next().unwrap_or_default().trim_end();
        let text = text.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-'));
        let starts = text.ends_with(" |") || text.ends_with(" >");
        // Behind a dash the text belongs to the key, which stands two further on.
        let column = mutate::indent(line) + if line.trim_start().starts_with("- ") && !item { 2 } else { 0 };
        header = starts.then_some(column);
    }
    inside
}

#[derive(Default)]
struct Rate {
    good: usize,
    elsewhere: usize,
    no_fix: usize,
    silent: usize,
    samples: Vec<String>,
}

fn judge(rate: &mut Rate, file: &str, broken: &Broken, errors: &[Diagnostic]) {
    let Some(first) = errors.iter().find(|error| !is_missing_orb(error)) else {
        rate.silent += 1;
        return;
    };
    let said = format!("{} {}", first.message, first.hint.as_deref().unwrap_or_default());
    let at_place = broken.lines.contains(&first.line);
    let fixes = broken.fix.iter().any(|word| said.contains(word.as_str()));
    match (at_place, fixes) {
        (true, true) => {
            rate.good += 1;
            return;
        }
        (false, _) => rate.elsewhere += 1,
        (true, false) => rate.no_fix += 1,
    }
    if rate.samples.len() < 6 {
        let hint = first.hint.as_deref().unwrap_or("-");
        rate.samples.push(format!(
            "{file}: line {:?}, fix {:?}: {}:{}: {} [{}] hint: {hint}",
            broken.lines, broken.fix, first.line, first.column, first.message, first.code
        ));
    }
}

/// Breaks one configuration in one way, at a line where that has an effect.
fn attempt(
    corpus: &Corpus,
    mutation: &Mutation,
    lines: &[&str],
    numbers: &mut Numbers,
) -> Option<(Broken, Vec<Diagnostic>)> {
    let text = in_text(lines);
    let usable = |n: &usize| !text[*n] && !lines[*n].trim_start().starts_with('#');
    let mut places: Vec<usize> =
        (0..lines.len()).filter(usable).filter(|n| mutation.at(lines, *n).is_some()).collect();
    let mut silent = None;
    for _ in 0..TRIES.min(places.len()) {
        let n = places.swap_remove(numbers.below(places.len()));
        let Some(broken) = mutation.at(lines, n) else { continue };
        match run(corpus, &broken.text) {
            Err(errors) if errors.iter().any(|error| !is_missing_orb(error)) => {
                return Some((broken, errors));
            }
            // A part that nothing uses: another line.
            _ => silent = Some((broken, Vec::new())),
        }
    }
    silent
}

/// config-language §25
#[test]
fn the_first_message_is_at_the_broken_line_and_names_the_fix() {
    let Some(corpus) = Corpus::open() else { return };
    let mut valid: Vec<_> = corpus
        .configs()
        .filter(|file| file.text.lines().count() >= 12 && !file.text.contains('\t'))
        .filter(|file| match run(&corpus, &file.text) {
            Ok(_) => true,
            Err(errors) => errors.iter().all(is_missing_orb),
        })
        .collect();
    // Those whose orbs are here first: more of what they say is checked.
    valid.sort_by_key(|file| run(&corpus, &file.text).is_err());
    valid.truncate(CONFIGS);
    assert_eq!(valid.len(), CONFIGS, "valid configurations of the corpus");
    let mut rates: BTreeMap<&str, Rate> = BTreeMap::new();
    for (index, file) in valid.iter().enumerate() {
        let lines: Vec<&str> = file.text.lines().collect();
        for (kind, mutation) in MUTATIONS.iter().enumerate() {
            let mut numbers = Numbers((index * MUTATIONS.len() + kind) as u64 + 1);
            let rate = rates.entry(mutation.name).or_default();
            if let Some((broken, errors)) = attempt(&corpus, mutation, &lines, &mut numbers) {
                judge(rate, &file.path, &broken, &errors);
            }
        }
    }
    let (mut good, mut all, mut silent) = (0, 0, 0);
    for (name, rate) in &rates {
        let judged = rate.good + rate.elsewhere + rate.no_fix;
        println!(
            "{name}: {} of {judged} good ({} at another line, {} without the fix, {} not noticed)",
            rate.good, rate.elsewhere, rate.no_fix, rate.silent
        );
        rate.samples.iter().for_each(|sample| println!("    {sample}"));
        good += rate.good;
        all += judged;
        silent += rate.silent;
    }
    println!("together: {good} of {all}, {silent} in parts that nothing uses");
    assert!(all >= 2000, "{all} are too few");
    assert!(good * 100 >= all * 95, "{good} of {all} are less than 95 %");
    assert!(silent * 10 <= all, "{silent} were not noticed at all");
}

/// A line at which a key that nobody knows can be put into a structure that is known, and the column for it.
fn known_structure(lines: &[&str], n: usize) -> Option<usize> {
    const STEPS: &[&str] = &[
        "- run:",
        "- save_cache:",
        "- restore_cache:",
        "- store_artifacts:",
        "- store_test_results:",
        "- persist_to_workspace:",
        "- attach_workspace:",
        "- add_ssh_keys:",
    ];
    let line = lines[n].trim_end();
    let next = lines
        .get(n + 1)
        .filter(|next| !next.trim().is_empty() && !next.trim().starts_with(['#', '-', '<']))?;
    let column = mutate::indent(lines[n]);
    let below = mutate::indent(next);
    let word = line.trim();
    let opens = STEPS.contains(&word) || ["filters:", "branches:", "tags:", "matrix:"].contains(&word);
    if opens && below > column {
        return Some(below);
    }
    if word.starts_with("- image: ") && !word.contains(['{', '&', '*']) {
        return Some(column + 2);
    }
    // The body of a job, an executor or a command: below a name, which stands below the section.
    let name_of = |section: &str| {
        let above = (0..n).rev().find(|i| mutate::indent(lines[*i]) < column && !lines[*i].trim().is_empty());
        above.is_some_and(|i| lines[i].trim_end() == section)
    };
    let body = ["jobs:", "executors:", "commands:"].iter().any(|section| name_of(section));
    (body && word.ends_with(':') && !word.starts_with('-') && below > column).then_some(below)
}

#[test]
fn a_foreign_key_is_refused_at_its_line() {
    let Some(corpus) = Corpus::open() else { return };
    let (mut inserted, mut structures, mut wrong) = (0, BTreeMap::new(), Vec::new());
    let good = |file: &&corpus::File| match run(&corpus, &file.text) {
        Ok(_) => true,
        Err(errors) => errors.iter().all(is_missing_orb),
    };
    // Version 2 passes over what it does not know.
    let new = |file: &&corpus::File| {
        file.text.lines().any(|line| line.starts_with("version:") && line.contains("2.1"))
    };
    let valid: Vec<_> = corpus.configs().filter(new).filter(good).collect();
    let mut numbers = Numbers(7);
    let mut round = 0;
    while inserted < 300 && round < 6 {
        round += 1;
        for file in &valid {
            let lines: Vec<&str> = file.text.lines().collect();
            let text = in_text(&lines);
            let mut places: Vec<(usize, usize)> = (0..lines.len())
                .filter(|n| !text[*n])
                .filter_map(|n| known_structure(&lines, n).map(|column| (n, column)))
                .collect();
            for _ in 0..TRIES.min(places.len()) {
                let (n, column) = places.swap_remove(numbers.below(places.len()));
                let key = format!("{}strange_key: 1", " ".repeat(column));
                let mut all = lines.clone();
                all.insert(n + 1, &key);
                let Err(errors) = run(&corpus, &(all.join("\n") + "\n")) else { continue };
                let Some(first) = errors.iter().find(|error| !is_missing_orb(error)) else { continue };
                inserted += 1;
                let structure = lines[n].trim().split(' ').take(2).collect::<Vec<_>>().join(" ");
                *structures.entry(structure).or_insert(0) += 1;
                if first.line != n + 2 || !first.message.contains("strange_key") {
                    wrong.push(format!("{}:{}: {}", file.path, n + 2, first.one_line()));
                }
                break;
            }
        }
    }
    println!(
        "{inserted} foreign keys in {} configurations, {} kinds of structures",
        valid.len(),
        structures.len()
    );
    assert!(inserted >= 300, "{inserted}");
    assert!(wrong.is_empty(), "{} of {inserted}:\n{}", wrong.len(), wrong.join("\n"));
}
