//! Programs on the mount, by area: each line of a script is a claim, and what it says is what it says on a disk.

use lattice::stores::Merge;

use crate::world::World;

#[test]
fn rsync_leaves_nothing_to_do_for_itself_in_whatever_way_it_writes() {
    let world = World::new();
    world.sh("mkdir -p $SPARE/t/sub/empty; cd $SPARE/t; echo one > one; chmod 640 one; ln -s one link
         head -c 300000 /dev/urandom > sub/large; touch -d '2020-01-02 03:04:05.678 UTC' one sub/large
         touch -h -d 2019-01-01 link
         touch -d 2018-01-01 sub/empty sub .");
    for how in
        ["", "--inplace", "--partial", "--partial-dir=.rest", "-c --delete", "--whole-file --delay-updates", "--sparse"]
    {
        world.sh(&format!("rsync -a {how} $SPARE/t/ t/"));
        assert_eq!(world.sh(&format!("rsync -ai {how} $SPARE/t/ t/")), "", "the second time with {how}");
        world.settled();
        assert_eq!(world.sh("rsync -aic --delete $SPARE/t/ t/; rsync -aic --delete t/ $SPARE/t/"), "", "after {how}");
        // Part of it differs now: in the middle, at the end, by a name.
        world.sh("cd $SPARE/t; printf x | dd of=sub/large bs=1 seek=150000 conv=notrunc status=none; echo more >> one; touch new-$RANDOM");
    }
    assert_eq!(world.here.get("t/sub/large").unwrap().len(), 300_000);
    assert_eq!(world.sh("find t -name '.*' -o -name '*.rest'"), "");
}

#[test]
fn archives_unpack_and_pack() {
    let world = World::new();
    world.sh("mkdir -p $SPARE/t/d; cd $SPARE/t; echo one > f; printf '#!/bin/sh\\necho ran\\n' > d/run
        chmod 755 d/run; ln -s f l
        touch -d 2001-01-01 f d/run d .; tar -cf $SPARE/t.tar .
        python3 -m zipfile -c $SPARE/t.zip f d/");
    world.sh("mkdir t z; tar -C t -xf $SPARE/t.tar; unzip -q $SPARE/t.zip -d z");
    assert_eq!(world.sh("t/d/run; sh z/d/run; cat t/l z/f"), "ran\nran\none\none\n");
    assert_eq!(world.sh("stat -c '%a %Y' t/d/run t/f t/d"), "755 978307200\n644 978307200\n755 978307200\n");
    // Over what is there, and packed from here.
    world.sh("echo other > t/f; echo other > z/f; tar -C t -xf $SPARE/t.tar; unzip -qo $SPARE/t.zip -d z; cat t/f z/f | grep -c one");
    world.sh("tar -cf u.tar t; tar -df u.tar; tar -C t -df $SPARE/t.tar; tar -czf u.tgz t; tar -tzf u.tgz > list; gzip -k list; gunzip -t list.gz; rm list.gz; gzip list; gunzip list");
    assert_eq!(world.sh("grep -c run list"), "1\n");
    world.sh("printf two | gzip > g.gz; gunzip g.gz; xz g; unxz g.xz; split -b 1 g part-; cat part-* | cmp - g");
}

#[test]
fn texts_are_edited_by_stream_editors_and_patches() {
    let world = World::new();
    world.sh("seq 20 > a; cp a b; sed -i -e 3s/3/three/ -e 18d b; diff -u a b > p || true; patch -s a < p; cmp a b");
    world.sh("patch -sR a < p; seq 20 | cmp - a; perl -pi.orig -e 's/^1$/one/' a; seq 20 | cmp - a.orig; head -1 a | grep -q one");
    world.sh("printf '1d\\n$a\\nlast\\n.\\nw\\nq\\n' | ed -s a; head -1 a | grep -qx 2; tail -1 a | grep -qx last");
    world.sh("sort -o a -r a; shuf -o a a; awk '{ print > \"col-\" NR % 2 }' a; wc -l < col-0; tee x y < a > /dev/null; cmp x a; cmp y a");
    world.sh("grep -rl three . | grep -qx ./b; grep -r --include='col-*' last . > $SPARE/found; test -s $SPARE/found");
    assert_eq!(world.sh("ls -A").replace('\n', " "), "a a.orig b col-0 col-1 p x y ");
}

#[test]
fn trees_are_walked_copied_linked_and_removed() {
    let world = World::new();
    world.sh("mkdir -p a/b/c 'a/with space' a/.hidden; echo f > a/b/c/f; echo g > 'a/with space/g'; echo h > a/.hidden/h; ln -s b/c/f a/l; ln -s nowhere a/dangling");
    world.sh("cp -r a r; diff -r --no-dereference a r; cp -a a c; diff -r --no-dereference a c; cp -al a hard 2>/dev/null && exit 1; rm -rf hard");
    assert_eq!(world.sh("find a -type f | wc -l; find a -type l -xtype l; find a -name g -printf '%s %M\\n'; du -s --apparent-size a/b/c/f | cut -f1"), "3\na/dangling\n2 -rw-r--r--\n1\n");
    world.sh("find r -type f -exec sh -c 'mv \"$1\" \"$1.txt\"' x {} \\;; find r -name '*.txt' -print0 | xargs -0 rm
        test -z \"$(find r -type f)\"; rm -r r");
    world.sh("touch -r a/b/c/f new; test ! new -nt a/b/c/f; test ! new -ot a/b/c/f; touch -a new; touch -d 2001-01-01 new; test new -ot a; install -D -m 750 new x/y/z; test -x x/y/z");
    world.sh("ln -sfn a/b link; cd link; test \"$(ls)\" = c; cd -P ../..; ln -sr a/b/c/f a/rel; cat a/rel
        realpath link/c > $SPARE/real; rmdir -p x/y 2>/dev/null && exit 1; rm -r x c a link new
        test -z \"$(ls -A)\"");
}

#[test]
fn git_clones_commits_packs_and_checks_a_repository() {
    let world = World::new();
    world.sh(
        "export GIT_AUTHOR_NAME=n GIT_AUTHOR_EMAIL=e GIT_COMMITTER_NAME=n GIT_COMMITTER_EMAIL=e GIT_CONFIG_GLOBAL=/dev/null
         git init -qb main origin; cd origin
         for n in $(seq 30); do echo $n > f$n; done; git add .; git commit -qm first
         git mv f1 g1; echo more >> f2; git commit -qam second; git checkout -qb side HEAD~1; echo side > s
         git add s; git commit -qm side
         git checkout -q main; git merge -q --no-edit side; git rebase -q side~1; cd ..
         git clone -q origin clone 2>&1; git clone -q --no-local $PWD/origin $SPARE/outside
         cd clone; echo x > new; git add new; git commit -qm new; git stash -q 2>&1 || true; echo y >> new
         git stash -q; git stash pop -q
         git commit -qam y; git gc -q --prune=now; git repack -qad; git fsck --strict --no-dangling
         git push -q origin HEAD:other
         git worktree add -q ../tree HEAD; git -C ../tree status --porcelain; git worktree remove ../tree
         test -z \"$(git status --porcelain)\"; git -C ../origin fsck --no-dangling; git log --oneline | grep -c .",
    );
    assert_eq!(world.sh("cd clone; cat new; find .git -name '*.lock' -o -name 'tmp_*'"), "x\ny\n");
    world.settled();
    assert_eq!(world.sh("cd clone; git status --porcelain; git fsck 2>&1 | grep -v dangling || true"), "");
}

#[test]
fn sqlite_keeps_a_database_with_each_kind_of_journal_and_for_several_at_once() {
    let world = World::new();
    for mode in ["delete", "truncate", "persist", "memory", "wal"] {
        world.sh(&format!(
            "db={mode}.db; q() {{ sqlite3 -cmd '.timeout 20000' $db \"$1\"; }}
             q 'pragma journal_mode={mode}; create table t (n integer primary key, x text);' > /dev/null
             q \"begin; with recursive c(n) as (select 1 union all select n + 1 from c where n < 3000)
                insert into t select n, hex(randomblob(40)) from c; commit\"
             for n in 1 2 3 4; do (for m in 1 2 3 4 5
             do q \"insert into t (x) values ('$n')\"; done) & pids=\"$pids $!\"; done; wait $pids
             q 'begin; delete from t; rollback'; q 'update t set x = x || x where n % 2'
             test \"$(q 'pragma integrity_check; select count(*) from t')\" = \"$(printf 'ok\\n3020')\"
             q vacuum; q 'pragma wal_checkpoint(truncate)' > /dev/null; test \"$(q 'pragma integrity_check')\" = ok"
        ));
    }
    world.settled();
    // The same for whoever reads what the store has.
    std::fs::write(world.dir.path().join("copy.db"), world.here.get("wal.db").unwrap()).unwrap();
    assert_eq!(world.sh("sqlite3 $SPARE/copy.db 'pragma integrity_check; select count(*) from t'"), "ok\n3020\n");
}

#[test]
fn tail_follows_a_file_and_a_name() {
    let world = World::new();
    world.sh("echo one > log; timeout 60 tail -n +1 -f log > $SPARE/f & f=$!
         timeout 60 tail -n +1 -F log > $SPARE/F 2>/dev/null & F=$!
         seen() { for n in $(seq 600); do grep -qx \"$2\" $SPARE/$1 && return; sleep .05; done
         echo $1 misses $2 >&2; exit 1; }
         seen f one; seen F one; echo two >> log; seen f two; seen F two
         mv log log.1; echo three >> log.1; seen f three; echo four > log; seen F four; echo five >> log; seen F five
         : > log.1; echo six >> log.1; seen f six; kill $f $F; wait || true");
    assert_eq!(world.sh("cat $SPARE/F | tail -2"), "four\nfive\n");
}

#[test]
fn a_file_managers_calls_work() {
    let world = World::new();
    world.sh(
        "echo one > f; gio copy f g; gio move g h; gio mkdir d; gio copy f d/; gio rename h i; gio info f > /dev/null
         test \"$(gio list | sort | tr '\\n' ' ')\" = 'd f i '; gio cat d/f; gio set -t uint32 f unix::mode 384
         test $(stat -c %a f) = 600
         gio set -t uint64 f time::modified 978307200; test $(stat -c %Y f) = 978307200; echo two | gio save -c new
         gio save f < new
         cmp f new; gio remove new; gio remove d/f; gio remove d; gio tree > /dev/null",
    );
    assert_eq!(world.sh("ls; cat f i"), "f\ni\ntwo\none\n");
}

#[test]
fn pythons_shutil_tempfile_and_pathlib_work() {
    let world = World::new();
    world.sh(
        "cat > $SPARE/p.py <<'END'
import os, pathlib, shutil, tempfile, filecmp
os.makedirs('a/b/c'); pathlib.Path('a/b/f').write_text('x' * 300000); os.symlink('b/f', 'a/l'); os.chmod('a/b/f', 0o640)
os.utime('a/b/f', ns=(10**18, 981173106123456789))
shutil.copytree('a', 'c', symlinks=True); d = filecmp.dircmp('a', 'c'); assert not (d.left_only or d.right_only or d.diff_files)
assert os.stat('c/b/f').st_mtime_ns == 981173106123456789 and os.stat('c/b/f').st_mode & 0o7777 == 0o640
shutil.move('c', 'd'); shutil.move('d/b/f', os.environ['SPARE'] + '/moved'); shutil.move(os.environ['SPARE'] + '/moved', 'd/b/f')
assert open('d/b/f').read() == 'x' * 300000; shutil.copyfile('d/b/f', 'g'); shutil.copystat('d/b/f', 'g'); shutil.rmtree('d')
with tempfile.TemporaryDirectory(dir='.') as t: open(t + '/in', 'w').write('y'); os.rename(t + '/in', 'out')
with tempfile.TemporaryFile(dir='.') as t: t.write(b'z' * 400000); t.seek(0); assert len(t.read()) == 400000
with open('g', 'r+b') as g: g.seek(299999); g.write(b'end'); g.truncate(300001)
with open('g', 'rb') as g: g.seek(-2, 2); assert g.read() == b'en'
assert os.stat('g').st_size == 300001; os.sync(); shutil.make_archive('arc', 'zip', 'a'); shutil.unpack_archive('arc.zip', 'un')
assert sorted(os.listdir('.')) == ['a', 'arc.zip', 'g', 'out', 'un'], os.listdir('.')
END
python3 $SPARE/p.py",
    );
    assert_eq!(world.here.get("out").unwrap(), b"y");
}

#[test]
fn many_writers_at_once_lose_nothing() {
    let world = World::new();
    world.sh("mkdir d; seq 200 | xargs -P 8 -I{} sh -c 'echo {} > d/f{}; echo {} >> all; mkdir -p x/y/{}; mv d/f{} d/g{}; echo {} > same'");
    let whole = world.try_sh("diff <(cat d/* | sort -n) <(seq 200); diff <(sort -n all) <(seq 200)");
    let differs = String::from_utf8_lossy(&whole.stdout);
    assert!(differs.is_empty(), "{differs}{:?}", world.here.heads("all").map(|heads| heads.all().len()));
    assert_eq!(world.sh("ls d | wc -l; ls x/y | wc -l; wc -l < same"), "200\n200\n1\n");
    world.settled();
    assert_eq!(world.here.get("all").unwrap().iter().filter(|byte| **byte == b'\n').count(), 200);
    world.sh("seq 200 | xargs -P 8 -I{} rm d/g{}; rmdir d; ls x/y | xargs -P 8 -I{} rmdir x/y/{}");
    assert_eq!(world.sh("ls -A x/y"), "");
}

#[test]
fn a_database_works_on_one_machine_whichever_journal_it_keeps() {
    let world = World::new();
    for mode in ["delete", "wal"] {
        let script = format!(
            "import sqlite3
def opened():
    db = sqlite3.connect('{mode}.db', timeout=30)
    db.execute('pragma journal_mode={mode}')
    return db
one, two = opened(), opened()
one.execute('create table t (n)')
for n in range(20):
    (one if n % 2 else two).execute('insert into t values (?)', (n,))
    (one if n % 2 else two).commit()
assert one.execute('select sum(n) from t').fetchone() == (190,)
one.close(); two.close()
print(opened().execute('pragma integrity_check').fetchone()[0])"
        );
        std::fs::write(world.dir.path().join("db.py"), script).unwrap();
        assert_eq!(world.sh("python3 $SPARE/db.py"), "ok\n", "{mode}");
    }
    world.settled();
    // What the others get is a database, too.
    std::fs::write(world.dir.path().join("copy.db"), world.here.get("delete.db").unwrap()).unwrap();
    let count = "import sqlite3; print(sqlite3.connect('copy.db').execute('select count(*) from t').fetchone()[0])";
    assert_eq!(world.sh(&format!("cd $SPARE; python3 -c \"{count}\"")), "20\n");
}

#[test]
fn what_has_hard_links_is_copied_as_files_and_who_wants_links_is_told() {
    let world = World::new();
    world.sh("mkdir $SPARE/t; cd $SPARE/t; echo one > a; ln a b; tar -C $SPARE -cf $SPARE/links.tar t
         tar -C $SPARE --hard-dereference -cf $SPARE/files.tar t");
    for linking in ["cp -a $SPARE/t cp", "rsync -aH $SPARE/t/ rsync/", "mkdir tar; tar -C tar -xf $SPARE/links.tar"] {
        let output = world.try_sh(linking);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("Operation not permitted"), "{linking}: {said}");
    }
    world.sh("rm -rf cp rsync tar; cp -a --no-preserve=links $SPARE/t cp; rsync -a $SPARE/t/ rsync/; tar -xf $SPARE/files.tar");
    for copy in ["cp", "rsync", "t"] {
        assert_eq!(world.sh(&format!("diff -r $SPARE/t {copy}; cat {copy}/a {copy}/b")), "one\none\n", "{copy}");
    }
}
