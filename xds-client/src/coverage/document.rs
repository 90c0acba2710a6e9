//! The table as a page for operators: `docs/coverage.md`.
use std::fmt::Write;

use super::rule::{Entry, Extension, Kind, Rule};
use super::table::SECTIONS;

const HEAD: &str = "# Which configuration is obeyed

<!-- Written by `xds_client::coverage::document`; do not edit. `UPDATE_DOCS=1 cargo test -p xds-client coverage` writes it anew. -->

istiod tells a waypoint what to do in Envoy's messages. This page lists, field by field, what this version does about each.

- **honoured**: obeyed. Where only some values are, they are named.
- **not needed**: a waypoint has no use for it, and Envoy as a waypoint has none either.
- **listed**: accepted without effect. It concerns observability or tuning only; it is counted in `waypoint_unsupported_fields{type,field}` and
  shown by the admin port.
- **refused**: it steers routing or security and is not obeyed, so the object that carries it (a chain, a cluster, an endpoint) is not
  used, and istiod is told why.

What is not on this page is *refused* in messages of routing and security: other fields, fields that only a newer Istio knows, alternatives
(`oneof`) with nothing known in them, extensions of other types. In messages of observability and tuning it is *listed*. So is, on either side, a value
that Envoy's own files forbid: an empty list of conditions, a text without a character, a number out of its bounds.
";

/// The page, as Markdown.
pub fn document() -> String {
    let mut page = HEAD.to_owned();
    for section in SECTIONS {
        line(&mut page, &format!("\n## {}", section.title));
        for entry in section.entries {
            describe(&mut page, entry);
        }
    }
    page
}

fn describe(page: &mut String, entry: &Entry) {
    line(page, &format!("\n### `{}`\n", entry.message));
    let kind = match entry.kind {
        Kind::Routing => "Routing: other fields are refused.",
        Kind::Security => "Security: other fields are refused.",
        Kind::Observability => "Observability: other fields are listed.",
        Kind::Tuning => "Tuning: other fields are listed.",
        Kind::Part => "A part of other messages: other fields are treated as theirs.",
    };
    line(page, kind);
    if entry.fields.is_empty() {
        return;
    }
    line(page, "\n| field | is | note |\n| --- | --- | --- |");
    for (field, rule) in entry.fields {
        row(page, &format!("`{field}`"), rule);
        if let Rule::Extension(allowed) = rule {
            for Extension { type_name, rule } in *allowed {
                row(page, &format!("`{field}`: `{type_name}`"), rule);
            }
        }
    }
}

fn row(page: &mut String, field: &str, rule: &Rule) {
    let (verdict, text) = match rule {
        Rule::Honoured | Rule::Whole => ("honoured", String::new()),
        Rule::Unused(why) => ("not needed", (*why).to_owned()),
        Rule::When { only, otherwise, .. } | Rule::WholeWhen { only, otherwise, .. } => {
            ("honoured", format!("only {only}; otherwise: {otherwise}"))
        }
        Rule::Listed(missing) => ("listed", (*missing).to_owned()),
        Rule::Refused(effect) => ("refused", (*effect).to_owned()),
        Rule::Extension(_) => ("by type", String::new()),
    };
    line(page, &format!("| {field} | {verdict} | {text} |").replace("|  |", "| |"));
}

fn line(page: &mut String, text: &str) {
    writeln!(page, "{text}").expect("a String takes everything");
}
