//! Random damage to good configurations: whatever comes out, the compiler and its tools answer, and soon.
//!
//! A few seconds in an ordinary run; `GANTRY_FUZZ_SECONDS=3600` for a long one. What an instrumented run of `scripts/fuzz`
//! found a way to is replayed, and damaged further. An input that fails is written to
//! the temporary folder and named; what was found is kept in `tests/finds`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[path = "support/feed.rs"]
mod feed;
#[path = "support/generate.rs"]
mod generate;
use feed::feed;

/// Pieces of the language, so that damage leads further than to a syntax error.
const WORDS: &[&str] = &[
    "<<",
    ">>",
    "<< parameters.x >>",
    "<< pipeline.number >>",
    "<<#parameters.x>>",
    "<</parameters.x>>",
    "\\<<",
    "<<: *a",
    "&a ",
    "*a",
    "!!str ",
    "!!binary ",
    "- ",
    ": ",
    "{",
    "}",
    "[",
    "]",
    "|",
    ">-",
    "|2",
    "\"",
    "'",
    "#",
    "\t",
    "\u{feff}",
    "\u{85}",
    "\0",
    "\r\n",
    "---\n",
    "...",
    "%YAML 1.1",
    "? ",
    "~",
    "null",
    "true",
    "017",
    "1e999",
    "0x",
    "1_0",
    "190:20:30",
    "2019-01-01",
    ".inf",
    "=",
    "/(/",
    "/.*/",
    "/\\Q/",
    "when:",
    "unless:",
    "steps:",
    "matrix:",
    "exclude:",
    "alias:",
    "requires:",
    "terminal",
    "parameters:",
    "type: executor",
    "type: steps",
    "type: enum",
    "enum: []",
    "default:",
    "executor:",
    "filters:",
    "job-groups:",
    "serial-group:",
    "pre-steps:",
    "override-with:",
    "triggers:",
    "cron: \"* * * * *\"",
    "setup: true",
    "max_auto_reruns: 3",
    "orbs:",
    "a/b@1",
    "(((((",
    "not not not",
    "==",
    "starts-with",
    "matches",
    "9223372036854775808",
];

struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap_or(0)
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn texts(name: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder(name)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.sort();
    let yaml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "yml");
    paths.into_iter().filter(yaml).filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

/// Inputs, one JSON text a line, that together reach all that libFuzzer found a way to (`scripts/fuzz`): its corpus,
/// made small with `-set_cover_merge=1`.
fn reaching() -> Vec<String> {
    let text = std::fs::read_to_string(folder("finds").join("reach.jsonl")).expect("the inputs");
    text.lines().map(|line| serde_json::from_str(line).expect("a text")).collect()
}

fn damaged(seeds: &[String], numbers: &mut Numbers) -> String {
    let mut text = seeds[numbers.below(seeds.len())].clone();
    for _ in 0..=numbers.below(6) {
        let boundary = |text: &str, mut at: usize| {
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let a = boundary(&text, numbers.below(text.len() + 1));
        let b = boundary(&text, (a + numbers.below(40)).min(text.len()));
        match numbers.below(6) {
            0 => text.insert_str(a, WORDS[numbers.below(WORDS.len())]),
            1 => text.replace_range(a..b, ""),
            2 => text.replace_range(a..b, WORDS[numbers.below(WORDS.len())]),
            3 => {
                let piece = text[a..b].to_owned();
                text.insert_str(a, &piece);
            }
            4 => {
                // A line goes somewhere else.
                let mut lines: Vec<&str> = text.lines().collect();
                if !lines.is_empty() {
                    let line = lines.remove(numbers.below(lines.len()));
                    lines.insert(numbers.below(lines.len() + 1), line);
                }
                text = lines.join("\n") + "\n";
            }
            _ => {
                let other = &seeds[numbers.below(seeds.len())];
                let cut = boundary(other, numbers.below(other.len() + 1));
                text = format!("{}{}", &text[..a], &other[cut..]);
            }
        }
    }
    text
}

#[test]
fn what_was_found_stays_mended() {
    for text in texts("finds") {
        feed(&text);
    }
}

#[test]
fn what_reaches_everything_is_answered() {
    let inputs = reaching();
    assert!(inputs.len() > 300, "only {} inputs", inputs.len());
    inputs.iter().for_each(|text| feed(text));
}

#[test]
fn damage_is_answered() {
    let seconds = std::env::var("GANTRY_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    // A long run goes elsewhere each time.
    let seed = if seconds > 10 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |time| time.as_nanos() as u64 | 1)
    } else {
        0x9e37_79b9_7f4a_7c15
    };
    let mut seeds = texts("good");
    seeds.extend(texts("bad"));
    seeds.push(generate::typical());
    seeds.extend(reaching());
    let mut numbers = Numbers(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut count, mut slowest) = (0u64, Duration::ZERO);
    while Instant::now() < end {
        let text = damaged(&seeds, &mut numbers);
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| feed(&text)));
        let took = start.elapsed();
        slowest = slowest.max(took);
        if outcome.is_err() || took > Duration::from_secs(20) {
            let path = std::env::temp_dir().join(format!("gantry-fuzz-{seed}-{count}.yml"));
            std::fs::write(&path, &text).expect("write the find");
            panic!("after {count} inputs: {} fails, or takes {took:?}", path.display());
        }
        count += 1;
    }
    println!("{count} inputs, the slowest took {slowest:?}");
    assert!(count > 0);
}
