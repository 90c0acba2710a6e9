//! From resources to changes: keeps what was sent, translates what is new, and finds out what is different.
//!
//! Not for: the stream (`ads`) or publication (the process). Invariants: resources equal to what is held cause no change; one
//! bad object takes no other down; an object that was good once stays as it was until a good version comes.

mod extensions;
mod listeners;
mod meaning;
mod places;
mod policies;
mod report;
mod secrets;
mod shared;
mod skipped;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3 as cluster_proto;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint_proto;
use model::chain::{OnRefusedPolicy, SkippedFilters};
use model::cluster::Cluster;
use model::endpoint::EndpointSet;
use model::invalid::Invalid;
use prost::Message;
use xds_proto::istio::workload as workload_proto;

use self::listeners::Listening;
use self::meaning::Meanings;
pub use self::places::Place;
use self::report::{ASSIGNMENT, Checked, check, check_endpoints};
use self::secrets::Secrets;
use crate::ads::{Applied, Resource, ResourceType, Update, Verdict, Wanted};
use crate::coverage::LB_ENDPOINTS;
use crate::observer::{Change, Report};
use crate::translate::cluster::{PLUMBING, cluster, eds_name};
use crate::translate::{endpoint, workload};

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
/// Bytes of a NACK's text; what does not fit is counted.
const NACK_BYTES_MAX: usize = 4096;

/// What came of an update.
#[derive(Debug)]
pub struct Outcome {
    /// For the stream.
    pub applied: Applied,
    /// For the process.
    pub changes: Vec<Change>,
}

struct HeldCluster {
    hash: u64,
    meaning: Option<u128>,
    eds_name: Option<String>,
    good: Option<Arc<Cluster>>,
    checked: Checked,
}

struct HeldEndpoints {
    set: Arc<EndpointSet>,
    checked: Checked,
}

/// Everything istiod has sent, as far as it is needed to tell what is new.
#[derive(Default)]
pub struct Applier {
    listening: Listening,
    meanings: Meanings,
    clusters: BTreeMap<String, HeldCluster>,
    endpoints: HashMap<String, HeldEndpoints>,
    secrets: Secrets,
    refused_workloads: BTreeMap<String, Invalid>,
}

impl std::fmt::Debug for Applier {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Applier").field("clusters", &self.clusters.len()).finish_non_exhaustive()
    }
}

impl Applier {
    /// One that has applied nothing yet.
    #[must_use]
    pub fn new(on_refused_policy: OnRefusedPolicy) -> Self {
        Self { listening: Listening::new(on_refused_policy), ..Self::default() }
    }

    /// Leaves out filters of these names that are not known, and lists them.
    #[must_use]
    pub fn skipping(mut self, filters: SkippedFilters) -> Self {
        self.listening.skipped = filters;
        self
    }

    /// Applies one response of istiod.
    pub fn apply(&mut self, update: Update) -> Outcome {
        match update.of {
            ResourceType::Cluster => self.apply_clusters(update),
            ResourceType::Endpoint => self.apply_endpoints(update),
            ResourceType::Listener => self.apply_listeners(update),
            ResourceType::Workload => self.apply_workloads(update),
            ResourceType::Secret => self.apply_secrets(update),
            ResourceType::Extension => self.apply_extensions(update),
        }
    }

    /// What is not obeyed at the moment.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut report = Report::default();
        for (name, held) in &self.clusters {
            held.checked.add_to(&mut report, name);
        }
        for (name, held) in &self.endpoints {
            held.checked.add_to(&mut report, name);
            for refused in &held.set.refused {
                report.refused.entry(name.clone()).or_default().push(refused.clone());
            }
        }
        for (name, reason) in &self.refused_workloads {
            report.refused.entry(name.clone()).or_default().push(reason.clone());
        }
        self.secrets.add_to(&mut report);
        self.listening.add_to(&mut report);
        report
    }

    /// Where the fields of a resource are that are accepted without effect; the report only counts them.
    #[must_use]
    pub fn places(&self, of: ResourceType, resource: &Resource) -> Vec<Place> {
        places::places(of, resource, &self.listening.skipped)
    }

    fn apply_clusters(&mut self, update: Update) -> Outcome {
        let mut changes = Vec::new();
        let mut refused = Vec::new();
        for resource in update.resources.into_iter().filter(|resource| !PLUMBING.contains(&resource.name.as_str())) {
            self.apply_cluster(resource, &mut changes, &mut refused);
        }
        for name in update.removed {
            if self.clusters.remove(&name).is_some() {
                changes.push(Change::ClusterRemoved(name));
            }
        }
        let wanted: BTreeSet<String> = self.clusters.values().filter_map(|held| held.eds_name.clone()).collect();
        self.endpoints.retain(|name, _| {
            let is_wanted = wanted.contains(name);
            if !is_wanted {
                changes.push(Change::EndpointsRemoved(name.clone()));
            }
            is_wanted
        });
        let secrets = self.secrets.name(self.clusters.values().filter_map(|held| held.good.as_deref()), &mut changes);
        let mut applied = verdict(&refused);
        let wanted = [(ResourceType::Endpoint, Some(wanted)), (ResourceType::Secret, secrets)];
        for (of, names) in wanted.into_iter().filter_map(|(of, names)| Some((of, names?))) {
            want(of, names, &mut applied);
        }
        Outcome { applied, changes }
    }

    fn apply_cluster(&mut self, resource: Resource, changes: &mut Vec<Change>, refused: &mut Vec<Invalid>) {
        let Resource { name, body, .. } = resource;
        let hash = hash(&body);
        if let Some(held) = self.clusters.get(&name).filter(|held| held.hash == hash) {
            refused.extend(held.checked.refused.iter().cloned());
            return;
        }
        let meaning = self.meanings.of(CLUSTER, &body);
        if let Some(held) = self.clusters.get_mut(&name).filter(|held| held.meaning == meaning && meaning.is_some()) {
            held.hash = hash;
            refused.extend(held.checked.refused.iter().cloned());
            return;
        }
        let (previous, previous_eds) = self.clusters.remove(&name).map_or((None, None), |held| (held.good, held.eds_name));
        let mut checked = check(CLUSTER, &body, &name, &[]);
        let decoded = cluster_proto::Cluster::decode(body);
        let eds = decoded.as_ref().ok().and_then(eds_name).map(str::to_owned);
        let translated = decoded.map_err(|error| Invalid::new(&name, "", format!("is not a cluster: {error}")));
        let good = match translated.and_then(|value| cluster(&value).map_err(|problem| problem.of(&name))) {
            Ok(cluster) if checked.refused.is_empty() => Some(Arc::new(cluster)),
            Ok(_) => None,
            Err(invalid) => {
                checked.refuse(invalid);
                None
            }
        };
        let good = match (good, previous) {
            (Some(new), Some(old)) if *new == *old => Some(old),
            (Some(new), _) => {
                changes.push(Change::ClusterUpserted(Arc::clone(&new)));
                Some(new)
            }
            (None, previous) => {
                changes.push(Change::ClusterRefused(name.as_str().into(), checked.refused.clone()));
                previous
            }
        };
        // A version that is not obeyed must not take away the endpoints of the one that is.
        let eds = if checked.refused.is_empty() { eds } else { previous_eds.or(eds) };
        refused.extend(checked.refused.iter().cloned());
        self.clusters.insert(name, HeldCluster { hash, meaning, eds_name: eds, good, checked });
    }

    fn apply_endpoints(&mut self, update: Update) -> Outcome {
        let mut changes = Vec::new();
        let mut refused = Vec::new();
        for Resource { name, body, .. } in update.resources {
            let mut checked = check(ASSIGNMENT, &body, &name, &[LB_ENDPOINTS]);
            let walked = check_endpoints(&body, &name);
            let value = match endpoint_proto::ClusterLoadAssignment::decode(body) {
                Ok(value) if checked.refused.is_empty() => value,
                Ok(_) => {
                    refused.extend(checked.refused);
                    continue;
                }
                Err(error) => {
                    refused.push(Invalid::new(name, "", format!("is not a load assignment: {error}")));
                    continue;
                }
            };
            let of = |group, at| walked.get(&(group, at)).map(|checked| checked.refused.clone()).unwrap_or_default();
            let set = Arc::new(endpoint::assignment(&value, of));
            checked.listed.extend(walked.into_values().flat_map(|checked| checked.listed));
            refused.extend(set.refused.iter().cloned());
            let is_known = self.endpoints.get(&name).is_some_and(|held| held.set == set);
            if !is_known {
                changes.push(Change::EndpointsUpserted(name.as_str().into(), Arc::clone(&set)));
            }
            self.endpoints.insert(name, HeldEndpoints { set, checked });
        }
        for name in update.removed {
            if self.endpoints.remove(&name).is_some() {
                changes.push(Change::EndpointsRemoved(name));
            }
        }
        Outcome { applied: verdict(&refused), changes }
    }

    fn apply_secrets(&mut self, update: Update) -> Outcome {
        let (mut changes, mut refused) = (Vec::new(), Vec::new());
        for resource in update.resources {
            self.secrets.hold(resource, &mut changes, &mut refused);
        }
        // As Envoy does: a secret stays as long as a cluster names it, so removals are left aside.
        Outcome { applied: verdict(&refused), changes }
    }

    fn apply_listeners(&mut self, update: Update) -> Outcome {
        for name in &update.removed {
            self.listening.remove(name);
        }
        let mut refused = Vec::new();
        for resource in update.resources {
            self.listening.hold(&resource.name, &resource.body, &mut refused);
        }
        let listeners = self.listening.compile(&mut refused);
        let mut applied = verdict(&refused);
        if let Some(names) = self.listening.extensions_to_ask_for() {
            want(ResourceType::Extension, names, &mut applied);
        }
        Outcome { applied, changes: vec![Change::Listeners(listeners)] }
    }

    /// Extensions change the chains that name them; what is wrong with other chains was said when they came.
    fn apply_extensions(&mut self, update: Update) -> Outcome {
        let mut refused = Vec::new();
        self.listening.extend(update.resources, &update.removed, &mut refused);
        let mut applied = verdict(&refused);
        let listeners = self.listening.compile(&mut Vec::new());
        if let Some(names) = self.listening.extensions_to_ask_for() {
            want(ResourceType::Extension, names, &mut applied);
        }
        Outcome { applied, changes: vec![Change::Listeners(listeners)] }
    }

    fn apply_workloads(&mut self, update: Update) -> Outcome {
        let mut changes = Vec::new();
        let mut refused = Vec::new();
        for Resource { name, body, .. } in update.resources {
            let decoded =
                workload_proto::Workload::decode(body).map_err(|error| Invalid::new(&name, "", format!("is not a workload: {error}")));
            match decoded.and_then(|value| workload::workload(&value, &name).map_err(|problem| problem.of(&name))) {
                Ok(workload) => {
                    self.refused_workloads.remove(&name);
                    changes.push(Change::WorkloadUpserted(Arc::new(workload)));
                }
                Err(invalid) => {
                    refused.push(invalid.clone());
                    self.refused_workloads.insert(name, invalid);
                }
            }
        }
        for name in update.removed {
            self.refused_workloads.remove(&name);
            changes.push(Change::WorkloadRemoved(name));
        }
        Outcome { applied: verdict(&refused), changes }
    }
}

/// Asks for these names from now on. That they cannot be asked for is told beside what was refused already.
fn want(of: ResourceType, names: BTreeSet<String>, applied: &mut Applied) {
    match Wanted::new(of, names) {
        Ok(wanted) => applied.wanted.push(wanted),
        Err(error) => {
            applied.verdict = Verdict::Nack(match &applied.verdict {
                Verdict::Ack => error.to_string(),
                Verdict::Nack(refused) => format!("{refused}; {error}"),
            });
        }
    }
}

/// Accepted, or refused with resource, field path and reason.
fn verdict(refused: &[Invalid]) -> Applied {
    if refused.is_empty() {
        return Applied::ack();
    }
    let mut text = String::new();
    for (at, one) in refused.iter().enumerate() {
        let line = one.to_string();
        if text.len() + line.len() > NACK_BYTES_MAX {
            // Of a single reason that is too long, its beginning says where and what.
            if at == 0 {
                text.push_str(&line[..line.floor_char_boundary(NACK_BYTES_MAX)]);
            }
            let more = refused.len() - at.max(1);
            if more > 0 {
                text.push_str(&format!("; and {more} more"));
            }
            break;
        }
        if at > 0 {
            text.push_str("; ");
        }
        text.push_str(&line);
    }
    Applied::nack(text)
}

/// Of what arrived, to tell whether it is the same. Not for untrusted collisions: istiod is trusted.
fn hash(body: &Bytes) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    static SEED: std::sync::OnceLock<RandomState> = std::sync::OnceLock::new();
    SEED.get_or_init(RandomState::new).hash_one(body)
}

#[cfg(test)]
mod tests;
