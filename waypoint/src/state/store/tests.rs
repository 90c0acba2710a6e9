#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::Instant;

use model::endpoint::{Endpoint, EndpointAddress, Health};
use model::identity::SpiffeId;
use model::outlier::{Consecutive, OutlierDetection};
use model::workload::WorkloadType;

use super::*;
use crate::state::health::{ActiveRequest, Verdict};
use crate::state::table::EndpointEntry;

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

fn endpoint(address: &str, priority: u32, health: Health) -> Arc<Endpoint> {
    let address = EndpointAddress::Plain(address.parse().unwrap());
    Arc::new(Endpoint { priority, health, ..Endpoint::at(address) })
}

fn set(endpoints: Vec<Arc<Endpoint>>) -> Arc<EndpointSet> {
    Arc::new(EndpointSet { endpoints, ..EndpointSet::default() })
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
    let nowhere =
        |_: &model::collector::Collector| -> telemetry::export::Connecting { Box::pin(async { Err(std::io::ErrorKind::NotFound.into()) }) };
    let telemetry = Telemetry::new(telemetry::TelemetrySettings::default(), runtime.handle().clone(), Arc::new(nowhere));
    (Store::new(Arc::clone(&published), telemetry), published)
}

#[test]
fn m39_a_pod_that_takes_over_an_address_is_found_and_outlives_the_old_ones_removal() {
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
    store.set_endpoints(&"web".into(), set(vec![endpoint("10.0.0.1:80", 0, Health::Healthy), endpoint("10.0.0.2:80", 0, Health::Healthy)]));
    let busy = ActiveRequest::begin(&first(&published).state);
    store.set_endpoints(&"web".into(), set(vec![endpoint("10.0.0.1:80", 0, Health::Healthy)]));
    store.upsert_cluster(cluster("web"));
    store.publish();
    assert_eq!(first(&published).state.active(), 1);
    drop(busy);
    assert_eq!(first(&published).state.active(), 0);
}

fn first(published: &Published) -> EndpointEntry {
    served(published, "web").endpoints.load().all.entries().next().unwrap().clone()
}

#[test]
fn an_ejection_survives_updates_of_endpoints_and_clusters() {
    let (mut store, published) = store();
    let one = Consecutive { failures: 1, enforcing_percent: 100 };
    let rules = OutlierDetection { server_errors: one, ejected_percent_max: 100, ..OutlierDetection::default() };
    let with = |outlier| Arc::new(Cluster { outlier, panic_threshold_percent: 0.0, ..(*cluster("web")).clone() });
    store.upsert_cluster(with(Some(rules)));
    store.publish();
    let two = || set(vec![endpoint("10.0.0.1:80", 0, Health::Healthy), endpoint("10.0.0.2:80", 0, Health::Healthy)]);
    store.set_endpoints(&"web".into(), two());
    served(&published, "web").note(&first(&published), Verdict::Answered(500));
    served(&published, "web").judge(Instant::now(), &mut || 0);
    let chosen = || first(&published).endpoint.host.to_string();
    assert_eq!(chosen(), "10.0.0.2:80");
    store.set_endpoints(&"web".into(), two());
    store.upsert_cluster(with(Some(rules)));
    store.publish();
    assert_eq!(chosen(), "10.0.0.2:80");
    store.upsert_cluster(with(None));
    store.publish();
    assert_eq!(chosen(), "10.0.0.1:80", "nobody is left out where nobody looks any more");
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
