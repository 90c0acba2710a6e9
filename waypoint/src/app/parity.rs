//! `waypoint parity`: what of a configuration is honoured, listed or refused, before anything is swapped.
//!
//! The configuration is what an Envoy waypoint has (`dump`), or what istiod would send to this pod (`live`); it goes through the same
//! `Applier` as in the proxy, so that the answer is what the proxy would do. Not for: serving anything; nothing is bound or dialled but istiod.

mod dump;
mod live;
mod origin;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use xds_client::ads::{ResourceType, Update, Wanted};
use xds_client::apply::Applier;
use xds_client::observer::Report;

use self::origin::{object_name, origin};
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

/// A configuration: what is applied, and its JSON to find out where it came from.
#[derive(Debug, Default)]
struct Snapshot {
    updates: Vec<Update>,
    /// Chains of `main_internal`, and clusters, by name.
    objects: BTreeMap<String, Value>,
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

fn answer(snapshot: Snapshot, question: &Question) -> Answer {
    let Snapshot { updates, objects, unreadable } = snapshot;
    let mut applier = Applier::default();
    let mut wanted = Vec::new();
    for mut update in updates {
        // A dump has the endpoints of clusters too that find theirs otherwise, which nobody would have sent.
        if update.of == ResourceType::Endpoint {
            update.resources.retain(|one| wanted.iter().any(|wanted: &Wanted| wanted.names().contains(&one.name)));
        }
        // What is refused is in the report.
        wanted.extend(applier.apply(update).applied.wanted);
    }
    let report = applier.report();
    let mut refused: Vec<_> = unreadable
        .into_iter()
        .map(|(name, reason)| Refused { object: object_name(&name), origin: None, path: String::new(), reason })
        .collect();
    for (name, reasons) in &report.refused {
        refused.extend(reasons.iter().map(|one| Refused {
            object: object_name(name),
            origin: objects.get(name).and_then(|json| origin(json, &one.path)).or_else(|| origin::policy(&one.path)),
            path: one.path.clone(),
            reason: one.reason.clone(),
        }));
    }
    let text = if question.as_json { as_json(&refused, &report) } else { as_text(&refused, &report, objects.len()) };
    Answer { text, is_served: refused.is_empty() }
}

fn as_json(refused: &[Refused], report: &Report) -> String {
    let refused: Vec<_> =
        refused.iter().map(|one| json!({"object": one.object, "origin": one.origin, "path": one.path, "reason": one.reason})).collect();
    let listed: Vec<_> = report
        .listed
        .iter()
        .map(
            |((of, field), count)| json!({"type": of, "field": field, "count": count, "missing": xds_client::coverage::missing(of, field)}),
        )
        .collect();
    format!("{:#}\n", json!({"refused": refused, "listed": listed}))
}

fn as_text(refused: &[Refused], report: &Report, n_objects: usize) -> String {
    let mut text = format!("looked at {n_objects} chains and clusters\n");
    let mut write = |line: std::fmt::Arguments<'_>| text.write_fmt(line).expect("writing to a text cannot fail");
    if refused.is_empty() {
        write(format_args!("\nrefused: nothing\n"));
    } else {
        write(format_args!("\nrefused: not used as long as it is so; requests for it get 503\n"));
    }
    let mut of = None;
    for one in refused {
        if of != Some(&one.object) {
            write(format_args!("  {}\n", one.object));
            of = Some(&one.object);
        }
        let origin = one.origin.as_ref().map_or(String::new(), |origin| format!("{origin}: "));
        write(format_args!("    {origin}{}\n      at {}\n", one.reason, if one.path.is_empty() { "the object itself" } else { &one.path }));
    }
    if report.listed.is_empty() {
        write(format_args!("\nlisted: nothing\n"));
    } else {
        write(format_args!("\nlisted: accepted without effect, times set\n"));
    }
    for ((of, field), count) in &report.listed {
        let missing = xds_client::coverage::missing(of, field).unwrap_or("not known here");
        write(format_args!("  {count:>6}  {}.{field}: {missing}\n", of.rsplit('.').next().unwrap_or(of)));
    }
    text
}
