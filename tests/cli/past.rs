//! The past: log of a path, show, diff, blame, restore, undo.

use serde_json::Value;

use super::harness::Node;
use super::{NOT_FOUND, REFUSED, USAGE, conflicted, json, lines, out, refused, with_mesh};

fn last(node: &Node<'_>) -> String {
    lines(&node.lattice(&["log", "-n", "1", "--json"]))[0]["hash"].as_str().unwrap().to_owned()
}

fn put(node: &Node<'_>, key: &str, value: &str) -> String {
    node.lattice(&["kv", "put", key, value]);
    last(node)
}

#[test]
fn the_log_of_a_path_holds_what_wrote_to_it_or_below_it_and_the_graph_draws_what_was_apart() {
    let [node, _other] = conflicted("notes/a");
    put(&node, "notesbook", "x");
    put(&node, "notes/b/c", "y");
    let does = |args: &[&str]| -> Vec<String> {
        let all = lines(&node.lattice(&[args, &["--json"]].concat()));
        all.iter().map(|entry| entry["does"][0].as_str().unwrap().to_owned()).collect()
    };
    let [theirs, ours, below] = ["put notes/a (6 bytes)", "put notes/a (4 bytes)", "put notes/b/c (1 byte)"];
    assert_eq!(does(&["log", "home", "notes"]), [theirs, ours, below]);
    assert_eq!(does(&["log", "home", "notes/b", "--limit", "1"]), [below]);
    let ever: [&[&str]; 3] = [&["log", "home", "none"], &["log", "home", "a//b"], &["log", "home", "note"]];
    for command in ever {
        assert!(refused(&node, command, NOT_FOUND).contains("nothing was ever at or below"), "{command:?}");
    }
    assert!(refused(&node, &["log", "root", "notes"], REFUSED).contains("'root'"));
    let graph = node.lattice(&["log", "--graph"]);
    let drawn = graph.lines().map(|line| line.chars().take(3).collect::<String>());
    let drawn: Vec<_> = drawn.map(|start| start.trim_end().to_owned()).collect();
    assert_eq!(drawn, ["  *", "  │", "* │", "│ │", "├─╯", "*", "│", "*", ""], "{graph}");
    node.lattice(&["kv", "delete", "notes/b/c"]);
    assert_eq!(does(&["log", "home", "notes/b"]).len(), 2, "what is gone was there");
}

#[test]
fn an_entry_is_shown_with_what_each_key_was_before() {
    let node = with_mesh();
    put(&node, "a", "one\ntwo\n");
    let second = put(&node, "a", "one\n2\n");
    let shown = node.lattice(&["show", &second[..8]]);
    for part in [&format!("entry    {second}"), "store    home", "does     put a (6 bytes)", "-two\n+2\n", "--- a/a  "]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let value = json(&node, &["show", &second]);
    assert_eq!((&value["store"], &value["seq"]), (&"home".into(), &1.into()));
    assert_eq!(value["writes"][0]["before"]["size"], 8);
    assert!(value["writes"][0]["diff"].as_str().unwrap().ends_with("-two\n+2\n"), "{value}");
    let root = lines(&node.lattice(&["log", "root", "--json"]))[0]["hash"].as_str().unwrap().to_owned();
    assert!(node.lattice(&["show", &root]).contains("store    root"));
    refused(&node, &["show", "ffffffffffff"], NOT_FOUND);
    refused(&node, &["show", "3f"], USAGE);
}

#[test]
fn a_diff_is_between_two_moments_and_without_any_that_of_the_last_change() {
    let node = with_mesh();
    let first = put(&node, "d/text", "one\ntwo\n");
    put(&node, "d/gone", "x\n");
    let large = "y".repeat(20_000);
    let binary = put(&node, "d/large", &large);
    put(&node, "d/text", "one\n2\n");
    node.lattice(&["kv", "delete", "d/gone"]);
    let deleted = last(&node);
    std::fs::set_permissions(node.key("d/large"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    put(&node, "outside", "z");

    assert!(node.lattice(&["diff", "d/text"]).ends_with("@@ -1,2 +1,2 @@\n one\n-two\n+2\n"));
    let all = node.lattice(&["diff", "d", "--at", &binary]);
    assert!(all.contains("d/gone: file deleted\n") && all.contains("-x\n") && all.contains("-two\n+2\n"), "{all}");
    assert!(all.contains("d/large: mode 0644 became 0755\n") && !all.contains("outside"), "{all}");
    let one = node.lattice(&["diff", "d", &format!("{deleted}^"), &deleted, "--json"]);
    assert_eq!(lines(&one).iter().map(|change| change["path"].clone()).collect::<Vec<_>>(), ["d/gone"]);
    assert_eq!(lines(&one)[0]["after"], Value::Null);
    let new = node.lattice(&["diff", "d/text", "--at", &format!("{first}^"), "--to", &first]);
    assert!(new.starts_with("d/text: new file, mode 0644\n--- /dev/null\n"), "{new}");
    assert_eq!(node.lattice(&["diff", "d", "--at", "now"]), "");
    assert_eq!(lines(&node.lattice(&["diff", "--at", "1h-ago", "--json"])).len(), 3);
    refused(&node, &["diff", "d", "--at", "yesterday"], NOT_FOUND);
    refused(&node, &["diff", "none"], NOT_FOUND);
    refused(&node, &["diff", "none", "--at", "1h-ago"], NOT_FOUND);
    assert_eq!(node.lattice(&["diff", "d/gone", "--at", "1h-ago"]), "", "it came and went");
}

#[test]
fn each_line_is_blamed_on_the_entry_that_brought_it() {
    let node = with_mesh();
    let first = put(&node, "a", "one\ntwo\nthree\n");
    node.lattice(&["kv", "delete", "a"]);
    put(&node, "a", "");
    let back = put(&node, "a", "one\ntwo\nthree\n");
    let edited = put(&node, "a", "one\n2\nthree\nfour");
    let blamed = lines(&node.lattice(&["blame", "a", "--json"]));
    let hashes: Vec<_> = blamed.iter().map(|line| line["hash"].as_str().unwrap()).collect();
    assert_eq!(hashes, [&back, &edited, &back, &edited]);
    assert_eq!(blamed[3]["text"], "four");
    assert_ne!(first, back);
    let text = node.lattice(&["blame", "a"]);
    assert!(text.lines().next().unwrap().starts_with(&back[..8]) && text.ends_with("   4  four\n"), "{text}");
    std::fs::write(node.key("b"), b"\0binary").unwrap();
    assert!(refused(&node, &["blame", "b"], REFUSED).contains("is no text"));
    refused(&node, &["blame", "none"], NOT_FOUND);
}

#[test]
fn what_was_restored_or_undone_is_one_entry_which_can_be_undone_itself() {
    let node = with_mesh();
    put(&node, "d/a", "1");
    let then = put(&node, "d/b", "2");
    put(&node, "d/a", "changed");
    put(&node, "d/new", "3");
    node.lattice(&["kv", "delete", "d/b"]);
    let count = || json(&node, &["store", "status", "home"])["entries"].as_u64().unwrap();
    let keys = || node.lattice(&["kv", "list"]);
    let before = count();

    let dry = json(&node, &["restore", "d", "--at", &then, "--dry-run"]);
    assert_eq!((&dry["hashes"], &dry["restored"]), (&serde_json::json!([]), &serde_json::json!(["d/a", "d/b"])));
    assert_eq!((count(), &dry["deleted"]), (before, &serde_json::json!(["d/new"])));
    let done = json(&node, &["restore", "d", "--at", &then]);
    assert_eq!((count(), keys().as_str()), (before + 1, "d/a\nd/b\n"));
    assert_eq!(std::fs::read_to_string(node.key("d/a")).unwrap(), "1");
    assert!(node.lattice(&["restore", "d", "--at", &then]).contains("nothing was to be done"));

    let undone = json(&node, &["undo", done["hashes"][0].as_str().unwrap()]);
    assert_eq!((count(), keys().as_str()), (before + 2, "d/a\nd/new\n"));
    assert_eq!(std::fs::read_to_string(node.key("d/a")).unwrap(), "changed");
    node.lattice(&["undo", undone["hashes"][0].as_str().unwrap()]);
    assert_eq!(keys(), "d/a\nd/b\n");
    let twice = node.attempt(&["undo", undone["hashes"][0].as_str().unwrap()]);
    let said = String::from_utf8_lossy(&twice.stderr).into_owned();
    assert!(said.contains("d/a was written since by other entries") && !said.contains("by others"), "{said}");
    assert!(refused(&node, &["restore", "none", "--at", &then], NOT_FOUND).contains("at or below 'none'"));
    assert!(refused(&node, &["restore", "d/new", "--at", &then], NOT_FOUND).contains("there was no 'd/new'"));
    refused(&node, &["undo"], USAGE);
    refused(&node, &["undo", "--by", "nobody", "--since", "1h-ago"], NOT_FOUND);
}

#[test]
fn what_a_machine_wrote_since_some_time_is_undone_but_for_what_others_wrote_since() {
    let [node, other] = conflicted("d/both");
    let name = json(&other, &["status"])["name"].as_str().unwrap().to_owned();
    for key in ["d/theirs", "d/since", "e/theirs"] {
        other.lattice(&["kv", "put", key, "unwanted"]);
    }
    let has = |node: &Node<'_>, key: &str, value: &str| out(&node.attempt(&["kv", "get", key])) == value;
    super::eventually("it is here", || has(&node, "e/theirs", "unwanted"));
    node.lattice(&["kv", "put", "d/since", "ours"]);
    let undone = node.attempt(&["undo", "--by", &name, "--since", "1h-ago", "--path", "d/**", "--json"]);
    assert!(undone.status.success(), "{}", String::from_utf8_lossy(&undone.stderr));
    let undone: Value = serde_json::from_slice(&undone.stdout).unwrap();
    assert_eq!(undone["restored"], serde_json::json!(["d/both"]));
    assert_eq!((&undone["deleted"][0], &undone["kept"][0]), (&"d/theirs".into(), &"d/since".into()));
    assert_eq!(node.lattice(&["kv", "list"]), "d/both\nd/since\ne/theirs\n");
    assert_eq!(node.lattice(&["conflicts"]), "");
    super::eventually("it is undone there, too", || other.lattice(&["kv", "list"]) == "d/both\nd/since\ne/theirs\n");
    assert!(has(&other, "d/both", "ours") && has(&other, "d/since", "ours"));
}

/// Runs `lattice kv batch` with what makes so many keys.
fn put_many(node: &Node<'_>, keys: std::ops::Range<usize>) {
    use std::io::Write;
    let mut batch = node.command(&["kv", "batch"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let mut input = batch.stdin.take().unwrap();
    for key in keys {
        let value = format!("value {key}");
        writeln!(input, "{}", serde_json::json!({"path": format!("many/{}/{key}", key % 7), "value": value})).unwrap();
    }
    drop(input);
    assert!(batch.wait().unwrap().success());
}

#[test]
fn going_back_over_thousands_of_keys_takes_a_few_entries_and_one_command_takes_all_of_it_back() {
    let node = with_mesh();
    let before = put(&node, "before", "x");
    for start in [0, 500, 1_000, 1_500, 2_000, 2_500] {
        put_many(&node, start..start + 500);
    }
    let count = || json(&node, &["store", "status", "home"])["entries"].as_u64().unwrap();
    let all = node.lattice(&["kv", "list"]);
    assert_eq!((all.lines().count(), count()), (3_001, 7));

    let restored = json(&node, &["restore", "", "--at", &before]);
    assert_eq!(node.lattice(&["kv", "list"]), "before\n");
    assert_eq!(restored["deleted"].as_array().unwrap().len(), 3_000);
    let hashes = |of: &Value| -> Vec<String> {
        of["hashes"].as_array().unwrap().iter().map(|hash| hash.as_str().unwrap().to_owned()).collect()
    };
    let made = hashes(&restored);
    assert!((2..8).contains(&made.len()) && count() == 7 + made.len() as u64, "{made:?}");

    let undo: Vec<&str> = ["undo"].into_iter().chain(made.iter().map(String::as_str)).collect();
    let text = node.lattice(&undo);
    assert_eq!(node.lattice(&["kv", "list"]), all);
    assert_eq!(std::fs::read_to_string(node.key("many/4/2006")).unwrap(), "value 2006");
    let entries = text.lines().filter(|line| line.starts_with("entry ")).count();
    assert!(entries > 1 && text.contains(&format!("\n{entries} entries, since one does not hold it")), "{text}");
    // The last line is the command that takes it back.
    let back = text.lines().last().unwrap();
    let words: Vec<&str> = back.split(' ').skip_while(|word| *word != "undo").collect();
    assert_eq!(words.len(), 1 + entries + 2, "{back}");
    let gone = json(&node, &words);
    assert_eq!((hashes(&gone).len(), &gone["entries"]), (made.len(), &entries.into()));
    assert_eq!(node.lattice(&["kv", "list"]), "before\n");
}

/// A new file may wait a moment for the renaming that often follows; no command is to miss it for that.
#[test]
fn commands_see_what_the_mount_shows() {
    use std::io::Write;
    let node = with_mesh();
    let fresh = |name: &str| {
        let path = node.key(name);
        // Made with O_EXCL, as `install` and `cp` of some systems do, it is not an entry at once.
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path).unwrap();
        file.write_all(name.as_bytes()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let path = fresh("got");
    assert_eq!(node.lattice(&["kv", "get", &path]), "got");
    fresh("deleted");
    node.lattice(&["kv", "delete", "deleted"]);
    assert!(!node.key("deleted").exists());
    fresh("put");
    node.lattice(&["kv", "put", "put", "again"]);
    assert_eq!(node.lattice(&["conflicts"]), "");
    assert_eq!(node.lattice(&["kv", "get", "put"]), "again");
    fresh("logged");
    assert!(node.lattice(&["log", "home", "logged"]).contains("put logged"));
    let path = fresh("proven");
    assert!(node.attempt(&["prove", &path]).status.success());
    let path = fresh("undone");
    let me = json(&node, &["status"])["name"].as_str().unwrap().to_owned();
    let undone = json(&node, &["undo", "--by", &me, "--since", "1h-ago", "--path", &path]);
    assert_eq!(undone["deleted"][0], "undone");
}
