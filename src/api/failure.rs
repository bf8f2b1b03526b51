//! A call or command that did not do what was asked: what kind of failure, a sentence, and what to do.

use std::fmt;

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::config::ConfigError;
use crate::replication::database::DatabaseError;
use crate::replication::log::SubmitError;

const HINT: &str = "lattice-hint-bin";

/// The kinds of failure that scripts tell apart. Each has an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something broke: a disk, a bug.
    Failed,
    /// The command was not understood.
    Usage,
    /// No node runs on the data directory.
    NotRunning,
    /// What was named is not there.
    NotFound,
    /// What was asked is not allowed or does not fit the present state.
    Refused,
    /// Another machine did not answer; trying again may help.
    Unavailable,
}

impl Kind {
    /// The exit code of a command that fails so.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotRunning => 3,
            Self::NotFound => 4,
            Self::Refused => 5,
            Self::Unavailable => 6,
        }
    }

    /// The kind's name, as `--json` and a starting daemon give it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NotRunning => "not-running",
            Self::NotFound => "not-found",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
        }
    }

    /// The kind of this name; [`Kind::Failed`] if there is none.
    #[must_use]
    pub fn named(name: &str) -> Self {
        [Self::Usage, Self::NotRunning, Self::NotFound, Self::Refused, Self::Unavailable]
            .into_iter()
            .find(|kind| kind.name() == name)
            .unwrap_or(Self::Failed)
    }
}

/// A failure, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind.
    pub kind: Kind,
    /// What went wrong, in a sentence without a full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    #[must_use]
    pub fn new(kind: Kind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string(), hint: None }
    }

    /// Something broke.
    #[must_use]
    pub fn failed(message: impl fmt::Display) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// What was asked is not allowed or does not fit the present state.
    #[must_use]
    pub fn refused(message: impl fmt::Display) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// What was named is not there.
    #[must_use]
    pub fn not_found(message: impl fmt::Display) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<&SubmitError> for Failure {
    fn from(error: &SubmitError) -> Self {
        match error {
            SubmitError::NotAllowed => Self::refused(error).hint("`lattice mesh status` shows this node's role"),
            SubmitError::Regaining => {
                Self::new(Kind::Unavailable, error).hint("it goes on when one is online: `lattice peers`")
            }
            SubmitError::Malformed(_) => Self::refused(error),
            SubmitError::Database(error) => error.into(),
        }
    }
}

impl From<&DatabaseError> for Failure {
    fn from(error: &DatabaseError) -> Self {
        Self::failed(error).hint(error.hint())
    }
}

impl From<DatabaseError> for Failure {
    fn from(error: DatabaseError) -> Self {
        (&error).into()
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let kind = if matches!(error, ConfigError::Unwritable { .. }) { Kind::Failed } else { Kind::Usage };
        let hint = error.hint();
        Self::new(kind, error).hint(hint)
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let code = match failure.kind {
            Kind::Failed => Code::Internal,
            Kind::Usage => Code::InvalidArgument,
            Kind::NotRunning | Kind::Unavailable => Code::Unavailable,
            Kind::NotFound => Code::NotFound,
            Kind::Refused => Code::FailedPrecondition,
        };
        let mut status = Self::new(code, failure.message);
        if let Some(hint) = failure.hint {
            status.metadata_mut().insert_bin(HINT, MetadataValue::from_bytes(hint.as_bytes()));
        }
        status
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let hint = status.metadata().get_bin(HINT).and_then(|hint| hint.to_bytes().ok());
        let hint = hint.map(|hint| String::from_utf8_lossy(&hint).into_owned());
        #[allow(clippy::wildcard_enum_match_arm, reason = "the codes of another crate: those we do not send")]
        let (kind, message) = match status.code() {
            Code::InvalidArgument => (Kind::Usage, status.message().to_owned()),
            Code::NotFound => (Kind::NotFound, status.message().to_owned()),
            Code::FailedPrecondition => (Kind::Refused, status.message().to_owned()),
            Code::Unavailable => (Kind::Unavailable, status.message().to_owned()),
            Code::Unimplemented => {
                (Kind::Failed, "the running node is of a version that does not know this command".to_owned())
            }
            // Not sent by the service: the connection broke.
            Code::Unknown | Code::Cancelled => (Kind::Unavailable, "the node stopped before it answered".to_owned()),
            Code::Internal => (Kind::Failed, status.message().to_owned()),
            _ => (Kind::Failed, format!("the node's answer broke off: {}", status.message())),
        };
        Self { kind, message, hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_crosses_the_socket_with_its_kind_and_hint() {
        for kind in [Kind::Failed, Kind::Usage, Kind::NotFound, Kind::Refused, Kind::Unavailable] {
            let failure = Failure::new(kind, "the röom is full").hint("try “another” one\nor wait");
            assert_eq!(Failure::from(Status::from(failure.clone())), failure);
            assert_eq!(Kind::named(kind.name()), kind);
        }
    }
}
