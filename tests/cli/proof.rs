//! Proofs: made by a node, checked where there is none.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use super::harness::Node;
use super::{NOT_FOUND, REFUSED, USAGE, json, lines, out, refused, with_mesh};

/// A machine that has nothing but proofs: no node, no data, no variables.
struct Elsewhere(tempfile::TempDir);

impl Elsewhere {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn verify(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lattice"));
        command.arg("verify").args(args).env_clear().current_dir(self.0.path()).output().unwrap()
    }

    fn holds(&self, args: &[&str]) -> String {
        let output = self.verify(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        out(&output)
    }

    fn shows(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.holds(&[args, &["--json"]].concat())).unwrap()
    }

    fn refuses(&self, args: &[&str], code: i32) -> String {
        let output = self.verify(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}{said}", out(&output));
        assert!(out(&output).is_empty(), "{args:?} printed a result");
        said
    }
}

fn prove(node: &Node<'_>, args: &[&str], at: &Path) {
    let output = node.attempt(&[&["prove"], args].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::write(at, output.stdout).unwrap();
}

#[test]
fn a_proof_is_checked_without_a_node_and_says_what_it_shows_and_what_it_does_not() {
    let (node, elsewhere) = (with_mesh(), Elsewhere::new());
    node.lattice(&["kv", "put", "notes/today", "buy bread"]);
    prove(&node, &["notes/today"], &elsewhere.path("p"));
    let mesh = json(&node, &["mesh", "status"])["id"].as_str().unwrap().to_owned();
    let entry = lines(&node.lattice(&["log", "-n", "1", "--json"])).remove(0);
    node.lattice(&["down"]);

    let said = elsewhere.holds(&["p"]);
    let hash = blake3::hash(b"buy bread").to_hex();
    for part in [
        format!("mesh     {mesh}  (ours)\n"),
        "store    home  (kv, ".to_owned(),
        "path     notes/today\nkind     file, mode 0644\n".to_owned(),
        format!("content  {hash}, 9 bytes\n"),
        format!(
            "author   {}  ({}), admin, a member\n",
            entry["author_name"].as_str().unwrap(),
            entry["author"].as_str().unwrap()
        ),
        ", by the author's clock\n".to_owned(),
        format!("entry    {}, number 0 ", entry["hash"].as_str().unwrap()),
        "compare its id with the one that you trust".to_owned(),
        "that this is the newest version".to_owned(),
        "that nobody else wrote".to_owned(),
        "was not removed since".to_owned(),
        "that the time is right".to_owned(),
        "another entry for the same place".to_owned(),
    ] {
        assert!(said.contains(&part), "{part}\n--- in\n{said}");
    }
    assert!(!elsewhere.holds(&["p", "--mesh", &mesh]).contains("compare its id"));
    let shown = elsewhere.shows(&["p", "--mesh", &mesh]);
    assert_eq!((&shown["mesh_compared"], &shown["hash"], &shown["hlc"]), (&true.into(), &entry["hash"], &entry["hlc"]));
    assert_eq!(
        (&shown["writes"][0]["path"], &shown["writes"][0]["content"]),
        (&"notes/today".into(), &hash.as_str().into())
    );
    assert_eq!(elsewhere.holds(&["p", "--extract"]), "buy bread");
    let output = Command::new("sh")
        .args(["-c", "cat p | \"$0\" verify - --extract", env!("CARGO_BIN_EXE_lattice")])
        .current_dir(elsewhere.path(""))
        .output()
        .unwrap();
    assert_eq!(out(&output), "buy bread");
    assert!(std::fs::read_dir(elsewhere.path("")).unwrap().count() == 1, "checking leaves nothing behind");
}

#[test]
fn a_file_is_compared_with_what_is_proven() {
    let (node, elsewhere) = (with_mesh(), Elsewhere::new());
    let large: String = (0..30_000).map(|n| format!("{n} ")).collect();
    std::fs::write(elsewhere.path("large"), &large).unwrap();
    node.lattice(&["kv", "put", "large", "--file", elsewhere.path("large").to_str().unwrap()]);
    prove(&node, &["large"], &elsewhere.path("p"));
    assert!(std::fs::metadata(elsewhere.path("p")).unwrap().len() < 4_000, "a large value is not in its proof");
    assert!(elsewhere.holds(&["p", "--content", "large"]).contains("The file large has the proven content.\n"));
    assert_eq!(elsewhere.shows(&["p", "--content", "large"])["content_compared"], true);
    std::fs::write(elsewhere.path("other"), &large[..large.len() - 1]).unwrap();
    assert!(elsewhere.refuses(&["p", "--content", "other"], REFUSED).contains("other is not what is proven"));
    assert!(elsewhere.refuses(&["p", "--extract"], REFUSED).contains("is not in the proof"));
    assert!(elsewhere.refuses(&["p", "--content", "none"], NOT_FOUND).contains("none: "));
}

#[test]
fn a_deletion_an_older_version_and_a_whole_entry_are_proven() {
    let (node, elsewhere) = (with_mesh(), Elsewhere::new());
    node.lattice(&["kv", "put", "a", "first"]);
    let first = lines(&node.lattice(&["log", "-n", "1", "--json"]))[0]["hash"].as_str().unwrap().to_owned();
    node.lattice(&["kv", "put", "a", "second"]);
    node.lattice(&["kv", "delete", "a"]);
    prove(&node, &["a"], &elsewhere.path("deleted"));
    assert!(elsewhere.holds(&["deleted"]).contains("path     a\nkind     deleted: "));
    assert!(elsewhere.refuses(&["deleted", "--extract"], REFUSED).contains("is a deletion, which has no content"));
    prove(&node, &["a", "--entry", &first[..8]], &elsewhere.path("first"));
    assert_eq!(elsewhere.holds(&["first", "--extract"]), "first");
    node.lattice(&["chat", "post", "lobby", "hello"]);
    let posted = lines(&node.lattice(&["log", "chat", "-n", "1", "--json"])).remove(0);
    prove(&node, &["--entry", posted["hash"].as_str().unwrap()], &elsewhere.path("posted"));
    let said = elsewhere.holds(&["posted"]);
    assert!(said.contains("store    chat  (chat, ") && said.contains("\ndoes     "), "{said}");
    assert!(
        elsewhere.refuses(&["posted", "--content", "posted"], REFUSED).contains("is of an entry and not of one key")
    );

    assert!(refused(&node, &["prove", "none"], NOT_FOUND).contains("nothing ever wrote to 'none'"));
    assert!(refused(&node, &["prove", "b", "--entry", &first], NOT_FOUND).contains("wrote nothing to 'b'"));
    let root = lines(&node.lattice(&["log", "root", "--json"]))[0]["hash"].as_str().unwrap().to_owned();
    assert!(refused(&node, &["prove", "--entry", &root], REFUSED).contains("root store"));
    refused(&node, &["prove"], USAGE);
    let document = json(&node, &["prove", "a", "--entry", &first]);
    let bytes = data_encoding::BASE64.decode(document["proof_base64"].as_str().unwrap().as_bytes()).unwrap();
    assert_eq!(bytes, std::fs::read(elsewhere.path("first")).unwrap());
}

#[test]
fn what_does_not_hold_is_refused_with_a_sentence_and_its_own_exit_code() {
    let (node, elsewhere) = (with_mesh(), Elsewhere::new());
    node.lattice(&["kv", "put", "a", "text"]);
    prove(&node, &["a"], &elsewhere.path("p"));
    let proof = std::fs::read(elsewhere.path("p")).unwrap();
    let wrong = "00".repeat(32);
    assert!(elsewhere.refuses(&["p", "--mesh", &wrong], REFUSED).contains(&format!("not of {wrong}")));
    elsewhere.refuses(&["p", "--mesh", "ours"], USAGE);
    let mut changed = proof.clone();
    changed[proof.len() / 2] ^= 1;
    for (bytes, why) in [
        (&changed[..], "p proves nothing: the file is damaged or cut short"),
        (&proof[..proof.len() - 1], "damaged or cut short"),
        (&b"no proof"[..], "it does not begin like one"),
        (&b""[..], "it does not begin like one"),
    ] {
        std::fs::write(elsewhere.path("p"), bytes).unwrap();
        assert!(elsewhere.refuses(&["p"], REFUSED).contains(why), "{why}");
    }
    std::fs::File::create(elsewhere.path("huge")).unwrap().set_len(1 << 40).unwrap();
    assert!(elsewhere.refuses(&["huge"], REFUSED).contains("larger than a proof may be"));
    assert!(elsewhere.refuses(&["absent"], NOT_FOUND).contains("absent: "));
}
