//! What the chat store promises.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::clock::{Clock, Manual};
use crate::ids::Hash;
use crate::replication::entry::Entry;
use crate::replication::log::{Origin, Receipt, Verdict};
use crate::stores::testing::{clock, log};

fn chat(n: u8, clock: &Arc<Manual>) -> Chat {
    Chat::new(log(n, Machine, Arc::clone(clock) as Arc<dyn Clock>))
}

fn post(chat: &Chat, text: &str) -> (Hash, Receipt) {
    let receipt = chat.post("lobby", text, Origin::Local).unwrap();
    (Chat::message_id(&receipt.hash, 0), receipt)
}

fn give(to: &Chat, from: &Chat, receipts: &[&Receipt]) {
    let view = from.log().database().view().unwrap();
    let entry = |receipt: &&Receipt| from.log().get(&view, &receipt.hash).unwrap().unwrap();
    let entries: Vec<Entry> = receipts.iter().map(entry).collect();
    to.log().include(&entries, Origin::Pulled).unwrap();
}

/// The room without its times and ids.
fn texts(chat: &Chat) -> Vec<String> {
    let strip = |line: &str| {
        let (head, text) = line.split_once("] ").unwrap();
        let indent: String = head.chars().take_while(|c| !c.is_ascii_digit()).collect();
        format!("{indent}{text}")
    };
    chat.render("lobby").unwrap().lines().map(strip).collect()
}

#[test]
fn replies_stand_beneath_what_they_answer_in_any_order_of_arrival() {
    let clock = clock();
    let (a, b, c) = (chat(0, &clock), chat(1, &clock), chat(2, &clock));
    let (first, r1) = post(&a, "first");
    give(&b, &a, &[&r1]);
    let answer = b.reply(&first, "answer", Origin::Local).unwrap();
    let (_, r2) = post(&a, "second");
    let mark = b.react(&first, "👍", Origin::Local).unwrap();
    give(&a, &b, &[&answer, &mark]);
    give(&b, &a, &[&r2]);
    give(&c, &a, &[&r1]);
    give(&c, &b, &[&answer, &mark]);
    give(&c, &a, &[&r2]);
    for chat in [&a, &b, &c] {
        assert_eq!(texts(chat), ["node0: first  👍 node1", "  ↳ node1: answer", "node0: second"]);
        assert_eq!(chat.log().state_digest().unwrap(), a.log().state_digest().unwrap());
        assert_eq!(chat.rooms().unwrap()[0].messages, 3);
    }
}

#[test]
fn what_others_wrote_is_shown_and_not_obeyed() {
    let chat = chat(0, &clock());
    post(&chat, "a\x1b[31m\u{202e}b\r\nnode9: forged\u{7}");
    let text = chat.render("lobby").unwrap();
    assert!(text.ends_with("node0: a\\u{1b}[31m\\u{202e}b\\r\n    | node9: forged\\u{7}\n"), "{text}");
}

#[test]
fn a_message_is_found_by_the_digits_shown() {
    let chat = chat(0, &clock());
    let (id, _) = post(&chat, "one");
    for n in 0..300 {
        post(&chat, &n.to_string());
    }
    let text = chat.render("lobby").unwrap();
    let (_, rest) = text.lines().next().unwrap().split_once('[').unwrap();
    let (shown, _) = rest.split_once(']').unwrap();
    assert_eq!(chat.find("lobby", shown).unwrap(), id);
    assert_eq!(chat.find("lobby", &id.to_string()[..9]).unwrap(), id);
    assert!(matches!(chat.find("lobby", "f"), Err(ChatError::Ambiguous(_))));
    assert!(matches!(chat.find("lobby", "xyz"), Err(ChatError::NoMessage(_))));
    assert!(matches!(chat.find("other", shown), Err(ChatError::NoMessage(_))));
}

#[test]
fn a_room_is_read_in_pages() {
    let chat = chat(0, &clock());
    for n in 0..5 {
        post(&chat, &n.to_string());
    }
    let first = chat.messages("lobby", None, 3).unwrap();
    let rest = chat.messages("lobby", Some(&first[2].position), 3).unwrap();
    let texts: Vec<_> = first.iter().chain(&rest).map(|message| message.text.as_str()).collect();
    assert_eq!(texts, ["0", "1", "2", "3", "4"]);
}

#[test]
fn a_bad_room_text_or_reaction_is_refused_before_it_is_signed() {
    let chat = chat(0, &clock());
    let (id, _) = post(&chat, "x");
    assert!(chat.post("a/b", "x", Origin::Local).is_err());
    assert!(chat.post("lobby", " \n", Origin::Local).is_err());
    assert!(chat.react(&id, "a b", Origin::Local).is_err());
    assert!(matches!(chat.reply(&Hash([1; 32]), "x", Origin::Local), Err(ChatError::NoMessage(_))));
    let payload = wire::encode(&[Op::Post { room: "a/b".into(), text: "x".into() }]);
    let receipt = chat.log().submit(&payload, Origin::Local).unwrap();
    assert_eq!(chat.rooms().unwrap().len(), 1);
    let view = chat.log().database().view().unwrap();
    assert!(chat.log().noop(&view, &receipt.hash).unwrap().unwrap().starts_with("malformed"));
}

#[test]
fn the_last_edit_shows_and_a_redaction_goes_before_all_edits_and_only_the_authors_count() {
    let clock = clock();
    let (a, b) = (chat(0, &clock), chat(1, &clock));
    let (id, posted) = post(&a, "first");
    let one = a.edit(&id, "second", Origin::Local).unwrap();
    let two = a.edit(&id, "third", Origin::Local).unwrap();
    give(&b, &a, &[&posted, &one, &two]);
    assert_eq!(texts(&a), ["node0: third (edited)"]);
    assert!(matches!(b.edit(&id, "mine", Origin::Local), Err(ChatError::NotYours(..))));
    assert!(matches!(b.redact(&id, Origin::Local), Err(ChatError::NotYours(..))));
    let forged =
        [Op::Edit { room: "lobby".into(), to: id, text: "forged".into() }, Op::Redact { room: "lobby".into(), to: id }];
    let forged = b.log().submit(&wire::encode(&forged), Origin::Local).unwrap();
    give(&a, &b, &[&forged]);
    for chat in [&a, &b] {
        assert_eq!(texts(chat), ["node0: third (edited)"]);
    }
    let answer = b.reply(&id, "answer", Origin::Local).unwrap();
    let mark = b.react(&id, "👍", Origin::Local).unwrap();
    let gone = a.redact(&id, Origin::Local).unwrap();
    give(&a, &b, &[&answer, &mark]);
    give(&b, &a, &[&gone]);
    for chat in [&a, &b] {
        assert_eq!(texts(chat), ["node0: (redacted)", "  ↳ node1: answer"]);
        assert_eq!(chat.message(&id).unwrap().unwrap().text, "");
    }
    assert!(matches!(a.edit(&id, "back", Origin::Local), Err(ChatError::Redacted(_))));
    let back = Op::Edit { room: "lobby".into(), to: id, text: "back".into() };
    a.log().submit(&wire::encode(&[back]), Origin::Local).unwrap();
    assert_eq!(texts(&a)[0], "node0: (redacted)");
}

#[test]
fn whoever_follows_is_told_of_each_thing_once_in_a_line_at_the_end() {
    let clock = clock();
    let (a, b) = (chat(0, &clock), chat(1, &clock));
    let (id, posted) = post(&a, "first");
    give(&b, &a, &[&posted]);
    let late = b.reply(&id, "late", Origin::Local).unwrap();
    let (_, second) = post(&a, "second");
    let before = a.reading("lobby", Form::Text).unwrap();
    give(&a, &b, &[&late]);
    let (now, news) = a.since("lobby", Form::Text, &before).unwrap();
    assert!(news.starts_with(&format!("↳ {} ", &id.to_string()[..8])) && news.ends_with("node1: late\n"), "{news}");
    assert!(now.text.contains("first\n  ↳ ") && now.text == a.render("lobby").unwrap(), "{}", now.text);
    give(&b, &a, &[&second]);
    let done = [a.edit(&id, "erst", Origin::Local).unwrap(), a.react(&id, "👍", Origin::Local).unwrap()];
    let (then, news) = a.since("lobby", Form::Text, &now).unwrap();
    let lines: Vec<_> = news.lines().collect();
    assert_eq!(lines.len(), 2, "{news}");
    assert!(lines[0].ends_with("node0 edits: erst") && lines[1].ends_with("node0: 👍"), "{news}");
    let gone = a.redact(&id, Origin::Local).unwrap();
    let (last, news) = a.since("lobby", Form::Text, &then).unwrap();
    assert!(news.ends_with("node0 redacts it\n") && news.lines().count() == 1, "{news}");
    assert_eq!(a.since("lobby", Form::Text, &last).unwrap().1, "");
    let told = |receipt: &Receipt| {
        let view = a.log().database().view().unwrap();
        let entry = a.log().get(&view, &receipt.hash).unwrap().unwrap();
        a.brought("lobby", &entry).unwrap().into_iter().map(|news| news.what).collect::<Vec<_>>()
    };
    assert_eq!(told(&late), ["message"]);
    assert_eq!(told(&gone), ["redaction"]);
    assert!(done.iter().all(|receipt| told(receipt).is_empty()), "what a redaction hides is not told");
}

#[test]
fn the_payload_of_version_1_is_frozen() {
    let ops = [
        Op::Post { room: "r".into(), text: "t".into() },
        Op::Reply { room: "r".into(), to: Hash([1; 32]), text: "a".into() },
        Op::React { room: "r".into(), to: Hash([2; 32]), emoji: "👍".into() },
        Op::Edit { room: "r".into(), to: Hash([3; 32]), text: "e".into() },
        Op::Redact { room: "r".into(), to: Hash([4; 32]) },
    ];
    let bytes = wire::encode(&ops);
    assert_eq!(wire::decode(&bytes).unwrap(), ops);
    let hex = data_encoding::HEXLOWER.encode(&bytes);
    assert_eq!(hex, include_str!("../../../tests/frozen/chat-payload-v1.hex").trim());
    assert!(wire::decode(&[8, 2]).unwrap_err().starts_with("held"));
}

#[test]
fn the_rows_of_the_state_are_frozen() {
    let clock = clock();
    let chat = chat(0, &clock);
    let (id, _) = post(&chat, "first");
    chat.reply(&id, "answer", Origin::Local).unwrap();
    chat.react(&id, "👍", Origin::Local).unwrap();
    chat.edit(&id, "erst", Origin::Local).unwrap();
    chat.redact(&post(&chat, "second").0, Origin::Local).unwrap();
    let digest = chat.log().state_digest().unwrap();
    let frozen = include_str!("../../../tests/frozen/chat-state-v1.blake3").trim();
    assert_eq!(digest.to_string(), frozen, "the state's form changed: stores must be rebuilt");
}

#[derive(Debug, Clone)]
enum Step {
    Post(u8),
    Reply(usize),
    /// Answers a message that nobody has, or that another node has.
    Blind(u8),
    React(usize, u8),
    Edit(usize, u8),
    Redact(usize),
    /// Edits or redacts, past all checks, a message that may be another's, or not here.
    Meddle(u8, bool),
    Pull(u8),
}

fn step() -> impl Strategy<Value = (u8, Step)> {
    let step = prop_oneof![
        2 => (0u8..3).prop_map(Step::Post),
        2 => any::<usize>().prop_map(Step::Reply),
        1 => (0u8..3).prop_map(Step::Blind),
        2 => (any::<usize>(), 0u8..2).prop_map(|(pick, emoji)| Step::React(pick, emoji)),
        2 => (any::<usize>(), 0u8..3).prop_map(|(pick, text)| Step::Edit(pick, text)),
        1 => any::<usize>().prop_map(Step::Redact),
        1 => (0u8..3, any::<bool>()).prop_map(|(of, redact)| Step::Meddle(of, redact)),
        2 => (0u8..3).prop_map(Step::Pull),
    ];
    (0u8..3, step)
}

fn entries(chat: &Chat) -> Vec<Entry> {
    let view = chat.log().database().view().unwrap();
    let tips = chat.log().tips(&view).unwrap();
    tips.keys().flat_map(|author| chat.log().chain(&view, author, 0, 1_000).unwrap()).collect()
}

/// Offers the entries round and round from a random place until all are taken.
fn deliver(chat: &Chat, mut waiting: Vec<Entry>, mut seed: u64) {
    while !waiting.is_empty() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let entry = waiting.swap_remove((seed >> 33) as usize % waiting.len());
        let verdict = chat.log().include(std::slice::from_ref(&entry), Origin::Pulled).unwrap().remove(0);
        match verdict {
            Verdict::Missing(_) => waiting.push(entry),
            verdict => assert!(matches!(verdict, Verdict::Included | Verdict::Duplicate), "{verdict:?}"),
        }
    }
}

/// What is refused because the message is another's or was redacted leaves no trace.
fn unless_refused(result: Result<Receipt, ChatError>) {
    match result {
        Ok(_) | Err(ChatError::NotYours(..) | ChatError::Redacted(_)) => {}
        Err(error) => panic!("{error}"),
    }
}

fn take(chats: &[Chat], me: usize, step: &Step) {
    let chat = &chats[me];
    let first = |of: u8| {
        let seen = chats[usize::from(of)].messages("lobby", None, 1).unwrap();
        seen.first().map_or(Hash([9; 32]), |message| message.position.id)
    };
    let pick = |pick: &usize| {
        let messages = chat.messages("lobby", None, 1_000).unwrap();
        messages.get(pick % messages.len().max(1)).map(|message| message.position.id)
    };
    match step {
        Step::Post(text) => drop(post(chat, &text.to_string())),
        Step::Reply(to) => {
            if let Some(to) = pick(to) {
                chat.reply(&to, "answer", Origin::Local).unwrap();
            }
        }
        Step::Blind(other) => {
            let to = first(*other);
            chat.submit(&[Op::Reply { room: "lobby".into(), to, text: "blind".into() }], Origin::Local).unwrap();
        }
        Step::React(to, emoji) => {
            if let Some(to) = pick(to) {
                chat.react(&to, ["👍", "🎉"][usize::from(*emoji)], Origin::Local).unwrap();
            }
        }
        Step::Edit(to, text) => {
            if let Some(to) = pick(to) {
                unless_refused(chat.edit(&to, &format!("edited {text}"), Origin::Local));
            }
        }
        Step::Redact(to) => {
            if let Some(to) = pick(to) {
                unless_refused(chat.redact(&to, Origin::Local));
            }
        }
        Step::Meddle(of, redact) => {
            let (room, to) = ("lobby".to_owned(), first(*of));
            let op = if *redact { Op::Redact { room, to } } else { Op::Edit { room, to, text: "meddled".into() } };
            chat.log().submit(&wire::encode(&[op]), Origin::Local).unwrap();
        }
        Step::Pull(from) => deliver(chat, entries(&chats[usize::from(*from)]), 1),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_causal_order_of_delivery_gives_the_same_bytes_and_the_same_room(
        steps in prop::collection::vec(step(), 1..40),
        seeds in prop::array::uniform3(any::<u64>()),
    ) {
        let clock = clock();
        let chats: Vec<Chat> = (0..3).map(|n| chat(n, &clock)).collect();
        for (author, step) in &steps {
            take(&chats, usize::from(*author), step);
        }
        let all: Vec<Entry> = {
            let everything = chat(7, &clock);
            chats.iter().for_each(|chat| deliver(&everything, entries(chat), 1));
            entries(&everything)
        };
        let mut seen = BTreeSet::new();
        for seed in seeds {
            let observer = chat(6, &clock);
            deliver(&observer, all.clone(), seed);
            seen.insert((observer.log().state_digest().unwrap(), observer.render("lobby").unwrap()));
            observer.log().rebuild().unwrap();
            seen.insert((observer.log().state_digest().unwrap(), observer.render("lobby").unwrap()));
        }
        prop_assert_eq!(seen.len(), 1);
        let lines = seen.first().map_or(0, |(_, text)| text.lines().count());
        let posted = all.iter().flat_map(|entry| wire::decode(entry.payload()).unwrap());
        let posted = posted.filter(|op| matches!(op, Op::Post { .. } | Op::Reply { .. })).count();
        prop_assert_eq!(lines, posted, "each message is a line, whatever it answers");
    }
}
