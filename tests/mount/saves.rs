//! One save, one entry: what each program's way of saving makes of a key, and what it leaves beside it.

use crate::world::World;

/// A save of `f`, in a directory of its own.
struct Save {
    by: &'static str,
    /// What is there before.
    before: &'static str,
    how: &'static str,
    /// The content after it.
    after: &'static str,
    /// The other names in the directory after it.
    beside: &'static str,
    /// Whether it replaces a version that was there: then the file is never gone for others.
    replaces: bool,
}

/// A save over a file.
const fn save(by: &'static str, how: &'static str, after: &'static str) -> Save {
    Save { by, before: "echo one > f", how, after, beside: "", replaces: true }
}

/// The same for what leaves something beside the file.
const fn leaves(save: Save, beside: &'static str) -> Save {
    Save { beside, ..save }
}

/// The same for what makes the file, from what is at `$SPARE/x`.
const fn makes(by: &'static str, how: &'static str) -> Save {
    Save { before: SOURCE, replaces: false, ..save(by, how, "two\n") }
}

const SOURCE: &str = "mkdir -p $SPARE/x; echo two > $SPARE/x/f; chmod 600 $SPARE/x/f; touch -d 2001-01-01 $SPARE/x/f";

/// The same for what copies over the file.
const fn copies(by: &'static str, how: &'static str) -> Save {
    const BOTH: &str =
        "echo one > f; mkdir -p $SPARE/x; echo two > $SPARE/x/f; chmod 600 $SPARE/x/f; touch -d 2001-01-01 $SPARE/x/f";
    Save { before: BOTH, ..save(by, how, "two\n") }
}

/// `terminal COMMAND` runs it in a terminal; `typed COMMAND SEEN KEYS SEEN KEYS…` also types into it, once what is to be
/// seen before is on the screen.
const TERMINAL: &str = r#"
    export HOME=$SPARE/home TERM=vt100
    mkdir -p $HOME
    terminal() { timeout 60 script -qec "$1" /dev/null < /dev/null > $SPARE/screen 2>&1; }
    typed() { timeout 60 python3 -c '
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0: os.execvp("sh", ["sh", "-c", "exec " + sys.argv[1]])
screen, steps = b"", sys.argv[2:]
while True:
    try: some = os.read(terminal, 4096)
    except OSError: break
    if not some: break
    sys.stdout.buffer.write(some); screen += some
    if steps and steps[0].encode() in screen:
        os.write(terminal, steps[1].encode().decode("unicode_escape").encode()); screen, steps = b"", steps[2:]
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))' "$@" > $SPARE/screen 2>&1; }
"#;

/// Types into nano, saves and leaves.
const NANO: &str = r"Exit 'two \017' 'Name to Write' '\r' 'Wrote' '\030'";

/// Makes all saves, one after the other; each must be one entry, of which `f` gets a version and nothing else.
fn check(saves: &[Save]) {
    let world = World::new();
    for (number, save) in saves.iter().enumerate() {
        world.sh(&format!("mkdir s{number}; cd s{number}; {}", save.before));
    }
    world.settled();
    let mut wrong = Vec::new();
    for (number, save) in saves.iter().enumerate() {
        let how = save.how.replace("$NANO", NANO);
        let entries = world.entries_of(&format!("{TERMINAL} cd s{number}; {how}"));
        let screen = std::fs::read_to_string(world.dir.path().join("screen")).unwrap_or_default();
        let key = format!("s{number}/f");
        let shown = world.sh(&format!("cat {key}"));
        assert_eq!(shown, save.after, "{}: {screen}", save.by);
        assert_eq!(world.here.get(&key).unwrap(), save.after.as_bytes(), "{}", save.by);
        let names = world.sh(&format!("ls -A s{number}"));
        let beside: Vec<_> = names.lines().filter(|name| *name != "f").collect();
        assert_eq!(beside.join(" "), save.beside, "what {} leaves", save.by);
        let history = world.here.home().history(key.as_bytes()).unwrap();
        let gone = history.iter().any(|version| !version.head.is_live());
        if entries != 1 || (save.replaces && gone) {
            wrong.push(format!(
                "{}: {entries} entries{}",
                save.by,
                if gone { ", and it was gone meanwhile" } else { "" }
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_save_of_an_editor_is_one_entry() {
    check(&[
        save("vim", "terminal \"vim -c 'normal cwtwo' -c wq f\"", "two\n"),
        save("vim, in place", "terminal \"vim -c 'set backupcopy=yes' -c 'normal cwtwo' -c wq f\"", "two\n"),
        save("vim, into a new file", "terminal \"vim -c 'set backupcopy=no' -c 'normal cwtwo' -c wq f\"", "two\n"),
        leaves(
            save(
                "vim, with a backup",
                "terminal \"vim -c 'set backup backupskip=' -c 'normal cwtwo' -c wq f\"",
                "two\n",
            ),
            "f~",
        ),
        leaves(
            save(
                "vim, with the old file as backup",
                "terminal \"vim -c 'set backup backupskip= backupcopy=no' -c 'normal cwtwo' -c wq f\"",
                "two\n",
            ),
            "f~",
        ),
        save("nano", "typed 'nano f' $NANO", "two one\n"),
        leaves(save("nano, with a backup", "typed 'nano -B f' $NANO", "two one\n"), "f~"),
        save("nano, with a lock", "typed 'nano -G f' $NANO", "two one\n"),
        leaves(
            save(
                "emacs",
                r#"terminal "emacs -nw -Q --eval '(setq backup-enable-predicate (function identity))' f --eval '(progn (insert \"two \") (save-buffer) (kill-emacs))'""#,
                "two one\n",
            ),
            "f~",
        ),
        save("ed", r"printf '1s/one/two/\nw\nq\n' | ed -s f", "two\n"),
    ]);
}

#[test]
fn a_save_of_a_program_is_one_entry() {
    check(&[
        save("sed -i", "sed -i s/one/two/ f", "two\n"),
        leaves(save("sed -i, with a backup", "sed -i~ s/one/two/ f", "two\n"), "f~"),
        save("perl -i", "perl -pi -e s/one/two/ f", "two\n"),
        Save {
            before: "printf '[x]\\n' > f",
            ..save("git config", "git config --file f a.b c", "[x]\n[a]\n\tb = c\n")
        },
        save("a program of GNOME", "echo two | gio save f", "two\n"),
        leaves(save("a program of GNOME, with a backup", "echo two | gio save -b f", "two\n"), "f~"),
        save("a shell's >", "echo two > f", "two\n"),
        save("a shell's >>", "echo two >> f", "one\ntwo\n"),
        Save { before: "true", replaces: false, ..save("a shell's > that makes it", "echo two > f", "two\n") },
        save("tee", "echo two | tee f > $SPARE/screen", "two\n"),
        save("dd", "printf tw | dd of=f conv=notrunc status=none", "twe\n"),
        save("truncate", "truncate -s 2 f", "on"),
        save("sort -o", "echo 0 | sort -o f - f", "0\none\n"),
        save("patch", "printf '%s\\n' '--- f' '+++ f' '@@ -1 +1 @@' -one +two | patch -s f", "two\n"),
        save(
            "python, in place with fsync",
            "python3 -c 'import os
f = os.open(\"f\", os.O_RDWR)
for n in range(3):
    os.pwrite(f, b\"two\", 0)
os.fsync(f)
os.fchmod(f, 0o644)
os.close(f)'",
            "two\n",
        ),
        save(
            "python, into a temporary file",
            "python3 -c 'import os, tempfile
with tempfile.NamedTemporaryFile(dir=\".\", delete=False) as f:
    f.write(b\"two\\n\")
os.chmod(f.name, 0o640)
os.replace(f.name, \"f\")'",
            "two\n",
        ),
    ]);
}

#[test]
fn a_copy_is_one_entry() {
    check(&[
        makes("cp", "cp $SPARE/x/f f"),
        copies("cp over a file", "cp $SPARE/x/f f"),
        makes("cp -a", "cp -a $SPARE/x/f f"),
        copies("cp -a over a file", "cp -a $SPARE/x/f f"),
        copies("cp --remove-destination", "cp --remove-destination $SPARE/x/f f"),
        makes("cp --reflink=auto", "cp --reflink=auto $SPARE/x/f f"),
        makes("mv from another disk", "cp -a $SPARE/x/f $SPARE/moved; mv $SPARE/moved f"),
        copies("mv from another disk over a file", "cp -a $SPARE/x/f $SPARE/moved; mv $SPARE/moved f"),
        makes("install", "install -m 640 $SPARE/x/f f"),
        copies("install over a file", "install -m 640 $SPARE/x/f f"),
        makes("rsync -a", "rsync -a $SPARE/x/f f"),
        copies("rsync -a over a file", "rsync -a $SPARE/x/f f"),
        copies("rsync -a --partial over a file", "rsync -a --partial $SPARE/x/f f"),
        makes("tar x", "tar -C $SPARE/x -cf - f | tar xf -"),
        copies("tar x over a file", "tar -C $SPARE/x -cf - f | tar xf -"),
        makes("gio copy", "gio copy $SPARE/x/f f"),
        Save { before: "echo two > g", replaces: false, ..save("mv", "mv g f", "two\n") },
        Save { before: "echo one > f; echo two > g", ..save("mv over a file", "mv g f", "two\n") },
    ]);
}

/// What each of these makes is one entry: a directory with its permissions and times, a link with its own.
#[test]
fn a_directory_or_a_link_is_one_entry_with_its_attributes() {
    let world = World::new();
    world.sh("mkdir $SPARE/d; chmod 750 $SPARE/d; touch -d 2001-01-01 $SPARE/d
         ln -s nowhere $SPARE/l; touch -h -d 2002-02-02 $SPARE/l
         mkdir full; ln -s old link; echo file > file");
    world.settled();
    world.settled();
    let mut wrong = Vec::new();
    for (makes, how) in [
        (1, "cp -a $SPARE/l l1"),
        (1, "rsync -a $SPARE/l l2"),
        (1, "tar -C $SPARE -cf - l | tar xf - --transform s/l/l3/"),
        (1, "ln -s nowhere l4"),
        (1, "ln -sfn nowhere link"),
        (1, "ln -sf nowhere file"),
        (1, "mv -T l4 l5"),
        (1, "cp -a $SPARE/d d1"),
        (2, "mkdir r; rsync -a $SPARE/d/ r/d2/"),
        (1, "tar -C $SPARE -cf - d | tar xf - --transform s/d/d3/"),
        (1, "mkdir -m 700 d4"),
        (1, "install -d -m 750 d5"),
        (1, "chmod 700 d1; touch -d 2003-03-03 d1"),
        (0, "mkdir d6; rmdir d6"),
        (0, "ln -s x l6; rm l6"),
        (2, "mkdir d7; mv d7 d8"),
        (3, "mkdir -p a/b/c"),
    ] {
        let made = world.entries_of(how);
        if made != makes {
            wrong.push(format!("{how}: {made} entries"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(
        world
            .sh("stat -c '%n %a %Y' d1 r/d2 d3 d4 d5 | cut -d' ' -f1-2; stat -c %Y l1 l2 l3 d1 d3; readlink link file"),
        "d1 700\nr/d2 750\nd3 750\nd4 700\nd5 750\n\
         1012608000\n1012608000\n1012608000\n1046649600\n978307200\nnowhere\nnowhere\n"
    );
}

/// Each directory and each file is one entry at most, also where a directory's attributes are set after all that is in it.
#[test]
fn a_copied_tree_is_an_entry_at_most_for_each_of_its_files_and_directories() {
    let world = World::new();
    world.sh("mkdir -p $SPARE/t/a/b $SPARE/t/empty; cd $SPARE/t; echo 1 > f; echo 2 > a/f; echo 3 > a/b/f; ln -s f a/l
         chmod 700 a; chmod 550 a/b; find . -depth -exec touch -h -d 2001-01-01 {} +");
    for (how, to) in [
        ("cp -a $SPARE/t", "t1"),
        ("rsync -a $SPARE/t/", "t2"),
        ("mkdir t3; tar -C $SPARE/t -cf - . | tar -C t3 -xf - #", ""),
    ] {
        let entries = world.entries_of(&format!("{how} {to}"));
        assert!((4..=8).contains(&entries), "{how}: {entries}");
    }
    for to in ["t1", "t2", "t3"] {
        let differs = world.sh(&format!("rsync -ani --delete --checksum --no-owner --no-group $SPARE/t/ {to}/"));
        assert_eq!(differs, "", "{to}");
    }
}

/// Temporary, swap, backup and lock files stay on this machine, are shown, and are there after a remount.
#[test]
fn what_programs_leave_beside_a_file_stays_here_and_survives_a_remount() {
    let mut world = World::new();
    world.sh("echo one > f");
    let left = "
        echo 1 > .f.swp; echo 2 > .f.swx; echo 3 > f~; echo 4 > '#f#'; ln -s me@host.1:2 .#f; echo 5 > .goutputstream-AB
        echo 6 > .~lock.f#; echo 7 > '~$f.docx'; echo 8 > movie.part; echo 9 > x.crdownload; echo a > .DS_Store; echo b > ._f";
    assert_eq!(world.entries_of(left), 0);
    let all = "ls -A; readlink .#f; cat .f.swp .f.swx f~ '#f#' .goutputstream-AB .~lock.f# '~$f.docx' movie.part x.crdownload \
        .DS_Store ._f | tr -d '\\n'";
    let before = world.sh(all);
    assert!(before.ends_with("me@host.1:2\n123456789ab"), "{before}");
    world.unmount();
    world.mount();
    assert_eq!(world.sh(all), before);
    assert_eq!(world.entries_of("mv movie.part movie"), 1);
    assert_eq!(world.here.get("movie").unwrap(), b"8\n");
}
