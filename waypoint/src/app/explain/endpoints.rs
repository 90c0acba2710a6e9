//! Where a request may be sent: clusters with their endpoints, and why one of them is no candidate.
//!
//! Not for: choosing. Invariant: candidates are those that the table of the request's subset would choose among at this moment; retries and
//! circuit breakers are left aside.

use std::collections::HashSet;

use model::endpoint::Health;
use model::route::{ClusterChoice, Route, RouteAction};
use model::subset::Label;
use serde::Serialize;

use crate::app::discovery::health;
use crate::state::published::{ClusterEntry, Published, ServedCluster};
use crate::state::table::{EndpointEntry, EndpointTable};

/// Endpoints of one cluster that are shown; of more, the number.
const ENDPOINTS_SHOWN_MAX: usize = 100;

/// A cluster that it may be sent to.
#[derive(Debug, Serialize)]
pub(super) struct Cluster {
    pub(super) name: String,
    /// Its share of the weights of all.
    pub(super) weight: u32,
    /// `served`, `refused: …`, `missing`.
    pub(super) state: String,
    /// What the route asks endpoints to say of themselves, where the cluster is divided by that.
    pub(super) subset: Option<String>,
    /// Candidates first.
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) not_shown: usize,
}

/// An endpoint.
#[derive(Debug, Serialize)]
pub(super) struct Endpoint {
    pub(super) host: String,
    pub(super) health: &'static str,
    pub(super) weight: u32,
    pub(super) priority: u32,
    pub(super) active: u32,
    /// Why it is no candidate; none if it is one.
    pub(super) not_chosen: Option<String>,
}

/// The clusters of a route, each with the subset that is asked for.
pub(super) fn clusters(published: &Published, route: &Route) -> Vec<Cluster> {
    let RouteAction::Forward(forward) = &route.action else { return Vec::new() };
    match &forward.clusters {
        ClusterChoice::One(name) => vec![cluster(published, name, 1, &forward.subset)],
        ClusterChoice::Weighted(all, _) => all.iter().map(|one| cluster(published, &one.name, one.weight, &one.subset)).collect(),
    }
}

pub(super) fn cluster(published: &Published, name: &str, weight: u32, subset: &[Label]) -> Cluster {
    let none = Cluster { name: name.to_owned(), weight, state: String::new(), subset: None, endpoints: Vec::new(), not_shown: 0 };
    match published.cluster(name) {
        None => Cluster { state: "missing".to_owned(), ..none },
        Some(ClusterEntry::Refused(reasons)) => {
            Cluster { state: format!("refused: {}", reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")), ..none }
        }
        Some(ClusterEntry::Served(served)) => {
            let mut endpoints = endpoints(&served, subset);
            endpoints.sort_by_key(|endpoint| endpoint.not_chosen.is_some());
            let not_shown = endpoints.len().saturating_sub(ENDPOINTS_SHOWN_MAX);
            endpoints.truncate(ENDPOINTS_SHOWN_MAX);
            let subset = served.cluster.subsets.as_ref().map(|_| words(subset));
            Cluster { state: "served".to_owned(), subset, endpoints, not_shown, ..none }
        }
    }
}

/// All endpoints of a cluster, each with the reason why it is not chosen for this subset.
fn endpoints(served: &ServedCluster, subset: &[Label]) -> Vec<Endpoint> {
    let tables = served.endpoints.load();
    let table = tables.of(subset);
    let candidates = Candidates::of(table);
    let why_not = |entry: &EndpointEntry| match table {
        // Each request gets those of the host that it names.
        _ if served.by_host.is_some() => None,
        None => Some(format!("no endpoint is for {}", words(subset))),
        Some(table) if !tables.holds(table, &entry.endpoint) => Some("another subset".to_owned()),
        Some(_) => candidates.why_not(entry),
    };
    let shown = served.hosts().into_iter().map(|entry| Endpoint {
        host: entry.endpoint.host.to_string(),
        health: health(&entry),
        weight: entry.endpoint.weight,
        priority: entry.endpoint.priority,
        active: entry.state.active(),
        not_chosen: why_not(&entry),
    });
    shown.collect()
}

/// What a table would choose among.
struct Candidates<'a> {
    entries: Vec<&'a EndpointEntry>,
    addresses: HashSet<model::endpoint::EndpointAddress>,
}

impl<'a> Candidates<'a> {
    fn of(table: Option<&'a EndpointTable>) -> Self {
        let entries: Vec<_> = table.into_iter().flat_map(EndpointTable::entries).collect();
        let addresses = entries.iter().map(|entry| entry.endpoint.address).collect();
        Self { entries, addresses }
    }

    fn why_not(&self, entry: &EndpointEntry) -> Option<String> {
        let endpoint = &entry.endpoint;
        if self.addresses.contains(&endpoint.address) {
            return None;
        }
        let served_here = self.entries.iter().any(|one| one.endpoint.priority == endpoint.priority);
        let first = self.entries.iter().map(|one| one.endpoint.priority).min();
        Some(match (endpoint.health, first) {
            _ if endpoint.weight == 0 => "its weight is 0".to_owned(),
            _ if entry.state.is_ejected() => "ejected because of how it answers".to_owned(),
            (Health::Unhealthy, _) => "unhealthy, or draining".to_owned(),
            (Health::Degraded, Some(_)) if served_here => "degraded, and healthy ones suffice".to_owned(),
            (_, Some(_)) if served_here => "its locality gets no share".to_owned(),
            (_, Some(first)) => format!("priority {} gets no share while priority {first} suffices", endpoint.priority),
            (_, None) => "its locality gets no share".to_owned(),
        })
    }
}

/// `stage=prod, v=1.0`; values as JSON has them where they are no texts.
fn words(labels: &[Label]) -> String {
    let all: Vec<_> = labels.iter().map(|label| format!("{}={}", label.key, label.value.trim_matches('"'))).collect();
    if all.is_empty() { "no labels".to_owned() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::cluster::{Cluster as Compiled, Discovery};
    use model::endpoint::{Endpoint as Listed, EndpointAddress, EndpointSet};

    use super::*;

    /// What is said of each of some endpoints, by the last part of their addresses.
    fn said(listed: impl IntoIterator<Item = Listed>, locality_weights: &[u32]) -> Vec<Option<String>> {
        let endpoints = listed.into_iter().map(Arc::new).collect();
        let set = EndpointSet { endpoints, locality_weights: locality_weights.to_vec(), ..EndpointSet::default() };
        let cluster =
            Compiled { weighs_localities: true, panic_threshold_percent: 0.0, ..Compiled::named("c", Discovery::Eds("c".into())) };
        endpoints_of(&ServedCluster::new(Arc::new(cluster), Arc::new(set)))
    }

    fn endpoints_of(served: &ServedCluster) -> Vec<Option<String>> {
        let mut all = endpoints(served, &[]);
        all.sort_by(|one, other| one.host.cmp(&other.host));
        all.into_iter().map(|endpoint| endpoint.not_chosen).collect()
    }

    fn listed(last: u8) -> Listed {
        Listed::at(EndpointAddress::Plain(std::net::SocketAddr::from(([10, 0, 0, last], 80))))
    }

    #[test]
    fn each_reason_has_its_words() {
        let some = |text: &str| Some(text.to_owned());
        let of_one_priority = [
            listed(1),
            Listed { weight: 0, ..listed(2) },
            Listed { health: Health::Unhealthy, ..listed(3) },
            Listed { locality: 1, ..listed(4) },
            listed(5),
            listed(6),
        ];
        let expected = [None, some("its weight is 0"), some("unhealthy, or draining"), some("its locality gets no share"), None, None];
        assert_eq!(said(of_one_priority, &[1, 0]), expected);
        let degraded = [listed(1), listed(2), listed(3), Listed { health: Health::Degraded, ..listed(4) }];
        assert_eq!(said(degraded, &[1])[3], some("degraded, and healthy ones suffice"));
        let two_priorities = [listed(1), Listed { priority: 1, locality: 1, ..listed(2) }];
        assert_eq!(said(two_priorities, &[1, 1]), [None, some("priority 1 gets no share while priority 0 suffices")]);
        let nobody = [Listed { health: Health::Unhealthy, ..listed(1) }];
        assert_eq!(said(nobody, &[1]), [some("unhealthy, or draining")]);
    }
}
