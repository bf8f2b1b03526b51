//! Whether a signal waits for a thread that is in a call of ours.
//!
//! The kernel tells a file system of that, but fuser does not pass it on. A signal that waits is shown under `/proc`: to look there some
//! times a second, while someone waits for long, does the same.

use std::fs;

/// Whether a signal waits that would end a call of this thread, or the thread is gone; `None` if that can't be told.
pub(crate) fn interrupted(thread: u32) -> Option<bool> {
    if thread == 0 {
        // In another space of process numbers.
        return None;
    }
    match fs::read_to_string(format!("/proc/{thread}/status")) {
        Ok(status) => waits(&status),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(true),
        Err(error) => (error.raw_os_error() == Some(libc::ESRCH)).then_some(true),
    }
}

fn waits(status: &str) -> Option<bool> {
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).ok()
    };
    let pending = mask("SigPnd")? | mask("ShdPnd")?;
    Some(pending & !mask("SigBlk")? & !mask("SigIgn")? != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_waits_and_is_neither_blocked_nor_ignored_is_seen() {
        let status = |own: u64, all: u64, blocked: u64, ignored: u64| {
            format!(
                "Name:\tcat\nSigPnd:\t{own:016x}\nShdPnd:\t{all:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\n"
            )
        };
        assert_eq!(waits(&status(0, 0, 0, 0)), Some(false));
        assert_eq!(waits(&status(0x100, 0, 0, 0)), Some(true));
        assert_eq!(waits(&status(0, 2, 0, 0x1000)), Some(true));
        assert_eq!(waits(&status(0, 2, 2, 0)), Some(false));
        assert_eq!(waits(&status(2, 0, 0, 2)), Some(false));
        assert_eq!(waits("Name:\tcat\n"), None);
    }

    #[test]
    fn for_this_thread_none_waits_and_a_thread_that_is_gone_waits_for_nothing() {
        let me = nix::unistd::gettid();
        assert_eq!(interrupted(u32::try_from(me.as_raw()).unwrap()), Some(false));
        assert_eq!(interrupted(u32::MAX / 2), Some(true));
        assert_eq!(interrupted(0), None);
    }
}
