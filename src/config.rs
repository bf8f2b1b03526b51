//! Settings, and the directory that a node lives in.
//!
//! Each setting comes from the first of these that names it: a flag, the environment, `config.toml` in the data
//! directory, the default. Where each came from is kept, so that it can be shown.

mod directory;
mod keep;

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use directory::{Directory, DirectoryError, default_data, in_use, log_file, named_data, quoted, socket, typed};
pub use keep::keep;

/// The file that holds a node's settings, in its data directory.
const FILE: &str = "config.toml";

/// What a setting is called, and what it is for.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// Its name in `config.toml`.
    pub name: &'static str,
    /// The environment variable that sets it.
    pub variable: &'static str,
    /// What it does, in a sentence.
    pub about: &'static str,
}

/// All settings.
pub const KNOWN: [Known; 8] = [
    Known {
        name: "listen",
        variable: "LATTICE_LISTEN",
        about: "The address and port for other nodes. Port 0: one is chosen at the first start and kept.",
    },
    Known {
        name: "name",
        variable: "LATTICE_NAME",
        about: "What this node is called when it founds or joins a mesh. The host's name unless set.",
    },
    Known {
        name: "mount",
        variable: "LATTICE_MOUNT",
        about: "Where `lattice up` mounts when it is given no directory.",
    },
    Known {
        name: "mdns",
        variable: "LATTICE_MDNS",
        about: "Whether members on the local network are found by multicast: true or false.",
    },
    Known {
        name: "relays",
        variable: "LATTICE_RELAYS",
        about: "Servers that carry packets between nodes that can't reach each other: URLs of iroh relays, or public. None unless set.",
    },
    Known {
        name: "dns",
        variable: "LATTICE_DNS",
        about: "Whether this node publishes its address in iroh's public DNS and looks others up there: true or false.",
    },
    Known {
        name: "inotify",
        variable: "LATTICE_INOTIFY",
        about: "Whether programs that watch files on the mount are told of changes from other machines: true or false.",
    },
    Known { name: "log", variable: "LATTICE_LOG", about: "What the daemon logs: a level, or target=level, by commas." },
];

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A flag of the command.
    Flag,
    /// An environment variable.
    Environment(&'static str),
    /// A line of the file.
    File(PathBuf, usize),
    /// Nobody set it.
    Default,
}

impl Source {
    /// How to give the setting `name`, which came from here, another value.
    #[must_use]
    pub fn remedy(&self, name: &str) -> String {
        match self {
            Self::File(path, line) => format!("correct line {line} of {}", path.display()),
            Self::Environment(variable) => format!("correct or unset {variable}"),
            Self::Flag | Self::Default => format!("give another --{name}"),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment(variable) => write!(f, "environment, {variable}"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Settings that can't be read. Nothing is started with half of them.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file can't be written.
    #[error("{}: {source}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// A setting that is not known.
    #[error("{}:{line}: there is no setting '{name}'", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What it names.
        name: String,
    },
    /// A value that a setting can't have.
    #[error("{at}: {name} = {value}: {message}")]
    Value {
        /// Where it was set.
        at: Source,
        /// The setting.
        name: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
        message: String,
    },
}

impl ConfigError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Unreadable { path, source } => match path.parent() {
                Some(data) if source.kind() == ErrorKind::PermissionDenied && std::fs::metadata(path).is_err() => {
                    format!("{} is another user's: run this as that user, or choose another --data", data.display())
                }
                _ => format!("make {} readable to you, or remove it", path.display()),
            },
            Self::Unwritable { source, .. } if source.kind() == ErrorKind::StorageFull => {
                "a flag's value is kept there: free some space on that disk".into()
            }
            Self::Unwritable { path, .. } => format!(
                "a flag's value is kept there: make {} writable to you, or set it there yourself and leave the flag away",
                path.display()
            ),
            Self::Syntax { path, line, .. } => {
                format!("correct line {line} of {}: a setting is `name = \"value\"`", path.display())
            }
            Self::Unknown { name, .. } => nearest(name).map_or_else(
                || format!("the settings are {}", KNOWN.map(|known| known.name).join(", ")),
                |near| format!("write '{near}' instead, or remove the line"),
            ),
            Self::Value { at, name, .. } => at.remedy(name),
        }
    }
}

fn nearest(name: &str) -> Option<&'static str> {
    let shared = |known: &str| known.chars().filter(|c| name.contains(*c)).count() * 2;
    let (score, near) =
        KNOWN.iter().map(|known| (shared(known.name) * 10 / (known.name.len() + name.len()), known.name)).max()?;
    (score >= 7).then_some(near)
}

/// Which relays are used: servers that carry packets between nodes that can't reach each other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Relays {
    /// None: nothing is sent to anyone but members.
    #[default]
    None,
    /// The public ones that iroh's makers run.
    Public,
    /// These, by URL.
    Custom(Vec<String>),
}

/// What a node is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The address and port for other nodes; port 0: the kept one, or any.
    pub listen: SocketAddr,
    /// The node's name: what it proposes to a mesh.
    pub name: String,
    /// Where to mount when no directory is given.
    pub mount: PathBuf,
    /// Whether to find members on the local network.
    pub mdns: bool,
    /// The relays; none: only direct connections.
    pub relays: Relays,
    /// Whether to publish addresses in public DNS and look others up there.
    pub dns: bool,
    /// Whether changes from elsewhere fire inotify's events on the mounts.
    pub inotify: bool,
    /// What to log: the text of a filter.
    pub log: String,
    shown: BTreeMap<&'static str, (String, Source)>,
}

/// The values of flags, by the settings' names.
pub type Flags = BTreeMap<&'static str, String>;

impl Settings {
    /// Reads the settings of the node in `data`.
    ///
    /// # Errors
    /// With the file and line, variable or flag that is wrong.
    pub fn load(data: &Path, flags: &Flags) -> Result<Self, ConfigError> {
        Self::with(data, flags, &|variable| std::env::var(variable).ok())
    }

    fn with(data: &Path, flags: &Flags, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut given = read_file(&data.join(FILE))?;
        for known in KNOWN {
            if let Some(value) = environment(known.variable) {
                given.insert(known.name, (value, Source::Environment(known.variable)));
            }
            if let Some(value) = flags.get(known.name) {
                given.insert(known.name, (value.clone(), Source::Flag));
            }
            given.entry(known.name).or_insert_with(|| (default(known.name), Source::Default));
        }
        Ok(Self {
            listen: parsed(&given, "listen", listen)?,
            name: parsed(&given, "name", node_name)?,
            mount: parsed(&given, "mount", mount)?,
            mdns: parsed(&given, "mdns", yes)?,
            relays: parsed(&given, "relays", relays)?,
            dns: parsed(&given, "dns", yes)?,
            inotify: parsed(&given, "inotify", yes)?,
            log: parsed(&given, "log", |text| Ok(text.to_owned()))?,
            shown: given,
        })
    }

    /// How to give a setting another value: where it was set.
    #[must_use]
    pub fn remedy(&self, name: &str) -> String {
        self.shown.get(name).map_or_else(String::new, |(_, source)| source.remedy(name))
    }

    /// All settings with their values and where these came from.
    pub fn shown(&self) -> impl Iterator<Item = (&Known, &str, &Source)> {
        KNOWN
            .iter()
            .filter_map(|known| self.shown.get(known.name).map(|(value, source)| (known, value.as_str(), source)))
    }
}

type Given = BTreeMap<&'static str, (String, Source)>;

fn parsed<T>(given: &Given, name: &'static str, read: impl Fn(&str) -> Result<T, String>) -> Result<T, ConfigError> {
    let (value, at) = given.get(name).cloned().unwrap_or((String::new(), Source::Default));
    read(&value).map_err(|message| ConfigError::Value { at, name, value: format!("'{value}'"), message })
}

fn default(name: &str) -> String {
    match name {
        "listen" => "0.0.0.0:0".into(),
        "name" => host_name(),
        "mount" => std::env::var("HOME").map_or_else(|_| "mesh".into(), |home| format!("{home}/mesh")),
        "mdns" | "inotify" => "true".into(),
        "dns" => "false".into(),
        "log" => "info".into(),
        _ => String::new(),
    }
}

fn host_name() -> String {
    let name = hostname::get().unwrap_or_default();
    let name = name.to_string_lossy();
    let short = name.split('.').next().unwrap_or_default();
    if node_name(short).is_ok() { short.to_owned() } else { "node".into() }
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    text.parse().map(|ip| SocketAddr::new(ip, 0)).map_err(|_not: std::net::AddrParseError| {
        "an address and a port are meant, such as 0.0.0.0:7000 or [::]:7000".into()
    })
}

fn node_name(text: &str) -> Result<String, String> {
    let good = |c: char| !c.is_control() && c != '/';
    if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.chars().all(good) {
        return Err("a name has 1 to 64 bytes, no '/' and no control character, and begins with no dot".into());
    }
    Ok(text.to_owned())
}

fn mount(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.as_os_str().is_empty() { Err("a directory is meant".into()) } else { Ok(path) }
}

fn yes(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_not: std::str::ParseBoolError| "either true or false is meant".into())
}

fn relays(text: &str) -> Result<Relays, String> {
    let urls: Vec<_> = text.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect();
    if urls == ["public"] {
        return Ok(Relays::Public);
    }
    match urls.iter().find(|url| !url.starts_with("https://") && !url.starts_with("http://")) {
        Some(url) => {
            Err(format!("'{url}' is not the URL of a relay: it begins with https://; or `public` alone is meant"))
        }
        None if urls.is_empty() => Ok(Relays::None),
        None => Ok(Relays::Custom(urls)),
    }
}

fn read_file(path: &Path) -> Result<Given, ConfigError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        // Where no data directory can be is told when it is made.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Given::new()),
        Err(source) => return Err(ConfigError::Unreadable { path: path.into(), source }),
    };
    let line = |offset: usize| bytes.iter().take(offset).filter(|byte| **byte == b'\n').count() + 1;
    let text = std::str::from_utf8(&bytes).map_err(|error| ConfigError::Syntax {
        path: path.into(),
        line: line(error.valid_up_to()),
        message: "this is no text in UTF-8".into(),
    })?;
    let table = toml::de::DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        path: path.into(),
        line: line(error.span().map_or(0, |span| span.start)),
        message: error.message().lines().collect::<Vec<_>>().join(", "),
    })?;
    let mut given = Given::new();
    for (name, value) in table.get_ref() {
        let at = line(name.span().start);
        let Some(known) = KNOWN.iter().find(|known| known.name == name.get_ref()) else {
            let name = name.get_ref().to_string();
            return Err(ConfigError::Unknown { path: path.into(), line: at, name });
        };
        let source = Source::File(path.into(), at);
        let Some(text) = plain(value.get_ref()) else {
            let message = format!("a string is meant, not a {}", value.get_ref().type_str());
            return Err(ConfigError::Value { at: source, name: known.name, value: "…".into(), message });
        };
        given.insert(known.name, (text, source));
    }
    Ok(given)
}

/// A value as a flag would give it; `None` if no setting has such values.
fn plain(value: &toml::de::DeValue<'_>) -> Option<String> {
    if let Some(items) = value.as_array() {
        let items: Option<Vec<_>> = items.iter().map(|item| item.get_ref().as_str()).collect();
        return items.map(|items| items.join(","));
    }
    value.as_bool().map(|yes| yes.to_string()).or_else(|| value.as_str().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(config: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.toml"), config).unwrap();
        dir
    }

    fn load(dir: &tempfile::TempDir, flags: &Flags, variables: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        Settings::with(dir.path(), flags, &|name| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_flag_goes_before_the_environment_that_before_the_file_and_that_before_the_default() {
        let dir = data("# ours\nlisten = \"127.0.0.1:1\"\nname = \"from-file\"\nmdns = false\n");
        let flags = Flags::from([("listen", "127.0.0.1:3".to_owned())]);
        let variables = [("LATTICE_LISTEN", "127.0.0.1:2"), ("LATTICE_NAME", "from-environment")];
        let settings = load(&dir, &flags, &variables).unwrap();
        assert_eq!(settings.listen.port(), 3);
        assert_eq!(settings.name, "from-environment");
        assert!(!settings.mdns);
        let sources: Vec<_> = settings.shown().map(|(known, _, source)| (known.name, source.clone())).collect();
        let file = dir.path().join("config.toml");
        assert_eq!(sources[0], ("listen", Source::Flag));
        assert_eq!(sources[1], ("name", Source::Environment("LATTICE_NAME")));
        assert_eq!(sources[3], ("mdns", Source::File(file, 4)));
        assert_eq!(sources[4], ("relays", Source::Default));
    }

    #[test]
    fn no_file_is_all_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let settings = load(&dir, &Flags::new(), &[]).unwrap();
        assert_eq!(settings.listen.to_string(), "0.0.0.0:0");
        assert!(settings.mdns && settings.relays == Relays::None && !settings.dns);
    }

    #[test]
    fn lists_are_arrays_in_the_file_and_separated_by_commas_elsewhere() {
        let dir = data("relays = [\"https://a.example\", \"https://b.example\"]\n");
        let two = ["https://a.example", "https://b.example"].map(str::to_owned).to_vec();
        assert_eq!(load(&dir, &Flags::new(), &[]).unwrap().relays, Relays::Custom(two));
        let settings = load(&dir, &Flags::new(), &[("LATTICE_RELAYS", "https://c.example")]).unwrap();
        assert_eq!(settings.relays, Relays::Custom(vec!["https://c.example".into()]));
        let settings = load(&dir, &Flags::new(), &[("LATTICE_RELAYS", "public")]).unwrap();
        assert_eq!(settings.relays, Relays::Public);
    }

    #[test]
    fn what_is_wrong_is_named_with_file_line_and_fix() {
        let said = |config: &str| {
            let dir = data(config);
            let error = load(&dir, &Flags::new(), &[]).unwrap_err();
            let strip = |text: String| text.replace(&format!("{}/", dir.path().display()), "");
            (strip(error.to_string()), strip(error.hint()))
        };
        let (error, hint) = said("name = \"a\"\nlisten 7\n");
        assert!(error.starts_with("config.toml:2: "), "{error}");
        assert!(hint.starts_with("correct line 2 of config.toml"), "{hint}");
        let (error, hint) = said("\n\nlisen = \"0.0.0.0:7\"\n");
        assert_eq!(error, "config.toml:3: there is no setting 'lisen'");
        assert_eq!(hint, "write 'listen' instead, or remove the line");
        let (error, hint) = said("listen = \"here\"\n");
        assert!(error.starts_with("config.toml:1: listen = 'here': an address and a port are meant"), "{error}");
        assert_eq!(hint, "correct line 1 of config.toml");
        let (error, hint) = said("name = \"a\"\nlisten = \"\u{0}\"\n");
        assert!(error.starts_with("config.toml:2: "), "{error}");
        assert!(hint.starts_with("correct line 2 of config.toml"), "{hint}");
        let (error, _) = said("name = 7\n");
        assert_eq!(error, "config.toml:1: name = …: a string is meant, not a integer");
    }

    #[test]
    fn a_wrong_variable_or_flag_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = load(&dir, &Flags::new(), &[("LATTICE_MDNS", "perhaps")]).unwrap_err();
        assert_eq!(error.to_string(), "environment, LATTICE_MDNS: mdns = 'perhaps': either true or false is meant");
        assert_eq!(error.hint(), "correct or unset LATTICE_MDNS");
        let error = load(&dir, &Flags::from([("name", "a/b".to_owned())]), &[]).unwrap_err();
        assert_eq!(error.hint(), "give another --name");
    }
}
