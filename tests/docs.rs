//! What README and docs/ tell people to type, typed: every block of shell runs, in order, on nodes of its own.
#![allow(clippy::disallowed_methods, reason = "tests wait on the real clock")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says what it saw"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// A block of shell: on which machine, and what.
struct Block {
    machine: String,
    script: String,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(machine) = line.strip_prefix("```sh") {
            let script = lines.by_ref().take_while(|line| *line != "```").collect::<Vec<_>>().join("\n");
            blocks.push(Block { machine: machine.trim().to_owned(), script });
        }
    }
    blocks
}

/// Two machines, as far as a document can tell: each a home directory. Their nodes are stopped when this is dropped.
struct Machines {
    dir: tempfile::TempDir,
}

impl Machines {
    fn new() -> Self {
        let machines = Self { dir: tempfile::tempdir().unwrap() };
        for machine in ["one", "two"] {
            std::fs::create_dir(machines.home(machine)).unwrap();
        }
        machines
    }

    fn home(&self, machine: &str) -> PathBuf {
        self.dir.path().join(machine)
    }

    fn run(&self, machine: &str, script: &str) -> Output {
        let programs = Path::new(env!("CARGO_BIN_EXE_lattice")).parent().unwrap();
        Command::new("sh")
            .args(["-eu", "-c", script])
            .env("PATH", format!("{}:{}", programs.display(), std::env::var("PATH").unwrap()))
            .env("HOME", self.home(machine))
            .env_remove("XDG_DATA_HOME")
            .env_remove("LATTICE_DATA")
            .env("LATTICE_NAME", machine)
            .env("LATTICE_LISTEN", "127.0.0.1:0")
            .env("LATTICE_MDNS", "false")
            .current_dir(self.home(machine))
            .output()
            .unwrap()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for machine in ["one", "two"] {
            let log = self.home(machine).join(".local/share/lattice/latticed.log");
            if std::thread::panicking() {
                eprintln!("--- {machine}\n{}", std::fs::read_to_string(log).unwrap_or_default());
            }
            drop(self.run(machine, "lattice down"));
            drop(Command::new("umount").arg("-l").arg(self.home(machine).join("mesh")).output());
        }
    }
}

fn follow(document: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join(document)).unwrap();
    let machines = Machines::new();
    let mut token = String::new();
    let blocks = blocks(&text);
    assert!(!blocks.is_empty(), "{document} has no blocks of shell");
    for Block { machine, script } in blocks {
        if machine == "scripts" {
            // Not run here: they run this.
            for line in script.lines() {
                assert!(root.join(line).is_file(), "{document}: there is no {line}");
            }
            continue;
        }
        assert!(machine == "one" || machine == "two", "{document}: a block names no machine:\n{script}");
        let script = script.replace("TOKEN", &token);
        let end = Instant::now() + PATIENCE;
        let output = loop {
            let output = machines.run(&machine, &script);
            // What begins with reading may have to wait for the other machine's writing.
            if output.status.success() || !script.starts_with("cat ") || Instant::now() > end {
                break output;
            }
        };
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{document}, on {machine}:\n{script}\n--- {}\n{said}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        if let Some(line) = said.lines().rfind(|line| line.starts_with("lattice") && !line.contains(' ')) {
            line.clone_into(&mut token);
        }
    }
}

#[test]
fn the_readme_works_as_it_is_written() {
    follow("README.md");
}

#[test]
fn what_operations_says_to_type_works() {
    follow("docs/operations.md");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents: Vec<_> = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(|name| root.join(name)).into();
    documents.extend(std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    for document in documents {
        let text = std::fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap();
            let target = document.parent().unwrap().join(file);
            assert!(link.starts_with("https://") || target.exists(), "{}: {link} leads nowhere", document.display());
        }
    }
}
