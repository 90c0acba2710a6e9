//! The rules one by one, then all of them against a model of istiod under random histories.

use super::super::node::NodeSettings;
use super::*;
use envoy_types::pb::google::protobuf::{Any, Duration as WireDuration};

mod istiod;

use ResourceType::{Cluster, Endpoint, Extension, Listener, Workload};

fn delta() -> Delta {
    Delta::new(node())
}

pub(crate) fn node() -> Node {
    let settings = NodeSettings {
        ip: "10.0.0.1".parse().expect("an address"),
        pod_name: "waypoint-1".to_owned(),
        namespace: "shop".to_owned(),
        dns_domain: "shop.svc.cluster.local".to_owned(),
        service_cluster: "waypoint.shop".to_owned(),
        metadata: serde_json::Map::new(),
    };
    Node::new(settings).expect("a node")
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn wanted(of: ResourceType, wanted: &[&str]) -> Wanted {
    Wanted::new(of, names(wanted).into_iter().collect()).expect("names")
}

fn ack_and_want(of: ResourceType, names: &[&str]) -> Applied {
    Applied { verdict: Verdict::Ack, wanted: vec![wanted(of, names)] }
}

fn resource(of: ResourceType, name: &str, version: &str) -> WireResource {
    let body = Any { type_url: of.type_url().to_owned(), value: name.as_bytes().to_vec() };
    WireResource { name: name.to_owned(), version: version.to_owned(), resource: Some(body), ..WireResource::default() }
}

fn response(of: ResourceType, nonce: &str, resources: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: of.type_url().to_owned(),
        nonce: nonce.to_owned(),
        resources: resources.iter().map(|(name, version)| resource(of, name, version)).collect(),
        removed_resources: names(removed),
        ..DeltaDiscoveryResponse::default()
    }
}

fn update(delta: &mut Delta, response: DeltaDiscoveryResponse) -> (Update, Pending) {
    match delta.receive(response) {
        Ok(Received::Update(update, pending)) => (update, pending),
        other => panic!("expected an update: {other:?}"),
    }
}

/// Gives a response and its outcome; what is sent then.
fn answered(delta: &mut Delta, response: DeltaDiscoveryResponse, applied: Applied) -> Vec<DeltaDiscoveryRequest> {
    let (_, pending) = update(delta, response);
    delta.conclude(pending, applied)
}

/// Type, kind of request, names: what a request is, in short.
fn brief(request: &DeltaDiscoveryRequest) -> String {
    let of = ResourceType::from_type_url(&request.type_url).expect("a type of ours");
    let kind = match (&request.error_detail, request.response_nonce.as_str()) {
        (Some(error), nonce) => format!(" nack {nonce} {}", error.message),
        (None, "") => String::new(),
        (None, nonce) => format!(" ack {nonce}"),
    };
    let signed = |sign: char, names: &[String]| names.iter().map(|name| format!(" {sign}{name}")).collect::<String>();
    let node = if request.node.is_some() { " first" } else { "" };
    let subscribe = signed('+', &request.resource_names_subscribe);
    format!("{of:?}{node}{kind}{subscribe}{}", signed('-', &request.resource_names_unsubscribe))
}

fn briefs(requests: &[DeltaDiscoveryRequest]) -> Vec<String> {
    requests.iter().map(brief).collect()
}

/// A stream on which clusters, endpoints of `a` and `b`, and listeners were asked for.
fn opened() -> Delta {
    let mut delta = delta();
    delta.connected();
    answered(&mut delta, response(Cluster, "c1", &[("a", ""), ("b", "")], &[]), ack_and_want(Endpoint, &["a", "b"]));
    delta
}

#[test]
fn a_stream_begins_with_clusters_and_workloads() {
    let requests = delta().connected();
    assert_eq!(briefs(&requests), ["Cluster first", "Workload first"]);
    assert_eq!(requests[0].node.as_ref().expect("a node").id, "waypoint~10.0.0.1~waypoint-1.shop~shop.svc.cluster.local");
    assert!(requests.iter().all(|request| request.initial_resource_versions.is_empty()));
}

#[test]
fn endpoints_and_then_listeners_are_asked_for_once_clusters_are_answered() {
    let mut delta = delta();
    delta.connected();
    let requests = answered(&mut delta, response(Cluster, "c1", &[("a", "")], &[]), ack_and_want(Endpoint, &["a", "b"]));
    assert_eq!(briefs(&requests), ["Cluster ack c1", "Endpoint first +a +b", "Listener first"]);
}

#[test]
fn listeners_are_asked_for_even_if_clusters_were_refused_or_none_needs_endpoints() {
    let mut refused = delta();
    refused.connected();
    let requests = answered(&mut refused, response(Cluster, "c1", &[("a", "")], &[]), Applied::nack("bad".to_owned()));
    assert_eq!(briefs(&requests), ["Cluster nack c1 bad", "Listener first"]);

    let mut malformed = delta();
    malformed.connected();
    let Ok(Received::Malformed(error, pending)) = malformed.receive(response(Cluster, "c1", &[("a", ""), ("a", "")], &[])) else {
        panic!("expected a refusal");
    };
    let requests = malformed.conclude(pending, Applied::nack(error.to_string()));
    assert_eq!(briefs(&requests), ["Cluster nack c1 the response names \"a\" twice", "Listener first"]);
}

#[test]
fn extensions_are_asked_for_after_listeners() {
    let mut delta = opened();
    let requests = answered(&mut delta, response(Listener, "l1", &[("main", "")], &[]), ack_and_want(Extension, &["wasm"]));
    assert_eq!(briefs(&requests), ["Listener ack l1", "Extension first +wasm"]);
}

#[test]
fn names_change_in_a_request_of_their_own() {
    let mut delta = opened();
    let requests = answered(&mut delta, response(Cluster, "c2", &[("c", "")], &["a"]), ack_and_want(Endpoint, &["b", "c"]));
    assert_eq!(briefs(&requests), ["Cluster ack c2", "Endpoint +c -a"]);
}

#[test]
fn the_same_names_again_are_not_sent() {
    let mut delta = opened();
    let requests = answered(&mut delta, response(Cluster, "c2", &[("a", "")], &[]), ack_and_want(Endpoint, &["b", "a"]));
    assert_eq!(briefs(&requests), ["Cluster ack c2"]);
    assert_eq!(delta.want(wanted(Endpoint, &["a", "b"])), None);
}

#[test]
fn the_last_name_is_given_up_and_another_taken_up_again() {
    let mut delta = opened();
    assert_eq!(briefs(&delta.want(wanted(Endpoint, &[])).into_iter().collect::<Vec<_>>()), ["Endpoint -a -b"]);
    assert_eq!(briefs(&delta.want(wanted(Endpoint, &["a"])).into_iter().collect::<Vec<_>>()), ["Endpoint +a"]);
}

#[test]
fn endpoints_of_a_name_given_up_reach_nobody_and_are_acknowledged() {
    let mut delta = opened();
    delta.want(wanted(Endpoint, &["b"]));
    let (update, pending) = update(&mut delta, response(Endpoint, "e1", &[("a", ""), ("b", "")], &[]));
    assert_eq!(update.resources.iter().map(|resource| resource.name.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(briefs(&delta.conclude(pending, Applied::ack())), ["Endpoint ack e1"]);
    assert_eq!(delta.known(Endpoint).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn resources_and_removals_are_handed_on() {
    let mut delta = opened();
    let (update, pending) = update(&mut delta, response(Listener, "l1", &[("main", "v1")], &["old"]));
    let body = Bytes::from_static(b"main");
    let main = Resource { name: "main".to_owned(), version: "v1".to_owned(), body };
    assert_eq!(update, Update { of: Listener, resources: vec![main], removed: names(&["old"]) });
    delta.conclude(pending, Applied::ack());
}

#[test]
fn what_is_held_is_listed_on_the_next_stream() {
    let mut delta = opened();
    answered(&mut delta, response(Workload, "w1", &[("pod/1", "h1"), ("pod/2", "h2"), ("pod/3", "h3")], &[]), Applied::ack());
    answered(&mut delta, response(Workload, "w2", &[("pod/1", "h9")], &["pod/3"]), Applied::ack());
    answered(&mut delta, response(Endpoint, "e1", &[("a", "")], &[]), Applied::ack());
    delta.disconnected();
    let requests = delta.connected();
    assert_eq!(briefs(&requests), ["Cluster first", "Workload first"]);
    let versions = |pairs: &[(&str, &str)]| pairs.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned())).collect();
    assert_eq!(requests[0].initial_resource_versions, versions(&[("a", ""), ("b", "")]));
    assert_eq!(requests[1].initial_resource_versions, versions(&[("pod/1", "h9"), ("pod/2", "h2")]));
    let requests = answered(&mut delta, response(Cluster, "c1", &[("a", "")], &["b"]), Applied::ack());
    assert_eq!(briefs(&requests), ["Cluster ack c1", "Endpoint first +a +b", "Listener first"]);
    assert_eq!(requests[1].initial_resource_versions, versions(&[("a", "")]));
}

#[test]
fn what_was_refused_is_listed_without_a_version() {
    let mut delta = opened();
    answered(&mut delta, response(Workload, "w1", &[("pod/1", "h1"), ("pod/2", "h2")], &[]), Applied::ack());
    let requests =
        answered(&mut delta, response(Workload, "w2", &[("pod/1", "h9"), ("pod/3", "h3")], &["pod/2"]), Applied::nack("no".into()));
    assert_eq!(briefs(&requests), ["Workload nack w2 no"]);
    let known = &delta.connected()[1].initial_resource_versions;
    assert!(["pod/1", "pod/2", "pod/3"].iter().all(|name| known.get(*name).is_some_and(String::is_empty)), "{known:?}");
}

#[test]
fn a_verdict_that_outlives_its_stream_is_remembered_and_not_sent() {
    let mut delta = opened();
    let (_, pending) = update(&mut delta, response(Workload, "w1", &[("pod/1", "h1")], &[]));
    let requests = delta.connected();
    assert_eq!(briefs(&requests), ["Cluster first", "Workload first"]);
    assert_eq!(delta.conclude(pending, Applied::ack()), []);
    assert_eq!(delta.known(Workload).collect::<Vec<_>>(), ["pod/1"]);
}

#[test]
fn names_wanted_while_disconnected_are_asked_for_in_their_turn() {
    let mut delta = opened();
    delta.disconnected();
    assert_eq!(delta.want(wanted(Endpoint, &["z"])), None);
    assert_eq!(briefs(&delta.connected()), ["Cluster first", "Workload first"]);
    assert_eq!(delta.want(wanted(Endpoint, &["y"])), None);
    let requests = answered(&mut delta, response(Cluster, "c1", &[], &[]), Applied::ack());
    assert_eq!(briefs(&requests), ["Cluster ack c1", "Endpoint first +y", "Listener first"]);
}

#[test]
fn a_nack_says_why_within_bounds() {
    let mut delta = opened();
    let requests = answered(&mut delta, response(Listener, "l1", &[("main", "")], &[]), Applied::nack("ü".repeat(4096)));
    let error = requests[0].error_detail.as_ref().expect("a reason");
    assert_eq!((error.code, error.message.len()), (13, 4096));
}

#[test]
fn malformed_responses_are_refused_by_name() {
    let with = |change: fn(&mut WireResource)| {
        let mut response = response(Cluster, "n", &[("a", "")], &[]);
        change(&mut response.resources[0]);
        response
    };
    let cases = [
        (response(Cluster, "n", &[("a", ""), ("a", "")], &[]), MalformedResponse::DuplicateName("a".to_owned())),
        (response(Cluster, "n", &[("a", "")], &["a"]), MalformedResponse::DuplicateName("a".to_owned())),
        (response(Cluster, "n", &[], &["b", "b"]), MalformedResponse::DuplicateName("b".to_owned())),
        (response(Cluster, "n", &[("", "")], &[]), MalformedResponse::Unnamed),
        (response(Cluster, "n", &[], &[""]), MalformedResponse::Unnamed),
        (with(|resource| resource.resource = None), MalformedResponse::NoBody("a".to_owned())),
        (with(|resource| resource.ttl = Some(WireDuration::default())), MalformedResponse::TimeToLive("a".to_owned())),
        (with(|resource| resource.resource_name = Some(Default::default())), MalformedResponse::Parameters),
        (
            with(|resource| resource.resource.as_mut().expect("a body").type_url = "x/Y".to_owned()),
            MalformedResponse::OtherType { name: "a".to_owned(), type_url: "x/Y".to_owned() },
        ),
    ];
    for (response, expected) in cases {
        let mut delta = opened();
        let known: BTreeSet<String> = delta.known(Cluster).map(str::to_owned).collect();
        let Ok(Received::Malformed(error, pending)) = delta.receive(response) else { panic!("{expected} passed") };
        assert_eq!(error, expected);
        assert_eq!(briefs(&delta.conclude(pending, Applied::nack("no".to_owned()))), ["Cluster nack n no"]);
        assert_eq!(delta.known(Cluster).map(str::to_owned).collect::<BTreeSet<_>>(), known, "nothing of it is in use");
    }
}

#[test]
fn responses_outside_of_the_conversation_are_errors_by_name() {
    let mut delta = opened();
    let mut unknown = response(Cluster, "n", &[], &[]);
    unknown.type_url = "type.googleapis.com/a.B".to_owned();
    let cases = [
        (unknown, ProtocolError::UnknownType("type.googleapis.com/a.B".to_owned()), false),
        (response(Extension, "n", &[], &[]), ProtocolError::NotRequested(Extension), false),
        (response(Cluster, "", &[], &[]), ProtocolError::EmptyNonce(Cluster), true),
    ];
    for (response, expected, fatal) in cases {
        let error = delta.receive(response).expect_err("refused");
        assert_eq!(error.is_fatal(), fatal);
        assert_eq!(error, expected);
    }
}
