//! Requests of our own on one endpoint, beside those of clients: copies of them, questions about them.
//!
//! Not for: clients' requests, whose policies decide about tries (`request::attempt`). Invariant: one try, and once more where an idle
//! connection turns out to have ended before anything was sent.

use http::{Request, Response, header};
use model::route::Priority;
use telemetry::grpc::GrpcStatus;

use crate::http::body::Body;
use crate::http::session::Protocol;
use crate::state::breaker::Resource;
use crate::state::health::{ActiveRequest, Verdict};
use crate::state::published::ServedCluster;
use crate::state::table::EndpointEntry;
use crate::upstream::connect::Dialer;
use crate::upstream::failure::UpstreamFailure;
use crate::upstream::pool::{Lease, SessionPool, Wanted};
use crate::worker::Worker;

/// Whose sessions and connections are used.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// HTTP sessions.
    pub sessions: &'a SessionPool,
    /// Connections.
    pub dialer: &'a Dialer,
}

impl<'a> From<&'a Worker> for Caller<'a> {
    fn from(worker: &'a Worker) -> Self {
        Self { sessions: &worker.sessions, dialer: &worker.dialer }
    }
}

/// What an answer holds while it is read; dropped before, its connection is closed.
#[derive(Debug)]
pub struct Holding {
    lease: Lease,
    _active: ActiveRequest,
}

impl Holding {
    /// The answer was read to its end.
    pub fn give_back<'a>(self, by: impl Into<Caller<'a>>) {
        by.into().sessions.give_back(self.lease);
    }
}

/// Sends a request to an endpoint, and waits for the head of its answer.
///
/// # Errors
/// There is none.
///
/// # Cancel safety
/// Dropping the future cancels the request.
pub async fn send<'a>(
    by: impl Into<Caller<'a>>,
    (cluster, entry): (&ServedCluster, &EndpointEntry),
    mut request: Request<Body>,
    priority: Priority,
) -> Result<(Response<Body>, Holding), UpstreamFailure> {
    let Caller { sessions, dialer } = by.into();
    let mut active = ActiveRequest::begin(&entry.state);
    let protocol = Protocol::of(cluster.cluster.protocol, request.version());
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    let mut is_fresh = false;
    loop {
        let wanted = Wanted { cluster, endpoint: &entry.endpoint, protocol, priority, host: host.as_deref(), proxied: None };
        let mut lease = match sessions.at_hand(wanted, is_fresh) {
            Some(lease) => lease,
            None => sessions.make(wanted, dialer).await?,
        };
        cluster.note(entry, Verdict::Connected);
        match cluster.breakers.take(Resource::Request, priority) {
            Ok(permit) => active.hold(permit),
            Err(overflow) => {
                sessions.give_back(lease);
                return Err(overflow.into());
            }
        }
        match lease.session.send(request, None).await {
            Ok(response) => return Ok((response, Holding { lease, _active: active })),
            Err(mut error) => match error.request.take() {
                Some(again) if lease.is_reused && error.nothing_sent && !is_fresh => {
                    request = *again;
                    is_fresh = true;
                }
                _ => return Err(UpstreamFailure::from_send(error.kind, error.nothing_sent)),
            },
        }
    }
}

/// What an answer says about its endpoint: its status, or what gRPC's is in HTTP.
pub fn verdict_of(response: &Response<Body>) -> Verdict {
    let status = response.status().as_u16();
    Verdict::Answered(grpc_status(response).map_or(status, |number| GrpcStatus::new(number).to_http()))
}

/// gRPC's status in the head of an answer.
pub fn grpc_status(response: &Response<Body>) -> Option<u32> {
    response.headers().get("grpc-status")?.to_str().ok()?.parse().ok()
}
