//! The filters of a chain that routes configure: faults, CORS, rate limits, changes to headers; and policies that stand behind them.
//!
//! Not for: deciding, which `filters` and the model do. Invariant: what one of them answers is counted for the route's destination.

use std::sync::Arc;
use std::time::Instant;

use filters::cors::CorsOutcome;
use filters::headers::rendered;
use filters::rbac::{Decisions, RbacVerdict};
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, request};
use model::chain::HttpChain;
use model::claims::TokenMetadata;
use model::flags::ResponseFlag;
use model::headers::Mutations;
use model::rate_limit::descriptors::Rule;
use model::rate_limit::{RateLimit, Taken};
use model::rbac::Rbac;
use model::route::{Route, RouteFilter};
use smallvec::SmallVec;

use super::reply::LocalReply;
use super::{Run, edits, head_of, policy_input};
use crate::policies;

const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

impl Run {
    /// Passes filters in their order; an answer if one of them makes it. `of`: the route, if there is one, and what tokens say.
    pub(super) async fn filter(
        &mut self,
        filters: &[RouteFilter],
        of: (Option<&Arc<Route>>, Option<&TokenMetadata>),
        parts: &mut request::Parts,
    ) -> Option<LocalReply> {
        for filter in filters {
            if let Some(reply) = self.filter_by(filter, of, parts).await {
                if let (Some(route), _) = of {
                    self.note_route(route);
                }
                return Some(reply);
            }
        }
        None
    }

    async fn filter_by(
        &mut self,
        filter: &RouteFilter,
        (route, claims): (Option<&Arc<Route>>, Option<&TokenMetadata>),
        parts: &mut request::Parts,
    ) -> Option<LocalReply> {
        match filter {
            RouteFilter::Fault(fault) => {
                let injected = filters::fault::draw(fault, &head_of(parts), || self.worker.draw());
                if let Some(delay) = injected.delay {
                    if let Some(route) = route {
                        self.note_destination(route);
                    }
                    self.recording.record().stream.flags.insert(ResponseFlag::DelayInjected);
                    let began = Instant::now();
                    tokio::time::sleep(delay).await;
                    self.recording.waited_since(began);
                }
                injected.abort.map(LocalReply::fault)
            }
            RouteFilter::Cors(policy) => match filters::cors::decide(policy, &parts.method, &parts.headers, self.worker.draw()) {
                CorsOutcome::Pass => None,
                CorsOutcome::Tell(headers) => {
                    self.told.extend(headers);
                    None
                }
                CorsOutcome::Preflight(headers) => Some(LocalReply::preflight(headers)),
            },
            RouteFilter::RateLimit(limit, rules) => self.limit((limit, rules), parts),
            // A second filter finds gRPC, and lets it be.
            RouteFilter::GrpcWeb if self.web.is_some() => None,
            RouteFilter::GrpcWeb => {
                self.web = filters::grpc_web::begin(&mut parts.headers);
                self.recording.record().capture_request(&parts.headers);
                None
            }
            RouteFilter::Closed(name) => Some(LocalReply::extension_closed(name)),
            RouteFilter::Mutate(mutations) => self.change_request(mutations, parts),
            RouteFilter::Rbac(rbac) => self.judge(rbac, claims, parts),
        }
    }

    /// A policy behind other filters.
    fn judge(&mut self, rbac: &Rbac, claims: Option<&TokenMetadata>, parts: &request::Parts) -> Option<LocalReply> {
        let forwarded_for = self.recording.record().forwarded_for;
        let input = policy_input((&self.tunnel, forwarded_for), parts, claims);
        let mut decisions = Decisions::new();
        let verdict = filters::rbac::decide(rbac, &input, &mut decisions);
        policies::note(&decisions, &input, &mut self.recording.record().stream, &self.worker);
        match verdict {
            RbacVerdict::Pass => None,
            RbacVerdict::Deny(by) => Some(LocalReply::denied(by.policy())),
        }
    }

    /// Makes a filter's changes to a request.
    fn change_request(&mut self, mutations: &Mutations, parts: &mut request::Parts) -> Option<LocalReply> {
        let record = self.recording.record();
        if edits::change_request(record, mutations, parts).is_err() {
            return Some(LocalReply::no_path());
        }
        record.capture_request(&parts.headers);
        if let Some(head) = &mut record.head {
            head.path = parts.uri.path_and_query().cloned();
        }
        None
    }

    /// Makes the changes of filters to an answer, the last filter's first: of those that see all of it, or of the others.
    pub(super) fn change_answer(&mut self, headers: &mut HeaderMap, http: &HttpChain, see_all: bool) {
        let route = self.route.clone();
        let filters = match &route {
            Some(route) => [&route.first_filters, &route.filters],
            None => [&http.routeless[0], &http.routeless[1]],
        };
        for filter in filters.into_iter().flatten().rev() {
            if let RouteFilter::Mutate(mutations) = filter
                && mutations.sees_all_of_answers == see_all
            {
                let record = self.recording.record();
                filters::headers::change(&mutations.response, headers, &|format, headers| {
                    rendered(format, &record.seeing_response(headers))
                });
            }
        }
    }

    /// Asks a limit; an answer if the request is above it.
    fn limit(&mut self, (limit, rules): (&RateLimit, &[Rule]), parts: &mut request::Parts) -> Option<LocalReply> {
        if !limit.enabled.includes(self.worker.draw()) {
            return None;
        }
        let remote = self.recording.record().forwarded_for.unwrap_or_else(|| self.tunnel.connection.peer_address.ip());
        let limited = filters::rate_limit::take(limit, rules, (&head_of(parts), remote), Instant::now());
        if limit.tells
            && let Some(told) = limited.told
        {
            tell_limit(told, &mut self.told);
        }
        if limited.allowed {
            return None;
        }
        let record = self.recording.record();
        if !limit.enforced.includes(self.worker.draw()) {
            edits::edit_request(record, &limit.request_headers, &mut parts.headers);
            // For lines that have them.
            record.capture_request(&parts.headers);
            return None;
        }
        let mut headers = HeaderMap::new();
        edits::edit_answer(record, &limit.refusal_headers, &mut headers);
        Some(LocalReply::rate_limited(limit, headers))
    }
}

fn tell_limit((taken, tokens_max): (Taken, u32), told: &mut HeaderMap) {
    told.append(X_RATELIMIT_LIMIT, HeaderValue::from(tokens_max));
    told.append(X_RATELIMIT_REMAINING, HeaderValue::from(taken.remaining));
    told.append(X_RATELIMIT_RESET, HeaderValue::from(taken.next_seconds));
}

/// What limits tell, which stands beside what the application says of its own; all else replaces it.
pub(super) fn take_limits(told: &mut HeaderMap) -> SmallVec<[(HeaderName, HeaderValue); 3]> {
    let names = [X_RATELIMIT_LIMIT, X_RATELIMIT_REMAINING, X_RATELIMIT_RESET];
    names.into_iter().filter_map(|name| told.remove(&name).map(|value| (name, value))).collect()
}
