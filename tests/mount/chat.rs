//! `/chat`, `/peers`, `/README`.

use std::fs::{self, OpenOptions};
use std::io::Write;

use lattice::replication::log::Origin;

use crate::world::{World, eventually};

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
fn a_message_from_elsewhere_is_in_the_next_read() {
    let world = World::new();
    world.sh("echo hello >> $MESH/chat/lobby; cat $MESH/chat/lobby");
    world.there.pull(&world.here);
    world.there.registry.chat().unwrap().post("lobby", "from there", Origin::Local).unwrap();
    world.here.pull(&world.there);
    assert!(world.sh("cat $MESH/chat/lobby").contains("there: from there"));
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
    assert_eq!(world.sh("ls $MESH; ls $MESH/stores/home"), "README\nchat\npeers\nstores\nkeys\n");
    assert_eq!(world.sh("ls -A $MESH"), "README\nchat\npeers\nstores\n");
}
