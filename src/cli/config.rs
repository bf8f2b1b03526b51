//! `lattice config`: the settings, and where each came from.

use clap::Args;
use serde_json::json;

use super::{Context, Ended};
use crate::config::{Flags, Settings};

const EXAMPLES: &str = "\
Examples:
  lattice config
  echo 'listen = \"0.0.0.0:7000\"' >> ~/.local/share/lattice/config.toml

A setting is taken from the first of these that has it: a flag of `lattice up`, the environment, config.toml in the \
data directory, the default. A node reads them when it starts. What `lattice up` is told by --listen, --name and DIR when it \
starts a node is kept in config.toml.";

/// Show the settings, and where each came from
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Config {}

impl Config {
    pub(super) fn run(self, context: &Context) -> Ended {
        let Self {} = self;
        let settings = Settings::load(&context.data, &Flags::new())?;
        if context.output.is_json() {
            let settings: Vec<_> = settings
                .shown()
                .map(|(known, value, source)| {
                    json!({"name": known.name, "value": value, "source": source.to_string(),
                        "variable": known.variable, "about": known.about})
                })
                .collect();
            return context.output.value(&settings.into());
        }
        let rows: Vec<_> = settings
            .shown()
            .map(|(known, value, source)| {
                let value = if value.is_empty() { "-" } else { value };
                [known.name.to_owned(), value.to_owned(), source.to_string(), known.variable.to_owned()]
            })
            .collect();
        context.output.table(["SETTING", "VALUE", "FROM", "VARIABLE"], &rows)
    }
}
