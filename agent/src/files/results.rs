//! `circle-test-results/results.json` in the folder of the task's data (execution §18): the tests of the last reports that a job
//! stored, for scripts, and for `circleci tests split` where they were kept from an earlier run.

use agent_api::stores::Timings;
use junit::Case;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};

/// Where it lies in that folder.
pub(crate) const RESULTS: &str = "circle-test-results/results.json";

/// A test as it stands there.
#[derive(Serialize)]
struct Record<'a> {
    #[serde(flatten)]
    case: &'a Case,
    source: &'static str,
    source_type: &'static str,
}

/// The file while it is written: it appears when it is whole.
pub(super) struct Writer {
    draft: PathBuf,
    place: PathBuf,
    to: BufWriter<File>,
    empty: bool,
}

impl Writer {
    /// For a folder of a task's data.
    pub(super) fn new(data: &Path) -> io::Result<Self> {
        let place = data.join(RESULTS);
        let draft = place.with_extension("json.new");
        fs::create_dir_all(place.parent().unwrap_or(data))?;
        let mut to = BufWriter::new(File::create(&draft)?);
        to.write_all(b"{\"tests\":[")?;
        Ok(Self { draft, place, to, empty: true })
    }

    /// Adds the tests of a report.
    pub(super) fn add(&mut self, cases: &[Case]) -> io::Result<()> {
        for case in cases {
            if !std::mem::take(&mut self.empty) {
                self.to.write_all(b",")?;
            }
            serde_json::to_writer(&mut self.to, &Record { case, source: "unknown", source_type: "unknown" })?;
        }
        Ok(())
    }

    /// Puts it in its place.
    pub(super) fn end(mut self) -> io::Result<()> {
        self.to.write_all(b"],\"files\":[],\"exceptions\":[]}\n")?;
        self.to.flush()?;
        fs::rename(&self.draft, &self.place)
    }
}

/// What is read of such a file.
#[derive(Deserialize)]
pub(crate) struct Results {
    tests: Vec<Timed>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Timed {
    classname: String,
    file: String,
    name: String,
    run_time: f64,
}

impl Results {
    /// How long files, classes and tests took: of what stands several times, all of it.
    pub(crate) fn timings(&self) -> Timings {
        let sum = |of: fn(&Timed) -> &String| {
            let mut all = BTreeMap::<String, f64>::new();
            for test in self.tests.iter().filter(|test| !of(test).is_empty()) {
                *all.entry(of(test).clone()).or_default() += test.run_time.max(0.0);
            }
            all.into_iter().map(|(name, seconds)| (name, millis(seconds))).collect()
        };
        Timings { files: sum(|t| &t.file), classes: sum(|t| &t.classname), tests: sum(|t| &t.name) }
    }
}

fn millis(seconds: f64) -> u64 {
    let time = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_as_timings() {
        let data = tempfile::tempdir().unwrap();
        let case = |file: &str, name: &str, run_time| Case {
            classname: "Suite".to_owned(),
            file: file.to_owned(),
            name: name.to_owned(),
            run_time,
            message: "a \"word\"\n".to_owned(),
            ..Case::default()
        };
        let mut writer = Writer::new(data.path()).unwrap();
        writer.add(&[case("a.rb", "one", 1.5), case("a.rb", "two", 0.25)]).unwrap();
        writer.add(&[]).unwrap();
        writer.add(&[case("", "three", 2.0)]).unwrap();
        assert!(!data.path().join(RESULTS).exists(), "it appears when it is whole");
        writer.end().unwrap();
        let text = fs::read_to_string(data.path().join(RESULTS)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            json["tests"][0],
            serde_json::json!({
                "classname": "Suite", "file": "a.rb", "name": "one", "result": "success", "run_time": 1.5,
                "message": "a \"word\"\n", "source": "unknown", "source_type": "unknown",
            })
        );
        assert_eq!(json["exceptions"], serde_json::json!([]));
        let timings = serde_json::from_str::<Results>(&text).unwrap().timings();
        assert_eq!(timings.files, BTreeMap::from([("a.rb".to_owned(), 1750)]));
        assert_eq!(timings.classes, BTreeMap::from([("Suite".to_owned(), 3750)]));
        assert_eq!(timings.tests["three"], 2000);
    }
}
