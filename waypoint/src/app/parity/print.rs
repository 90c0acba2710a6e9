//! The answer, for people and for tools.
//!
//! Not for: finding it. Invariant: JSON has all of it; text counts what is many, and names the first of it.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde_json::{Value, json};

use super::honoured::{Made, Objects};
use super::{Judged, Refused};

/// Objects that one line of text names; of more, the number.
const NAMES_SHOWN_MAX: usize = 5;
/// Kinds that say of what is refused itself, not of what is lost with it.
const HOLDERS: [&str; 3] = ["Service", "ServiceEntry", "Gateway"];

pub(super) fn json(judged: &Judged) -> String {
    let refused = judged.refused.iter().map(|one| {
        let Refused { object, origin, path, reason } = one;
        json!({"object": object, "origin": origin, "path": path, "reason": reason})
    });
    let listed = judged.listed.iter().map(|((of, field), objects)| {
        let by: Vec<_> = objects.iter().map(|(object, count)| json!({"object": object, "count": count})).collect();
        json!({
            "type": of, "field": field, "count": objects.values().sum::<usize>(),
            "missing": xds_client::coverage::missing(of, field), "objects": by,
        })
    });
    let made = |of: &Made| json!({"chains": of.chains, "clusters": of.clusters, "routes": of.routes, "rules": of.rules});
    let with = |object: &super::origin::Object, of: &Made| {
        let mut all = made(of);
        all["object"] = object.to_string().into();
        all
    };
    let honoured = judged.objects.0.iter().filter(|(_, of)| !of.used.is_empty()).map(|(object, of)| {
        let mut all = with(object, &of.used);
        all["is_whole"] = of.unused.is_empty().into();
        all
    });
    let unused = judged.objects.0.iter().filter(|(_, of)| !of.unused.is_empty()).map(|(object, of)| with(object, &of.unused));
    let all = |list: &mut dyn Iterator<Item = Value>| list.collect::<Vec<_>>();
    let answer = json!({
        "refused": all(&mut { refused }), "unused": all(&mut { unused }),
        "listed": all(&mut { listed }), "honoured": all(&mut { honoured }),
    });
    format!("{answer:#}\n")
}

pub(super) fn text(judged: &Judged) -> String {
    let mut out = String::new();
    write(judged, &mut out).expect("writing to a text cannot fail");
    out
}

fn write(judged: &Judged, out: &mut String) -> fmt::Result {
    let (used, unused) = (judged.objects.count(|of| &of.used), judged.objects.count(|of| &of.unused));
    writeln!(out, "looked at {}", counts((used.0 + unused.0, used.1 + unused.1, used.2 + unused.2)))?;
    if judged.refused.is_empty() {
        writeln!(out, "\nrefused: nothing")?;
    } else {
        writeln!(out, "\nrefused: not used as long as it is so; requests for it get 503")?;
    }
    let mut of = None;
    for one in &judged.refused {
        if of != Some(&one.object) {
            writeln!(out, "  {}", one.object)?;
            of = Some(&one.object);
        }
        let origin = one.origin.as_ref().map_or(String::new(), |origin| format!("{origin}: "));
        writeln!(out, "    {origin}{}\n      at {}", one.reason, if one.path.is_empty() { "the object itself" } else { &one.path })?;
    }
    let lost = lost_with_others(&judged.objects, &judged.refused);
    if !lost.is_empty() {
        writeln!(out, "  nowhere in effect because of that: {}", names(lost.iter().map(String::as_str)))?;
    }
    if judged.listed.is_empty() {
        writeln!(out, "\nlisted: nothing")?;
    } else {
        writeln!(out, "\nlisted: accepted without effect, times set")?;
    }
    for ((of, field), objects) in &judged.listed {
        let missing = xds_client::coverage::missing(of, field).unwrap_or("not known here");
        let count: usize = objects.values().sum();
        writeln!(out, "  {count:>6}  {}.{field}: {missing}", of.rsplit('.').next().unwrap_or(of))?;
        writeln!(out, "          in {}", names(objects.keys().map(String::as_str)))?;
    }
    write_honoured(&judged.objects, counts(used), out)
}

/// Objects of each kind, counted, with the first of their names.
fn write_honoured(objects: &Objects, counts: String, out: &mut String) -> fmt::Result {
    let mut kinds: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (object, of) in objects.0.iter().filter(|(_, of)| !of.used.is_empty()) {
        let in_part = if of.unused.is_empty() { "" } else { " (in part)" };
        kinds.entry(&object.kind).or_default().push(format!("{}{in_part}", object.name));
    }
    if kinds.is_empty() {
        return writeln!(out, "\nhonoured: nothing");
    }
    writeln!(out, "\nhonoured: {counts}, from")?;
    let width = kinds.keys().map(|kind| kind.len()).max().unwrap_or_default();
    for (kind, all) in kinds {
        writeln!(out, "  {:>6}  {kind:width$}  {}", all.len(), names(all.iter().map(String::as_str)))?;
    }
    Ok(())
}

/// What is used nowhere although nothing is wrong with it itself.
fn lost_with_others(objects: &Objects, refused: &[Refused]) -> Vec<String> {
    let unused = objects.0.iter().filter(|(object, of)| of.used.is_empty() && !HOLDERS.contains(&object.kind.as_str()));
    let named = |object: &str| refused.iter().filter_map(|one| one.origin.as_deref()).any(|origin| is_of(origin, object));
    unused.map(|(object, _)| object.to_string()).filter(|object| !named(object)).collect()
}

/// Whether an origin is an object, or a rule of it; the name of one may begin with that of another.
fn is_of(origin: &str, object: &str) -> bool {
    origin.strip_prefix(object).is_some_and(|rest| rest.is_empty() || rest.starts_with(", rule "))
}

fn counts((chains, clusters, routes): (usize, usize, usize)) -> String {
    let counted = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    format!("{}, {}, {}", counted(chains, "chain"), counted(clusters, "cluster"), counted(routes, "route"))
}

/// The first of them, and how many more there are.
fn names<'a>(all: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = all.len().saturating_sub(NAMES_SHOWN_MAX);
    let shown: Vec<_> = all.take(NAMES_SHOWN_MAX).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join("; "))
}

#[cfg(test)]
mod tests {
    use super::is_of;

    #[test]
    fn an_object_whose_name_another_begins_with_is_not_that_other() {
        let origin = "AuthorizationPolicy shop/web-audit, rule 0";
        assert!(is_of(origin, "AuthorizationPolicy shop/web-audit") && is_of("VirtualService shop/web", "VirtualService shop/web"));
        assert!(!is_of(origin, "AuthorizationPolicy shop/web"));
    }
}
