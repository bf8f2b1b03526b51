//! The house: who may name whom. ARCHITECTURE.md says why; this holds it, with file and line.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says what it saw"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// A part (the start of a path below `src/`), and what of this crate it may name besides itself.
/// A part that is not listed may name nothing but the leaves.
const PARTS: &[(&str, &[&str])] = &[
    ("ids", &[]),
    ("clock", &[]),
    ("config", &[]),
    // A peer has a role.
    ("peers", &["replication::membership"]),
    // The gate asks who is a member; both ends of a link keep the same limits.
    ("net", &["replication::membership", "replication::limits"]),
    ("blobs", &["net"]),
    // Only the driver touches a network.
    ("replication/driver", &["net", "replication"]),
    ("replication", &[]),
    ("stores", &["replication", "blobs"]),
    // Of replication and blobs: what stores speak in (events, limits, errors).
    ("fs", &["stores", "replication", "blobs"]),
    ("mesh", &["stores", "replication", "net", "blobs"]),
    // Of replication: what stores speak in.
    ("api", &["stores", "replication", "mesh"]),
    // A proof is checked where no node runs.
    ("cli/verify.rs", &["api", "stores::proof"]),
    // Over the socket only: never a store, never the daemon.
    ("cli", &["api"]),
    ("daemon", &["api", "fs", "mesh", "stores", "replication", "net", "blobs"]),
    ("bin/lattice.rs", &["cli"]),
    ("bin/latticed.rs", &["daemon", "api"]),
];

/// What every part may name.
const LEAVES: &[&str] = &["ids", "clock", "config", "peers"];

/// A crate from elsewhere, and the only parts that may name it.
const CRATES: &[(&str, &[&str])] = &[
    ("fuser", &["fs"]),
    ("iroh", &["net", "blobs"]),
    ("iroh_blobs", &["net", "blobs"]),
    ("iroh_gossip", &["net"]),
    ("iroh_mdns_address_lookup", &["net"]),
    ("redb", &["replication/database"]),
    ("negentropy", &["replication"]),
    ("tonic", &["api", "daemon"]),
    ("clap", &["cli", "bin"]),
];

/// The parts that run without a runtime: pure functions of what they are given.
const PURE: &[&str] = &[
    "ids",
    "clock",
    "config",
    "peers",
    "replication/database",
    "replication/entry",
    "replication/ingest",
    "replication/limits",
    "replication/machine",
    "replication/membership",
    "replication/message",
    "replication/reconcile",
    "replication/replica",
    "replication/verify",
    "stores/chat",
    "stores/kv",
    "stores/merge",
    "stores/proof",
    "stores/root",
];

/// Names that say nothing of what is in a file.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "helper", "helpers", "manager", "misc", "types", "core"];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The code of a file without its comments and its tests: those stand last, or in files of their own.
fn code(path: &Path) -> Vec<(usize, String)> {
    if matches!(path.file_name().and_then(|name| name.to_str()), Some("tests.rs" | "testing.rs")) {
        return Vec::new();
    }
    without_tests(&fs::read_to_string(path).unwrap())
}

fn without_tests(text: &str) -> Vec<(usize, String)> {
    let lines: Vec<_> = text.lines().collect();
    let tests = lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].ends_with('{'));
    let kept = lines[..tests.unwrap_or(lines.len())].iter().enumerate();
    kept.map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default().to_owned())).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The paths that `text` names from where it begins: `a::{b::c, d}::…` gives `a::b::c` and `a::d`.
fn paths(text: &str) -> (Vec<String>, usize) {
    let mut at = text.len() - text.trim_start().len();
    if text[at..].starts_with('{') {
        let mut all = Vec::new();
        at += 1;
        loop {
            let (found, used) = paths(&text[at..]);
            all.extend(found);
            at += used;
            let rest = &text[at..];
            at += rest.len() - rest.trim_start_matches(|c: char| c != ',' && c != '}').len();
            let more = text[at..].starts_with(',');
            at = (at + 1).min(text.len());
            if !more {
                return (all, at);
            }
        }
    }
    let word: String = text[at..].chars().take_while(|c| is_word(*c)).collect();
    at += word.len();
    if text[at..].starts_with("::") {
        let (below, used) = paths(&text[at + 2..]);
        at += 2 + used;
        return (below.iter().map(|path| format!("{word}::{path}")).collect(), at);
    }
    (vec![word], at)
}

/// All that a file names of this crate, with the line: `stores::kv::Kv`.
fn named(lines: &[(usize, String)]) -> Vec<(usize, String)> {
    let mut all = Vec::new();
    for (index, (number, line)) in lines.iter().enumerate() {
        for start in ["crate::", "lattice::"] {
            for (at, _) in line.match_indices(start) {
                // `$crate::` in a macro, `other_lattice::`.
                if line[..at].ends_with(is_word) {
                    continue;
                }
                let rest: Vec<_> = lines[index..].iter().take(20).map(|(_, line)| line.as_str()).collect();
                let rest = rest.join(" ");
                let (found, _) = paths(&rest[at + start.len()..]);
                all.extend(found.into_iter().map(|path| (*number, path)));
            }
        }
    }
    all
}

fn within(path: &str, part: &str) -> bool {
    path.strip_prefix(part).is_some_and(|rest| rest.is_empty() || !rest.starts_with(is_word))
}

/// Where a file stands: its path below `src/`.
fn place(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().into_owned()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// What is wrong with a file's imports, a line each.
fn wrong_imports(place: &str, lines: &[(usize, String)]) -> Vec<String> {
    if place == "lib.rs" {
        return Vec::new();
    }
    let Some((part, allowed)) = PARTS.iter().find(|(part, _)| within(place, part)) else {
        return vec![format!("src/{place}:1: is in no part of the house: add it to the table")];
    };
    let own = place.split(['/', '.']).next().unwrap_or_default();
    let mut wrong = Vec::new();
    for (number, named) in named(lines) {
        let target = named.split("::").next().unwrap_or_default();
        // What is no module is a macro, or the end of a list.
        let module = root().join(target).is_dir() || root().join(format!("{target}.rs")).is_file();
        // The driver may name the network; the rest of replication must not get there through the driver.
        let around = *part == "replication" && place != "replication/mod.rs" && within(&named, "replication::driver");
        let fine = target == own || LEAVES.contains(&target) || allowed.iter().any(|allowed| within(&named, allowed));
        if module && !target.is_empty() && (around || !fine) {
            wrong.push(format!("src/{place}:{number}: {part} may not name {named}"));
        }
    }
    for (number, line) in lines {
        for (name, parts) in CRATES {
            if names_crate(line, name) && !parts.iter().any(|part| within(place, part)) {
                wrong.push(format!("src/{place}:{number}: only {} may name the crate {name}", parts.join(", ")));
            }
        }
        if PURE.iter().any(|part| within(place, part)) && names_crate(line, "tokio") {
            wrong.push(format!("src/{place}:{number}: is pure, and names tokio"));
        }
    }
    wrong
}

fn names_crate(line: &str, name: &str) -> bool {
    let path = format!("{name}::");
    let used = line.match_indices(&path).any(|(at, _)| !line[..at].ends_with(|c: char| is_word(c) || c == ':'));
    used || line.trim_start().starts_with(&format!("use {name};"))
}

#[test]
fn imports_run_down_only() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    assert!(files.len() > 20, "the sources were not found");
    let wrong: Vec<_> = files.iter().flat_map(|file| wrong_imports(&place(file), &code(file))).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn crates_that_hold_keys_files_and_connections_come_in_one_version_and_from_the_registry() {
    let read = |name: &str| -> toml::Table {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap().parse().unwrap()
    };
    let (policy, lock) = (read("deny.toml"), read("Cargo.lock"));
    let packages = lock["package"].as_array().unwrap();
    let count = |name: &str| packages.iter().filter(|package| package["name"].as_str() == Some(name)).count();
    for rule in policy["bans"]["deny"].as_array().unwrap() {
        let name = rule["crate"].as_str().unwrap();
        let allowed = usize::from(rule.get("deny-multiple-versions").is_some());
        assert_eq!(count(name), allowed, "Cargo.lock has another number of {name} than deny.toml allows");
    }
    let registries = policy["sources"]["allow-registry"].as_array().unwrap();
    for package in packages {
        let from = package.get("source").map(|source| source.as_str().unwrap().trim_start_matches("registry+"));
        let known = from.is_none_or(|from| registries.iter().any(|registry| registry.as_str() == Some(from)));
        assert!(known, "{} comes from {from:?}", package["name"]);
    }
}

#[test]
fn a_file_is_named_after_what_is_in_it() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    let empty: Vec<_> = files
        .iter()
        .map(|file| place(file))
        .filter(|place| place.split(['/', '.']).any(|name| EMPTY_NAMES.contains(&name)))
        .collect();
    assert!(empty.is_empty(), "these names say nothing: {empty:?}");
}

#[test]
fn the_table_finds_what_it_forbids() {
    let check = |place: &str, text: &str| wrong_imports(place, &without_tests(text));
    assert_eq!(
        check("fs/keys.rs", "use crate::stores::{Kv, kv::Head};\nuse crate::ids::Hash;\n"),
        Vec::<String>::new()
    );
    assert_eq!(
        check("fs/keys.rs", "\nuse crate::{\n    ids::Hash,\n    net::{link, ticket},\n};\n"),
        ["src/fs/keys.rs:2: fs may not name net::link", "src/fs/keys.rs:2: fs may not name net::ticket"]
    );
    assert_eq!(
        check("cli/up.rs", "fn f() { crate::daemon::start(); }"),
        ["src/cli/up.rs:1: cli may not name daemon::start"]
    );
    assert_eq!(
        check("net/gate.rs", "use crate::replication::membership::Role;\nuse crate::replication::log::Log;"),
        ["src/net/gate.rs:2: net may not name replication::log::Log"]
    );
    assert_eq!(
        check("stores/kv/mod.rs", "use fuser::Session;\nuse tokio::sync::mpsc;"),
        [
            "src/stores/kv/mod.rs:1: only fs may name the crate fuser",
            "src/stores/kv/mod.rs:2: is pure, and names tokio"
        ]
    );
    assert_eq!(
        check("replication/log.rs", "use crate::replication::driver::Driver;"),
        ["src/replication/log.rs:1: replication may not name replication::driver::Driver"]
    );
    assert_eq!(check("new.rs", ""), ["src/new.rs:1: is in no part of the house: add it to the table"]);
    let tests = "use crate::ids::Hash;\n#[cfg(test)]\nmod tests {\n    use crate::daemon::Daemon;\n}\n";
    assert_eq!(check("clock.rs", tests), Vec::<String>::new());
    assert_eq!(check("clock.rs", "/// See [`crate::daemon::Daemon`].\n"), Vec::<String>::new());
}
