//! What goes in comes out bit for bit, and what nobody packed does no harm.

use gantry_archive::{
    self as archive, Cutter, Error, Limits, MAX_CHUNK, Packed, Roots, Source, frames, pack, unpack,
};
use proptest::prelude::*;
use std::{
    ffi::OsStr,
    fs,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tar::{Builder, EntryType, Header};

fn packed(sources: &[(&str, &Path)]) -> (Vec<u8>, Packed) {
    let sources: Vec<Source> =
        sources.iter().map(|(name, path)| Source { name: name.into(), path: (*path).to_owned() }).collect();
    let mut bytes = Vec::new();
    let packed = pack(&mut bytes, &sources).unwrap();
    (bytes, packed)
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Everything that must come back of a tree: name, type, mode, time, content or target, and which files are one.
fn facts(root: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut todo = vec![PathBuf::new()];
    let mut first_of = std::collections::HashMap::new();
    while let Some(at) = todo.pop() {
        // By descriptors' paths, because the whole path may be longer than the kernel takes.
        let here = root.join(&at);
        let mut names: Vec<_> = fs::read_dir(&here).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let (path, below) = (here.join(&name), at.join(&name));
            let meta = fs::symlink_metadata(&path).unwrap();
            let what = if meta.is_dir() {
                todo.push(below.clone());
                "folder".to_owned()
            } else if meta.is_symlink() {
                format!("link {:?}", fs::read_link(&path).unwrap())
            } else {
                let same = first_of.entry(meta.ino()).or_insert_with(|| below.clone()).clone();
                format!("file {:?} same as {same:?}", archive::sha256(&fs::read(&path).unwrap()))
            };
            all.push(format!("{below:?} {:o} {}.{:09} {what}", meta.mode(), meta.mtime(), meta.mtime_nsec()));
        }
    }
    all.sort();
    all
}

fn odd_tree(root: &Path) {
    let old = |path: &Path, nanos| {
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, nanos);
        fs::File::open(path).unwrap().set_modified(time).unwrap();
    };
    fs::create_dir_all(root.join("empty")).unwrap();
    fs::create_dir_all(root.join("closed")).unwrap();
    fs::write(root.join("closed/inside"), "inside").unwrap();
    fs::write(root.join("plain"), "plain").unwrap();
    fs::write(root.join("nothing"), "").unwrap();
    fs::write(root.join("new\nline and \"quotes\" \\"), "odd").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"not \xff\xfe text")), "odder").unwrap();
    fs::write(root.join("x".repeat(255)), "long").unwrap();
    let mut deep = root.to_owned();
    // Each part has 200 bytes; with the folder's own path it stays below the kernel's 4096.
    for _ in 0..18 {
        deep.push("d".repeat(200));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), "bottom").unwrap();
    fs::write(root.join("program"), "#!/bin/sh").unwrap();
    chmod(&root.join("program"), 0o755);
    chmod(&root.join("plain"), 0o600);
    fs::hard_link(root.join("plain"), root.join("zz second name")).unwrap();
    symlink("plain", root.join("to plain")).unwrap();
    symlink("nowhere/./at//all/", root.join("to nothing")).unwrap();
    symlink("/etc/passwd", root.join("to outside")).unwrap();
    symlink("l".repeat(300), root.join("to long")).unwrap();
    let mut holes = fs::File::create(root.join("holes")).unwrap();
    holes.write_all(b"begin").unwrap();
    holes.seek(SeekFrom::Start(64 << 20)).unwrap();
    holes.write_all(b"middle").unwrap();
    holes.set_len(128 << 20).unwrap();
    old(&root.join("plain"), 987_654_321);
    old(&root.join("empty"), 1);
    old(&root.join("closed"), 0);
    chmod(&root.join("closed"), 0o555);
}

#[test]
fn everything_comes_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    odd_tree(&from);
    let (bytes, report) = packed(&[("0", &from), ("1", &from.join("plain"))]);
    assert_eq!(report.skipped, []);
    assert!(bytes.len() < 1 << 20, "holes are not in the archive: {}", bytes.len());
    let roots = Roots::Listed(vec![to.clone(), folder.path().join("alone")]);
    let unpacked = unpack(&bytes[..], &roots, Limits::default()).unwrap();
    assert_eq!(unpacked.entries, report.entries);
    assert_eq!(facts(&from), facts(&to));
    assert_eq!(fs::read_to_string(folder.path().join("alone")).unwrap(), "plain");
    let holes = fs::metadata(to.join("holes")).unwrap();
    assert!(holes.blocks() * 512 < 1 << 20, "holes stay holes");

    // Once more over what is there now: all is replaced, also what cannot be written.
    fs::write(to.join("program"), "changed").unwrap();
    chmod(&to.join("program"), 0o400);
    fs::remove_file(to.join("to plain")).unwrap();
    fs::write(to.join("to plain"), "a file now").unwrap();
    fs::write(to.join("stays"), "other files stay").unwrap();
    unpack(&bytes[..], &roots, Limits::default()).unwrap();
    fs::remove_file(to.join("stays")).unwrap();
    let time = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    fs::File::open(&to).unwrap().set_modified(time(&from)).unwrap();
    assert_eq!(facts(&from), facts(&to));
    chmod(&from.join("closed"), 0o755);
    chmod(&to.join("closed"), 0o755);
}

#[test]
fn what_is_no_file_is_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("from");
    fs::create_dir(&from).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
    nix::unistd::mkfifo(&from.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(from.join("setuid"), "").unwrap();
    chmod(&from.join("setuid"), 0o6755);
    let (bytes, report) = packed(&[("0", &from)]);
    let names: Vec<&str> = report.skipped.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["0/pipe", "0/socket"]);
    let to = folder.path().join("to");
    unpack(&bytes[..], &Roots::Listed(vec![to.clone()]), Limits::default()).unwrap();
    assert_eq!(fs::metadata(to.join("setuid")).unwrap().mode() & 0o7777, 0o755);
}

/// An archive of raw headers, which no packer makes.
fn hostile(entries: &[(EntryType, &str, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, link, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_link_name_literal(link).unwrap();
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Kind, name, target and content of a member.
type Entry<'a> = (EntryType, &'a str, &'a str, &'a str);

#[test]
fn a_hostile_archive_changes_nothing_and_leaves_nothing() {
    use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
    let good = (Regular, "good", "", "good");
    let cases: Vec<(&str, Vec<Entry>)> = vec![
        ("parent", vec![good, (Regular, "../out", "", "x")]),
        ("parent inside", vec![good, (Directory, "a", "", ""), (Regular, "a/../../out", "", "x")]),
        ("absolute", vec![good, (Regular, "/tmp/out", "", "x")]),
        ("device", vec![good, (Char, "tty", "", "")]),
        ("disk", vec![good, (Block, "sda", "", "")]),
        ("pipe", vec![good, (Fifo, "pipe", "", "")]),
        ("through its own link", vec![good, (Symlink, "l", "..", ""), (Regular, "l/out", "", "x")]),
        ("through a link to itself", vec![good, (Symlink, "l", ".", ""), (Regular, "l/in", "", "x")]),
        ("through a link on disk", vec![good, (Regular, "leads-out/out", "", "x")]),
        ("through an absolute link on disk", vec![good, (Regular, "leads-away/out", "", "x")]),
        ("hard link out", vec![good, (Link, "l", "../secret", "")]),
        ("hard link to what was there", vec![good, (Link, "l", "there", "")]),
        ("hard link through a link", vec![good, (Link, "l", "leads-out/secret", "")]),
        ("two things", vec![good, (Regular, "a", "", "x"), (Symlink, "a", "/etc", "")]),
        ("file below a file", vec![good, (Regular, "a", "", "x"), (Regular, "a/b", "", "x")]),
        ("name too long", vec![good, (Directory, "a", "", ""), (Symlink, "a/l", "", "")]),
    ];
    // Behind so many files that several threads make them.
    let many: Vec<String> = (0..300).map(|n| format!("many-{}-{n}", n % 7)).collect();
    let crowd = || many.iter().map(|name| (Regular, name.as_str(), "", "content"));
    let cases = cases.iter().flat_map(|(what, entries)| {
        let crowded = crowd().chain(entries.iter().copied()).collect();
        [(what, entries.clone()), (what, crowded)]
    });
    for (what, entries) in cases {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(folder.path().join("secret"), "secret").unwrap();
        fs::write(root.join("there"), "there").unwrap();
        symlink("..", root.join("leads-out")).unwrap();
        symlink(folder.path(), root.join("leads-away")).unwrap();
        let before = (facts(folder.path()), fs::read_dir(&root).unwrap().count());
        let bytes = hostile(&entries);
        let result = unpack(&bytes[..], &Roots::Below(root.clone()), Limits::default());
        assert!(result.is_err(), "{what}: {result:?}");
        let names = |facts: &[String]| {
            facts.iter().map(|fact| fact.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(&facts(folder.path())), names(&before.0), "{what}");
        assert_eq!(fs::read_to_string(folder.path().join("secret")).unwrap(), "secret", "{what}");
    }
}

/// Several threads make files: whatever was there, and in whatever order things come.
#[test]
fn many_files_come_back_as_few_do() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    for n in 0..1000 {
        let inner = from.join(format!("{}/{}", n % 9, n % 4));
        fs::create_dir_all(&inner).unwrap();
        // Small and large ones side by side, of every mode.
        let size = if n % 50 == 0 { 200_000 } else { n * 7 };
        fs::write(inner.join(n.to_string()), noise(size, n as u64 + 1)).unwrap();
        chmod(&inner.join(n.to_string()), [0o644, 0o755, 0o600, 0o444, 0o666, 0o777][n % 6]);
        if n % 10 == 0 {
            fs::hard_link(inner.join(n.to_string()), from.join(format!("also-{n}"))).unwrap();
        }
    }
    let (bytes, report) = packed(&[("0", &from)]);
    assert_eq!(report.skipped, []);
    let roots = Roots::Listed(vec![to.clone()]);
    for _ in 0..2 {
        unpack(&bytes[..], &roots, Limits::default()).unwrap();
        assert_eq!(facts(&from), facts(&to), "new, and over what is there");
    }

    // What cannot be made ends it, and what was there stays.
    let (kept, other) = (folder.path().join("kept"), folder.path().join("other"));
    fs::create_dir_all(kept.join("many-3-150/in the way")).unwrap();
    fs::write(kept.join("many-1-1"), "before").unwrap();
    let names: Vec<String> = (0..300).map(|n| format!("many-{}-{n}", n % 7)).collect();
    let entries: Vec<Entry<'_>> =
        names.iter().map(|name| (EntryType::Regular, name.as_str(), "", "content")).collect();
    let bytes = hostile(&entries);
    let error = unpack(&bytes[..], &Roots::Below(kept.clone()), Limits::default()).unwrap_err().to_string();
    assert!(error.contains("many-3-150"), "{error}");
    let mut left: Vec<_> = fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["many-1-1", "many-3-150"]);
    assert!(kept.join("many-3-150/in the way").is_dir());

    // Of two with one name the later one wins.
    let twice = entries
        .iter()
        .flat_map(|(kind, name, link, _)| [(*kind, *name, *link, "earlier"), (*kind, *name, *link, "later")]);
    unpack(&hostile(&twice.collect::<Vec<_>>())[..], &Roots::Below(other.clone()), Limits::default())
        .unwrap();
    assert!(names.iter().all(|name| fs::read_to_string(other.join(name)).unwrap() == "later"));
}

#[test]
fn limits_hold_and_a_stream_that_breaks_off_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("from");
    fs::create_dir(&from).unwrap();
    for n in 0..10 {
        fs::write(from.join(n.to_string()), vec![7; 1000]).unwrap();
    }
    let (bytes, _) = packed(&[("0", &from)]);
    let to = folder.path().join("to");
    let roots = Roots::Listed(vec![to.clone()]);
    for limits in [Limits { entries: 10, ..Limits::default() }, Limits { bytes: 9_999, ..Limits::default() }]
    {
        let refused = unpack(&bytes[..], &roots, limits);
        assert!(matches!(refused, Err(Error::Unsafe { .. })), "{refused:?}");
        assert!(!to.exists());
    }
    assert!(unpack(&bytes[..bytes.len() / 2], &roots, Limits::default()).is_err());
    assert!(!to.exists());
    unpack(&bytes[..], &roots, Limits { entries: 11, bytes: 10_000 }).unwrap();
    assert_eq!(facts(&from), facts(&to));
}

fn chunks(mut bytes: &[u8], piece: usize) -> Vec<Vec<u8>> {
    let mut cutter = Cutter::default();
    let mut all = Vec::new();
    let mut ended = false;
    while !ended {
        ended = cutter.take_in(&mut bytes, piece).unwrap() == 0;
        while let Some(chunk) = cutter.cut(ended) {
            all.push(chunk);
        }
    }
    all
}

fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(seed >> 11).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[test]
fn a_small_change_leaves_most_chunks_as_they_were() {
    let mut bytes = noise(48 << 20, 1);
    let before = chunks(&bytes, 256 << 10);
    assert_eq!(before.concat(), bytes);
    assert_eq!(before, chunks(&bytes, 77_777), "how the stream comes does not matter");
    assert!(before.iter().all(|chunk| chunk.len() <= MAX_CHUNK) && before.len() > 8);
    bytes.splice(20 << 20..20 << 20, b"some more".iter().copied());
    let after = chunks(&bytes, 256 << 10);
    let new = after.iter().filter(|chunk| !before.contains(chunk)).count();
    assert!((1..=2).contains(&new), "{new} of {} chunks are new", after.len());
    for chunk in &after[..2] {
        let stored = archive::compress(chunk).unwrap();
        assert_eq!(&archive::decompress(&stored, chunk.len()).unwrap(), chunk);
        assert!(archive::decompress(&stored, chunk.len() - 1).is_err());
        assert!(archive::decompress(&stored, chunk.len() + 1).is_err());
        // Of both kinds: a chunk is kept as long as an archive names it.
        for name in [archive::name(chunk), archive::sha256(chunk)] {
            assert!(archive::is_named(chunk, &name) && !archive::is_named(&chunk[1..], &name));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn frames_carry_any_stream_and_notice_where_it_broke_off(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 0..8),
        word in prop::collection::vec(any::<u8>(), 0..50),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = Vec::new();
        let mut writer = frames::Writer::new(&mut bytes);
        for piece in &pieces {
            writer.write_all(piece).unwrap();
        }
        writer.finish(&word).unwrap();
        let mut reader = frames::Reader::new(&bytes[..]);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        prop_assert_eq!(read, pieces.concat());
        prop_assert_eq!(reader.finish(100).unwrap(), word.clone());
        let short = &bytes[..cut.index(bytes.len() - word.len())];
        prop_assert!(io::copy(&mut frames::Reader::new(short), &mut io::sink()).is_err());
    }
}
