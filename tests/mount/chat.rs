//! `/chat`, `/peers`, `/README`.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use lattice::replication::log::Origin;

use crate::world::{World, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_line_appended_is_a_message_and_the_room_is_read_back() {
    let world = World::new();
    world.sh("echo hello >> $MESH/chat/lobby; printf 'one\\ntwo' >> $MESH/chat/lobby");
    assert_eq!(world.sh("ls $MESH/chat"), "lobby\n");
    let chat = world.here.registry.chat().unwrap();
    eventually("the messages", || chat.messages("lobby", None, 10).unwrap().len() == 3);
    let text = world.sh("cat $MESH/chat/lobby");
    assert_eq!(text.lines().count(), 3);
    assert!(text.contains("here: hello"));
}

#[test]
fn a_room_can_only_be_appended_to() {
    let world = World::new();
    world.sh("echo hello >> $MESH/chat/lobby");
    let path = world.at.join("chat/lobby");
    let number = |error: std::io::Error| error.raw_os_error();
    assert_eq!(number(OpenOptions::new().write(true).open(&path).unwrap_err()), Some(libc::EPERM));
    assert_eq!(number(fs::write(&path, b"x").unwrap_err()), Some(libc::EPERM));
    assert_eq!(number(fs::remove_file(&path).unwrap_err()), Some(libc::EPERM));
    let chat = world.here.registry.chat().unwrap();
    assert_eq!(chat.messages("lobby", None, 10).unwrap().len(), 1);
}

#[test]
fn replies_and_reactions_name_a_message_by_its_short_id() {
    let world = World::new();
    world.sh("echo hello >> $MESH/chat/lobby");
    let chat = world.here.registry.chat().unwrap();
    let id = chat.messages("lobby", None, 1).unwrap()[0].position.id.short();
    world.sh(&format!("echo '/reply {id} hi yourself' >> $MESH/chat/lobby; echo '/react {id} +1' >> $MESH/chat/lobby"));
    let messages = chat.messages("lobby", None, 10).unwrap();
    assert_eq!(messages.len(), 2);
    assert!(messages.iter().any(|message| message.reply_to.is_some() && message.text == "hi yourself"));
    assert!(messages.iter().any(|message| message.reactions.iter().any(|reaction| reaction.emoji == "+1")));
    let mut file = OpenOptions::new().append(true).open(world.at.join("chat/lobby")).unwrap();
    assert_eq!(file.write_all(b"/reply 00000000 nobody\n").unwrap_err().raw_os_error(), Some(libc::ENOENT));
}

#[test]
fn a_line_that_begins_like_a_command_and_is_none_is_refused_unless_its_slash_is_doubled() {
    let world = World::new();
    world.sh("echo hello >> $MESH/chat/lobby");
    for line in ["/nick bob", "/Reply 3fa9 x", "/redcat 3fa9"] {
        let mut file = OpenOptions::new().append(true).open(world.at.join("chat/lobby")).unwrap();
        assert_eq!(file.write_all(format!("{line}\n").as_bytes()).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
    world.sh("printf '//nick bob\n/etc/fstab\n/ 2\n and/or\n' >> $MESH/chat/lobby");
    let chat = world.here.registry.chat().unwrap();
    let texts: Vec<_> = chat.messages("lobby", None, 10).unwrap().into_iter().map(|message| message.text).collect();
    assert_eq!(texts, ["hello", "/nick bob", "/etc/fstab", "/ 2", " and/or"]);
}

#[test]
fn a_message_from_elsewhere_is_in_the_next_read() {
    let world = World::new();
    world.sh("echo hello >> $MESH/chat/lobby; cat $MESH/chat/lobby");
    world.there.pull(&world.here);
    world.there.registry.chat().unwrap().post("lobby", "from there", Origin::Local).unwrap();
    world.here.pull(&world.there);
    assert!(world.sh("cat $MESH/chat/lobby").contains("there: from there"));
}

#[test]
fn messages_are_edited_and_redacted_by_their_author_alone() {
    let world = World::new();
    world.sh("echo helo >> $MESH/chat/lobby; echo secret >> $MESH/chat/lobby");
    let chat = world.here.registry.chat().unwrap();
    let ids: Vec<_> = chat.messages("lobby", None, 2).unwrap().iter().map(|it| it.position.id.short()).collect();
    world.sh(&format!(
        "echo '/edit {} hello' >> $MESH/chat/lobby; echo '/redact {}' >> $MESH/chat/lobby",
        ids[0], ids[1]
    ));
    let text = world.sh("cat $MESH/chat/lobby");
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].ends_with("here: hello (edited)") && lines[1].ends_with("here: (redacted)"), "{text}");
    assert_eq!(lines.len(), 2);
    world.there.pull(&world.here);
    world.there.registry.chat().unwrap().post("lobby", "from there", Origin::Local).unwrap();
    world.here.pull(&world.there);
    let theirs = chat.messages("lobby", None, 10).unwrap().pop().unwrap().position.id.short();
    let mut file = OpenOptions::new().append(true).open(world.at.join("chat/lobby")).unwrap();
    for line in [format!("/edit {theirs} mine"), format!("/redact {theirs}")] {
        let error = file.write_all(format!("{line}\n").as_bytes()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{line}");
    }
    assert_eq!(
        file.write_all(format!("/edit {} again\n", ids[1]).as_bytes()).unwrap_err().raw_os_error(),
        Some(libc::ENOENT)
    );
}

/// What `tail` prints, as it comes.
struct Tail {
    child: Child,
    lines: Receiver<String>,
}

impl Tail {
    fn follow(room: &Path, args: &[&str]) -> Self {
        let mut child = Command::new("tail").args(args).arg(room).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        Self { child, lines }
    }

    /// The next line; its text without time and id.
    fn next(&self) -> String {
        let line = self.lines.recv_timeout(PATIENCE).expect("tail prints a line");
        line.rsplit_once("] ").map_or(line.clone(), |(_, text)| text.to_owned())
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn tail_follows_a_room_without_a_repeat_or_a_gap_while_late_replies_come_and_cat_shows_them_at_their_place() {
    let world = World::new();
    let room = world.at.join("chat/lobby");
    world.sh("for n in 1 2 3; do echo message $n >> $MESH/chat/lobby; done");
    let (here, there) = (world.here.registry.chat().unwrap(), world.there.registry.chat().unwrap());
    world.there.pull(&world.here);
    let first = here.messages("lobby", None, 1).unwrap()[0].position.id;
    // Made before what follows here, and heard of after it.
    there.reply(&first, "a late reply", Origin::Local).unwrap();
    let (all, last) =
        (Tail::follow(&room, &["-n", "+1", "-f", "-s", "0.1"]), Tail::follow(&room, &["-n", "1", "-f", "-s", "0.1"]));
    for n in 1..=3 {
        assert_eq!(all.next(), format!("here: message {n}"));
    }
    assert_eq!(last.next(), "here: message 3");
    world.sh("echo message 4 >> $MESH/chat/lobby");
    world.here.pull(&world.there);
    let cat = world.sh("cat $MESH/chat/lobby");
    let shown: Vec<_> = cat.lines().map(|line| line.rsplit_once("] ").unwrap().1).collect();
    assert_eq!(
        shown,
        ["here: message 1", "there: a late reply", "here: message 2", "here: message 3", "here: message 4"]
    );
    assert!(cat.lines().nth(1).unwrap().starts_with("  ↳ "), "{cat}");
    here.edit(&first, "message one", Origin::Local).unwrap();
    let mut told: Vec<Vec<String>> = Vec::new();
    for tail in [&all, &last] {
        told.push((0..3).map(|_| tail.next()).collect());
    }
    for mut lines in told {
        lines.sort();
        assert!(lines[2].starts_with("↳ ") && lines[2].ends_with("here edits: message one"), "{lines:?}");
        assert_eq!(lines[..2], ["here: message 4", "there: a late reply"]);
    }
    here.redact(&first, Origin::Local).unwrap();
    for n in 5..=30 {
        world.sh(&format!("echo message {n} >> $MESH/chat/lobby"));
        there.reply(&first, &format!("reply {n}"), Origin::Local).unwrap();
        world.here.pull(&world.there);
    }
    for tail in [&all, &last] {
        let mut lines: Vec<String> = (0..53).map(|_| tail.next()).collect();
        assert!(lines.iter().any(|line| line.ends_with("here redacts it")), "{lines:?}");
        lines.retain(|line| !line.ends_with("here redacts it"));
        lines.sort();
        let messages = (5..=30).map(|n| format!("here: message {n}"));
        let mut expected: Vec<_> = messages.chain((5..=30).map(|n| format!("there: reply {n}"))).collect();
        expected.sort();
        assert_eq!(lines, expected);
    }
    let size = fs::metadata(&room).unwrap().len();
    drop((all, last));
    eventually("the size is that of the text again", || {
        let text = fs::read(&room).unwrap();
        fs::metadata(&room).unwrap().len() == text.len() as u64 && size >= text.len() as u64
    });
}

#[test]
fn the_members_are_directories_of_facts() {
    let world = World::new();
    assert_eq!(world.sh("ls $MESH/peers"), "here\nthere\n");
    assert_eq!(world.sh("cat $MESH/peers/here/status $MESH/peers/there/status"), "this node\nonline\n");
    assert_eq!(world.sh("cat $MESH/peers/there/id").trim(), world.there.id().to_string());
    assert_eq!(world.sh("cat $MESH/peers/there/rtt"), "1.500 ms\n");
    assert_eq!(world.sh("cat $MESH/peers/there/address"), "");
}

#[test]
fn the_readme_says_what_is_here_and_dot_names_are_not_listed() {
    let world = World::new();
    assert!(world.sh("cat $MESH/README").contains("stores/<name>/keys/"));
    assert_eq!(world.sh("ls $MESH; ls $MESH/stores/home"), "README\nblobs\nchat\npeers\nstores\nkeys\n");
    assert_eq!(world.sh("ls -A $MESH"), "README\nblobs\nchat\npeers\nstores\n");
}

#[test]
fn a_room_as_json_has_a_line_for_each_message_and_tail_follows_what_is_done_in_it() {
    let world = World::new();
    world.sh("echo hello >> $MESH/chat/general");
    let room = world.at.join("chat/.json/general");
    let lines = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&room).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let first = lines();
    assert_eq!((first.len(), first[0]["text"].as_str(), first[0]["reply_to"].as_str()), (1, Some("hello"), None));
    assert_eq!(first[0]["author_name"], "here");
    let id = first[0]["id"].as_str().unwrap().to_owned();
    let mut open = BufReader::new(std::fs::File::open(&room).unwrap());
    let mut next = move || -> serde_json::Value {
        let mut line = String::new();
        open.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    assert_eq!(next()["text"], "hello");
    world.sh(&format!("echo '/reply {id} hi' >> $MESH/chat/general; echo '/react {id} +1' >> $MESH/chat/general"));
    world.sh(&format!("echo '/edit {id} good day' >> $MESH/chat/general"));
    let reply = next();
    assert_eq!((reply["what"].as_str(), reply["text"].as_str()), (Some("message"), Some("hi")));
    assert_eq!(reply["reply_to"].as_str(), Some(id.as_str()));
    let reaction = next();
    assert_eq!((reaction["what"].as_str(), reaction["id"].as_str()), (Some("reaction"), Some(id.as_str())));
    assert_eq!(reaction["reactions"][0]["emoji"], "+1");
    let edit = next();
    assert_eq!((edit["what"].as_str(), edit["text"].as_str()), (Some("edit"), Some("good day")));
    // From the start it is in order, as it is now; what was written can't break a line.
    let now = lines();
    assert_eq!(now.iter().map(|line| line["text"].as_str().unwrap()).collect::<Vec<_>>(), ["good day", "hi"]);
    assert!(now[0]["edited"].is_string() && now[1]["edited"].is_null());
    assert_eq!(world.sh("ls $MESH/chat; ls $MESH/chat/.json"), "general\ngeneral\n");
    assert!(!world.try_sh("echo x >> $MESH/chat/.json/general").status.success());
    assert!(!world.try_sh("echo x >> $MESH/chat/.json/other").status.success());
}
