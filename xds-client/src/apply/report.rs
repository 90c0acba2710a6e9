//! The coverage walk of one object, kept as what the object is reported with.

use std::collections::HashMap;

use model::invalid::Invalid;
use prost_reflect::DynamicMessage;
use xds_proto::descriptors;

use crate::coverage::{Findings, walk_without};
use crate::observer::Report;

/// The type of a load assignment.
pub(super) const ASSIGNMENT: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";

/// What the walk found in one object.
#[derive(Clone, Debug, Default)]
pub(super) struct Checked {
    /// Why it is not obeyed.
    pub(super) refused: Vec<Invalid>,
    /// Type and field of what is accepted without effect.
    pub(super) listed: Vec<(String, String)>,
}

impl Checked {
    /// One more reason, unless the walk gave one for the same place.
    pub(super) fn refuse(&mut self, invalid: Invalid) {
        // The walk passes by where a message holds an extension, translation does not.
        let place = |path: &str| path.replace(".typed_config", "");
        if !self.refused.iter().any(|known| place(&known.path) == place(&invalid.path)) {
            self.refused.push(invalid);
        }
    }

    pub(super) fn add_to(&self, report: &mut Report, name: &str) {
        if !self.refused.is_empty() {
            report.refused.entry(name.to_owned()).or_default().extend(self.refused.iter().cloned());
        }
        for field in &self.listed {
            *report.listed.entry(field.clone()).or_default() += 1;
        }
    }
}

/// Decodes a message for walking or editing it.
pub(super) fn dynamic(type_name: &str, bytes: &[u8]) -> Result<DynamicMessage, String> {
    let descriptor = descriptors().get_message_by_name(type_name).ok_or_else(|| format!("the type {type_name} is not known"))?;
    DynamicMessage::decode(descriptor, bytes).map_err(|error| format!("is not a {type_name}: {error}"))
}

/// Walks an object.
pub(super) fn check(type_name: &str, bytes: &[u8], name: &str, skip: &[&str]) -> Checked {
    match walked(type_name, bytes, skip) {
        Ok(findings) => checked(&findings, name),
        Err(reason) => Checked { refused: vec![Invalid::new(name, "", reason)], listed: Vec::new() },
    }
}

/// The walk itself.
pub(super) fn walked(type_name: &str, bytes: &[u8], skip: &[&str]) -> Result<Findings, String> {
    dynamic(type_name, bytes).map(|message| walk_without(&message, skip))
}

/// Walks each endpoint of a load assignment, so that one that cannot be obeyed costs no other its place. By position of its locality,
/// and in it; bytes that are no assignment have none.
pub(super) fn check_endpoints(bytes: &[u8], name: &str) -> HashMap<(usize, usize), Checked> {
    let Ok(assignment) = dynamic(ASSIGNMENT, bytes) else { return HashMap::new() };
    let mut all = HashMap::new();
    for (group, locality) in messages(&assignment, "endpoints").into_iter().enumerate() {
        for (at, endpoint) in messages(&locality, "lb_endpoints").into_iter().enumerate() {
            let mut checked = checked(&walk_without(&endpoint, &[]), name);
            for invalid in &mut checked.refused {
                invalid.path = format!("endpoints[{group}].lb_endpoints[{at}].{}", invalid.path);
            }
            all.insert((group, at), checked);
        }
    }
    all
}

fn messages(of: &DynamicMessage, field: &str) -> Vec<DynamicMessage> {
    let value = of.get_field_by_name(field);
    let list = value.as_ref().and_then(|value| value.as_list()).unwrap_or_default();
    list.iter().filter_map(|item| item.as_message().cloned()).collect()
}

fn checked(findings: &Findings, name: &str) -> Checked {
    let invalid = |finding: &crate::coverage::Finding| {
        let path = if finding.path.is_empty() { finding.field.clone() } else { finding.path.clone() };
        Invalid::new(name, path, format!("{} ({}.{})", finding.reason, finding.type_name, finding.field))
    };
    Checked {
        refused: findings.refused.iter().map(invalid).collect(),
        listed: findings.listed.iter().map(|finding| (finding.type_name.clone(), finding.field.clone())).collect(),
    }
}
