//! A model of istiod's side (`shouldRespondDelta` and `pushDeltaXds`), strict where istiod's tests panic, and random histories.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use proptest::prelude::*;

use super::*;

/// Clusters that exist or not; each has endpoints under its own name.
const CLUSTERS: [&str; 4] = ["a", "b", "c", "d"];
const WORKLOADS: [&str; 3] = ["pod/1", "pod/2", "pod/3"];

#[derive(Default)]
struct Istiod {
    /// What there is: version by name, per type.
    world: BTreeMap<ResourceType, BTreeMap<String, String>>,
    /// What the client is subscribed to or was sent on this stream, per type, with the last nonce.
    watched: HashMap<ResourceType, (BTreeSet<String>, String)>,
    nonces: u64,
    outbox: VecDeque<DeltaDiscoveryResponse>,
}

impl Istiod {
    fn push(&mut self, of: ResourceType, send: &BTreeSet<String>, removed: BTreeSet<String>) {
        self.nonces += 1;
        let nonce = format!("n{}", self.nonces);
        let world = self.world.entry(of).or_default();
        let resources = send
            .iter()
            .filter_map(|name| {
                // Endpoints of an unknown name are an empty assignment.
                let version = world.get(name).cloned().or_else(|| of.is_by_name().then(String::new))?;
                Some(super::resource(of, name, if of == Workload { &version } else { "" }))
            })
            .collect();
        self.watched.get_mut(&of).expect("watched").1.clone_from(&nonce);
        self.outbox.push_back(DeltaDiscoveryResponse {
            type_url: of.type_url().to_owned(),
            nonce,
            resources,
            removed_resources: removed.into_iter().collect(),
            ..DeltaDiscoveryResponse::default()
        });
    }

    fn request(&mut self, request: &DeltaDiscoveryRequest) {
        let of = ResourceType::from_type_url(&request.type_url).expect("a type of ours");
        let subscribe: BTreeSet<String> = request.resource_names_subscribe.iter().cloned().collect();
        let unsubscribe: BTreeSet<String> = request.resource_names_unsubscribe.iter().cloned().collect();
        let Some((watched, nonce)) = self.watched.get_mut(&of) else {
            assert!(request.node.is_some() && request.response_nonce.is_empty() && unsubscribe.is_empty());
            assert_eq!(of.is_by_name(), !subscribe.is_empty(), "{of:?}: without names this asks for everything");
            return self.first_request(of, subscribe, &request.initial_resource_versions);
        };
        let before = watched.clone();
        watched.extend(subscribe.iter().cloned());
        watched.retain(|name| !unsubscribe.contains(name));
        let changed = *watched != before;
        if !request.response_nonce.is_empty() {
            assert!(subscribe.is_empty() && unsubscribe.is_empty(), "an ACK carries names");
            assert_eq!(request.response_nonce, *nonce, "the nonce is not the latest");
            return;
        }
        assert!(changed, "{of:?}: a spontaneous request that changes nothing");
        assert!(subscribe.iter().all(|name| !before.contains(name)) && unsubscribe.iter().all(|name| before.contains(name)));
        if !subscribe.is_empty() {
            self.push(of, &subscribe, BTreeSet::new());
        }
    }

    fn first_request(&mut self, of: ResourceType, subscribe: BTreeSet<String>, held: &HashMap<String, String>) {
        let world = self.world.entry(of).or_default().clone();
        let names: BTreeSet<String> = if of.is_by_name() { subscribe } else { world.keys().cloned().collect() };
        let unchanged = |name: &String| of == Workload && held.get(name).is_some_and(|version| Some(version) == world.get(name));
        let removed = held.keys().filter(|name| !names.contains(*name)).cloned().collect();
        let send = names.iter().filter(|name| !unchanged(name)).cloned().collect();
        self.watched.insert(of, (names, String::new()));
        self.push(of, &send, removed);
    }

    /// Something came, changed or went.
    fn change(&mut self, of: ResourceType, name: &str, version: Option<String>) {
        let world = self.world.entry(of).or_default();
        let (send, removed) = match version {
            Some(version) => {
                world.insert(name.to_owned(), version);
                (BTreeSet::from([name.to_owned()]), BTreeSet::new())
            }
            None if world.remove(name).is_some() => (BTreeSet::new(), BTreeSet::from([name.to_owned()])),
            None => return,
        };
        if let Some((watched, _)) = self.watched.get_mut(&of) {
            watched.extend(send.iter().cloned());
            watched.retain(|name| !removed.contains(name));
            self.push(of, &send, removed);
        }
    }

    fn names(&self, of: ResourceType) -> BTreeSet<String> {
        self.world.get(&of).into_iter().flat_map(BTreeMap::keys).cloned().collect()
    }
}

/// What an applier holds, that accepts everything but now and then refuses.
#[derive(Default)]
struct Applier {
    held: BTreeMap<ResourceType, BTreeMap<String, String>>,
}

impl Applier {
    fn apply(&mut self, update: Update, refuse: bool) -> Applied {
        let of = update.of;
        let held = self.held.entry(of).or_default();
        if !refuse {
            held.extend(update.resources.into_iter().map(|resource| (resource.name, resource.version)));
            held.retain(|name, _| !update.removed.contains(name));
        }
        let mut applied = if refuse { Applied::nack("refused".to_owned()) } else { Applied::ack() };
        if of == Cluster {
            let clusters: BTreeSet<String> = held.keys().cloned().collect();
            self.held.entry(Endpoint).or_default().retain(|name, _| clusters.contains(name));
            applied.wanted.push(Wanted::new(Endpoint, clusters).expect("names"));
        }
        applied
    }
}

#[derive(Clone, Debug)]
enum Step {
    Change(ResourceType, &'static str, bool),
    Deliver,
    Refuse,
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let change = prop_oneof![
        (prop::sample::select(&CLUSTERS[..]), any::<bool>()).prop_map(|(name, there)| Step::Change(Cluster, name, there)),
        (prop::sample::select(&WORKLOADS[..]), any::<bool>()).prop_map(|(name, there)| Step::Change(Workload, name, there)),
    ];
    prop_oneof![4 => change, 8 => Just(Step::Deliver), 1 => Just(Step::Refuse), 1 => Just(Step::Reconnect)]
}

struct World {
    delta: Delta,
    istiod: Istiod,
    applier: Applier,
    versions: u64,
}

impl World {
    fn new() -> Self {
        let mut world = Self { delta: super::delta(), istiod: Istiod::default(), applier: Applier::default(), versions: 0 };
        world.reconnect();
        world
    }

    fn reconnect(&mut self) {
        self.delta.disconnected();
        self.istiod.watched.clear();
        self.istiod.outbox.clear();
        let requests = self.delta.connected();
        requests.iter().for_each(|request| self.istiod.request(request));
    }

    /// The next response, applied and concluded. istiod sends nothing newer of the type meanwhile, so that nonces are the latest.
    fn deliver(&mut self, refuse: bool) -> bool {
        let Some(response) = self.istiod.outbox.pop_front() else { return false };
        let of = ResourceType::from_type_url(&response.type_url).expect("a type of ours");
        let latest = self.istiod.watched[&of].1 == response.nonce;
        let nonce = response.nonce.clone();
        let (update, pending) = super::update(&mut self.delta, response);
        let applied = self.applier.apply(update, refuse);
        let requests = self.delta.conclude(pending, applied);
        assert_eq!(requests[0].response_nonce, nonce, "the nonce is echoed");
        assert_eq!(requests[0].error_detail.is_some(), refuse);
        assert!(requests[1..].iter().all(|request| request.response_nonce.is_empty()));
        // An answer to a response that istiod has followed up by another is stale there, and dropped.
        requests.iter().skip(usize::from(!latest)).for_each(|request| self.istiod.request(request));
        true
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Change(of, name, there) => {
                self.versions += 1;
                let version = there.then(|| format!("v{}", self.versions));
                self.istiod.change(of, name, version);
            }
            Step::Deliver => drop(self.deliver(false)),
            Step::Refuse => drop(self.deliver(true)),
            Step::Reconnect => self.reconnect(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    /// Whatever happened before, after a reconnect without refusals both sides have the same; the model of istiod asserts its rules on
    /// each request on the way.
    #[test]
    fn every_history_keeps_istiods_rules_and_ends_with_its_resources(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.run(step));
        world.reconnect();
        while world.deliver(false) {}
        for of in [Cluster, Workload] {
            let held: BTreeSet<String> = world.applier.held.entry(of).or_default().keys().cloned().collect();
            prop_assert_eq!(&held, &world.istiod.names(of));
            prop_assert_eq!(world.delta.known(of).map(str::to_owned).collect::<BTreeSet<_>>(), held);
        }
        prop_assert_eq!(&world.applier.held[&Workload], world.istiod.world.entry(Workload).or_default());
        let endpoints: BTreeSet<String> = world.applier.held.entry(Endpoint).or_default().keys().cloned().collect();
        prop_assert_eq!(&endpoints, &world.istiod.names(Cluster));
        let subscribed = world.istiod.watched.get(&Endpoint).map(|(names, _)| names.clone()).unwrap_or_default();
        prop_assert_eq!(subscribed, endpoints);
    }
}
