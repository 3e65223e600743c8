//! Orbs of a folder in each of its layouts, and the lock file.

use compiler::{OrbError, OrbSource, UsedOrb};
use gantry_orb_folder::{Lock, LockedOrbs, OrbFolder, digest};
use std::fs;
use std::path::Path;

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("parent")).expect("folder");
    fs::write(path, text).expect("file");
}

fn fetch(folder: &dyn OrbSource, reference: &str) -> Result<(String, String), OrbError> {
    folder.fetch(&reference.parse().expect("reference")).map(|text| (text.resolved, text.text.to_string()))
}

#[test]
fn plain_files_and_partial_versions() {
    let dir = tempfile::tempdir().expect("dir");
    put(dir.path(), "acme/tool@1.2.3.yml", "version: 2.1 # a");
    put(dir.path(), "acme/tool@1.10.0.yml", "version: 2.1 # b");
    put(dir.path(), "acme/tool@dev:first.yml", "version: 2.1 # c");
    let folder = OrbFolder::open(dir.path()).expect("opens");
    assert_eq!(folder.len(), 3);
    let cases = [
        ("acme/tool@1.2", "acme/tool@1.2.3", "# a"),
        ("acme/tool@1", "acme/tool@1.10.0", "# b"),
        ("acme/tool@volatile", "acme/tool@1.10.0", "# b"),
        ("acme/tool@dev:first", "acme/tool@dev:first", "# c"),
    ];
    for (reference, resolved, text) in cases {
        let found = fetch(&folder, reference).expect(reference);
        assert_eq!(found.0, resolved);
        assert!(found.1.ends_with(text));
    }
    let Err(OrbError::NotFound(Some(hint))) = fetch(&folder, "acme/tool@2") else { panic!("found") };
    assert!(hint.contains("1.2.3, 1.10.0, dev:first"), "{hint}");
    let Err(OrbError::NotFound(Some(hint))) = fetch(&folder, "acne/tool@2") else { panic!("found") };
    assert!(hint.contains("holds `acme/tool`"), "{hint}");
    assert!(matches!(fetch(&folder, "https://example.com/o.yml"), Err(OrbError::Unavailable(_))));
}

#[test]
fn trees_with_a_catalog_and_without() {
    let dir = tempfile::tempdir().expect("dir");
    let orbs = dir.path().join("orbs");
    put(&orbs, "CircleCI-Public__tool-orb/abc/src/@orb.yml", "version: 2.1\n");
    put(
        &orbs,
        "CircleCI-Public__tool-orb/abc/src/commands/say.yml",
        "steps: [{run: <<include(scripts/a.sh)>>}]\n",
    );
    put(&orbs, "CircleCI-Public__tool-orb/abc/src/scripts/a.sh", "echo <<x");
    let folder = OrbFolder::open(&orbs).expect("opens");
    let (resolved, text) = fetch(&folder, "circleci/tool@volatile").expect("the name of the repository");
    assert_eq!(resolved, "circleci/tool@volatile");
    assert!(text.contains("run: \"echo \\\\<<x\""), "{text}");
    assert!(fetch(&folder, "circleci/tool@1.0.0").is_err(), "its version is not known");

    let catalog = r#"{"half": 1, "orbs": [
        {"orb": "circleci/tool", "version": "1.0.0", "dir": "orbs/CircleCI-Public__tool-orb/abc", "root": "src/", "more": []},
        {"orb": "circleci/tool", "version": "2.0.0", "dir": "orbs/CircleCI-Public__tool-orb/def", "root": "src/"},
        {"orb": null, "version": "2.0.0", "dir": "orbs/x/y", "root": "src/"}]}"#;
    put(dir.path(), "index.json", catalog);
    let folder = OrbFolder::open(&orbs).expect("opens");
    assert_eq!(folder.len(), 1, "what is listed and not there does not count");
    assert_eq!(fetch(&folder, "circleci/tool@1").expect("listed").0, "circleci/tool@1.0.0");
}

#[test]
fn an_include_cannot_leave_its_folder() {
    let dir = tempfile::tempdir().expect("dir");
    put(dir.path(), "secret", "s3cret");
    put(dir.path(), "orbs/a__tool-orb/abc/src/@orb.yml", "description: <<include(../../../../secret)>>\n");
    let folder = OrbFolder::open(&dir.path().join("orbs")).expect("opens");
    let Err(OrbError::NotFound(Some(reason))) = fetch(&folder, "a/tool@volatile") else { panic!("read") };
    assert!(reason.contains("@orb.yml:1: the included file"), "{reason}");
}

#[test]
fn a_lock_pins_texts() {
    let dir = tempfile::tempdir().expect("dir");
    put(dir.path(), "acme/tool@1.0.0.yml", "version: 2.1 # a");
    let used = UsedOrb {
        reference: "acme/tool@1".into(),
        resolved: "acme/tool@1.0.0".into(),
        digest: digest("version: 2.1 # a"),
        direct: true,
    };
    let path = dir.path().join("orbs.lock");
    assert!(Lock::read(&path).expect("none yet").is_none());
    Lock::of([&used]).write(&path).expect("writes");
    put(dir.path(), "acme/tool@1.1.0.yml", "version: 2.1 # b");
    let locked = |root: &Path| Lock::read(&root.join("orbs.lock")).expect("reads").expect("is there");

    let folder = OrbFolder::open(dir.path()).expect("opens");
    let source = LockedOrbs { lock: locked(dir.path()), source: &folder };
    assert_eq!(fetch(&source, "acme/tool@1").expect("locked").0, "acme/tool@1.0.0");
    assert!(matches!(fetch(&source, "acme/tool@1.1"), Err(OrbError::Unavailable(_))), "not in the lock");

    put(dir.path(), "acme/tool@1.0.0.yml", "version: 2.1 # changed");
    let folder = OrbFolder::open(dir.path()).expect("opens");
    let source = LockedOrbs { lock: locked(dir.path()), source: &folder };
    assert!(matches!(fetch(&source, "acme/tool@1"), Err(OrbError::Forbidden(_))));

    put(dir.path(), "orbs.lock", "{\"version\": 2, \"orbs\": {}}");
    assert!(Lock::read(&path).is_err());
}
