//! Secrets of istiod's, asked for as long as a cluster names them.
//!
//! Not for: using them. Invariants: one that cannot be used leaves the one before in use; nothing of a secret is in a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as proto;
use model::cluster::Cluster;
use model::invalid::Invalid;
use model::transport::{CertificateSource, RootsSource, Secret};
use prost::Message;

use super::report::{Checked, check};
use crate::ads::Resource;
use crate::observer::{Change, Report};
use crate::translate::transport::secret;

pub(super) const SECRET: &str = "envoy.extensions.transport_sockets.tls.v3.Secret";

#[derive(Default)]
struct Held {
    good: Option<Arc<Secret>>,
    checked: Checked,
}

/// Those that are held, by name.
#[derive(Default)]
pub(super) struct Secrets {
    held: BTreeMap<String, Held>,
    named: BTreeSet<String>,
}

impl Secrets {
    pub(super) fn hold(&mut self, resource: Resource, changes: &mut Vec<Change>, refused: &mut Vec<Invalid>) {
        let Resource { name, body, .. } = resource;
        let mut checked = check(SECRET, &body, &name, &[]);
        let decoded = proto::Secret::decode(body).map_err(|error| Invalid::new(&name, "", format!("is not a secret: {error}")));
        let read = decoded.and_then(|value| secret(&value).map_err(|problem| problem.of(&name)));
        let held = self.held.entry(name.clone()).or_default();
        match read {
            Ok(new) if checked.refused.is_empty() => {
                if held.good.as_deref() != Some(&new) {
                    let new = Arc::new(new);
                    changes.push(Change::SecretUpserted(name.as_str().into(), Arc::clone(&new)));
                    held.good = Some(new);
                }
            }
            Ok(_) => {}
            Err(invalid) => checked.refuse(invalid),
        }
        refused.extend(checked.refused.iter().cloned());
        held.checked = checked;
    }

    /// Forgets those that none of all `clusters` names; returns the names to ask for, if they have changed.
    pub(super) fn name<'a>(&mut self, clusters: impl Iterator<Item = &'a Cluster>, changes: &mut Vec<Change>) -> Option<BTreeSet<String>> {
        let named = named(clusters);
        if named == self.named {
            return None;
        }
        self.held.retain(|name, _| {
            let is_named = named.contains(name);
            if !is_named {
                changes.push(Change::SecretRemoved(name.clone()));
            }
            is_named
        });
        self.named.clone_from(&named);
        Some(named)
    }

    pub(super) fn add_to(&self, report: &mut Report) {
        for (name, held) in &self.held {
            held.checked.add_to(report, name);
        }
    }
}

/// The secrets that clusters name.
fn named<'a>(clusters: impl Iterator<Item = &'a Cluster>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for tls in clusters.flat_map(|cluster| cluster.sockets.tls()) {
        if let Some(RootsSource::Discovered(name)) = &tls.roots {
            names.insert(name.to_string());
        }
        if let Some(CertificateSource::Discovered(name)) = &tls.certificate {
            names.insert(name.to_string());
        }
    }
    names
}
