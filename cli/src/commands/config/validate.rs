//! `gantry config validate`.

use super::{event, orbs, show, source, watch};
use crate::{Exit, Failure, Global};
use clap::{Args, ValueEnum};
use compiler::check::{self, Kind};
use compiler::{Diagnostic, Input, UsedOrb, sarif};
use serde_json::json;
use similar::TextDiff;
use std::fs;
use std::path::{Path, PathBuf};

pub(super) const HELP: &str = "Examples:\n  gantry config validate                                    .circleci/config.yml\n  gantry config validate . --orb-dir ~/orbs --strict        every configuration of a folder\n  gantry config validate --format sarif > findings.sarif\n  gantry config validate --watch\n  gantry config validate --fix                              misspelt words, forgotten colons and quotes\n\nExits with 0 when everything is valid, 7 when something is not, 5 when a file is missing.";

/// How findings are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// With the lines around, for people, on standard error
    #[default]
    Text,
    /// One JSON document
    Json,
    /// SARIF 2.1.0
    Sarif,
    /// Workflow commands that annotate a change on GitHub
    Github,
}

#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Files or folders; `-` reads standard input
    #[arg(default_value = source::DEFAULT)]
    paths: Vec<PathBuf>,
    /// How findings are printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Warnings count as errors
    #[arg(long)]
    strict: bool,
    /// Check again when a file changes
    #[arg(long)]
    watch: bool,
    /// Write into the files what findings leave no choice about, and print the difference
    #[arg(long, conflicts_with = "watch")]
    fix: bool,
    #[command(flatten)]
    orbs: orbs::Options,
    #[command(flatten)]
    event: event::Options,
}

/// What was found out about all files.
#[derive(Default)]
struct Report {
    findings: Vec<Diagnostic>,
    files: Vec<serde_json::Value>,
    used: Vec<UsedOrb>,
    valid: usize,
    invalid: usize,
    skipped: usize,
}

impl Arguments {
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        if !self.watch {
            return self.once(global);
        }
        let files = || {
            let found = source::files(&self.paths).unwrap_or_default();
            found.into_iter().map(|found| found.path).collect()
        };
        watch::repeat(files, || self.once(global))
    }

    fn once(&self, global: &Global) -> Result<Exit, Failure> {
        let format = if global.json { Format::Json } else { self.format };
        let orbs = self.orbs.open(global)?;
        let (values, parameters) = (self.event.values()?, self.event.parameters()?);
        let mut report = Report::default();
        for found in source::files(&self.paths)? {
            let mut text = source::read(&found.path)?;
            let shown = found.path.display().to_string();
            let kind = if found.in_folder { check::kind(&text) } else { Kind::Configuration };
            if self.fix && kind == Kind::Configuration {
                let input = Input {
                    values: values.clone(),
                    parameters: &parameters,
                    orbs: &orbs,
                    ..Input::new(&shown, &text)
                };
                let fixed = compiler::fix(&input);
                if fixed.count > 0 {
                    mend(&found.path, &text, &fixed.text, format == Format::Text)?;
                    text = fixed.text;
                }
            }
            let input = Input {
                values: values.clone(),
                parameters: &parameters,
                orbs: &orbs,
                ..Input::new(&shown, &text)
            };
            report.add(&input, kind, self.strict, format == Format::Text);
        }
        orbs.keep(&report.used)?;
        report.print(format);
        Ok(if report.invalid == 0 { Exit::Success } else { Exit::Invalid })
    }
}

/// Writes the mended text; the difference goes to standard output, or beside a document that stands there.
fn mend(path: &Path, before: &str, after: &str, print: bool) -> Result<(), Failure> {
    if path == Path::new("-") {
        return Err(Failure::new(Exit::Usage, "standard input cannot be mended: name a file with --fix"));
    }
    fs::write(path, after).map_err(|error| {
        Failure::new(Exit::Failed, format!("{} cannot be written: {error}", path.display()))
    })?;
    let name = path.display().to_string();
    let diff = TextDiff::from_lines(before, after).unified_diff().header(&name, &name).to_string();
    if print {
        print!("{diff}");
    } else {
        eprint!("{diff}");
    }
    Ok(())
}

impl Report {
    fn add(&mut self, input: &Input<'_>, kind: Kind, strict: bool, print: bool) {
        let word = match kind {
            Kind::Configuration => "configuration",
            Kind::Orb => "orb",
            Kind::Other => {
                self.skipped += 1;
                return;
            }
        };
        let found = match kind {
            Kind::Orb => check::orb(input),
            _ => compiler::compile(input).map(|compiled| (compiled.warnings, compiled.orbs)),
        };
        let (findings, valid) = match found {
            Ok((warnings, used)) => {
                let known = |orb: &UsedOrb| self.used.iter().any(|known| known.reference == orb.reference);
                let new: Vec<UsedOrb> = used.into_iter().filter(|orb| !known(orb)).collect();
                self.used.extend(new);
                let valid = !strict || warnings.is_empty();
                (warnings, valid)
            }
            Err(errors) => (errors, false),
        };
        if valid {
            self.valid += 1;
        } else {
            self.invalid += 1;
        }
        self.files.push(json!({ "file": input.file, "kind": word, "valid": valid }));
        if print {
            show(&findings, input.source);
        } else {
            self.findings.extend(findings);
        }
    }

    fn print(&self, format: Format) {
        match format {
            Format::Json => {
                let document = json!({
                    "valid": self.invalid == 0,
                    "diagnostics": self.findings,
                    "files": self.files,
                });
                println!("{document}");
            }
            Format::Sarif => println!("{:#}", sarif::sarif(&self.findings, env!("CARGO_PKG_VERSION"))),
            Format::Github => {
                self.findings.iter().for_each(|finding| println!("{}", sarif::annotation(finding)));
            }
            Format::Text => self.summary(),
        }
    }

    fn summary(&self) {
        let skipped = match self.skipped {
            0 => String::new(),
            n => format!(" {n} other YAML file(s) passed over."),
        };
        match (self.valid, self.invalid) {
            (0, 0) => eprintln!("No configuration found.{skipped}"),
            (1, 0) => eprintln!("Config is valid.{skipped}"),
            (valid, 0) => eprintln!("All {valid} files are valid.{skipped}"),
            (0, 1) => eprintln!("Config is invalid.{skipped}"),
            (valid, invalid) => eprintln!("{invalid} of {} files are invalid.{skipped}", valid + invalid),
        }
    }
}
