//! Names of nodes, stores, rooms and meshes: what can stand as a file name and misleads nobody.

/// What the root store goes by in commands: no other store may be called so.
pub const ROOT: &str = "root";
/// The longest name that may be asked for, in bytes.
pub const LONGEST: usize = 64;

/// A text that can't be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{}' can't be a name: 1 to {LONGEST} bytes, no spaces, slashes or control characters, no '.' or '-' at the start", .0.escape_debug())]
pub struct BadName(pub String);

/// Whether a character shows as something else than itself, or as nothing: controls, direction overrides, zero-width ones.
#[must_use]
pub fn is_deceptive(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

fn fits(character: char) -> bool {
    character != '/' && !character.is_whitespace() && !is_deceptive(character)
}

/// Whether `name` can be a name.
///
/// # Errors
/// If it can't.
pub fn check(name: &str) -> Result<(), BadName> {
    let good = (1..=LONGEST).contains(&name.len()) && !name.starts_with(['.', '-']) && name.chars().all(fits);
    if good { Ok(()) } else { Err(BadName(name.chars().take(LONGEST).collect())) }
}

/// The nearest good name to `text`, such as a host's name; `fallback` if nothing is left of it.
#[must_use]
pub fn tidy(text: &str, fallback: &str) -> String {
    let text: String = text.chars().map(|c| if fits(c) { c } else { '-' }).collect();
    let mut name = text.trim_matches(['.', '-']).to_owned();
    while name.len() > LONGEST {
        name.pop();
    }
    if name.is_empty() { fallback.to_owned() } else { name }
}

/// `wish` if it is free, else with so much of `id` that it is.
pub(super) fn unique(wish: &str, id: &[u8; 32], taken: impl Fn(&str) -> bool) -> String {
    if !taken(wish) {
        return wish.to_owned();
    }
    let hex = data_encoding::HEXLOWER.encode(id);
    let candidates = (4..=hex.len()).step_by(4).map(|length| format!("{wish}-{}", &hex[..length]));
    candidates.into_iter().find(|name| !taken(name)).unwrap_or(hex.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_stand_as_a_file_name_and_hides_nothing() {
        for good in ["home", "büro-2", "a.b", "日本"] {
            assert_eq!(check(good), Ok(()));
        }
        for bad in ["", ".", "..", ".x", "-x", "a/b", "a b", "a\nb", "a\u{202e}b", "a\u{200b}", &"x".repeat(65)] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn any_text_tidies_to_a_name() {
        assert_eq!(tidy("my host/1", "node"), "my-host-1");
        assert_eq!(tidy("...", "node"), "node");
        assert_eq!(check(&tidy(&"é".repeat(80), "node")), Ok(()));
    }
}
