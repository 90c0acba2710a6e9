#![expect(clippy::unwrap_used, reason = "tests")]

use model::endpoint::{Endpoint, EndpointAddress};
use model::identity::SpiffeId;
use model::workload::WorkloadType;

use super::*;

fn workload(uid: &str, name: &str, addresses: &[&str]) -> Arc<Workload> {
    Arc::new(Workload {
        uid: uid.into(),
        name: name.into(),
        namespace: "shop".into(),
        workload_name: name.into(),
        workload_type: WorkloadType::Pod,
        canonical_name: name.into(),
        canonical_revision: "v1".into(),
        cluster_id: "Kubernetes".into(),
        network: "".into(),
        identity: SpiffeId::new("cluster.local", "shop", "web").unwrap(),
        region: "".into(),
        zone: "".into(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
    })
}

fn cluster(name: &str) -> Arc<Cluster> {
    Arc::new(Cluster::named(name, Discovery::Eds(name.into())))
}

fn endpoint(address: &str, priority: u32, healthy: bool) -> Arc<Endpoint> {
    let address = EndpointAddress::Plain(address.parse().unwrap());
    Arc::new(Endpoint { address, socket_labels: Box::default(), host: address.target().to_string().into(), weight: 1, priority, healthy })
}

fn set(endpoints: Vec<Arc<Endpoint>>) -> Arc<EndpointSet> {
    Arc::new(EndpointSet { endpoints, refused: Vec::new() })
}

fn served(published: &Published, name: &str) -> Arc<ServedCluster> {
    match published.cluster(name) {
        Some(ClusterEntry::Served(served)) => served,
        other => panic!("{name} is {other:?}"),
    }
}

fn store() -> (Store, Arc<Published>) {
    let published = Arc::new(Published::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let nowhere = |_: &str| -> telemetry::trace::Connecting { Box::pin(async { Err(std::io::ErrorKind::NotFound.into()) }) };
    let telemetry = Telemetry::new(telemetry::TelemetrySettings::default(), runtime.handle().clone(), Arc::new(nowhere));
    (Store::new(Arc::clone(&published), telemetry), published)
}

#[test]
fn a_pod_that_takes_over_an_address_is_found_and_outlives_the_old_ones_removal() {
    let (mut store, published) = store();
    let name = |address: &str| published.workload(address.parse().unwrap()).map(|found| found.name.to_string());
    store.upsert_workload(workload("a", "old", &["10.0.0.1", "10.0.0.2"]));
    store.upsert_workload(workload("b", "new", &["10.0.0.1"]));
    store.publish();
    assert_eq!(name("10.0.0.1").as_deref(), Some("new"));
    assert_eq!(store.remove_workload("a"), ["10.0.0.2".parse::<IpAddr>().unwrap()]);
    store.publish();
    assert_eq!((name("10.0.0.1").as_deref(), name("10.0.0.2")), (Some("new"), None));
}

#[test]
fn a_changed_workload_replaces_itself_and_loses_addresses_it_no_longer_has() {
    let (mut store, published) = store();
    store.upsert_workload(workload("a", "one", &["10.0.0.1", "fd00::1"]));
    store.upsert_workload(workload("a", "two", &["fd00::1"]));
    store.publish();
    assert!(published.workload("10.0.0.1".parse().unwrap()).is_none());
    assert_eq!(&*published.workload("fd00::1".parse().unwrap()).unwrap().name, "two");
}

#[test]
fn loads_of_endpoints_survive_updates_of_endpoints_and_clusters() {
    let (mut store, published) = store();
    store.upsert_cluster(cluster("web"));
    store.publish();
    store.set_endpoints(&"web".into(), set(vec![endpoint("10.0.0.1:80", 0, true), endpoint("10.0.0.2:80", 0, true)]));
    let busy = ActiveRequestOf(&published).begin();
    store.set_endpoints(&"web".into(), set(vec![endpoint("10.0.0.1:80", 0, true)]));
    store.upsert_cluster(cluster("web"));
    store.publish();
    assert_eq!(served(&published, "web").endpoints.load().entries[0].load.active(), 1);
    drop(busy);
    assert_eq!(served(&published, "web").endpoints.load().entries[0].load.active(), 0);
}

struct ActiveRequestOf<'a>(&'a Published);

impl ActiveRequestOf<'_> {
    fn begin(&self) -> super::super::published::ActiveRequest {
        super::super::published::ActiveRequest::begin(&served(self.0, "web").endpoints.load().entries[0].load)
    }
}

#[test]
fn only_healthy_endpoints_of_the_best_priority_are_offered() {
    let (mut store, published) = store();
    store.upsert_cluster(cluster("web"));
    store.publish();
    store.set_endpoints(
        &"web".into(),
        set(vec![endpoint("10.0.0.1:80", 0, false), endpoint("10.0.0.2:80", 1, true), endpoint("10.0.0.3:80", 2, true)]),
    );
    let hosts: Vec<_> = served(&published, "web").endpoints.load().entries.iter().map(|entry| entry.endpoint.host.to_string()).collect();
    assert_eq!(hosts, ["10.0.0.2:80"]);
}

#[test]
fn a_refused_cluster_keeps_its_last_good_version() {
    let (mut store, published) = store();
    let reasons = [Invalid::new("web", "type", "not known")];
    store.refuse_cluster(&"web".into(), &reasons);
    store.publish();
    assert!(matches!(published.cluster("web"), Some(ClusterEntry::Refused(_))));
    store.upsert_cluster(cluster("web"));
    store.refuse_cluster(&"web".into(), &reasons);
    store.publish();
    served(&published, "web");
    store.remove_cluster("web");
    store.publish();
    assert!(published.cluster("web").is_none());
}
