//! Waits until it is known where the host is that a request names, for clusters that look hosts up when they are asked for.
//!
//! Not for: looking up (`upstream::dns`), or what is known already (`state::by_host`). Invariant: a wait ends by a limit of its request.

use std::sync::Arc;
use std::time::Instant;

use filters::timeout::TimeLimits;
use http::request;

use super::Run;
use super::attempt::Forwarding;
use super::limits;
use super::recording::Upload;
use super::time_limits::limits_left;
use crate::http::normalize::UpgradeRequested;
use crate::state::by_host::KnownHost;
use crate::state::published::ServedCluster;
use crate::upstream::balance;
use crate::upstream::failure::UpstreamFailure;

/// The host that the request names, where its cluster looks hosts up when they are asked for. In Envoy a filter waits for it, before the
/// router: the limits of the stream count meanwhile, those of the route do not.
pub(super) async fn known_host(
    run: &mut Run,
    (parts, has_ended): (&request::Parts, bool),
    to: &Forwarding<'_>,
    cluster: &ServedCluster,
) -> Result<Option<Arc<KnownHost>>, UpstreamFailure> {
    if cluster.by_host.is_none() {
        return Ok(None);
    }
    let limits = limits_left(run, parts, to);
    let is_upgrade = parts.extensions.get::<UpgradeRequested>().is_some();
    let limits = TimeLimits { request: None, upload: limits.upload.filter(|_| !is_upgrade), ..limits };
    let activity = limits.idle.map(|_| run.recording.watch_activity());
    // Its body is not read before it is known where it goes.
    let upload = (!has_ended).then(Arc::<Upload>::default);
    let authority = parts.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
    // Boxed: requests to other clusters carry no room for it.
    let found = Box::pin(balance::host_of(cluster, authority));
    let began = Instant::now();
    let found = match limits::expiry(&limits, upload, activity) {
        None => found.await.map_err(Into::into),
        Some(expiry) => tokio::select! {
            biased;
            found = found => found.map_err(Into::into),
            expired = expiry => Err(expired.failure(has_ended)),
        },
    };
    run.recording.waited_since(began);
    found
}
