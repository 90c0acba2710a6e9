//! Has the conversation with istiod: connects, sends what [`Delta`] says, hands what arrives to the observer, and calls again when the
//! stream ends.
//!
//! Not for: the rules of the conversation ([`super::delta`]) and the meaning of resources (the observer).
//! Invariants: a disconnect takes nothing away from the observer; nothing here waits for istiod while holding a response; memory is
//! bounded by one response of `response_bytes_max` plus HTTP/2's window.

use std::convert::Infallible;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Request, Status};

use super::backoff::{Backoff, BackoffSettings};
use super::delta::{Delta, ProtocolError, Received};
use super::node::Node;
use super::{AdsObserver, AdsStatus, Applied};
use crate::auth::{AuthError, CallCredentials};
use crate::dial::{self, DialError, DialSettings};

/// Requests that may wait for istiod to read them. A response causes at most one per type and its ACK, and istiod reads without
/// waiting for us: more means that it has stopped reading.
const REQUESTS_QUEUED_MAX: usize = 256;

/// Default of [`AdsSettings::response_bytes_max`]. Listeners of a mesh with thousands of services take tens of MiB.
pub const RESPONSE_BYTES_MAX: usize = 512 * 1024 * 1024;

/// How to talk to istiod.
#[derive(Clone, Debug)]
pub struct AdsSettings {
    /// Where it is.
    pub dial: DialSettings,
    /// What each call carries.
    pub credentials: CallCredentials,
    /// Who we are.
    pub node: Node,
    /// How to wait between calls.
    pub backoff: BackoffSettings,
    /// Longest response that is read; a longer one ends the stream. Normally [`RESPONSE_BYTES_MAX`].
    pub response_bytes_max: usize,
}

/// Why a stream ended, or did not begin.
#[derive(Debug, Error)]
pub enum AdsError {
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The call cannot be made.
    #[error(transparent)]
    Credentials(#[from] AuthError),
    /// istiod refused the call or broke it off; `PERMISSION_DENIED` when namespace or service account of node and token differ.
    #[error("istiod: {}", dial::status_text(.0))]
    Status(#[from] Box<Status>),
    /// istiod ended the stream in good order, as it does when it stops or the connection is old.
    #[error("istiod closed the stream")]
    Closed,
    /// istiod broke the protocol.
    #[error("istiod sent {0}")]
    Protocol(ProtocolError),
    /// istiod takes no more requests.
    #[error("istiod does not read requests: {REQUESTS_QUEUED_MAX} are waiting")]
    Unread,
}

/// Talks to istiod for ever. Safe to cancel: the stream ends, what was applied stays.
///
/// Calls the observer from this task; see [`AdsObserver::apply`] about its speed.
pub async fn run(settings: AdsSettings, mut observer: impl AdsObserver) -> Infallible {
    let mut delta = Delta::new(settings.node.clone());
    let mut backoff = Backoff::new(settings.backoff);
    loop {
        observer.status(AdsStatus::Connecting);
        let mut connected_at = None;
        let reason = match converse(&settings, &mut delta, &mut observer, &mut connected_at).await {
            Ok(never) => match never {},
            Err(reason) => reason,
        };
        delta.disconnected();
        let held = connected_at.map_or(Duration::ZERO, |since: Instant| since.elapsed());
        let retry_in = backoff.after_failure(held, fastrand::f64());
        observer.status(AdsStatus::Disconnected { reason, retry_in });
        tokio::time::sleep(retry_in).await;
    }
}

/// One stream, from dialling to its end.
async fn converse(
    settings: &AdsSettings,
    delta: &mut Delta,
    observer: &mut impl AdsObserver,
    connected_at: &mut Option<Instant>,
) -> Result<Infallible, AdsError> {
    let channel = dial::connect(&settings.dial).await?;
    let (requests, mut waiting) = mpsc::channel(REQUESTS_QUEUED_MAX);
    let outgoing = futures_util::stream::poll_fn(move |context| waiting.poll_recv(context));
    let mut call = Request::new(outgoing);
    *call.metadata_mut() = settings.credentials.metadata().await?;
    // The first requests wait in the queue before the call is made: istiod answers not even with headers until it has read one.
    send(&requests, delta.connected())?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(settings.response_bytes_max);
    let mut responses = client.delta_aggregated_resources(call).await.map_err(Box::new)?.into_inner();
    *connected_at = Some(Instant::now());
    observer.status(AdsStatus::Connected);
    loop {
        let response = responses.message().await.map_err(Box::new)?.ok_or(AdsError::Closed)?;
        send(&requests, take_in(delta, observer, response)?)?;
    }
}

fn take_in(
    delta: &mut Delta,
    observer: &mut impl AdsObserver,
    response: DeltaDiscoveryResponse,
) -> Result<Vec<DeltaDiscoveryRequest>, AdsError> {
    match delta.receive(response) {
        Ok(Received::Update(update, pending)) => {
            let applied = observer.apply(update);
            Ok(delta.conclude(pending, applied))
        }
        Ok(Received::Malformed(error, pending)) => {
            tracing::warn!(%error, "refused a response of istiod");
            Ok(delta.conclude(pending, Applied::nack(error.to_string())))
        }
        Err(error) if error.is_fatal() => Err(AdsError::Protocol(error)),
        Err(error) => {
            tracing::warn!(%error, "left aside what istiod sent");
            Ok(Vec::new())
        }
    }
}

fn send(queue: &mpsc::Sender<DeltaDiscoveryRequest>, requests: Vec<DeltaDiscoveryRequest>) -> Result<(), AdsError> {
    for request in requests {
        // A closed queue means that the call has ended; its status says why, and is read next.
        if let Err(mpsc::error::TrySendError::Full(_)) = queue.try_send(request) {
            return Err(AdsError::Unread);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
