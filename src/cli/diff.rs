//! `lattice diff`: what changed between two moments.

use std::collections::BTreeSet;
use std::ffi::OsString;

use clap::Args;

use super::key::{HOME, below};
use super::output::hex;
use super::past::{Change, MOMENTS, moment, then};
use super::{Context, Ended};
use crate::api::Failure;
use crate::api::wire::{self, LogRequest, moment::What};

const EXAMPLES: &str = "\
Examples:
  lattice diff notes/today                  what its last change did
  lattice diff notes --at 2h-ago            from two hours ago to now
  lattice diff notes 2026-11-22 2026-11-23
  lattice diff --at 3fa9^ --to 3fa9         what an entry changed, for its author

";

/// Show what changed at or below a path, between two moments
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}{MOMENTS}"))]
pub(super) struct Diff {
    /// The key's path, or a directory's, or the whole path of its file on the mount [default: the whole store]
    #[arg(default_value = "", hide_default_value = true)]
    path: OsString,
    /// From which moment
    #[arg(conflicts_with = "at")]
    from: Option<String>,
    /// To which moment [default: now]
    #[arg(conflicts_with = "until")]
    to: Option<String>,
    /// From which moment
    #[arg(long, value_name = "MOMENT")]
    at: Option<String>,
    /// To which moment [default: now]
    #[arg(long = "to", value_name = "MOMENT")]
    until: Option<String>,
    /// The store
    #[arg(long, short, default_value = HOME, value_name = "NAME")]
    store: String,
}

impl Diff {
    pub(super) async fn run(self, context: &Context) -> Ended {
        let client = context.client().await?;
        let (store, path) = below(&client, self.store, self.path).await?;
        let from = self.from.or(self.at);
        let to = moment(self.to.or(self.until).as_deref().unwrap_or("now"));
        let (from, to) = match from {
            Some(from) => (moment(&from), to),
            None if to.what.is_some() => {
                return Err(Failure::new(crate::api::Kind::Usage, "to a moment, but from none")
                    .hint("give --at")
                    .into());
            }
            None => {
                let request = LogRequest { store: store.clone(), last: 1, follow: false, path: path.clone() };
                let last = client.stores().log(request).await?.into_inner().message().await?;
                let last = last.ok_or_else(|| Failure::not_found("nothing was ever written there"))?;
                let entry = |end: &str| wire::Moment { what: Some(What::Entry(format!("{}{end}", hex(&last.hash)))) };
                (entry("^"), entry(""))
            }
        };
        let before = then(&client, &store, &path, from).await?;
        let after = then(&client, &store, &path, to).await?;
        let paths: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        for path in paths {
            let change = Change { store: &store, path, before: before.get(path), after: after.get(path) };
            if change.is_none() {
                continue;
            }
            if context.output.is_json() {
                context.output.value(&change.json(&client).await?)?;
            } else {
                change.print(&client, context).await?;
            }
        }
        Ok(())
    }
}
