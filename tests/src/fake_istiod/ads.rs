//! Delta ADS, as much of it as istiod and its clients use.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use futures_util::Stream;
use prost::Message;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use super::{Kind, Reply, Shared, State, caller};

/// Responses that may wait for the client to read them.
const RESPONSES_QUEUED_MAX: usize = 64;

/// The service.
pub struct Discovery(pub Arc<Shared>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("waypoints speak delta"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let identity = caller(request.metadata())?;
        self.0.state().streams_opened += 1;
        let (sender, mut receiver) = mpsc::channel(RESPONSES_QUEUED_MAX);
        let shared = Arc::clone(&self.0);
        // Ends when the client's half ends or nobody reads the answers.
        tokio::spawn(async move {
            let mut conversation = Conversation::new(shared, sender.clone(), identity);
            if let Err(status) = conversation.run(request.into_inner()).await {
                drop(sender.send(Err(status)).await);
            }
        });
        let answers = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
        Ok(Response::new(Box::pin(answers)))
    }
}

/// What one stream has subscribed to, and what it has been sent: by name, the generation of the resource.
#[derive(Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<String>,
    sent: BTreeMap<String, u64>,
}

impl Subscription {
    fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }
}

struct Conversation {
    shared: Arc<Shared>,
    answers: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    identity: (String, String),
    introduced: bool,
    subscriptions: BTreeMap<Kind, Subscription>,
    n_responses: u64,
}

impl Conversation {
    fn new(shared: Arc<Shared>, answers: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>, identity: (String, String)) -> Self {
        Self { shared, answers, identity, introduced: false, subscriptions: BTreeMap::new(), n_responses: 0 }
    }

    async fn run(&mut self, mut requests: Streaming<DeltaDiscoveryRequest>) -> Result<(), Status> {
        let mut changed = self.shared.changed.subscribe();
        loop {
            tokio::select! {
                request = requests.message() => match request? {
                    Some(request) => self.hear(request).await?,
                    None => return Ok(()),
                },
                pushed = changed.changed() => {
                    if pushed.is_err() {
                        return Ok(());
                    }
                    changed.mark_unchanged();
                    for kind in Kind::ALL {
                        self.push(kind).await?;
                    }
                }
                () = self.answers.closed() => return Ok(()),
            }
        }
    }

    async fn hear(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        if !self.introduced {
            self.introduce(&request)?;
        }
        // Types that a test does not serve are subscribed to in vain, as secrets that do not exist are.
        let Some(kind) = Kind::of(&request.type_url) else { return Ok(()) };
        if !request.response_nonce.is_empty() {
            self.record(kind, &request)?;
        }
        let is_first = !self.subscriptions.contains_key(&kind);
        let subscription = self.subscriptions.entry(kind).or_default();
        if is_first {
            subscription.wildcard = request.resource_names_subscribe.is_empty();
            // What a returning client still has and this istiod does not know is told as removed by the first response.
            subscription.sent = request.initial_resource_versions.keys().map(|name| (name.clone(), 0)).collect();
        }
        for name in &request.resource_names_subscribe {
            if name == "*" {
                subscription.wildcard = true;
            } else {
                subscription.names.insert(name.clone());
                subscription.sent.remove(name);
            }
        }
        for name in &request.resource_names_unsubscribe {
            subscription.names.remove(name);
            subscription.sent.remove(name);
        }
        if is_first || !request.resource_names_subscribe.is_empty() {
            self.answer(kind, is_first).await?;
        }
        Ok(())
    }

    /// The first request carries the node; its namespace has to be the token's, as istiod checks.
    fn introduce(&mut self, request: &DeltaDiscoveryRequest) -> Result<(), Status> {
        let node = request.node.as_ref().ok_or_else(|| Status::invalid_argument("missing node information"))?;
        let json = xds_proto::message_to_json("envoy.config.core.v3.Node", &node.encode_to_vec())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (namespace, account) = &self.identity;
        let metadata = &json["metadata"];
        if metadata["NAMESPACE"] != **namespace || metadata["SERVICE_ACCOUNT"] != **account {
            return Err(Status::permission_denied(format!("authorization failed: node {json}, token {namespace}/{account}")));
        }
        self.shared.state().nodes.push(json);
        self.introduced = true;
        Ok(())
    }

    fn record(&self, kind: Kind, request: &DeltaDiscoveryRequest) -> Result<(), Status> {
        let generation = request.response_nonce.split('-').next().and_then(|text| text.parse().ok());
        let generation = generation.ok_or_else(|| Status::invalid_argument(format!("no nonce of ours: {}", request.response_nonce)))?;
        let refusal = request.error_detail.as_ref().map(|status| status.message.clone());
        self.shared.state().replies.push(Reply { kind, generation, refusal });
        Ok(())
    }

    async fn push(&mut self, kind: Kind) -> Result<(), Status> {
        if self.subscriptions.contains_key(&kind) { self.answer(kind, false).await } else { Ok(()) }
    }

    /// Sends what the client has not got, and what is gone; an empty response only if it is the first of its type.
    async fn answer(&mut self, kind: Kind, is_first: bool) -> Result<(), Status> {
        let Some(subscription) = self.subscriptions.get_mut(&kind) else { return Ok(()) };
        let (generation, resources, removed) = {
            let state = self.shared.state();
            let (resources, removed) = difference(&state, kind, subscription);
            (state.generation, resources, removed)
        };
        if resources.is_empty() && removed.is_empty() && !is_first {
            return Ok(());
        }
        self.n_responses += 1;
        let response = DeltaDiscoveryResponse {
            system_version_info: generation.to_string(),
            type_url: kind.type_url(),
            nonce: format!("{generation}-{}", self.n_responses),
            resources,
            removed_resources: removed,
            ..DeltaDiscoveryResponse::default()
        };
        // Nobody reads any more: the stream is over, and `run` sees it.
        drop(self.answers.send(Ok(response)).await);
        Ok(())
    }
}

fn difference(state: &State, kind: Kind, subscription: &mut Subscription) -> (Vec<Resource>, Vec<String>) {
    let empty = BTreeMap::new();
    let known = state.resources.get(&kind).unwrap_or(&empty);
    let mut resources = Vec::new();
    for (name, versioned) in known {
        if subscription.covers(name) && subscription.sent.get(name) != Some(&versioned.generation) {
            subscription.sent.insert(name.clone(), versioned.generation);
            let version = versioned.generation.to_string();
            resources.push(Resource { name: name.clone(), version, resource: Some(versioned.body.clone()), ..Resource::default() });
        }
    }
    if kind == Kind::Endpoints {
        for name in subscription.names.iter().filter(|name| !known.contains_key(*name)) {
            if subscription.sent.insert(name.clone(), 0).is_none() {
                resources.push(empty_assignment(name));
            }
        }
        return (resources, Vec::new());
    }
    let removed: Vec<String> = subscription.sent.keys().filter(|name| !known.contains_key(*name)).cloned().collect();
    for name in &removed {
        subscription.sent.remove(name);
    }
    (resources, removed)
}

fn empty_assignment(name: &str) -> Resource {
    use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;

    let assignment = ClusterLoadAssignment { cluster_name: name.to_owned(), ..ClusterLoadAssignment::default() };
    let body = Any { type_url: Kind::Endpoints.type_url(), value: assignment.encode_to_vec() };
    Resource { name: name.to_owned(), version: "0".to_owned(), resource: Some(body), ..Resource::default() }
}
