//! The filters of a chain that routes configure: faults, CORS, rate limits.
//!
//! Not for: deciding, which `filters` and the model do. Invariant: what one of them answers is counted for the route's destination.

use std::sync::Arc;
use std::time::Instant;

use filters::cors::CorsOutcome;
use filters::fault::Injected;
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use model::flags::ResponseFlag;
use model::rate_limit::{RateLimit, Taken};
use model::route::{Route, RouteFilter};
use smallvec::SmallVec;

use super::reply::LocalReply;
use super::{Run, head_of};

const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

impl Run {
    /// Passes the filters that come before policies and tokens; an answer if one of them makes it.
    pub(super) fn filter_first(&mut self, route: &Arc<Route>, parts: &mut http::request::Parts) -> Option<LocalReply> {
        for filter in &route.first_filters {
            if let RouteFilter::RateLimit(limit) = filter
                && let Some(reply) = self.limit(limit, parts)
            {
                self.note_route(route);
                return Some(reply);
            }
        }
        None
    }

    /// Passes the filters that a route configures; an answer if one of them makes it.
    pub(super) async fn filter(&mut self, route: &Arc<Route>, parts: &mut http::request::Parts) -> Option<LocalReply> {
        for filter in &route.filters {
            match filter {
                RouteFilter::Fault(fault) => {
                    let injected = filters::fault::draw(fault, &head_of(parts), || self.worker.draw());
                    if injected != Injected::default() {
                        self.note_destination(route);
                    }
                    if let Some(delay) = injected.delay {
                        self.recording.record().stream.flags.insert(ResponseFlag::DelayInjected);
                        tokio::time::sleep(delay).await;
                    }
                    if let Some(abort) = injected.abort {
                        return Some(LocalReply::fault(abort));
                    }
                }
                RouteFilter::Cors(policy) => match filters::cors::decide(policy, &parts.method, &parts.headers, self.worker.draw()) {
                    CorsOutcome::Pass => {}
                    CorsOutcome::Tell(headers) => self.told.extend(headers),
                    CorsOutcome::Preflight(headers) => {
                        self.note_destination(route);
                        return Some(LocalReply::preflight(headers));
                    }
                },
                RouteFilter::RateLimit(limit) => {
                    if let Some(reply) = self.limit(limit, parts) {
                        self.note_destination(route);
                        return Some(reply);
                    }
                }
            }
        }
        None
    }

    /// Asks limits of a request that has no route.
    pub(super) fn limit_all(&mut self, limits: &[Arc<RateLimit>], parts: &mut http::request::Parts) -> Option<LocalReply> {
        limits.iter().find_map(|limit| self.limit(limit, parts))
    }

    /// Asks a limit; an answer if the request is above it.
    fn limit(&mut self, limit: &RateLimit, parts: &mut http::request::Parts) -> Option<LocalReply> {
        if !limit.enabled.includes(self.worker.draw()) {
            return None;
        }
        let taken = limit.bucket.take(Instant::now());
        if limit.tells {
            tell_limit(limit, taken, &mut self.told);
        }
        if taken.allowed {
            return None;
        }
        let record = self.recording.record();
        if !limit.enforced.includes(self.worker.draw()) {
            filters::headers::apply(&limit.request_headers, &mut parts.headers, record);
            return None;
        }
        let mut headers = HeaderMap::new();
        filters::headers::apply(&limit.refusal_headers, &mut headers, record);
        Some(LocalReply::rate_limited(limit, headers))
    }
}

fn tell_limit(limit: &RateLimit, taken: Taken, told: &mut HeaderMap) {
    told.append(X_RATELIMIT_LIMIT, HeaderValue::from(limit.bucket.tokens_max()));
    told.append(X_RATELIMIT_REMAINING, HeaderValue::from(taken.remaining));
    told.append(X_RATELIMIT_RESET, HeaderValue::from(taken.next_seconds));
}

/// What limits tell, which stands beside what the application says of its own; all else replaces it.
pub(super) fn take_limits(told: &mut HeaderMap) -> SmallVec<[(HeaderName, HeaderValue); 3]> {
    let names = [X_RATELIMIT_LIMIT, X_RATELIMIT_REMAINING, X_RATELIMIT_RESET];
    names.into_iter().filter_map(|name| told.remove(&name).map(|value| (name, value))).collect()
}
