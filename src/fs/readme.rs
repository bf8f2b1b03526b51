//! `/README`: what is here, for whoever looks in for the first time.

use super::tree::Tree;

const HERE: &str = "\
This directory is a mesh: a set of machines that keep the same files, each able to work alone.
What you write here is signed, kept on this machine, and copied to the others as soon as they can be reached.

  stores/<name>/keys/   the files of a store: use any program on them; one save is one version
  stores/<name>/.heads  where two machines changed the same file: each version, to compare
  .heads/               the same for all stores; `find .heads -type f` lists what needs a person
  stores/<name>/.at/    the store as it was: .at/2h-ago, .at/14:00, .at/2026-11-22T14:00, .at/<entry's hash>
  stores/<name>/.history/<path>/   every version of a file, the oldest first
  stores/<name>/.by/<machine>/     the files that this machine wrote last
  stores/<name>/.tx/    several changes as one: mkdir .tx/deploy, put files into it (an empty PATH.delete deletes PATH),
                        then mv .tx/deploy .tx/commit: all of it or nothing, on every machine; rm -r forgets it
  stores/<name>/.status how many entries, keys, conflicts, bytes; which machines are in step
  stores/<name>/.log    a line for each entry, the newest last; tail -f follows
  stores/<name>/.watch  reading waits, and gives a line of JSON for each change
  chat/<room>           read it, or append a line: echo hello >> chat/room ; tail -f follows;
                        lines that do more: /reply ID text, /react ID 👍, /edit ID text, /redact ID
  chat/.json/<room>     the same for programs, a line of JSON a message
  blobs/<hash>          the large values that are on this machine, by their BLAKE3 hashes
  peers/<name>/         the machines: status, address, rtt, last_seen, lag
  .why                  what failed on this mount last, and why; tail -f follows

Names that begin with a dot are reached by name and not listed, so that copying a store copies its files only.

To settle a conflict: write the file as usual, or cp or mv one of its versions in .heads onto it,
or rm the versions in .heads that lose.

Kept and copied: content, permissions, mtime, symbolic links, empty directories. Not kept: owners, hard links,
device nodes, attributes (but the store's own: getfattr -d -m - FILE). Editors' swap and backup files stay on this machine.

More: lattice --help, lattice status, lattice conflicts.
";

const NO_MESH: &str = "\
This machine is in no mesh yet. Start one, or join one:

  lattice mesh init NAME
  lattice mesh join TOKEN      (TOKEN is what `lattice mesh invite` printed on a machine of that mesh)

Then this directory fills with the mesh's stores.
";

/// The text.
pub(crate) fn text(tree: &Tree) -> Vec<u8> {
    if tree.registry().is_some() { HERE.into() } else { NO_MESH.into() }
}
