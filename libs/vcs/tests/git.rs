//! Reading from a real repository.

use gantry_vcs::{Error, Git, Repository};
use std::{path::Path, process::Command};

fn sh(dir: &Path, script: &str) -> String {
    let out = Command::new("sh")
        .args(["-euc", script])
        .current_dir(dir)
        .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1")])
        .envs(["AUTHOR", "COMMITTER"].iter().flat_map(|who| {
            [(format!("GIT_{who}_NAME"), "Ada"), (format!("GIT_{who}_EMAIL"), "ada@example.org")]
        }))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

async fn sample(root: &Path) -> (Repository, String) {
    let repository = Git::new(root.join("git")).repository("local", "demo").unwrap();
    repository.init("main").await.unwrap();
    repository.init("main").await.unwrap();
    let work = root.join("work");
    std::fs::create_dir_all(work.join(".circleci")).unwrap();
    std::fs::write(work.join(".circleci/config.yml"), "version: 2.1\n").unwrap();
    let bare = repository.dir().display();
    let head = sh(
        &work,
        &format!(
            "git init -q -b main . && git add . && git commit -q -m 'A subject' -m 'A body' \
             && git tag -a v1 -m 'A tag' && git push -q {bare} main v1 main:feature/x && git rev-parse HEAD"
        ),
    );
    (repository, head)
}

#[tokio::test]
async fn refs_files_and_commits() {
    let root = tempfile::tempdir().unwrap();
    let (repository, head) = sample(root.path()).await;
    let mut reader = repository.read().unwrap();
    for branch in ["main", "feature/x"] {
        assert_eq!(reader.branch(branch).await.unwrap().unwrap().revision, head);
    }
    let tagged = reader.tag("v1").await.unwrap().unwrap();
    assert_eq!(tagged.revision, head, "an annotated tag is its commit");
    for none in
        ["gone", "main^", "main~1", "main^{tree}", "a b", "", "-x", "v1", "main\nmain", "@{-1}", "main:a 1 2"]
    {
        assert_eq!(reader.branch(none).await.unwrap(), None, "{none:?}");
    }

    let path = ".circleci/config.yml";
    assert_eq!(reader.file(&head, path, 100).await.unwrap().as_deref(), Some(&b"version: 2.1\n"[..]));
    assert_eq!(reader.file(&head, "none.yml", 100).await.unwrap(), None);
    assert_eq!(reader.file(&head, "no such file", 100).await.unwrap(), None);
    assert_eq!(reader.file(&head, ".circleci", 100).await.unwrap(), None, "a folder is no file");
    assert_eq!(reader.file("main", path, 100).await.unwrap(), None, "only full ids are read");

    let commit = reader.commit(&head).await.unwrap().unwrap();
    assert_eq!((&*commit.subject, &*commit.author), ("A subject", "Ada"));
    assert_eq!(commit.message, "A subject\n\nA body");
    assert_eq!(reader.commit(&"0".repeat(40)).await.unwrap(), None);
    // The last question: what is too large is not read, and nothing after it.
    assert!(matches!(reader.file(&head, path, 5).await, Err(Error::TooLarge { size: 13, limit: 5, .. })));
}

#[tokio::test]
async fn commits_of_odd_texts() {
    let root = tempfile::tempdir().unwrap();
    let (repository, _) = sample(root.path()).await;
    let work = root.path().join("work");
    let bare = repository.dir().display();
    for (message, subject) in
        [("One\nline\n\nBody", "One line"), ("", ""), ("\n\nLate", "Late"), ("a  b ", "a  b")]
    {
        std::fs::write(root.path().join("message"), message).unwrap();
        let head = sh(
            &work,
            &format!(
                "git commit -q --allow-empty --allow-empty-message --cleanup=verbatim -F ../message \
                 && git push -q {bare} main && git rev-parse HEAD"
            ),
        );
        let logged = sh(&work, "git log -1 --format=%s");
        let commit = repository.read().unwrap().commit(&head).await.unwrap().unwrap();
        assert_eq!((commit.subject.trim(), logged.trim()), (subject, subject), "{message:?}");
    }
}

#[tokio::test]
async fn damage_is_said() {
    let root = tempfile::tempdir().unwrap();
    let (repository, head) = sample(root.path()).await;
    let object = repository.dir().join("objects").join(&head[..2]).join(&head[2..]);
    std::fs::remove_file(&object).unwrap();
    std::fs::write(&object, "no object").unwrap();
    let said = repository.read().unwrap().branch("main").await.unwrap_err().to_string();
    assert!(said.contains("local/demo") && said.contains(&head), "{said}");
}

#[tokio::test]
async fn what_is_not_there_says_so() {
    let root = tempfile::tempdir().unwrap();
    let git = Git::new(root.path());
    let missing = git.repository("local", "none").unwrap();
    assert!(matches!(missing.read(), Err(Error::NoRepository(name)) if name == "local/none"));
    for name in ["..", "a/b", "", ".git", "-c", "a b"] {
        assert!(matches!(git.repository("local", name), Err(Error::Name(_))), "{name:?}");
        assert!(matches!(git.repository(name, "demo"), Err(Error::Name(_))), "{name:?}");
    }
}
