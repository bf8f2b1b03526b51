//! Names of files that only their maker needs: they stay on this machine, never signed, never sent.

/// Whether a file of this name stays here.
#[must_use]
pub fn stays(name: &[u8]) -> bool {
    let starts = |prefix: &[u8]| name.starts_with(prefix);
    let ends = |suffix: &[u8]| name.len() > suffix.len() && name.ends_with(suffix);
    let exact: [&[u8]; 3] = [b".DS_Store", b"4913", b".directory.lock"];
    exact.contains(&name)
        || vim_swap(name)
        // Backups; auto-save and locks of emacs; locks of office programs.
        || ends(b"~")
        || (starts(b"#") && ends(b"#"))
        || starts(b".#")
        || starts(b".~lock.")
        || starts(b"~$")
        // What the kernel, file managers and desktops leave while a file is open or on its way.
        || starts(b".nfs")
        || starts(b".fuse_hidden")
        || starts(b".goutputstream-")
        || starts(b"._")
        || ends(b".kate-swp")
        || ends(b"___jb_tmp___")
        || ends(b"___jb_old___")
        // Downloads that are not complete.
        || ends(b".part")
        || ends(b".crdownload")
        || ends(b".partial")
}

/// `.name.swp`, `.name.swo` and so on, as vim and nano name them.
fn vim_swap(name: &[u8]) -> bool {
    let Some((stem, end)) = name.split_last_chunk::<4>() else { return false };
    let swap = end.starts_with(b".sw") && end[3].is_ascii_lowercase();
    swap && stem.first() == Some(&b'.')
}

#[cfg(test)]
mod tests {
    use super::stays;

    #[test]
    fn what_editors_leave_beside_a_file_stays_and_the_file_does_not() {
        for name in
            [".notes.swp", ".notes.swx", "notes~", "#notes#", ".#notes", "4913", ".nfs0001", ".DS_Store", "a.part"]
        {
            assert!(stays(name.as_bytes()), "{name}");
        }
        for name in ["notes", ".bashrc", "a.swp.txt", "sw.swp", "#", "~", "part", ".gitignore", "a#b", "apart"] {
            assert!(!stays(name.as_bytes()), "{name}");
        }
    }
}
