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
    for branch in ["main", "feature/x"] {
        assert_eq!(repository.branch(branch).await.unwrap().as_deref(), Some(&*head));
    }
    assert_eq!(
        repository.tag("v1").await.unwrap().as_deref(),
        Some(&*head),
        "an annotated tag is its commit"
    );
    for none in ["gone", "main^", "main~1", "a b", "", "-x", "v1"] {
        assert_eq!(repository.branch(none).await.unwrap(), None, "{none:?}");
    }

    let path = ".circleci/config.yml";
    assert_eq!(repository.file(&head, path, 100).await.unwrap().as_deref(), Some(&b"version: 2.1\n"[..]));
    assert_eq!(repository.file(&head, "none.yml", 100).await.unwrap(), None);
    assert_eq!(repository.file(&head, ".circleci", 100).await.unwrap(), None, "a folder is no file");
    assert_eq!(repository.file("main", path, 100).await.unwrap(), None, "only full ids are read");
    assert!(matches!(repository.file(&head, path, 5).await, Err(Error::TooLarge { size: 13, limit: 5, .. })));

    let commit = repository.commit(&head).await.unwrap().unwrap();
    assert_eq!((&*commit.subject, &*commit.author), ("A subject", "Ada"));
    assert_eq!(commit.message, "A subject\n\nA body");
    assert_eq!(repository.commit(&"0".repeat(40)).await.unwrap(), None);
}

#[tokio::test]
async fn what_is_not_there_says_so() {
    let root = tempfile::tempdir().unwrap();
    let git = Git::new(root.path());
    let missing = git.repository("local", "none").unwrap();
    assert!(matches!(missing.branch("main").await, Err(Error::NoRepository(name)) if name == "local/none"));
    for name in ["..", "a/b", "", ".git", "-c", "a b"] {
        assert!(matches!(git.repository("local", name), Err(Error::Name(_))), "{name:?}");
        assert!(matches!(git.repository(name, "demo"), Err(Error::Name(_))), "{name:?}");
    }
}
