//! The page in a real headless Chromium: sign in, lists, graph, live log, cancel and approve; no error in the
//! console, and nothing that a repository says runs as a script.

use anyhow::{Context, bail, ensure};
use fantoccini::{Client, ClientBuilder, Locator, elements::Element};
use gantry_e2e::{Suite, until};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

const LIMIT: Duration = Duration::from_secs(90);
/// What a script from a repository would do.
const SCRIPT: &str = "<script>window.pwned=1</script><img src=x onerror=window.pwned=1>";
/// The same as a branch, where git allows no blanks.
const BRANCH: &str = "feature/<img/src=x/onerror=window.pwned=1>";

/// Chromium behind its driver.
struct Browser {
    page: Client,
    driver: Child,
    address: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    async fn start() -> anyhow::Result<Self> {
        let mut driver = Command::new("chromedriver")
            .args(["--port=0", "--log-level=WARNING"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("chromedriver cannot be run; scripts/setup installs it")?;
        let mut lines = BufReader::new(driver.stdout.take().context("no output")?).lines();
        let port = tokio::time::timeout(LIMIT, async {
            while let Some(line) = lines.next_line().await? {
                if let Some((_, rest)) = line.split_once("successfully on port ") {
                    return anyhow::Ok(rest.trim_end_matches('.').to_owned());
                }
            }
            bail!("chromedriver ended")
        })
        .await
        .context("chromedriver does not start")??;
        let address = format!("http://127.0.0.1:{port}");
        let profile = tempfile::tempdir()?;
        let folder = format!("--user-data-dir={}", profile.path().display());
        let capabilities = json!({
            "browserName": "chrome",
            "goog:loggingPrefs": { "browser": "ALL" },
            "goog:chromeOptions": { "args": [
                "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--no-proxy-server", "--window-size=1280,900", folder,
            ] },
        });
        let capabilities = capabilities.as_object().cloned().unwrap_or_default();
        let page = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&address)
            .await
            .context("Chromium does not start")?;
        Ok(Self { page, driver, address, _profile: profile })
    }

    /// The first element, as soon as it is there.
    async fn find(&self, css: &str) -> anyhow::Result<Element> {
        let found = self.page.wait().at_most(LIMIT).for_element(Locator::Css(css)).await;
        found.with_context(|| format!("no {css} on the page"))
    }

    /// Waits until an element's text holds this.
    async fn says(&self, css: &str, text: &str) -> anyhow::Result<()> {
        until(&format!("\"{text}\" in {css}"), LIMIT, || async {
            let found = self.page.find_all(Locator::Css(css)).await?;
            for element in found {
                if element.text().await.unwrap_or_default().contains(text) {
                    return Ok(Some(()));
                }
            }
            Ok(None)
        })
        .await
    }

    /// Clicks what may be drawn again at any moment.
    async fn click(&self, css: &str) -> anyhow::Result<()> {
        until(&format!("a click on {css}"), LIMIT, || async {
            self.page.find(Locator::Css(css)).await?.click().await?;
            Ok(Some(()))
        })
        .await
    }

    /// The node of a job in the graph, when it shows this.
    async fn job(&self, name: &str, shows: &str) -> anyhow::Result<Option<Element>> {
        for node in self.page.find_all(Locator::Css("a.node")).await? {
            let text = node.text().await?;
            if text.contains(name) && text.contains(shows) {
                return Ok(Some(node));
            }
        }
        Ok(None)
    }

    /// Goes to the page of a job from the graph.
    async fn open_job(&self, name: &str) -> anyhow::Result<()> {
        until(&format!("a click on {name}"), LIMIT, || async {
            match self.job(name, "").await? {
                Some(node) => Ok(Some(node.click().await?)),
                None => Ok(None),
            }
        })
        .await
    }

    /// What the console said since it was last asked.
    async fn console(&self) -> anyhow::Result<Vec<Value>> {
        let session = self.page.session_id().await?.context("no session")?;
        let answer: Value = reqwest::Client::new()
            .post(format!("{}/session/{session}/se/log", self.address))
            .json(&json!({ "type": "browser" }))
            .send()
            .await?
            .json()
            .await?;
        Ok(answer["value"].as_array().cloned().unwrap_or_default())
    }

    async fn pwned(&self) -> anyhow::Result<bool> {
        Ok(!self.page.execute("return window.pwned ?? null", Vec::new()).await?.is_null())
    }

    async fn keep_evidence(&self) {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        if let Ok(png) = self.page.screenshot().await {
            let _ = fs::write(folder.join("browser.png"), png);
        }
        if let Ok(source) = self.page.source().await {
            let _ = fs::write(folder.join("browser.html"), source);
        }
        println!("what the page was: {}/browser.png and .html", folder.display());
    }

    async fn close(mut self) -> anyhow::Result<()> {
        self.page.close().await?;
        self.driver.kill().await?;
        Ok(())
    }
}

/// A repository that tries to run scripts in the page. The log goes on when `go` is there.
fn repository(work: &Path, go: &Path) -> anyhow::Result<PathBuf> {
    let files = work.join("files");
    fs::create_dir_all(files.join(".circleci"))?;
    let config = format!(
        r#"version: 2.1
jobs:
  build:
    machine: true
    steps:
      - run:
          name: talk
          command: |
            echo "first line {SCRIPT}"
            until test -e {go}; do sleep 0.02; done
            echo "second line"
            sleep 600
  deploy: {{ machine: true, steps: [{{ run: echo deployed }}] }}
workflows:
  main:
    jobs: [build]
  release:
    jobs:
      - hold: {{ type: approval }}
      - deploy: {{ requires: [hold] }}
"#,
        go = go.display()
    );
    fs::write(files.join(".circleci/config.yml"), config)?;
    Ok(files)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_and_steers_a_pipeline_and_runs_nothing_of_a_repository() -> anyhow::Result<()> {
    let work = tempfile::tempdir()?;
    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755))?;
    let suite = Suite::up(&work.path().join("data"), &[]).await?;
    let browser = Browser::start().await?;
    let result = walk(&suite, &browser, work.path()).await;
    if result.is_err() {
        browser.keep_evidence().await;
    }
    browser.close().await?;
    result?;
    suite.down().await
}

// Rules: route.page
async fn walk(suite: &Suite, browser: &Browser, work: &Path) -> anyhow::Result<()> {
    let go = work.join("go");
    let files = repository(work, &go)?;
    let branch = format!("refs/heads/{BRANCH}");
    suite.push_as(work, "page", &files, &branch, &format!("Say hello {SCRIPT}")).await?;

    browser.page.goto(&suite.url).await?;
    let field = browser.find("input[name=token]").await?;
    field.send_keys(&suite.token).await?;
    browser.click(".signin button").await?;
    browser.says("h1", "Pipelines").await?;
    browser.says("a.row", "Say hello <script>").await?;
    browser.says("a.row", BRANCH).await?;
    browser.says("a.row .what", "page").await?;

    browser.click("a.row[data-id]").await?;
    browser.says(".node .name", "build").await?;
    browser.says(".node .name", "hold").await?;
    browser.says(".node .name", "deploy").await?;
    browser.says("#live", "Live").await?;
    browser.says(".node .badge", "Running").await?;

    browser.open_job("build").await?;
    browser.says(".log", "first line <script>").await?;
    let printed = Instant::now();
    fs::write(&go, "")?;
    browser.says(".log", "second line").await?;
    println!(
        "a line was on the page after {} ms, the driver's own time included",
        printed.elapsed().as_millis()
    );
    browser.click("button.bad").await?;
    browser.says("h1 ~ *, .bar .badge", "Cancelled").await?;

    browser.click("#crumbs a[href*='/pipelines/']").await?;
    browser.click(".node button.main").await?;
    until("the deployment", LIMIT, || async { Ok(browser.job("deploy", "Passed").await?.map(drop)) }).await?;

    let said = browser.console().await?;
    let errors: Vec<_> = said.iter().filter(|entry| entry["level"] == "SEVERE").collect();
    ensure!(errors.is_empty(), "the console says {errors:?}");
    ensure!(!browser.pwned().await?, "a script of the repository ran");
    policy_holds(browser).await
}

/// Even what got into the page would not run.
async fn policy_holds(browser: &Browser) -> anyhow::Result<()> {
    let inject = "const node = document.createElement('div'); document.body.append(node);
        try { node.innerHTML = '<img src=x onerror=window.pwned=2>'; } catch (error) { window.refused = String(error); }
        const script = document.createElement('script');
        try { script.textContent = 'window.pwned = 3'; document.body.append(script); } catch (error) { window.refused = String(error); }
        return window.refused ?? null";
    let refused = browser.page.execute(inject, Vec::new()).await?;
    ensure!(!refused.is_null(), "the page takes markup from a text");
    let said = until("the violation of the policy", LIMIT, || async {
        let said = browser.console().await?;
        Ok((!said.is_empty()).then_some(said))
    })
    .await?;
    ensure!(!browser.pwned().await?, "an injected script ran: {said:?}");
    Ok(())
}
