//! `waypoint parity`: what of a configuration is honoured, listed or refused, before anything is swapped.
//!
//! The configuration is what an Envoy waypoint has (`dump`), or what istiod would send to this pod (`live`); it goes through the same
//! `Applier` as in the proxy, so that the answer is what the proxy would do. Not for: serving anything; nothing is bound or dialled but istiod.

mod dump;
mod honoured;
mod live;
mod origin;
mod print;

use std::collections::BTreeMap;
use std::path::Path;

use model::chain::SkippedFilters;
use serde_json::Value;
use xds_client::ads::{ResourceType, Update, Wanted};
use xds_client::apply::Applier;

use self::honoured::{Objects, Served};
use self::origin::{object_name, origin, short_name};
use crate::config::Settings;

/// What was found, for people or tools.
#[derive(Debug)]
pub struct Answer {
    /// To be printed.
    pub text: String,
    /// Whether nothing is refused.
    pub is_served: bool,
}

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// JSON instead of text.
    pub as_json: bool,
    /// Filters that are left out where they are not known.
    pub skipped_filters: SkippedFilters,
}

/// Looks at an Envoy's configuration dump: `istioctl proxy-config all POD -o json`, or `/config_dump?include_eds` of its admin port.
///
/// # Errors
/// The file cannot be read, or is no such dump; the text says what is wrong.
pub fn of_dump(path: &Path, question: &Question) -> Result<Answer, String> {
    let text = if path == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
    let json: Value = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let snapshot = dump::read(&json).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(answer(snapshot, question))
}

/// Looks at what istiod sends to this pod, whose settings they are.
///
/// # Errors
/// istiod did not answer in time; the text says how far it came.
pub fn of_istiod(settings: &Settings, question: &Question) -> Result<Answer, String> {
    Ok(answer(live::ask(settings)?, question))
}

/// What a part is, that is served or not by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Of `main_internal`.
    Chain,
    Cluster,
}

/// Chains and clusters as JSON, to find out where they came from.
type Parts = BTreeMap<(Kind, String), Value>;

/// A configuration: what is applied, and its JSON.
#[derive(Debug, Default)]
struct Snapshot {
    updates: Vec<Update>,
    parts: Parts,
    /// What could not even be read, by object.
    unreadable: Vec<(String, String)>,
}

/// One thing that is refused.
#[derive(Debug)]
struct Refused {
    object: String,
    origin: Option<String>,
    path: String,
    reason: String,
}

/// Where fields are listed: by type and field, how often in which object.
type Listed = BTreeMap<(String, String), BTreeMap<String, usize>>;

/// What was found.
#[derive(Debug, Default)]
struct Judged {
    refused: Vec<Refused>,
    listed: Listed,
    objects: Objects,
}

fn answer(snapshot: Snapshot, question: &Question) -> Answer {
    let judged = judge(snapshot, &question.skipped_filters);
    let text = if question.as_json { print::json(&judged) } else { print::text(&judged) };
    Answer { text, is_served: judged.refused.is_empty() }
}

fn judge(snapshot: Snapshot, skipped: &SkippedFilters) -> Judged {
    let Snapshot { updates, parts, unreadable } = snapshot;
    let mut applier = Applier::default().skipping(skipped.clone());
    let (mut wanted, mut served, mut held) = (Vec::new(), Served::default(), BTreeMap::new());
    for mut update in updates {
        // A dump has the endpoints of clusters too that find theirs otherwise, which nobody would have sent.
        if update.of == ResourceType::Endpoint {
            update.resources.retain(|one| wanted.iter().any(|wanted: &Wanted| wanted.names().contains(&one.name)));
        }
        held.extend(update.resources.iter().map(|one| ((update.of, one.name.clone()), one.clone())));
        for name in &update.removed {
            held.remove(&(update.of, name.clone()));
        }
        // What is refused is in the report.
        let outcome = applier.apply(update);
        outcome.changes.iter().for_each(|change| served.note(change));
        wanted.extend(outcome.applied.wanted);
    }
    let refused =
        unreadable.into_iter().map(|(name, reason)| Refused { object: object_name(&name), origin: None, path: String::new(), reason });
    let mut refused: Vec<_> = refused.collect();
    for (name, reasons) in &applier.report().refused {
        refused.extend(reasons.iter().map(|one| Refused {
            object: object_name(name),
            origin: origin_of(&parts, name, &one.path),
            path: one.path.clone(),
            reason: one.reason.clone(),
        }));
    }
    let mut listed = Listed::new();
    for place in held.iter().flat_map(|((of, _), resource)| applier.places(*of, resource)) {
        let object = origin_of(&parts, &place.object, &place.path).unwrap_or_else(|| short_name(&place.object));
        *listed.entry((place.type_name, place.field)).or_default().entry(object).or_default() += 1;
    }
    Judged { refused, listed, objects: Objects::of(&parts, &served) }
}

/// The object that a place in a chain or cluster came from, if it can be told. A chain and a cluster may have the same name: the path tells
/// which is meant, where there is one.
fn origin_of(parts: &Parts, name: &str, path: &str) -> Option<String> {
    let mut of = [Kind::Chain, Kind::Cluster].into_iter().filter_map(|kind| parts.get(&(kind, name.to_owned())));
    let found = if path.is_empty() { of.next().and_then(|json| origin(json, path)) } else { of.find_map(|json| origin(json, path)) };
    found.or_else(|| origin::policy(path))
}
