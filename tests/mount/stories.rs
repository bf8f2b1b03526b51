//! What becomes of a file that machines change apart: each story says who sees what before they meet and after, on
//! three machines with a mount each.
//!
//! A line is `A: script`, run in the store on machine A; `A batch f=x g=y`, both keys written by one entry; `meet`, or `meet AB`, after
//! which these have what any of them had; `A sees …`, or `all see …`: each file as `path=content`, each directory as `path/`, each
//! conflict as `path!head|head`, the shown head first. A later line has a later stamp.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use ed25519_dalek::SigningKey;
use lattice::clock::{self, System};
use lattice::fs::{Mounted, Options, Sources, mount};
use lattice::replication::log::Origin;
use lattice::replication::membership::Role;
use lattice::stores::kv::{HeadId, Kind, Op};
use lattice::stores::root::{Op as RootOp, genesis};
use lattice::stores::{Merge, Registry};

use crate::world::{Fixed, Node, Shelf, eventually};

const NAMES: [&str; 3] = ["A", "B", "C"];

struct Machine {
    node: Node,
    at: PathBuf,
    _mounted: Mounted,
}

struct Stage {
    machines: Vec<Machine>,
    _dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys: Vec<_> = (0..3).map(|n| Arc::new(SigningKey::from_bytes(&[200 + n; 32]))).collect();
        let (mesh, first) = genesis(&keys[0], &System, "test", "A").unwrap();
        let nodes = NAMES.iter().zip(&keys).map(|(name, key)| {
            let at = dir.path().join(name);
            let blobs = at.join("blobs");
            std::fs::create_dir_all(&blobs).unwrap();
            let waits = Arc::default();
            let payloads = Arc::new(Shelf { at: blobs.clone(), waits: Arc::clone(&waits) });
            let registry =
                Registry::open(&at, mesh, Some(&first), Arc::clone(key), Arc::new(System), payloads).unwrap();
            Node { key: Arc::clone(key), registry, blobs, waits }
        });
        let nodes: Vec<Node> = nodes.collect();
        for (node, name) in nodes.iter().zip(NAMES).skip(1) {
            let join = RootOp::AddMember { node: node.id(), name: name.into(), role: Role::Writer };
            nodes[0].registry.root().submit(&[join], Origin::Local).unwrap();
        }
        for node in &nodes[1..] {
            node.pull(&nodes[0]);
        }
        let machines = nodes.into_iter().zip(NAMES).map(|(node, name)| {
            let at = dir.path().join(name).join("mesh");
            std::fs::create_dir(&at).unwrap();
            let sources = Sources {
                registry: Arc::new(ArcSwapOption::from(Some(Arc::clone(&node.registry)))),
                peers: Arc::new(Fixed(Vec::new(), std::sync::Arc::default())),
                drafts: dir.path().join(name).join("drafts"),
            };
            let mounted = mount(&at, sources, Options::default()).expect("to mount (as root, with /dev/fuse)");
            Machine { node, at, _mounted: mounted }
        });
        Self { machines: machines.collect(), _dir: dir }
    }

    fn who(names: &str) -> Vec<usize> {
        if names == "all" || names.is_empty() {
            return vec![0, 1, 2];
        }
        names.chars().map(|name| NAMES.iter().position(|known| *known == name.to_string()).unwrap()).collect()
    }

    fn meet(&self, who: &[usize]) {
        for _ in 0..2 {
            for one in who {
                for other in who.iter().filter(|other| *other != one) {
                    self.machines[*one].node.pull(&self.machines[*other].node);
                }
            }
        }
    }
}

impl Machine {
    fn run(&self, script: &str) {
        let keys = self.at.join("stores/home/keys");
        // What it made and removed is an entry before the next one does something.
        let script = format!("{script}\nfind . -type d -exec sync {{}} +");
        let output = std::process::Command::new("bash").args(["-ec", &script]).current_dir(keys).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn batch(&self, writes: &str) {
        let kv = self.node.home();
        let ops = writes.split(' ').map(|write| {
            let (path, text) = write.split_once('=').unwrap();
            let heads = kv.heads(path.as_bytes()).unwrap();
            let supersedes: Vec<HeadId> = heads.iter().flat_map(Merge::all).map(|head| head.id).collect();
            let value = kv.value(text.as_bytes()).unwrap();
            let (path, mtime) = (path.as_bytes().to_vec(), clock::nanos());
            Op::Put { path, supersedes, kind: Kind::File, mode: 0o644, mtime, value }
        });
        kv.submit(ops.collect(), Origin::Local).unwrap();
    }

    /// What a person sees.
    fn view(&self) -> String {
        let script = r#"
            cd "$0/stores/home/keys"
            find . -mindepth 1 -printf '%P\n' | LC_ALL=C sort | while read -r path; do
                if [ -d "$path" ]; then echo "$path/"; else echo "$path=$(cat "$path")"; fi
            done
            cd "$0/.heads/home"
            find . -mindepth 1 -type d -printf '%P\n' | LC_ALL=C sort | while read -r path; do
                heads=$(ls "$path" | grep -E '^[0-9]+-.*-[0-9a-f]{8}(\.deleted)?$' | sort -n | while read -r head; do
                    case $head in
                        *.deleted) echo -n "|deleted" ;;
                        *) if [ -d "$path/$head" ]; then echo -n "|directory"; else echo -n "|$(cat "$path/$head")"; fi ;;
                    esac
                done)
                if [ -n "$heads" ]; then echo "$path!${heads#|}"; fi
            done"#;
        let output = std::process::Command::new("bash").args(["-c", script]).arg(&self.at).output().unwrap();
        String::from_utf8_lossy(&output.stdout).lines().collect::<Vec<_>>().join(" ")
    }
}

fn tick() {
    let now = clock::nanos() / 1_000_000;
    eventually("the clock to go on", || clock::nanos() / 1_000_000 > now);
}

fn play(story: &[&str]) {
    let stage = Stage::new();
    for line in story {
        if let Some(names) = line.strip_prefix("meet") {
            stage.meet(&Stage::who(names.trim()));
        } else if let Some((name, script)) = line.split_once(": ") {
            stage.machines[Stage::who(name)[0]].run(script);
        } else if let Some((name, writes)) = line.split_once(" batch ") {
            stage.machines[Stage::who(name)[0]].batch(writes);
        } else {
            let (names, expected) = line.split_once(" see").unwrap();
            let expected = expected.trim_start_matches('s').trim();
            for machine in Stage::who(names) {
                let mut seen = String::new();
                let name = NAMES[machine];
                let start = clock::monotonic();
                while clock::monotonic() - start < std::time::Duration::from_secs(20) {
                    seen = stage.machines[machine].view();
                    if seen == expected {
                        break;
                    }
                }
                assert_eq!(seen, expected, "{name}, at {line:?} of {story:#?}");
            }
        }
        tick();
    }
}

#[test]
fn edit_and_edit() {
    play(&[
        "A: echo base > f",
        "meet",
        "A: echo a > f",
        "B: echo b > f",
        "A sees f=a",
        "B sees f=b",
        "C sees f=base",
        "meet",
        "all see f=b f!b|a",
    ]);
}

#[test]
fn edit_and_delete() {
    play(&[
        "A: echo base > f",
        "meet",
        "A: echo a > f",
        "B: rm f",
        "A sees f=a",
        "B sees",
        "meet",
        "all see f!deleted|a",
    ]);
}

#[test]
fn delete_and_edit() {
    play(&[
        "A: echo base > f",
        "meet",
        "A: rm f",
        "B: echo b > f",
        "A sees",
        "B sees f=b",
        "meet",
        "all see f=b f!b|deleted",
    ]);
}

#[test]
fn delete_and_delete() {
    play(&["A: echo base > f", "meet", "A: rm f", "B: rm f", "C sees f=base", "meet", "all see"]);
}

#[test]
fn rename_and_edit() {
    play(&[
        "A: echo base > f",
        "meet",
        "A: mv f g",
        "B: echo b > f",
        "A sees g=base",
        "B sees f=b",
        "meet",
        "all see f=b g=base f!b|deleted",
    ]);
}

#[test]
fn rename_and_rename() {
    play(&[
        "A: echo base > f",
        "meet",
        "A: mv f g",
        "B: mv f h",
        "A sees g=base",
        "B sees h=base",
        "meet",
        "all see g=base h=base",
    ]);
}

#[test]
fn tree_rename_and_edit_inside() {
    play(&[
        "A: mkdir d; echo base > d/x; echo base > d/y",
        "meet",
        "A: mv d e",
        "B: echo b > d/x",
        "A sees e/ e/x=base e/y=base",
        "B sees d/ d/x=b d/y=base",
        "meet",
        "all see d/ d/x=b e/ e/x=base e/y=base d/x!b|deleted",
    ]);
}

#[test]
fn mkdir_and_file_of_one_name() {
    play(&["A: mkdir n", "B: echo b > n", "A sees n/", "B sees n=b", "meet", "all see n=b n!b|directory"]);
}

#[test]
fn directory_with_keys_and_file_of_one_name() {
    play(&[
        "A: mkdir n; echo a > n/x",
        "B: echo b > n",
        "A sees n/ n/x=a",
        "B sees n=b",
        "meet",
        "all see n/ n/x=a n!b|directory",
    ]);
}

#[test]
fn create_and_create_equal() {
    play(&["A: echo same > n", "B: echo same > n", "C sees", "meet", "all see n=same"]);
}

#[test]
fn create_and_create_unequal() {
    play(&["A: echo a > n", "B: echo b > n", "A sees n=a", "B sees n=b", "meet", "all see n=b n!b|a"]);
}

#[test]
fn batch_and_edit() {
    play(&[
        "A: echo base > f; echo base > g",
        "meet",
        "A batch f=a g=a",
        "B: echo b > f",
        "A sees f=a g=a",
        "B sees f=b g=base",
        "meet",
        "all see f=b g=a f!b|a",
    ]);
}

#[test]
fn settle_and_settle() {
    play(&[
        "A: echo a > f",
        "B: echo b > f",
        "meet",
        "all see f=b f!b|a",
        "A: echo a settles > f",
        "B: echo b settles > f",
        "A sees f=a settles",
        "B sees f=b settles",
        "meet",
        "all see f=b settles f!b settles|a settles",
        "C: echo c settles > f",
        "meet",
        "all see f=c settles",
    ]);
}

#[test]
fn settle_and_edit_by_one_who_had_not_seen_the_conflict() {
    play(&[
        "A: echo base > f",
        "meet",
        "A: echo a > f",
        "B: echo b > f",
        "meet AB",
        "C sees f=base",
        "A: echo settled > f",
        "C: echo c > f",
        "A sees f=settled",
        "B sees f=b f!b|a",
        "C sees f=c",
        "meet",
        "all see f=c f!c|settled",
    ]);
}

#[test]
fn three_ways() {
    play(&[
        "A: echo base > f",
        "meet",
        "A: echo a > f",
        "B: echo b > f",
        "C: echo c > f",
        "meet AB",
        "A sees f=b f!b|a",
        "C sees f=c",
        "meet BC",
        "A sees f=b f!b|a",
        "B sees f=c f!c|b|a",
        "meet",
        "all see f=c f!c|b|a",
    ]);
}
