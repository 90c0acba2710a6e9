//! The table: what is done about every field that istiod can set, one line a field, by subject.
//!
//! It says what this version does, not what it should do. A feature that is added changes its lines here, and the generated
//! `docs/coverage.md` with them.
mod cluster;
mod ext_authz;
mod http;
mod jwt;
mod listener;
mod rbac;
mod route;
mod telemetry;
mod tls;

use std::collections::HashMap;
use std::sync::OnceLock;

use super::rule::{Entry, Rule};

/// A subject's part of the table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section {
    pub(super) title: &'static str,
    pub(super) entries: &'static [Entry],
}

/// The table, in the order in which it is documented.
pub(super) const SECTIONS: [Section; 9] = [
    Section { title: "Listeners and the dispatch of connections", entries: listener::ENTRIES },
    Section { title: "HTTP and TCP chains", entries: http::ENTRIES },
    Section { title: "Routes", entries: route::ENTRIES },
    Section { title: "Authentication of requests", entries: jwt::ENTRIES },
    Section { title: "Authorization", entries: rbac::ENTRIES },
    Section { title: "External authorization", entries: ext_authz::ENTRIES },
    Section { title: "Clusters and endpoints", entries: cluster::ENTRIES },
    Section { title: "TLS", entries: tls::ENTRIES },
    Section { title: "Telemetry and workload discovery", entries: telemetry::ENTRIES },
];

/// The part for a message; none if the table does not have it.
pub(super) fn entry(message: &str) -> Option<&'static Entry> {
    static BY_MESSAGE: OnceLock<HashMap<&'static str, &'static Entry>> = OnceLock::new();
    let by_message =
        BY_MESSAGE.get_or_init(|| SECTIONS.iter().flat_map(|section| section.entries).map(|entry| (entry.message, entry)).collect());
    by_message.get(message).copied()
}

/// What is missing where a field is listed, or an extension in it.
pub(super) fn missing(message: &str, field: &str) -> Option<&'static str> {
    let extension = |extensions: &'static [super::rule::Extension]| extensions.iter().find(|one| one.type_name == message);
    let rule = match entry(message).and_then(|entry| entry.rule(field)) {
        Some(rule) => *rule,
        // A finding about an extension has the extension's own type.
        None => {
            let rules = SECTIONS.iter().flat_map(|section| section.entries).flat_map(|entry| entry.fields);
            rules.filter_map(|(_, rule)| if let Rule::Extension(all) = rule { extension(all) } else { None }).next()?.rule
        }
    };
    match rule {
        Rule::Listed(missing) => Some(missing),
        Rule::When { otherwise, .. } | Rule::WholeWhen { otherwise, .. } => Some(otherwise),
        _ => None,
    }
}

/// Whether a filter of this type does not refuse what has it.
pub(super) fn is_obeyed_filter(type_name: &str) -> bool {
    let lists = [http::HTTP_FILTERS, listener::NETWORK_FILTERS];
    lists.into_iter().flatten().any(|one| one.type_name == type_name && !matches!(one.rule, Rule::Refused(_)))
}

impl Entry {
    /// The rule of a field; none if the table does not name it.
    pub(super) fn rule(&self, field: &str) -> Option<&'static Rule> {
        self.fields.iter().find(|(name, _)| *name == field).map(|(_, rule)| rule)
    }
}
