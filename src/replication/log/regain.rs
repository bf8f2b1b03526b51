//! What this node signed before and has not here: its store's file was lost, or an older copy was put in its place. The others
//! have it, and this node signs nothing new before it has it again. It would give two entries one place in its chain
//! otherwise: a fork.
//!
//! At a start the log is told to [`Log::hold`]: its first writer waits until a member has told how far this node's chain
//! goes there, but not for long, since there may be no member online. If a member knows of more ([`Log::behind`]), nothing is
//! signed until that is here ([`Log::abreast`]).

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Log, META, SubmitError, locked};
use crate::clock::monotonic;
use crate::replication::database::{Read, Result, View};
use crate::replication::limits;

const REGAINING: &[u8] = b"regaining";

/// How far this node knows its own chain.
#[derive(Debug, Default)]
struct Own {
    /// More of it is elsewhere, or may be.
    regaining: bool,
    /// A member that is online knows of more: it is on its way.
    coming: bool,
    /// Until when a writer waits for a member's word.
    until: Option<Instant>,
    /// Whether a member has told that there is no more.
    confirmed: bool,
}

#[derive(Debug)]
pub(super) struct Regaining {
    own: Mutex<Own>,
    changed: Condvar,
}

impl Regaining {
    /// As the file says: whether it was begun anew in place of a lost one, or found to be an older copy.
    pub(super) fn noted(view: &View<'_>) -> Result<Self> {
        let regaining = view.get(META, REGAINING)?.is_some();
        Ok(Self { own: Mutex::new(Own { regaining, ..Own::default() }), changed: Condvar::new() })
    }

    fn change(&self, change: impl FnOnce(&mut Own)) {
        change(&mut locked(&self.own));
        self.changed.notify_all();
    }
}

impl Log {
    /// From now on, also after a restart, nothing of this node's own is signed until [`Log::regained`].
    ///
    /// # Errors
    /// If the store takes no writes.
    pub fn regain(&self) -> Result<()> {
        self.own.change(|own| own.regaining = true);
        self.with_head(|_| {
            self.stage(|txn| {
                txn.put(META, REGAINING, [1]);
                Ok(())
            })
        })
    }

    /// Whether what this node signed before is still to come from the others.
    #[must_use]
    pub fn is_regaining(&self) -> bool {
        locked(&self.own.own).regaining
    }

    /// All that the others have of this node is here: it may sign again.
    ///
    /// # Errors
    /// If the store takes no writes.
    pub fn regained(&self) -> Result<()> {
        self.with_head(|_| {
            self.stage(|txn| {
                txn.remove(META, REGAINING);
                Ok(())
            })
        })?;
        self.own.change(|own| (own.regaining, own.coming) = (false, false));
        Ok(())
    }

    /// Lets writers wait, for `patience` from now at most, for a member's word on this node's own chain. To be called when the
    /// node starts and has other members.
    pub fn hold(&self, patience: Duration) {
        self.own.change(|own| own.until = Some(monotonic() + patience));
    }

    /// No member is to be waited for: there is no other.
    pub fn release(&self) {
        self.own.change(|own| own.confirmed = true);
    }

    /// A member has more of this node's chain than is here.
    ///
    /// # Errors
    /// If the store takes no writes. Nothing is signed even so.
    pub fn behind(&self) -> Result<()> {
        self.own.change(|own| own.coming = true);
        if self.is_regaining() {
            return Ok(());
        }
        tracing::warn!(target: "log", store = %self.store, "a member has entries of this node that are not here: nothing is written before they are");
        self.regain()
    }

    /// A member has no more of this node's chain than is here.
    ///
    /// # Errors
    /// If the store takes no writes.
    pub fn abreast(&self) -> Result<()> {
        if self.is_regaining() {
            self.regained()?;
            tracing::info!(target: "log", store = %self.store, "what this node wrote before is here again");
        }
        self.own.change(|own| own.confirmed = true);
        Ok(())
    }

    /// Whether this node may have begun to sign without a member's word on its own chain, since none came in time.
    #[must_use]
    pub fn is_unconfirmed(&self) -> bool {
        let own = locked(&self.own.own);
        !own.confirmed && !own.regaining && own.until.is_some_and(|until| until <= monotonic())
    }

    /// Waits for a member's word if that is due, and for what is on its way. False if this node may not sign.
    #[must_use]
    pub fn may_sign(&self) -> bool {
        let mut own = locked(&self.own.own);
        let patient = own.until.map(|_| monotonic() + limits::OWN_COMING);
        loop {
            let until = match (own.regaining, own.until) {
                (true, Some(_)) if own.coming => patient,
                (true, _) => return false,
                (false, until) => until.filter(|_| !own.confirmed),
            };
            let left = until.map(|until| until.saturating_duration_since(monotonic()));
            match left {
                Some(left) if !left.is_zero() => {
                    own = self.own.changed.wait_timeout(own, left).unwrap_or_else(PoisonError::into_inner).0;
                }
                Some(_) | None => return !own.regaining,
            }
        }
    }

    pub(super) fn check_own(&self) -> std::result::Result<(), SubmitError> {
        if self.may_sign() { Ok(()) } else { Err(SubmitError::Regaining) }
    }
}
