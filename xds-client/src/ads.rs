//! Delta ADS: the conversation with istiod about configuration. This file is its vocabulary.
//!
//! Read on: [`node`] says who we are, [`delta`] holds the rules of the conversation without I/O, [`backoff`] when to call again, and
//! [`stream`] has the conversation.
//! Not for: what is inside a resource. A resource is a name and bytes here; whoever observes gives a verdict.
//! Invariant: names that istiod was not asked for reach no observer.

pub mod backoff;
pub mod delta;
pub mod node;
pub mod stream;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

/// What a waypoint asks istiod for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// CDS: all clusters.
    Cluster,
    /// EDS: the endpoints of clusters, by name.
    Endpoint,
    /// SDS: certificates of clusters, by name.
    Secret,
    /// LDS: all listeners, with routes inside. A waypoint has no RDS.
    Listener,
    /// ECDS: filter configurations that listeners refer to, by name.
    Extension,
    /// WDS: all workloads of the mesh.
    Workload,
}

impl ResourceType {
    /// Every type, in the order in which requests for them are sent.
    pub const ALL: [Self; 6] = [Self::Cluster, Self::Endpoint, Self::Secret, Self::Listener, Self::Extension, Self::Workload];

    /// What the protocol calls the type.
    #[must_use]
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Extension => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            Self::Workload => "type.googleapis.com/istio.workload.Workload",
        }
    }

    /// The type of a URL, if it is one of ours.
    #[must_use]
    pub fn from_type_url(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|of| of.type_url() == type_url)
    }

    /// Whether resources are asked for by name; the others are asked for altogether.
    #[must_use]
    pub fn is_by_name(self) -> bool {
        matches!(self, Self::Endpoint | Self::Secret | Self::Extension)
    }

    /// The type whose first answer on a stream comes before this one is asked for. Clusters come first, then what they refer to, then
    /// the listeners that refer to clusters: so nothing arrives before what it needs.
    fn after(self) -> Option<Self> {
        match self {
            Self::Cluster | Self::Workload => None,
            Self::Endpoint | Self::Secret | Self::Listener => Some(Self::Cluster),
            Self::Extension => Some(Self::Listener),
        }
    }
}

/// One response of istiod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Of what.
    pub of: ResourceType,
    /// New and changed resources; no name twice. Equal ones may come again, at least on every new stream.
    pub resources: Vec<Resource>,
    /// Names that are gone. A name that is not known here is gone already: not an error.
    pub removed: Vec<String>,
}

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Unique within its type.
    pub name: String,
    /// istiod's; empty except for workloads.
    pub version: String,
    /// The message, of the type of the [`Update`].
    pub body: Bytes,
}

/// The answer to an [`Update`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All of it holds now.
    Ack,
    /// Some of it was refused and why, as `istioctl proxy-status` shows it. istiod does not send it again before it changes.
    Nack(String),
}

/// The names of one type that should be asked for from now on, instead of those before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    of: ResourceType,
    names: BTreeSet<String>,
}

/// Why names cannot be asked for.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WantedError {
    /// All resources of the type are asked for anyway.
    #[error("{0:?} resources are not asked for by name")]
    NotByName(ResourceType),
    /// Empty, or `*`, which would ask for everything.
    #[error("{1:?} cannot be the name of a {0:?} resource")]
    Name(ResourceType, String),
}

/// Whether a resource of this name can be asked for: nothing is nobody's name, and `*` means all.
pub(crate) fn is_askable(name: &str) -> bool {
    !matches!(name, "" | "*")
}

impl Wanted {
    /// The names to ask for.
    ///
    /// # Errors
    /// A type that is not asked for by name, or a name that means something else to the protocol.
    pub fn new(of: ResourceType, names: BTreeSet<String>) -> Result<Self, WantedError> {
        if !of.is_by_name() {
            return Err(WantedError::NotByName(of));
        }
        match names.iter().find(|name| !is_askable(name)) {
            Some(name) => Err(WantedError::Name(of, name.clone())),
            None => Ok(Self { of, names }),
        }
    }

    /// Of which type.
    #[must_use]
    pub fn of(&self) -> ResourceType {
        self.of
    }

    /// The names.
    #[must_use]
    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }
}

/// What came of an [`Update`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Told to istiod.
    pub verdict: Verdict,
    /// Names to ask for from now on; a type that is not mentioned stays as it is.
    pub wanted: Vec<Wanted>,
}

impl Applied {
    /// Accepted, and nothing else to ask for.
    #[must_use]
    pub fn ack() -> Self {
        Self { verdict: Verdict::Ack, wanted: Vec::new() }
    }

    /// Refused, and nothing else to ask for.
    #[must_use]
    pub fn nack(reason: String) -> Self {
        Self { verdict: Verdict::Nack(reason), wanted: Vec::new() }
    }
}

/// How the conversation is doing.
#[derive(Debug)]
pub enum AdsStatus {
    /// Calling istiod.
    Connecting,
    /// istiod has answered.
    Connected,
    /// The stream has ended. What was applied stays applied.
    Disconnected {
        /// Why.
        reason: stream::AdsError,
        /// How long until the next call.
        retry_in: Duration,
    },
}

/// Who is told.
pub trait AdsObserver {
    /// Applies a response. The stream waits meanwhile: nothing further is read than what HTTP/2's window holds.
    fn apply(&mut self, update: Update) -> Applied;

    /// Learns how the conversation is doing, for readiness and the log.
    fn status(&mut self, status: AdsStatus);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_known_by_its_url() {
        for of in ResourceType::ALL {
            assert_eq!(ResourceType::from_type_url(of.type_url()), Some(of));
        }
        assert_eq!(ResourceType::from_type_url("type.googleapis.com/envoy.config.route.v3.RouteConfiguration"), None);
    }

    #[test]
    fn names_with_a_meaning_of_their_own_cannot_be_wanted() {
        let names = |name: &str| BTreeSet::from([name.to_owned()]);
        assert_eq!(Wanted::new(ResourceType::Cluster, names("a")), Err(WantedError::NotByName(ResourceType::Cluster)));
        for name in ["", "*"] {
            let expected = Err(WantedError::Name(ResourceType::Endpoint, name.to_owned()));
            assert_eq!(Wanted::new(ResourceType::Endpoint, names(name)), expected);
        }
    }
}
