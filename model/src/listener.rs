//! All that the listeners of a waypoint say, once compiled: HBONE in, dispatch and chains, HBONE out.
//!
//! Not for: clusters and endpoints. Invariant: published as one value, so a CONNECT sees one generation.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::access_log::AccessLog;
use crate::chain::Chain;
use crate::dispatch::Dispatch;
use crate::invalid::Invalid;

/// Whether peers say in `baggage` who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BaggageUse {
    /// Theirs is read where nothing else says who they are.
    pub reads: bool,
    /// They are told ours.
    pub tells: bool,
}

/// What `connect_terminate` says.
#[derive(Clone, Debug)]
pub struct Terminate {
    /// Where HBONE is taken.
    pub addresses: Vec<SocketAddr>,
    /// A client's SPIFFE id must begin with one of these; an empty list means any of the mesh's roots. None: this could not be read,
    /// and whom the process accepts by itself holds.
    pub client_id_prefixes: Option<Vec<Box<str>>>,
    /// Streams per connection.
    pub concurrent_streams_max: u32,
    /// Time between keepalive pings.
    pub keepalive_interval: Duration,
    /// Time until an unanswered ping ends the connection.
    pub keepalive_timeout: Duration,
    /// Of clients.
    pub baggage: BaggageUse,
    /// Lines for CONNECTs.
    pub access_logs: Vec<AccessLog>,
}

/// What `connect_originate` says, cluster and listener together.
#[derive(Clone, Debug)]
pub struct Originate {
    /// Lines for tunnels that could not be made.
    pub access_logs: Vec<AccessLog>,
    /// Of pods, and of whom a gateway of another network leads to.
    pub baggage: BaggageUse,
}

/// Everything that LDS says.
#[derive(Clone, Debug)]
pub struct Listeners {
    /// HBONE in.
    pub terminate: Terminate,
    /// Reasons why something in `connect_terminate` is not obeyed: tunnels open, everything inside is refused.
    pub terminate_refused: Vec<Invalid>,
    /// Which chain.
    pub dispatch: Dispatch,
    /// Reasons why the matcher tree could not be read: nothing is dispatched.
    pub dispatch_refused: Vec<Invalid>,
    /// By name.
    pub chains: HashMap<Arc<str>, Arc<Chain>>,
    /// Lines for connections that no chain matches (`NR`).
    pub unmatched_access_logs: Vec<AccessLog>,
    /// HBONE out.
    pub originate: Originate,
}
