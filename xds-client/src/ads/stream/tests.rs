//! The stream against an ADS server over TLS that does what each test says.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::pin::Pin;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, Resource as WireResource};
use envoy_types::pb::google::protobuf::Any;
use futures_util::Stream;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Response, Streaming};

use super::*;
use crate::ads::{ResourceType, Update, Wanted};
use crate::dial::Security;
use crate::testing::{BACKOFF, Pki, Pod, Server, free_address, within};

type Answers = Result<DeltaDiscoveryResponse, Status>;
type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// One stream, as istiod sees it.
struct Call {
    metadata: MetadataMap,
    requests: Streaming<DeltaDiscoveryRequest>,
    answers: mpsc::UnboundedSender<Answers>,
}

impl Call {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        within(self.requests.message()).await.unwrap().expect("the stream goes on")
    }

    /// The next request's type, nonce, and whether it is a NACK.
    async fn brief(&mut self) -> (ResourceType, String, bool) {
        let request = self.request().await;
        (ResourceType::from_type_url(&request.type_url).unwrap(), request.response_nonce, request.error_detail.is_some())
    }

    fn answer(&self, of: ResourceType, nonce: &str, names: &[&str]) {
        let resource = |name: &&str| WireResource {
            name: (*name).to_owned(),
            resource: Some(Any { type_url: of.type_url().to_owned(), value: Vec::new() }),
            ..WireResource::default()
        };
        let resources = names.iter().map(resource).collect();
        let nonce = nonce.to_owned();
        self.send(Ok(DeltaDiscoveryResponse { type_url: of.type_url().to_owned(), nonce, resources, ..Default::default() }));
    }

    fn send(&self, answer: Answers) {
        self.answers.send(answer).unwrap();
    }
}

struct Script {
    calls: mpsc::UnboundedSender<Call>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Script {
    type StreamAggregatedResourcesStream = Outgoing<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Outgoing<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("a waypoint speaks delta"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (answers, mut waiting) = mpsc::unbounded_channel();
        let call = Call { metadata: request.metadata().clone(), requests: request.into_inner(), answers };
        self.calls.send(call).unwrap();
        Ok(Response::new(Box::pin(futures_util::stream::poll_fn(move |context| waiting.poll_recv(context)))))
    }
}

async fn istiod(address: &str, pki: Option<&Pki>) -> (Server, mpsc::UnboundedReceiver<Call>) {
    let (calls, incoming) = mpsc::unbounded_channel();
    let routes = Routes::new(AggregatedDiscoveryServiceServer::new(Script { calls }));
    (Server::start(address, pki, routes).await, incoming)
}

#[derive(Debug)]
enum Seen {
    Update(Update),
    Status(AdsStatus),
}

/// Wants the endpoints of every cluster, and refuses clusters named `bad`.
struct Observer(mpsc::UnboundedSender<Seen>);

impl AdsObserver for Observer {
    fn apply(&mut self, update: Update) -> Applied {
        let names: BTreeSet<String> = update.resources.iter().map(|resource| resource.name.clone()).collect();
        let mut applied = if names.contains("bad") { Applied::nack("bad".to_owned()) } else { Applied::ack() };
        if update.of == ResourceType::Cluster {
            applied.wanted.push(Wanted::new(ResourceType::Endpoint, names).unwrap());
        }
        self.0.send(Seen::Update(update)).unwrap();
        applied
    }

    fn status(&mut self, status: AdsStatus) {
        self.0.send(Seen::Status(status)).unwrap();
    }
}

/// A client that runs until dropped, and what it tells.
struct Client {
    seen: mpsc::UnboundedReceiver<Seen>,
    _task: tokio::task::JoinSet<Infallible>,
}

impl Client {
    fn start(settings: AdsSettings) -> Self {
        let (sender, seen) = mpsc::unbounded_channel();
        let mut task = tokio::task::JoinSet::new();
        task.spawn(run(settings, Observer(sender)));
        Self { seen, _task: task }
    }

    async fn update(&mut self) -> Update {
        loop {
            if let Seen::Update(update) = within(self.seen.recv()).await.unwrap() {
                return update;
            }
        }
    }

    async fn disconnect(&mut self) -> AdsError {
        loop {
            if let Seen::Status(AdsStatus::Disconnected { reason, .. }) = within(self.seen.recv()).await.unwrap() {
                return reason;
            }
        }
    }

    async fn connected(&mut self) {
        while !matches!(within(self.seen.recv()).await.unwrap(), Seen::Status(AdsStatus::Connected)) {}
    }
}

fn settings(pod: &Pod, address: &str) -> AdsSettings {
    AdsSettings {
        dial: pod.dial(address),
        credentials: pod.credentials(),
        node: crate::ads::delta::tests::node(),
        backoff: BACKOFF,
        response_bytes_max: 64 * 1024,
    }
}

use ResourceType::{Cluster, Endpoint, Listener, Workload};

#[tokio::test]
async fn responses_reach_the_observer_and_its_verdicts_reach_istiod() {
    let pki = Pki::new();
    let pod = Pod::new(&pki.root_pem());
    let (server, mut calls) = istiod(&free_address(), Some(&pki)).await;
    let mut client = Client::start(settings(&pod, &server.address));
    let mut call = within(calls.recv()).await.unwrap();
    assert_eq!(call.metadata.get("authorization").unwrap(), "Bearer first");
    assert_eq!(call.metadata.get("clusterid").unwrap(), "Kubernetes");
    assert_eq!(call.request().await.node.unwrap().id, "waypoint~10.0.0.1~waypoint-1.shop~shop.svc.cluster.local");
    assert_eq!(call.brief().await.0, Workload);

    call.answer(Cluster, "c1", &["a", "b"]);
    assert_eq!(client.update().await.resources.len(), 2);
    assert_eq!(call.brief().await, (Cluster, "c1".to_owned(), false));
    let endpoints = call.request().await;
    assert_eq!((endpoints.type_url.as_str(), endpoints.resource_names_subscribe.len()), (Endpoint.type_url(), 2));
    assert_eq!(call.brief().await, (Listener, String::new(), false));

    call.answer(Listener, "l1", &["bad"]);
    let refusal = call.request().await;
    assert_eq!((refusal.response_nonce.as_str(), refusal.error_detail.unwrap().message.as_str()), ("l1", "bad"));
    call.answer(Endpoint, "e1", &["a", "a"]);
    let refusal = call.request().await;
    assert_eq!((refusal.response_nonce.as_str(), refusal.error_detail.is_some()), ("e1", true));
}

#[tokio::test]
async fn what_was_not_asked_for_is_left_aside_and_the_stream_goes_on() {
    let pki = Pki::new();
    let pod = Pod::new(&pki.root_pem());
    let (server, mut calls) = istiod(&free_address(), Some(&pki)).await;
    let mut client = Client::start(settings(&pod, &server.address));
    let mut call = within(calls.recv()).await.unwrap();
    call.send(Ok(DeltaDiscoveryResponse { type_url: "type.googleapis.com/a.B".to_owned(), nonce: "x".to_owned(), ..Default::default() }));
    call.answer(Listener, "l1", &["early"]);
    call.answer(Cluster, "c1", &["a"]);
    assert_eq!(client.update().await.of, Cluster);
    assert_eq!((call.brief().await.0, call.brief().await.0), (Cluster, Workload));
    assert_eq!(call.brief().await, (Cluster, "c1".to_owned(), false));
}

#[tokio::test]
async fn a_lost_stream_is_opened_again_with_what_is_held_and_a_fresh_token() {
    let pki = Pki::new();
    let pod = Pod::new(&pki.root_pem());
    let (server, mut calls) = istiod(&free_address(), Some(&pki)).await;
    let mut client = Client::start(settings(&pod, &server.address));
    let call = within(calls.recv()).await.unwrap();
    call.answer(Cluster, "c1", &["a"]);
    client.update().await;
    pod.write_token("second");
    let address = server.address.clone();
    drop((call, server));
    assert!(matches!(client.disconnect().await, AdsError::Status(_) | AdsError::Closed));

    let (_server, mut calls) = istiod(&address, Some(&pki)).await;
    let mut call = within(calls.recv()).await.unwrap();
    client.connected().await;
    assert_eq!(call.metadata.get("authorization").unwrap(), "Bearer second");
    let clusters = call.request().await;
    assert!(clusters.node.is_some());
    assert_eq!(clusters.initial_resource_versions, [("a".to_owned(), String::new())].into());
    assert_eq!(call.brief().await.0, Workload);
    call.answer(Cluster, "n1", &["a"]);
    assert_eq!(call.brief().await, (Cluster, "n1".to_owned(), false));
    assert_eq!(call.request().await.resource_names_subscribe, ["a"]);
}

#[tokio::test]
async fn every_end_of_a_stream_is_told_with_its_reason() {
    let pki = Pki::new();
    let pod = Pod::new(&pki.root_pem());
    let (server, mut calls) = istiod(&free_address(), Some(&pki)).await;
    let mut client = Client::start(settings(&pod, &server.address));

    drop(within(calls.recv()).await.unwrap());
    assert!(matches!(client.disconnect().await, AdsError::Closed));

    within(calls.recv()).await.unwrap().send(Err(Status::permission_denied("authorization failed: no")));
    let reason = client.disconnect().await.to_string();
    assert!(reason.contains("PermissionDenied") && reason.contains("authorization failed: no"), "{reason}");

    let call = within(calls.recv()).await.unwrap();
    call.answer(Cluster, "", &["a"]);
    assert!(matches!(client.disconnect().await, AdsError::Protocol(ProtocolError::EmptyNonce(Cluster))));

    let call = within(calls.recv()).await.unwrap();
    call.answer(Cluster, "c1", &["a".repeat(64 * 1024).as_str()]);
    let reason = client.disconnect().await.to_string();
    assert!(reason.contains("too large"), "{reason}");
}

#[tokio::test]
async fn a_root_replaced_on_disk_is_used_for_the_next_dial() {
    let (before, after) = (Pki::new(), Pki::new());
    let pod = Pod::new(&before.root_pem());
    let (server, mut calls) = istiod(&free_address(), Some(&after)).await;
    let mut client = Client::start(settings(&pod, &server.address));
    let reason = client.disconnect().await;
    assert!(matches!(reason, AdsError::Dial(DialError::Tls { .. })), "{reason}");
    pod.write_root(&format!("{}{}", before.root_pem(), after.root_pem()));
    within(calls.recv()).await.unwrap();
    client.connected().await;
}

#[tokio::test]
async fn a_server_with_another_name_is_not_talked_to() {
    let pki = Pki::new();
    let pod = Pod::new(&pki.root_pem());
    let (server, _calls) = istiod(&free_address(), Some(&pki)).await;
    let mut settings = settings(&pod, &server.address);
    settings.dial.server_name = None;
    let reason = Client::start(settings).disconnect().await;
    assert!(matches!(reason, AdsError::Dial(DialError::Tls { .. })), "{reason}");
}

#[tokio::test]
async fn istiod_may_come_later_and_may_speak_plaintext() {
    let pod = Pod::new("");
    let address = free_address();
    let mut settings = settings(&pod, &address);
    settings.dial.security = Security::Plaintext;
    let mut client = Client::start(settings);
    assert!(matches!(client.disconnect().await, AdsError::Dial(DialError::Tcp { .. })));
    let (_server, mut calls) = istiod(&address, None).await;
    within(calls.recv()).await.unwrap();
    client.connected().await;
}

/// Passes bytes on to `to` until told to stop; then holds both connections and passes nothing, as a network does that lost its peer.
async fn relay(to: String) -> (String, tokio::sync::oneshot::Sender<()>, tokio::task::JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind(free_address()).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let mut task = tokio::task::JoinSet::new();
    task.spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
            _ = stopped => std::future::pending().await,
        }
    });
    (address, stop, task)
}

#[tokio::test]
async fn an_istiod_that_disappears_without_a_word_is_noticed() {
    let pki = Pki::new();
    let pod = Pod::new(&pki.root_pem());
    let (server, mut calls) = istiod(&free_address(), Some(&pki)).await;
    let (address, stop, _relay) = relay(server.address.clone()).await;
    let mut settings = settings(&pod, &address);
    settings.dial.keepalive_interval = Duration::from_millis(20);
    settings.dial.keepalive_timeout = Duration::from_millis(200);
    let mut client = Client::start(settings);
    let _call = within(calls.recv()).await.unwrap();
    client.connected().await;
    stop.send(()).unwrap();
    assert!(matches!(client.disconnect().await, AdsError::Status(_)));
}

#[tokio::test]
async fn requests_that_nobody_reads_end_the_stream() {
    let (queue, waiting) = mpsc::channel(1);
    let request = DeltaDiscoveryRequest::default;
    send(&queue, vec![request()]).unwrap();
    assert!(matches!(send(&queue, vec![request()]), Err(AdsError::Unread)));
    drop(waiting);
    send(&queue, vec![request()]).expect("the status of the call says why it ended");
}
