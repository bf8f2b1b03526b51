//! Joining with a token that does not fit, and at a time that does not.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lattice::net::ticket::{Secret, Ticket};

use crate::harness::{Node, eventually};
use crate::{REFUSED, UNAVAILABLE, USAGE, founder, joined, json, refused};

fn invite(node: &Node<'_>) -> String {
    node.lattice(&["mesh", "invite"]).trim().to_owned()
}

fn join(node: &Node<'_>, token: &str, code: i32) -> String {
    let said = refused(node, &["mesh", "join", token], code);
    assert!(json(node, &["status"])["mesh"].is_null() || said.error.contains("already"), "{}", said.error);
    said.error
}

fn fresh() -> Node<'static> {
    let node = Node::here();
    node.up();
    node
}

#[test]
fn each_token_that_does_not_let_in_is_refused_with_a_sentence_of_its_own() {
    let inviter = founder();
    let joiner = fresh();
    let good = invite(&inviter);
    let mut sentences = Vec::new();
    let mut told = |sentence: String, word: &str| {
        assert!(sentence.contains(word), "'{word}' is not in: {sentence}");
        sentences.push(sentence);
    };

    told(join(&joiner, "sesame", REFUSED), "not a join token");
    let swapped: String = good.chars().rev().take(1).map(|last| if last == 'a' { 'b' } else { 'a' }).collect();
    told(join(&joiner, &format!("{}{swapped}", &good[..good.len() - 1]), REFUSED), "mistyped");
    assert!(join(&joiner, &good[..good.len() / 2], REFUSED).contains("cut short"));
    let mut ticket: Ticket = good.parse().unwrap();
    ticket.secret = Secret::generate();
    told(join(&joiner, &ticket.to_string(), REFUSED), "no such invite");

    let short = inviter.lattice(&["mesh", "invite", "--expires", "1s"]);
    let over = Instant::now() + Duration::from_millis(1_200);
    eventually("a second is over", || Instant::now() > over);
    told(join(&joiner, short.trim(), REFUSED), "expired");

    let used = invite(&inviter);
    let member = fresh();
    member.lattice(&["mesh", "join", &used]);
    told(join(&joiner, &used, REFUSED), "used up");
    told(join(&member, &good, REFUSED), "in the mesh 'ours' already");
    assert_eq!(json(&member, &["mesh", "status"])["name"], "ours");

    let elsewhere = founder();
    let of_another = invite(&elsewhere);
    elsewhere.lattice(&["mesh", "leave", "--yes"]);
    told(join(&joiner, &of_another, REFUSED), "belongs to no mesh now");
    elsewhere.lattice(&["mesh", "init", "another"]);
    told(join(&joiner, &of_another, REFUSED), "belongs to another mesh now");
    elsewhere.lattice(&["down"]);
    told(join(&joiner, &of_another, UNAVAILABLE), "could be reached");

    member.lattice(&["mesh", "leave", "--yes"]);
    told(join(&member, &good, REFUSED), "left the mesh or handed its place to another key");

    let different: BTreeSet<_> = sentences.iter().collect();
    assert_eq!(different.len(), sentences.len(), "{sentences:#?}");
    joiner.lattice(&["mesh", "join", &good]);
    assert_eq!(json(&joiner, &["mesh", "status"])["name"], "ours", "after all refusals the good token still works");
}

#[test]
fn who_was_removed_is_told_that_a_role_lets_it_in_again_and_it_does() {
    let admin = founder();
    let member = joined(&admin);
    let name = json(&member, &["status"])["name"].as_str().unwrap().to_owned();
    admin.lattice(&["mesh", "revoke", &name, "--yes"]);
    member.lattice(&["down"]);
    std::fs::remove_dir_all(member.data().join("meshes")).unwrap();
    member.up();
    let token = admin.lattice(&["mesh", "invite"]);
    let said = join(&member, token.trim(), REFUSED);
    let advice = format!("'lattice mesh role {name} writer'");
    assert!(said.contains("was removed from the mesh") && said.contains(&advice), "{said}");
    admin.lattice(&["mesh", "role", &name, "writer"]);
    member.lattice(&["mesh", "join", token.trim(), "--wait"]);
    eventually("it may write", || member.attempt(&["kv", "put", "again", "again"]).status.success());
    eventually("the admin has what it writes", || admin.key("again").exists());
}

#[test]
fn a_token_lets_in_as_many_as_it_says_and_again_who_is_in_already() {
    let inviter = founder();
    let token = inviter.lattice(&["mesh", "invite", "--uses", "2"]);
    let joiners = [fresh(), fresh(), fresh()];
    joiners[0].lattice(&["mesh", "join", token.trim()]);
    joiners[1].lattice(&["mesh", "join", token.trim()]);
    assert!(join(&joiners[2], token.trim(), REFUSED).contains("used up"));
    assert_eq!(json(&inviter, &["mesh", "status"])["members"], 3);
}

#[test]
fn only_an_admin_invites_and_the_words_of_an_invite_are_checked() {
    let admin = founder();
    let member = joined(&admin);
    let said = refused(&member, &["mesh", "invite"], REFUSED);
    assert!(said.error.contains("only an admin may invite") && said.error.contains("writer"), "{}", said.error);
    for args in
        [["--expires", "0s"], ["--expires", "9999d"], ["--expires", "soon"], ["--uses", "0"], ["--role", "king"]]
    {
        let said = refused(&admin, &[&["mesh", "invite"], &args[..]].concat(), USAGE);
        assert!(!said.error.is_empty(), "{args:?}");
    }
    let loner = fresh();
    for command in [&["mesh", "invite"][..], &["mesh", "leave"], &["mesh", "status"], &["peers"], &["store", "list"]] {
        let said = refused(&loner, command, REFUSED);
        assert!(said.error.contains("in no mesh") && said.hint.contains("mesh init"), "{command:?}: {}", said.all());
    }
}
