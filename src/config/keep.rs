//! Keeping what a flag has settled: it is written into `config.toml`, so that the next plain start has it as well.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{ConfigError, FILE, Flags, Source, read_file};

/// Writes the flags' values into the settings of the node in `data`: over the values that are there, and otherwise at the
/// end. All else in the file stays as it is. Nothing is written if the file says the same already.
///
/// # Errors
/// If the file can't be read or written.
pub fn keep(data: &Path, flags: &Flags) -> Result<(), ConfigError> {
    // A link stays a link.
    let path = data.join(FILE);
    let path = path.canonicalize().unwrap_or(path);
    let failed = |source| ConfigError::Unwritable { path: path.clone(), source };
    let given = read_file(&path)?;
    let before = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(error)),
    };
    let mut text = before.clone();
    for (name, value) in flags {
        match given.get(name) {
            Some((known, Source::File(..))) if known == value => {}
            _ => set(&mut text, name, value),
        }
    }
    if text == before { Ok(()) } else { replace(&path, &text).map_err(failed) }
}

/// Sets one value in a text that is known to be TOML.
fn set(text: &mut String, name: &str, value: &str) {
    let quoted = toml::Value::String(value.to_owned()).to_string();
    let at = toml::de::DeTable::parse(text).ok().and_then(|table| {
        let known = table.get_ref().iter().find(|(known, _)| known.get_ref() == name);
        known.map(|(_, value)| value.span())
    });
    if let Some(at) = at {
        text.replace_range(at, &quoted);
        return;
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!("{name} = {quoted}\n"));
}

/// Replaces a file so that after a crash it is the old one or the new one.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    if let Ok(old) = std::fs::metadata(path) {
        file.set_permissions(std::fs::Permissions::from_mode(old.mode() & 0o7777))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn kept(before: Option<&str>, flags: &[(&'static str, &str)]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        if let Some(before) = before {
            std::fs::write(&path, before).unwrap();
        }
        let flags: Flags = flags.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        keep(dir.path(), &flags).unwrap();
        let settings = Settings::with(dir.path(), &Flags::new(), &|_| None).unwrap();
        for (name, value) in &flags {
            let (_, shown, source) = settings.shown().find(|(known, ..)| known.name == *name).unwrap();
            assert_eq!(shown, value);
            assert!(matches!(source, Source::File(..)));
        }
        std::fs::read_to_string(&path).unwrap_or_default()
    }

    #[test]
    fn what_a_flag_said_is_in_the_file_and_all_else_stays() {
        assert_eq!(kept(None, &[]), "");
        assert_eq!(kept(None, &[("listen", "0.0.0.0:7000")]), "listen = \"0.0.0.0:7000\"\n");
        let before = "# ours\n\"listen\" = '0.0.0.0:0' # any\n mdns = false";
        assert_eq!(
            kept(Some(before), &[("listen", "127.0.0.1:7"), ("name", "a \"b\"")]),
            "# ours\n\"listen\" = \"127.0.0.1:7\" # any\n mdns = false\nname = 'a \"b\"'\n"
        );
        assert_eq!(kept(Some("listen = '0.0.0.0:7'"), &[("listen", "0.0.0.0:7")]), "listen = '0.0.0.0:7'");
    }

    #[test]
    fn a_file_that_can_not_be_read_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        std::fs::write(&path, "listen 7").unwrap();
        assert!(keep(dir.path(), &Flags::from([("listen", "0.0.0.0:7".to_owned())])).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "listen 7");
    }

    #[test]
    fn a_link_to_the_settings_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("elsewhere.toml");
        std::fs::write(&target, "mdns = false\n").unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join(FILE)).unwrap();
        keep(dir.path(), &Flags::from([("name", "a".to_owned())])).unwrap();
        assert!(dir.path().join(FILE).is_symlink());
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "mdns = false\nname = \"a\"\n");
    }
}
