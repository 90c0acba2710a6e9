//! A scenario: a question, and the load that answers it, from a TOML file.
//!
//! Keys are the load's flags without their dashes, durations as `"3s"`; an unknown key is an error. What the command line
//! says wins over the file. Not here: what the fields mean (`load.rs`).

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::load::{Load, LoadOptions};

/// The load of a command: a scenario's, with what the flags change.
#[derive(Debug, Clone, clap::Args)]
pub struct ScenarioArgs {
    /// Read question and load from this TOML file; flags override it
    #[arg(long)]
    pub scenario: Option<PathBuf>,
    #[command(flatten)]
    pub load: LoadOptions,
}

/// What is run, and why.
#[derive(Debug, Clone, Serialize)]
pub struct Scenario {
    /// The file's name without its ending; `None` when only flags say what is run.
    pub name: Option<String>,
    pub question: Option<String>,
    pub parameters: Load,
}

impl ScenarioArgs {
    /// Reads the file, if there is one.
    pub fn read(&self) -> anyhow::Result<Scenario> {
        let Some(path) = &self.scenario else {
            return Ok(Scenario { name: None, question: None, parameters: self.load.clone().complete()? });
        };
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let file = parse(&text).with_context(|| format!("in {}", path.display()))?;
        let parameters = self.load.clone().or(file.load).complete().with_context(|| format!("in {}", path.display()))?;
        Ok(Scenario { name: name(path), question: Some(file.question), parameters })
    }
}

fn name(path: &Path) -> Option<String> {
    Some(path.file_stem()?.to_string_lossy().into_owned())
}

#[derive(Debug)]
struct File {
    question: String,
    load: LoadOptions,
}

/// The question is taken out first: serde cannot flatten and refuse unknown keys at once.
fn parse(text: &str) -> anyhow::Result<File> {
    let mut table: toml::Table = text.parse()?;
    let question = table.remove("question").context("question = \"…\" is missing")?;
    let question = question.as_str().context("question is text")?.to_owned();
    if !table.contains_key("kind") {
        anyhow::bail!("kind = \"requests\", \"idle\" or \"stalled\" is missing");
    }
    Ok(File { question, load: LoadOptions::deserialize(table)? })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeSet;

    use super::*;
    use crate::load::{Kind, Protocol};

    fn read(path: &Path, load: LoadOptions) -> Scenario {
        ScenarioArgs { scenario: Some(path.to_owned()), load }.read().unwrap()
    }

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
    }

    #[test]
    fn every_scenario_of_the_folder_is_read_and_asks_something() {
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(folder()).unwrap() {
            let scenario = read(&entry.unwrap().path(), LoadOptions::default());
            assert!(scenario.question.unwrap().ends_with('?'));
            names.insert(scenario.name.unwrap());
        }
        let expected = [
            "cpu",
            "cpu-http2",
            "download",
            "grpc",
            "grpc-stream",
            "idle-10k",
            "latency",
            "short-connections",
            "short-tunnels",
            "stalled-readers",
            "upload",
        ];
        assert_eq!(names, expected.map(str::to_owned).into());
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let flags = LoadOptions { protocol: Some(Protocol::Http2), ..LoadOptions::default() };
        let scenario = read(&folder().join("idle-10k.toml"), flags);
        assert_eq!((scenario.parameters.kind, scenario.parameters.protocol), (Kind::Idle, Protocol::Http2));
        assert_eq!(scenario.parameters.streams, 10_000);
    }

    #[test]
    fn unknown_missing_and_unreadable_keys_are_refused() {
        let good = "question = 'a?'\nkind = 'requests'\n";
        assert!(parse(good).is_ok());
        for bad in ["colour = 'red'", "requests_per_stream = 1", "duration = 3", "duration = '3'", "kind = 'other'", "streams = -1"] {
            assert!(parse(&format!("{good}{bad}")).is_err(), "{bad}");
        }
        assert!(parse("kind = 'requests'").is_err() && parse("question = 'a?'").is_err());
    }
}
