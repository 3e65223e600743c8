//! What compiling costs, beside what reading the YAML of the same file costs on the same machine.
//!
//! `cargo bench --profile ci -p gantry-compiler`. With `GANTRY_BIN=path/to/gantry` the process is timed as well.
//! Nothing is asserted: a machine is not a rule.

use gantry_compiler::{Compiled, Input, PipelineValues, compile};
use model::plan::JobKind;
use std::hint::black_box;
use std::time::{Duration, Instant};

#[path = "../tests/support/generate.rs"]
mod generate;
#[path = "../tests/support/hostile.rs"]
mod hostile;

fn run(source: &str) -> Compiled {
    let values = PipelineValues { branch: Some("main".into()), ..PipelineValues::default() };
    compile(&Input { values, ..Input::new("config.yml", source) }).expect("the generated file is valid")
}

fn events(source: &str) -> usize {
    granit_parser::Parser::new_from_str(source).filter(|event| event.is_ok()).count()
}

/// What files cost that are made to hurt.
fn hostile() {
    for case in hostile::CASES {
        let source = (case.source)();
        let before = peak();
        let start = Instant::now();
        let values =
            PipelineValues { branch: Some(format!("{}!", "a".repeat(40))), ..PipelineValues::default() };
        let result = compile(&Input { values, ..Input::new("config.yml", &source) });
        let (time, grown) = (start.elapsed(), peak().saturating_sub(before));
        let answer = result.map_or_else(|errors| errors[0].code, |_| "valid");
        println!("{}: {answer} in {:.3} ms, {:.1} MB more", case.name, ms(time), grown as f64 / 1e6);
    }
}

/// The middle one of several runs.
fn median(runs: usize, mut body: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            body();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[runs / 2]
}

/// The most memory that this process has had, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|n| n.parse::<usize>().ok());
    kib.unwrap_or(0) * 1024
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn report(name: &str, source: &str, runs: usize) {
    let before = peak();
    let compiled = run(source);
    let grown = peak().saturating_sub(before);
    let jobs = compiled.plan.workflows.iter().flat_map(|workflow| &workflow.jobs);
    let (mut count, mut steps) = (0, 0);
    for job in jobs {
        count += 1;
        if let JobKind::Build { definition } = &job.kind {
            steps += definition.steps.len();
        }
    }
    let text = source.len() + compiled.processed.len();
    let yaml = median(runs, || _ = black_box(events(source)));
    let whole = median(runs, || _ = black_box(run(source)));
    let budget = yaml * 3 + Duration::from_micros(10) * u32::try_from(steps).unwrap_or(u32::MAX);
    println!("{name}: {} lines, {count} jobs, {steps} compiled steps", source.lines().count());
    println!("  YAML events alone   {:9.3} ms", ms(yaml));
    println!(
        "  compile             {:9.3} ms   {:.2} of 3 x events + 10 us x steps ({:.3} ms)",
        ms(whole),
        ms(whole) / ms(budget),
        ms(budget)
    );
    println!(
        "  peak memory grew by {:9.3} MB   {:.1} x (source + compiled text, {:.3} MB)",
        grown as f64 / 1e6,
        grown as f64 / text as f64,
        text as f64 / 1e6
    );
}

fn process(binary: &str, source: &str) {
    let folder = std::env::temp_dir().join(format!("gantry-bench-{}", std::process::id()));
    let file = folder.join("config.yml");
    if std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&file, source)).is_err() {
        return println!("no temporary folder: the process is not timed");
    }
    let start = || std::process::Command::new(binary).args(["config", "validate"]).arg(&file).output();
    match start() {
        Ok(output) if output.status.success() => {
            let time = median(21, || _ = black_box(start()));
            println!("gantry config validate (process): {:.3} ms", ms(time));
        }
        other => println!("{binary} did not validate: {other:?}"),
    }
    let _ = std::fs::remove_dir_all(&folder);
}

fn main() {
    // The small one first: the peak of a process never falls.
    let typical = generate::typical();
    report("typical", &typical, 201);
    report("large", &generate::large(), 21);
    hostile();
    if let Ok(binary) = std::env::var("GANTRY_BIN") {
        process(&binary, &typical);
    }
}
