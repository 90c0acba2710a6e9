//! A cluster's endpoints as they may be chosen, all of them and those of each of its subsets.
//!
//! Not for: choosing among them (`upstream::balance`). Source: Envoy's subset load balancer. Invariants: what is there follows from
//! endpoints and their state alone, so that a request only looks up; a cluster without subsets has none of it.

use std::collections::HashMap;
use std::sync::Arc;

use model::cluster::Cluster;
use model::endpoint::{Endpoint, EndpointSet};
use model::subset::{Fallback, Label, Labels, Selector, SelectorFallback, SubsetRules, restricted};

use super::health::EndpointState;
use super::table::EndpointTable;

/// Subsets of one cluster. Requests for one that is beyond get no endpoint, never those of another subset.
const SUBSETS_MAX: usize = 512;

/// The tables of one cluster.
#[derive(Debug, Default)]
pub struct EndpointTables {
    /// All endpoints.
    pub all: EndpointTable,
    subsets: Option<Box<Subsets>>,
}

#[derive(Debug)]
struct Subsets {
    rules: Arc<SubsetRules>,
    tables: HashMap<Labels, EndpointTable>,
    default: Option<EndpointTable>,
    /// There are more than have a table.
    is_cut: bool,
}

impl EndpointTables {
    /// `state_of` has the state of each endpoint.
    #[must_use]
    pub fn new(cluster: &Cluster, set: &EndpointSet, mut state_of: impl FnMut(&Endpoint) -> Arc<EndpointState>) -> Self {
        let all = EndpointTable::new(cluster, set, &mut state_of);
        let subsets = cluster.subsets.as_ref().map(|rules| Box::new(Subsets::new(rules, (cluster, set), state_of)));
        Self { all, subsets }
    }

    /// The endpoints for a request that asks for these labels. None: there is no such subset, and nothing to fall back to.
    #[must_use]
    pub fn of(&self, wanted: &[Label]) -> Option<&EndpointTable> {
        match &self.subsets {
            None => Some(&self.all),
            Some(subsets) => subsets.of(wanted, &self.all),
        }
    }

    /// Whether an endpoint is among those of one of these tables, chosen or not.
    #[must_use]
    pub fn holds(&self, table: &EndpointTable, endpoint: &Endpoint) -> bool {
        let Some(subsets) = self.subsets.as_ref().filter(|_| !std::ptr::eq(table, &self.all)) else { return true };
        if subsets.default.as_ref().is_some_and(|default| std::ptr::eq(default, table)) {
            return subsets.rules.is_default(&endpoint.labels);
        }
        let labels = subsets.tables.iter().find(|(_, one)| std::ptr::eq(*one, table)).map(|(labels, _)| labels);
        let mut of_endpoint = subsets.rules.selectors.iter().filter_map(|selector| selector.subset_of(&endpoint.labels));
        labels.is_some_and(|labels| of_endpoint.any(|one| one[..] == labels[..]))
    }

    /// Goes on with the turns of the tables before.
    pub(super) fn resume(&self, before: &Self) {
        self.all.resume(&before.all);
        let (Some(now), Some(before)) = (&self.subsets, &before.subsets) else { return };
        let pairs = now.tables.iter().filter_map(|(labels, table)| Some((table, before.tables.get(labels)?)));
        pairs.chain(now.default.iter().zip(&before.default)).for_each(|(table, before)| table.resume(before));
    }

    /// Whether there are more subsets than can be asked for.
    pub(super) fn is_cut(&self) -> bool {
        self.subsets.as_ref().is_some_and(|subsets| subsets.is_cut)
    }
}

impl Subsets {
    fn new(
        rules: &Arc<SubsetRules>,
        (cluster, set): (&Cluster, &EndpointSet),
        mut state_of: impl FnMut(&Endpoint) -> Arc<EndpointState>,
    ) -> Self {
        let mut members: HashMap<Labels, Vec<Arc<Endpoint>>> = HashMap::new();
        let mut is_cut = false;
        for endpoint in &set.endpoints {
            for labels in rules.selectors.iter().filter_map(|selector| selector.subset_of(&endpoint.labels)) {
                let may_add = members.len() < SUBSETS_MAX;
                match members.get_mut(&*labels) {
                    Some(members) => members.push(Arc::clone(endpoint)),
                    None if may_add => {
                        members.insert(labels.into_iter().collect(), vec![Arc::clone(endpoint)]);
                    }
                    None => is_cut = true,
                }
            }
        }
        let mut table = |endpoints| EndpointTable::new(cluster, &part(set, endpoints, rules.scales_localities), &mut state_of);
        let is_default = |endpoint: &&Arc<Endpoint>| rules.is_default(&endpoint.labels);
        let default = rules.has_default().then(|| table(set.endpoints.iter().filter(is_default).cloned().collect()));
        let tables = members.into_iter().map(|(labels, endpoints)| (labels, table(endpoints))).collect();
        Self { rules: Arc::clone(rules), tables, default, is_cut }
    }

    /// A subset that is there is what a request gets, even if nobody of it can be chosen at the moment (Envoy).
    fn of<'a>(&'a self, wanted: &[Label], all: &'a EndpointTable) -> Option<&'a EndpointTable> {
        if let Some(table) = self.tables.get(wanted) {
            return Some(table);
        }
        let Some(selector) = self.rules.selectors.iter().find(|selector| selector.is_asked_by(wanted)) else {
            return self.at_last(all);
        };
        if self.is_cut {
            return None;
        }
        match selector {
            Selector { fallback: None, .. } => self.at_last(all),
            Selector { fallback: Some(SelectorFallback::To(fallback)), .. } => self.fallback(*fallback, all),
            // They are fewer each time.
            Selector { fallback: Some(SelectorFallback::Fewer(keys)), .. } => self.of(&restricted(wanted, keys), all),
        }
    }

    fn fallback<'a>(&'a self, fallback: Fallback, all: &'a EndpointTable) -> Option<&'a EndpointTable> {
        match fallback {
            Fallback::Nowhere => None,
            Fallback::Any => Some(all),
            Fallback::Default => self.default.as_ref(),
        }
    }

    /// The cluster's own fallback, and what follows where nobody of it can be chosen.
    fn at_last<'a>(&'a self, all: &'a EndpointTable) -> Option<&'a EndpointTable> {
        let table = self.fallback(self.rules.fallback, all)?;
        Some(if self.rules.panics_to_any && table.entries().next().is_none() { all } else { table })
    }
}

/// Some of the endpoints, with all else that was said of them.
fn part(set: &EndpointSet, endpoints: Vec<Arc<Endpoint>>, scales_localities: bool) -> EndpointSet {
    let count = |endpoints: &[Arc<Endpoint>], at: usize| {
        u64::try_from(endpoints.iter().filter(|endpoint| endpoint.locality == at).count()).unwrap_or(u64::MAX)
    };
    let weights = set.locality_weights.iter().enumerate().map(|(at, weight)| match count(&set.endpoints, at) {
        _ if !scales_localities => *weight,
        0 => 0,
        // To the nearest.
        whole => u32::try_from((2 * u64::from(*weight) * count(&endpoints, at) + whole) / (2 * whole)).unwrap_or(u32::MAX),
    });
    EndpointSet {
        locality_weights: weights.collect(),
        endpoints,
        overprovisioning_percent: set.overprovisioning_percent,
        weighted_priority_health: set.weighted_priority_health,
        refused: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use model::cluster::{Balance, Discovery};
    use model::endpoint::{EndpointAddress, Health};

    use super::*;

    fn labels(all: &[(&str, &str)]) -> Labels {
        all.iter().map(|(key, value)| Label { key: (*key).into(), value: (*value).into() }).collect()
    }

    fn endpoint(last: usize, said: &[(&str, &str)]) -> Endpoint {
        let address = EndpointAddress::Plain(format!("10.0.{}.{}:80", last / 256, last % 256).parse().unwrap());
        Endpoint { host: last.to_string().into(), labels: labels(said), ..Endpoint::at(address) }
    }

    fn selector(keys: &[&str], fallback: Option<Fallback>) -> Selector {
        Selector { keys: keys.iter().map(|key| (*key).into()).collect(), fallback: fallback.map(SelectorFallback::To) }
    }

    fn tables(rules: SubsetRules, cluster: Cluster, endpoints: Vec<Endpoint>, locality_weights: Vec<u32>) -> EndpointTables {
        let cluster = Cluster { subsets: Some(Arc::new(rules)), panic_threshold_percent: 0.0, ..cluster };
        let endpoints = endpoints.into_iter().map(Arc::new).collect();
        EndpointTables::new(&cluster, &EndpointSet { endpoints, locality_weights, ..EndpointSet::default() }, |_| Arc::default())
    }

    fn cluster() -> Cluster {
        Cluster::named("c", Discovery::Eds("c".into()))
    }

    fn hosts(table: Option<&EndpointTable>) -> Vec<String> {
        table.into_iter().flat_map(EndpointTable::entries).map(|entry| entry.endpoint.host.to_string()).collect()
    }

    /// The hosts of the example in Envoy's documentation.
    fn documented() -> Vec<Endpoint> {
        let said = [("1.0", "prod"), ("1.0", "prod"), ("1.1", "canary"), ("1.2-pre", "dev")];
        said.iter().zip(1..).map(|((version, stage), last)| endpoint(last, &[("stage", stage), ("v", version)])).collect()
    }

    #[test]
    fn requests_get_the_hosts_of_the_documented_example() {
        let rules = SubsetRules {
            fallback: Fallback::Default,
            default: labels(&[("stage", "prod")]),
            selectors: [selector(&["stage"], Some(Fallback::Nowhere)), selector(&["stage", "v"], None)].into(),
            ..SubsetRules::default()
        };
        for balance in [Balance::default(), Balance::Maglev { size: 101 }] {
            let tables = tables(rules.clone(), Cluster { balance, ..cluster() }, documented(), Vec::new());
            let of = |wanted: &[(&str, &str)]| hosts(tables.of(&labels(wanted)));
            assert_eq!(of(&[("stage", "canary")]), ["3"]);
            assert_eq!(of(&[("stage", "dev"), ("v", "1.2-pre")]), ["4"]);
            assert_eq!(of(&[("v", "1.0")]), ["1", "2"], "there is no selector for this alone");
            assert_eq!(of(&[("other", "x")]), ["1", "2"]);
            assert_eq!(of(&[]), ["1", "2"]);
            assert!(tables.of(&labels(&[("stage", "test")])).is_none(), "its selector says so");
        }
    }

    #[test]
    fn a_subset_whose_endpoints_are_all_ill_is_there_and_has_nobody() {
        let rules = SubsetRules { fallback: Fallback::Any, selectors: [selector(&["v"], None)].into(), ..SubsetRules::default() };
        let mut endpoints = documented();
        endpoints[2].health = Health::Unhealthy;
        let tables = tables(rules, cluster(), endpoints, Vec::new());
        assert_eq!(hosts(tables.of(&labels(&[("v", "1.1")]))), [""; 0], "no fallback (Envoy)");
        assert_eq!(hosts(tables.of(&labels(&[("v", "9")]))), ["1", "2", "4"]);
    }

    #[test]
    fn whom_outlier_detection_leaves_out_is_in_no_subset_unless_that_panics() {
        let selectors: Box<[Selector]> = [selector(&["v"], None), selector(&["stage"], None)].into();
        let rules = SubsetRules { selectors, ..SubsetRules::default() };
        let endpoints = documented().into_iter().map(Arc::new).collect();
        let set = EndpointSet { endpoints, ..EndpointSet::default() };
        let of = |panic_threshold_percent, wanted: &[(&str, &str)]| {
            let cluster = Cluster { subsets: Some(Arc::new(rules.clone())), panic_threshold_percent, ..cluster() };
            let tables = EndpointTables::new(&cluster, &set, |endpoint| {
                let state = EndpointState::default();
                state.set_ejected(&*endpoint.host == "1");
                Arc::new(state)
            });
            hosts(tables.of(&labels(wanted)))
        };
        assert_eq!((of(0.0, &[("v", "1.0")]), of(0.0, &[("stage", "prod")])), (vec!["2".to_owned()], vec!["2".to_owned()]));
        assert_eq!(of(50.0, &[("v", "1.0")]), ["2"], "half is not below half");
        assert_eq!(of(60.0, &[("v", "1.0")]), ["1", "2"], "though three of four are well");
    }

    #[test]
    fn a_locality_counts_as_far_as_its_endpoints_are_in_the_subset() {
        let of = |scales_localities| {
            let rules = SubsetRules { scales_localities, selectors: [selector(&["v"], None)].into(), ..SubsetRules::default() };
            let mut endpoints = documented();
            endpoints[1].locality = 1;
            endpoints[2].locality = 1;
            let tables = tables(rules, Cluster { weighs_localities: true, ..cluster() }, endpoints, vec![6, 9]);
            let counted = (0..150).filter(|number| {
                let pool = tables.of(&labels(&[("v", "1.0")])).unwrap().pool(&mut || 0, &[]).unwrap();
                let total = if scales_localities { 8 } else { 15 } * 1024;
                pool.group(&mut || number * total / 150).unwrap().entries[0].endpoint.host == "1".into()
            });
            counted.count()
        };
        assert_eq!(of(false), 60, "six of fifteen");
        assert_eq!(of(true), 57, "three of eight: of either locality one of two is in it, and half of nine is five");
    }

    #[test]
    fn what_has_no_room_gets_nobody_and_never_somebody_else() {
        let rules = SubsetRules { fallback: Fallback::Any, selectors: [selector(&["id"], None)].into(), ..SubsetRules::default() };
        let endpoints: Vec<_> = (0..=SUBSETS_MAX).map(|last| endpoint(last, &[("id", &last.to_string())])).collect();
        let tables = tables(rules, cluster(), endpoints, Vec::new());
        let of = |id: usize| tables.of(&labels(&[("id", &id.to_string())]));
        assert!(tables.is_cut());
        assert_eq!(hosts(of(SUBSETS_MAX - 1)), [(SUBSETS_MAX - 1).to_string()]);
        assert!(of(SUBSETS_MAX).is_none());
        assert_eq!(hosts(tables.of(&[])).len(), SUBSETS_MAX + 1, "who asks for nothing gets anybody");
    }
}
