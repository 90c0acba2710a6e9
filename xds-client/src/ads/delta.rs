//! The rules of delta ADS as istiod keeps them (`pilot/pkg/xds/delta.go`), as a state machine.
//!
//! Not for: sockets, time, and what is inside a resource.
//! Use: [`Delta::connected`] gives the requests that open a stream; each response goes to [`Delta::receive`], what comes out of it to
//! whoever applies it, and the verdict with its [`Pending`] to [`Delta::conclude`], which gives the requests that follow. Requests are
//! sent in the order given.
//!
//! Invariants, each a rule of istiod's:
//! - an ACK or NACK echoes the nonce of its response and never changes names; names change only in requests without a nonce, and such
//!   a request is only sent when a name does change (istiod logs anything else as an error, and its tests panic);
//! - the first request of a type by name has names: without any it would ask for everything;
//! - what we hold after a disconnect is listed in the first request of the next stream, so that istiod names what has gone meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource};
use envoy_types::pb::google::rpc::Status;
use thiserror::Error;

use super::node::Node;
use super::{Applied, Resource, ResourceType, Update, Verdict, Wanted};

/// Longest reason that is sent with a NACK: istiod keeps it per proxy and `istioctl` prints it.
const NACK_REASON_BYTES_MAX: usize = 4096;

/// `google.rpc.Code` of a NACK, the one that Envoy uses: istiod counts rejects by it.
const NACK_CODE_INTERNAL: i32 = 13;

/// One proxy's side of the conversation. Lives as long as the process; streams come and go.
#[derive(Debug)]
pub struct Delta {
    node: Node,
    /// Counts streams, so that a verdict on a response of an earlier one is told apart.
    stream: u64,
    connected: bool,
    types: BTreeMap<ResourceType, TypeState>,
}

#[derive(Debug, Default)]
struct TypeState {
    /// Whether this stream carried a request of the type. The names asked for are then `wanted`, always.
    requested: bool,
    /// Whether a response of this stream was concluded.
    answered: bool,
    /// The names to ask for; empty for types that are asked for altogether.
    wanted: BTreeSet<String>,
    /// The resources that may be in use, with their versions. A version is empty when istiod gives none, and when what we use may
    /// differ from what it sent: it then comes again on the next stream.
    known: HashMap<String, String>,
}

/// A response that awaits its verdict.
#[must_use = "istiod waits for an ACK or NACK"]
#[derive(Debug, PartialEq, Eq)]
pub struct Pending {
    stream: u64,
    of: ResourceType,
    nonce: String,
    /// Names and versions in the response.
    resources: Vec<(String, String)>,
    removed: Vec<String>,
}

/// What a response turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// To be applied, then concluded.
    Update(Update, Pending),
    /// Not to be applied, and concluded with a NACK.
    Malformed(MalformedResponse, Pending),
}

/// A response that is refused as a whole, without a look inside its resources.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MalformedResponse {
    /// One name, two resources, or one of them removed.
    #[error("the response names {0:?} twice")]
    DuplicateName(String),
    /// A resource, or a removal, of nothing.
    #[error("the response has a resource without a name")]
    Unnamed,
    /// A name and nothing else.
    #[error("resource {0:?} has no body")]
    NoBody(String),
    /// A body of another type than the response.
    #[error("resource {name:?} is a {type_url}")]
    OtherType {
        /// The resource.
        name: String,
        /// What its body is.
        type_url: String,
    },
    /// A resource that expires by itself. istiod sends none; keeping one for ever would be wrong.
    #[error("resource {0:?} has a time to live, which is not supported")]
    TimeToLive(String),
    /// Names with parameters, which we never ask for.
    #[error("the response uses names with parameters, which are not supported")]
    Parameters,
}

/// A response that does not belong to the conversation.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProtocolError {
    /// Of a type that we do not know, hence never asked for. It is left aside; an answer would be a subscription.
    #[error("a response of the unknown type {0:?}")]
    UnknownType(String),
    /// Of a type that was not asked for on this stream. It is left aside for the same reason.
    #[error("a response with {0:?} resources, which were not asked for")]
    NotRequested(ResourceType),
    /// It cannot be acknowledged; the stream is of no use.
    #[error("a response with {0:?} resources and without a nonce")]
    EmptyNonce(ResourceType),
}

impl ProtocolError {
    /// Whether the stream has to be closed.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::EmptyNonce(_))
    }
}

impl Delta {
    /// A conversation that has not begun.
    #[must_use]
    pub fn new(node: Node) -> Self {
        let types = ResourceType::ALL.into_iter().map(|of| (of, TypeState::default())).collect();
        Self { node, stream: 0, connected: false, types }
    }

    /// A stream was opened: the requests to begin with.
    pub fn connected(&mut self) -> Vec<DeltaDiscoveryRequest> {
        self.disconnected();
        self.stream += 1;
        self.connected = true;
        self.open_types()
    }

    /// The stream has ended. What was learnt stays.
    pub fn disconnected(&mut self) {
        self.connected = false;
        for state in self.types.values_mut() {
            state.requested = false;
            state.answered = false;
        }
    }

    /// Reads a response.
    ///
    /// # Errors
    /// A response that does not belong to this stream; unless [`ProtocolError::is_fatal`], the stream goes on.
    pub fn receive(&mut self, response: DeltaDiscoveryResponse) -> Result<Received, ProtocolError> {
        let DeltaDiscoveryResponse { resources, type_url, removed_resources, removed_resource_names, nonce, .. } = response;
        let of = ResourceType::from_type_url(&type_url).ok_or(ProtocolError::UnknownType(type_url))?;
        let state = &self.types[&of];
        if !state.requested {
            return Err(ProtocolError::NotRequested(of));
        }
        if nonce.is_empty() {
            return Err(ProtocolError::EmptyNonce(of));
        }
        let mut pending = Pending { stream: self.stream, of, nonce, resources: Vec::new(), removed: Vec::new() };
        let parameters = !removed_resource_names.is_empty() || resources.iter().any(|resource| resource.resource_name.is_some());
        if parameters {
            return Ok(Received::Malformed(MalformedResponse::Parameters, pending));
        }
        let mut resources = match read_resources(of, resources, &removed_resources) {
            Ok(resources) => resources,
            Err(error) => return Ok(Received::Malformed(error, pending)),
        };
        if of.is_by_name() {
            // What was on its way when we gave up the name.
            resources.retain(|resource| state.wanted.contains(&resource.name));
        }
        pending.resources = resources.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect();
        pending.removed.clone_from(&removed_resources);
        Ok(Received::Update(Update { of, resources, removed: removed_resources }, pending))
    }

    /// A response was applied or refused: the requests that follow, the ACK or NACK first.
    pub fn conclude(&mut self, pending: Pending, applied: Applied) -> Vec<DeltaDiscoveryRequest> {
        let Pending { stream, of, nonce, resources, removed } = pending;
        self.remember(of, resources, &removed, &applied.verdict);
        let current = self.connected && stream == self.stream;
        let mut requests = Vec::new();
        if current {
            self.types.entry(of).or_default().answered = true;
            requests.push(answer(of, nonce, applied.verdict));
        }
        for wanted in applied.wanted {
            requests.extend(self.want(wanted));
        }
        if current {
            requests.extend(self.open_types());
        }
        requests
    }

    /// Other names are wanted from now on: the request to send, if that changes anything that istiod was told.
    pub fn want(&mut self, wanted: Wanted) -> Option<DeltaDiscoveryRequest> {
        let Wanted { of, names } = wanted;
        let state = self.types.entry(of).or_default();
        let before = std::mem::replace(&mut state.wanted, names);
        state.known.retain(|name, _| state.wanted.contains(name));
        if !state.requested {
            return self.is_due(of).then(|| self.first_request(of));
        }
        let subscribe: Vec<String> = state.wanted.difference(&before).cloned().collect();
        let unsubscribe: Vec<String> = before.difference(&state.wanted).cloned().collect();
        (!subscribe.is_empty() || !unsubscribe.is_empty()).then(|| DeltaDiscoveryRequest {
            type_url: of.type_url().to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// The names of a type that may be in use.
    pub fn known(&self, of: ResourceType) -> impl Iterator<Item = &str> {
        self.types[&of].known.keys().map(String::as_str)
    }

    /// First requests of all types whose turn has come. They follow one another at once, without waiting for answers: istiod answers
    /// the requests of a stream in their order, so endpoints still come before listeners.
    fn open_types(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let due: Vec<ResourceType> = ResourceType::ALL.into_iter().filter(|of| self.is_due(*of)).collect();
        due.into_iter().map(|of| self.first_request(of)).collect()
    }

    fn is_due(&self, of: ResourceType) -> bool {
        let state = &self.types[&of];
        let nothing_wanted = of.is_by_name() && state.wanted.is_empty();
        self.connected && !state.requested && !nothing_wanted && of.after().is_none_or(|earlier| self.types[&earlier].answered)
    }

    fn first_request(&mut self, of: ResourceType) -> DeltaDiscoveryRequest {
        let state = self.types.entry(of).or_default();
        state.requested = true;
        DeltaDiscoveryRequest {
            node: Some(self.node.0.clone()),
            type_url: of.type_url().to_owned(),
            resource_names_subscribe: state.wanted.iter().cloned().collect(),
            initial_resource_versions: state.known.clone(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Keeps the books. After a NACK any part of the response may be in use or not, so all its names stay known, without a version.
    fn remember(&mut self, of: ResourceType, resources: Vec<(String, String)>, removed: &[String], verdict: &Verdict) {
        let state = self.types.entry(of).or_default();
        let accepted = *verdict == Verdict::Ack;
        for (name, version) in resources {
            // A verdict that comes late may be about names given up since.
            if !of.is_by_name() || state.wanted.contains(&name) {
                state.known.insert(name, if accepted { version } else { String::new() });
            }
        }
        for name in removed {
            if accepted {
                state.known.remove(name);
            } else if let Some(version) = state.known.get_mut(name) {
                version.clear();
            }
        }
    }
}

fn read_resources(of: ResourceType, resources: Vec<WireResource>, removed: &[String]) -> Result<Vec<Resource>, MalformedResponse> {
    let mut names = HashSet::with_capacity(resources.len() + removed.len());
    for name in resources.iter().map(|resource| &resource.name).chain(removed) {
        if name.is_empty() {
            return Err(MalformedResponse::Unnamed);
        }
        if !names.insert(name.as_str()) {
            return Err(MalformedResponse::DuplicateName(name.clone()));
        }
    }
    drop(names);
    resources.into_iter().map(|resource| read_resource(of, resource)).collect()
}

fn read_resource(of: ResourceType, resource: WireResource) -> Result<Resource, MalformedResponse> {
    let WireResource { name, version, resource, ttl, .. } = resource;
    if ttl.is_some() {
        return Err(MalformedResponse::TimeToLive(name));
    }
    match resource {
        None => Err(MalformedResponse::NoBody(name)),
        Some(body) if body.type_url != of.type_url() => Err(MalformedResponse::OtherType { name, type_url: body.type_url }),
        Some(body) => Ok(Resource { name, version, body: Bytes::from(body.value) }),
    }
}

fn answer(of: ResourceType, nonce: String, verdict: Verdict) -> DeltaDiscoveryRequest {
    let error_detail = match verdict {
        Verdict::Ack => None,
        Verdict::Nack(mut reason) => {
            reason.truncate(reason.floor_char_boundary(NACK_REASON_BYTES_MAX));
            Some(Status { code: NACK_CODE_INTERNAL, message: reason, details: Vec::new() })
        }
    };
    DeltaDiscoveryRequest { type_url: of.type_url().to_owned(), response_nonce: nonce, error_detail, ..DeltaDiscoveryRequest::default() }
}

#[cfg(test)]
pub(crate) mod tests;
