//! Programs that come from the registry.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The program of a crate, in this version; installed if it is not there.
///
/// One install at a time, in this process and in others: Cargo takes what it built out of the build directory, so of
/// two that build there together the second finds nothing to install.
pub(crate) fn installed(name: &str, version: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let (root, build) = (target.join("tools"), target.join("tools/build").join(name));
    std::fs::create_dir_all(&build).unwrap();
    let lock = File::create(root.join("lock")).unwrap();
    lock.lock().unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["install", "--quiet", "--debug", "--locked", "--root"])
        .arg(&root)
        .arg("--target-dir")
        .arg(&build)
        .arg(format!("{name}@={version}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{name} can't be installed: {}", String::from_utf8_lossy(&output.stderr));
    root.join("bin").join(name)
}
