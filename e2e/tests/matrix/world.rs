//! The stack, what runs on it, and the judge of what became of that.

use crate::stack::Stack;
use anyhow::{Context, ensure};
use gantry_e2e::{
    Suite,
    ledger::{Fan, LIMIT, Ledger, Verdict},
    until,
};
use serde_json::{Value, json};
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

/// What runs while something fails: one job, then many side by side of which one takes a secret and keeps a file, then one.
pub const FAN: Fan = Fan {
    jobs: 7,
    lines: 15,
    between: "sleep 0.1",
    class: None,
    more: (
        ", context: matrix",
        "run: test \"$WORD\" = a-value && seq 1250000 > kept\n      - store_artifacts: { path: kept }",
    ),
};
/// Lines of the file that is kept: it goes in two parts.
const KEPT: u32 = 1_250_000;
/// What shows that the suite works again.
const PROBE: Fan = Fan { jobs: 1, lines: 1, between: "true", class: None, more: ("", "") };
/// A request that nobody answers is given up.
pub const LIMITED: Duration = Duration::from_secs(12);

/// The stack and what was made on it before the first failure.
pub struct World {
    pub stack: Stack,
    pub suite: Suite,
    pub ledger: Ledger,
    pub http: reqwest::Client,
    /// Id of the context that every fan uses.
    pub context: String,
    /// Id of a step whose output is complete, and the output.
    pub step: (String, Vec<u8>),
    /// How long the probe takes while nothing fails.
    pub health: Duration,
}

impl World {
    /// Starts everything and lets a first workflow end.
    pub async fn up() -> anyhow::Result<Self> {
        let (stack, suite) = Stack::up().await?;
        let ledger = Ledger::new()?;
        let http = reqwest::Client::builder().timeout(LIMITED).build()?;
        let name = format!("matrix-{}", std::process::id());
        suite
            .push(&ledger.work.path().join("repositories"), &name, &files(&ledger, &name)?, "refs/heads/main")
            .await?;
        let owner = until("the project", LIMIT, || async {
            let project = suite.get(&format!("/api/v2/project/git/local/{name}")).await?;
            Ok(project["organization_id"].as_str().map(str::to_owned))
        })
        .await?;
        let wanted = json!({ "name": "matrix", "owner": { "id": owner } });
        let known = suite.items(&format!("/api/v2/context?owner-id={owner}")).await?;
        let context = match known.into_iter().find(|context| context["name"] == "matrix") {
            Some(context) => context,
            None => suite.post("/api/v2/context", &wanted).await?.1,
        };
        let context = context["id"].as_str().with_context(|| format!("no context: {context}"))?.to_owned();
        let mut world =
            Self { stack, suite, ledger, http, context, step: Default::default(), health: Duration::ZERO };
        ensure!(world.set_word().await? == 200, "the context takes no value");
        let case = Case::new(&world, "warm", 0, Duration::ZERO);
        case.push().await?;
        case.judge().await?;
        let step = world.finished_step(&case.project, "j2").await?;
        let begun = Instant::now();
        world.probe(&format!("{}-health", case.project)).await?;
        world.health = begun.elapsed();
        world.step = step;
        Ok(world)
    }

    /// A request whose answer may be a refusal; the status and the text.
    pub async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<(u16, String)> {
        let mut request = self
            .http
            .request(method.parse()?, format!("{}{path}", self.suite.url))
            .header("Circle-Token", &self.suite.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// Sets the variable of the context; the status.
    pub async fn set_word(&self) -> anyhow::Result<u16> {
        let path = format!("/api/v2/context/{}/environment-variable/WORD", self.context);
        Ok(self.ask("PUT", &path, Some(&json!({ "value": "a-value" }))).await?.0)
    }

    /// Id and whole output of the step `work` of a job that is over.
    async fn finished_step(&self, project: &str, job: &str) -> anyhow::Result<(String, Vec<u8>)> {
        let slug = format!("git/local/{project}");
        let number = self.number(project, job).await?;
        let build = self.suite.get(&format!("/api/v1.1/project/{slug}/{number}")).await?;
        let step = build["steps"].as_array().into_iter().flatten().find(|step| step["name"] == "work");
        let id = step.and_then(|step| step["actions"][0]["step_id"].as_str()).context("no step")?.to_owned();
        let bytes = self.suite.bytes(&format!("/logs/{id}/raw")).await?;
        Ok((id, bytes))
    }

    /// Number of a job of a project's only workflow.
    pub async fn number(&self, project: &str, job: &str) -> anyhow::Result<i64> {
        let found = self.jobs(project).await?.into_iter().find(|found| found["name"] == job);
        found
            .and_then(|job| job["job_number"].as_i64())
            .with_context(|| format!("{project}/{job} has no number"))
    }

    /// Jobs of a project's only workflow.
    pub async fn jobs(&self, project: &str) -> anyhow::Result<Vec<Value>> {
        let found = self.suite.items(&format!("/api/v2/project/git/local/{project}/pipeline")).await?;
        let pipeline = found.first().and_then(|found| found["id"].as_str()).context("no pipeline")?;
        let found = self.suite.items(&format!("/api/v2/pipeline/{pipeline}/workflow")).await?;
        let workflow = found.first().and_then(|found| found["id"].as_str()).context("no workflow")?;
        self.suite.items(&format!("/api/v2/workflow/{workflow}/job")).await
    }

    /// Pushes one job and waits until it has succeeded.
    pub async fn probe(&self, project: &str) -> anyhow::Result<()> {
        self.ledger.prepare(project, &PROBE).await?;
        until("a push", LIMIT, || async {
            within(LIMITED, self.ledger.push_again(&self.suite, project)).await.map(Some)
        })
        .await?;
        until("the probe's end", LIMIT, || async {
            let jobs = within(LIMITED, self.jobs(project)).await?;
            Ok(jobs.first().filter(|job| !job["stopped_at"].is_null()).cloned())
        })
        .await?;
        let verdict = self.ledger.judge(&self.suite, project, &PROBE).await?;
        ensure!(verdict.status == "success", "the probe {project} is {}: {:?}", verdict.status, verdict.lost);
        Ok(())
    }
}

fn seconds(begun: Instant) -> String {
    format!("{:.1} s", begun.elapsed().as_secs_f64())
}

/// Files of the project that the context's owner is read from.
fn files(ledger: &Ledger, name: &str) -> anyhow::Result<std::path::PathBuf> {
    let files = ledger.work.path().join("files").join(name);
    std::fs::create_dir_all(&files)?;
    std::fs::write(files.join("readme"), "no configuration\n")?;
    Ok(files)
}

/// The same, given up after a while.
pub async fn within<T>(limit: Duration, what: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::time::timeout(limit, what).await.with_context(|| format!("no answer within {limit:?}"))?
}

/// One failure with one seed, and what runs meanwhile.
pub struct Case<'a> {
    pub world: &'a World,
    /// Of the fan that runs.
    pub project: String,
    /// How long what fails stays away.
    pub outage: Duration,
    random: Mutex<fastrand::Rng>,
    notes: Mutex<Vec<String>>,
    /// What was promised and did not hold.
    broken: Mutex<Vec<String>>,
    /// Projects that were pushed besides.
    besides: Mutex<Vec<String>>,
    /// Jobs that the failure may cost.
    may_lose: Mutex<usize>,
    back: Mutex<Option<Instant>>,
}

impl<'a> Case<'a> {
    pub fn new(world: &'a World, row: &str, seed: u64, outage: Duration) -> Self {
        let project = format!("{}-{seed}-{}", row.to_lowercase(), std::process::id());
        let salt = row.bytes().fold(seed, |salt, byte| salt.wrapping_mul(31).wrapping_add(u64::from(byte)));
        Self {
            world,
            project,
            outage,
            random: Mutex::new(fastrand::Rng::with_seed(salt)),
            notes: Mutex::default(),
            broken: Mutex::default(),
            besides: Mutex::default(),
            may_lose: Mutex::default(),
            back: Mutex::default(),
        }
    }

    /// Starts the fan.
    pub async fn push(&self) -> anyhow::Result<()> {
        self.world.ledger.push(&self.world.suite, &self.project, &FAN).await?;
        Ok(())
    }

    /// Waits until so many of its jobs have begun.
    pub async fn begun(&self, jobs: usize) -> anyhow::Result<()> {
        until("user code", LIMIT, || async { Ok((self.ran()? >= jobs).then_some(())) }).await
    }

    /// How many of its jobs have begun.
    pub fn ran(&self) -> anyhow::Result<usize> {
        let mine = format!("{}/", self.project);
        Ok(self.world.ledger.ran()?.keys().filter(|name| name.starts_with(&mine)).count())
    }

    /// A number below a bound, by the seed.
    pub fn draw(&self, below: usize) -> usize {
        self.random.lock().expect("no thread panicked").usize(0..below)
    }

    /// One of these, by the seed.
    pub fn pick<T: Copy>(&self, of: &[T]) -> T {
        of[self.draw(of.len())]
    }

    /// Says in the page what was seen.
    pub fn saw(&self, what: impl Into<String>) {
        self.notes.lock().expect("no thread panicked").push(what.into());
    }

    /// The failure itself lasts so long: not a wait for anything.
    pub async fn last(&self) {
        tokio::time::sleep(self.outage).await;
    }

    /// From here on recovery counts.
    pub fn back(&self) {
        *self.back.lock().expect("no thread panicked") = Some(Instant::now());
    }

    /// So many more jobs may end as lost.
    pub fn may_lose(&self, jobs: usize) {
        *self.may_lose.lock().expect("no thread panicked") += jobs;
    }

    /// A promise of this row alone. The row goes on when it does not hold, so that the rest is seen too, and is broken.
    pub fn claim(&self, what: &str, held: anyhow::Result<String>) {
        match held {
            Ok(seen) => self.saw(format!("{what}: {seen}")),
            Err(error) => {
                self.broken.lock().expect("no thread panicked").push(format!("NOT KEPT: {what}: {error:#}"))
            }
        }
    }

    /// What did not hold.
    pub fn broken(&self) -> Vec<String> {
        self.broken.lock().expect("no thread panicked").clone()
    }

    /// Has the suite know the project that [`Self::push_meanwhile`] pushes to: to make one is a change, which may be
    /// refused while a push is not.
    pub async fn know_besides(&self) -> anyhow::Result<()> {
        let project = self.besides();
        self.world.ledger.prepare(&project, &FAN).await?;
        self.world.ledger.push_dry(&self.world.suite, &project).await.map(drop)
    }

    /// A push while something is away is taken, and is judged as the fan is.
    pub async fn push_meanwhile(&self) {
        let project = self.besides();
        let pushed = async {
            self.world.ledger.prepare(&project, &FAN).await?;
            let begun = Instant::now();
            within(LIMITED, self.world.ledger.push_again(&self.world.suite, &project)).await?;
            self.judge_besides(project);
            Ok(format!("taken in {}", seconds(begun)))
        };
        self.claim("a push meanwhile", pushed.await);
    }

    /// A name for one more project.
    pub fn besides(&self) -> String {
        format!("{}-b{}", self.project, self.besides.lock().expect("no thread panicked").len())
    }

    /// Judges one more project as the fan is.
    pub fn judge_besides(&self, project: String) {
        self.besides.lock().expect("no thread panicked").push(project);
    }

    /// Output that was complete before can be read, the same bytes.
    pub async fn read_log(&self) {
        let read = async {
            let begun = Instant::now();
            let (id, whole) = &self.world.step;
            let (status, text) = self.world.ask("GET", &format!("/logs/{id}/raw"), None).await?;
            ensure!(status == 200 && text.as_bytes() == whole, "answered {status} {text}");
            Ok(format!("whole in {}", seconds(begun)))
        };
        self.claim("output of an earlier job", read.await);
    }

    /// A request that must be refused for now: 503, never another answer.
    pub async fn refused(&self, what: &str, method: &str, path: &str, body: Option<&Value>) {
        let asked = async {
            let begun = Instant::now();
            let (status, text) = self.world.ask(method, path, body).await?;
            ensure!(status == 503, "answered {status} {text}");
            Ok(format!("503 in {}", seconds(begun)))
        };
        self.claim(what, asked.await);
    }

    /// The edit of a secret.
    pub async fn edit_refused(&self) {
        let path = format!("/api/v2/context/{}/environment-variable/OTHER", self.world.context);
        self.refused("the edit of a secret", "PUT", &path, Some(&json!({ "value": "a-value" }))).await;
    }

    /// So far no job of the fan has ended badly.
    pub async fn none_failed(&self) {
        let looked = async {
            for job in within(LIMITED, self.world.jobs(&self.project)).await? {
                let status = job["status"].as_str().unwrap_or_default();
                ensure!(
                    !matches!(status, "failed" | "infrastructure_fail" | "timedout" | "canceled"),
                    "{} is {status}",
                    job["name"]
                );
            }
            Ok("none".to_owned())
        };
        self.claim("jobs that ended badly", looked.await);
    }

    /// Time from the component's return until a push has led to a job that succeeded.
    pub async fn recovered(&self) -> anyhow::Result<Duration> {
        let back =
            self.back.lock().expect("no thread panicked").context("the row does not say when it was back")?;
        self.world.probe(&format!("{}-probe", self.project)).await?;
        Ok(back.elapsed())
    }

    /// The judge of every row: each job ran once or is said to be lost where that is allowed, every workflow ended, every
    /// byte of output and the kept file are there.
    pub async fn judge(&self) -> anyhow::Result<()> {
        let besides = self.besides.lock().expect("no thread panicked").clone();
        let mut lost = Vec::new();
        for project in [&self.project].into_iter().chain(&besides) {
            let Verdict { status, lost: here } =
                self.world.ledger.judge(&self.world.suite, project, &FAN).await?;
            ensure!(
                status == if here.is_empty() { "success" } else { "failed" },
                "{project} is {status}, lost jobs: {here:?}"
            );
            if !here.iter().any(|job| job.starts_with("j1:")) && here.is_empty() {
                self.kept(project).await?;
            }
            lost.extend(here);
        }
        let may_lose = *self.may_lose.lock().expect("no thread panicked");
        ensure!(lost.len() <= may_lose, "{may_lose} jobs may be lost, and {lost:?} were");
        if may_lose > 0 {
            self.saw(format!("{} of at most {may_lose} jobs lost", lost.len()));
        }
        Ok(())
    }

    /// The file that the second job keeps.
    async fn kept(&self, project: &str) -> anyhow::Result<()> {
        let number = self.world.number(project, "j1").await?;
        let path = format!("/api/v2/project/git/local/{project}/{number}/artifacts");
        let artifacts = self.world.suite.items(&path).await?;
        let url = artifacts.first().and_then(|artifact| artifact["url"].as_str()).context("no artifact")?;
        let path = url.strip_prefix(&self.world.suite.url).unwrap_or(url);
        let bytes = self.world.suite.bytes(path).await?;
        let wanted: String = (1..=KEPT).map(|line| format!("{line}\n")).collect();
        ensure!(
            bytes == wanted.as_bytes(),
            "the artifact of {project} is other bytes, {} of them",
            bytes.len()
        );
        Ok(())
    }

    /// What was seen.
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().expect("no thread panicked").clone()
    }
}
