//! Who may import whom, what may be linked, under which licences: read from `cargo metadata` (architecture §2).

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};
use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .exec()
        .expect("cargo metadata")
}

fn ours(metadata: &Metadata) -> HashMap<&str, &Package> {
    metadata.workspace_packages().into_iter().map(|package| (package.name.as_str(), package)).collect()
}

fn imports(package: &Package) -> BTreeSet<&str> {
    package
        .dependencies
        .iter()
        .filter(|found| found.kind == DependencyKind::Normal)
        .map(|found| found.name.as_str())
        .collect()
}

/// What is really built. The graph of `cargo metadata` also holds optional dependencies that are only mentioned by a
/// weak feature (`x?/y`), so `cargo tree` says which of its packages count.
fn linked(metadata: &Metadata) -> Vec<&Package> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo tree runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed = String::from_utf8_lossy(&output.stdout);
    let built: BTreeSet<(&str, &str)> = listed
        .lines()
        .filter_map(|line| {
            line.split_once(" v").map(|(name, rest)| (name, rest.split(' ').next().unwrap_or(rest)))
        })
        .collect();
    let found: Vec<_> = metadata
        .packages
        .iter()
        .filter(|package| built.contains(&(package.name.as_str(), &*package.version.to_string())))
        .collect();
    assert!(found.len() > 100, "cargo tree names {} packages only", found.len());
    found
}

fn is_service(package: &Package) -> bool {
    package.manifest_path.as_str().contains("/services/")
}

#[test]
fn services_import_libraries_and_never_each_other() {
    let metadata = metadata();
    let ours = ours(&metadata);
    for (name, package) in &ours {
        for import in imports(package) {
            let Some(target) = ours.get(import) else { continue };
            if is_service(target) {
                assert_eq!(
                    *name, "gantry-server",
                    "{name} imports the service {import}: only the binary that wires may"
                );
            }
        }
    }
}

/// `[lib] test = false` saves a second compilation of a large library, and would silence tests below its `src`.
#[test]
fn every_test_is_run_by_somebody() {
    let metadata = metadata();
    for (name, package) in ours(&metadata) {
        let lib = package.targets.iter().find(|target| target.is_lib());
        let Some(lib) = lib.filter(|lib| !lib.test) else { continue };
        let src = lib.src_path.parent().expect("a folder");
        let tests = src.with_file_name("tests");
        let including: String = files(tests.as_std_path()).iter().map(|file| read(file)).collect();
        for file in files(src.as_std_path()) {
            let within = file.strip_prefix(src).expect("below it").display().to_string();
            assert!(
                !read(&file).contains("#[cfg(test)]") || including.contains(&format!("src/{within}\"]")),
                "tests in {} are never run: {name} has `test = false`",
                file.display()
            );
        }
    }
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).expect("a readable file")
}

/// Every Rust file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn pure_crates_have_no_async_sql_or_http() {
    let metadata = metadata();
    let ours = ours(&metadata);
    for name in [
        "gantry-ids",
        "gantry-model",
        "gantry-contracts",
        "gantry-agent-api",
        "gantry-compiler",
        "gantry-masking",
        "gantry-archive",
        "gantry-junit",
    ] {
        let found = imports(ours[name]);
        for banned in ["tokio", "futures", "async-trait", "sqlx", "reqwest", "hyper", "axum", "http"] {
            assert!(!found.contains(banned), "{name} imports {banned}, but is pure");
        }
    }
}

#[test]
fn the_agent_imports_no_store_and_no_bus() {
    let metadata = metadata();
    let ours = ours(&metadata);
    let mut todo = vec!["gantry-runner"];
    let mut seen = BTreeSet::new();
    while let Some(name) = todo.pop() {
        if seen.insert(name) {
            todo.extend(imports(ours[name]).into_iter().filter(|import| ours.contains_key(import)));
        }
    }
    for banned in
        ["gantry-eventstore", "gantry-bus", "gantry-records", "gantry-live", "gantry-blobs", "gantry-secrets"]
    {
        assert!(!seen.contains(banned), "the agent reaches {banned}");
    }
}

#[test]
fn heavy_crates_stay_in_their_places() {
    let metadata = metadata();
    for (name, package) in ours(&metadata) {
        let found = imports(package);
        if found.contains("async-graphql") {
            assert_eq!(name, "gantry-api", "{name} names async-graphql");
        }
        let may_sql = is_service(package)
            || [
                "gantry-eventstore",
                "gantry-bus",
                "gantry-records",
                "gantry-retention",
                "gantry-testkit",
                "gantry-server",
            ]
            .contains(&name);
        assert!(may_sql || !found.contains("sqlx"), "{name} names sqlx");
    }
}

#[test]
fn nothing_banned_is_linked_and_every_licence_is_allowed() {
    let metadata = metadata();
    let banned = ["ring", "openssl-sys", "native-tls", "serde_yaml", "octocrab", "async-std", "log4rs"];
    let allowed = [
        "MIT",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "ISC",
        "Unicode-3.0",
        "Zlib",
        "0BSD",
        "BSL-1.0",
        "CC0-1.0",
        "CDLA-Permissive-2.0",
        "Unlicense",
        "MIT-0",
        "OpenSSL",
        "Apache-2.0 WITH LLVM-exception",
    ];
    for package in linked(&metadata) {
        assert!(
            !banned.contains(&package.name.as_str()),
            "{} is linked; deny.toml says why not",
            package.name
        );
        let licence = package.license.clone().unwrap_or_default();
        // An expression is fine when one of its alternatives needs nothing but allowed licences.
        let plain = licence.replace(['(', ')'], "").replace('/', " OR ");
        let fine = plain.split(" OR ").any(|way| way.split(" AND ").all(|one| allowed.contains(&one.trim())));
        assert!(fine, "{} {} has the licence \"{licence}\"", package.name, package.version);
    }
}

#[test]
fn heavy_crates_have_one_version() {
    let metadata = metadata();
    for name in ["tokio", "hyper", "http", "axum", "rustls", "sqlx-core", "reqwest", "h2", "async-graphql"] {
        // What only a tool of tests needs is not counted: it costs a build, not the product.
        let versions: BTreeSet<_> = linked(&metadata)
            .into_iter()
            .filter(|package| package.name == name)
            .map(|package| package.version.to_string())
            .collect();
        assert!(versions.len() <= 1, "{name} is built in several versions: {versions:?}");
    }
}
