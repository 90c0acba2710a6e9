//! Whether a request carries the tokens that it must, and what verified tokens say.
//!
//! Not for: fetching keys; those that came with the configuration are in the model, others are an argument, as time is. Invariants: a request whose every token is not valid passes no
//! provider; headers that only a verified token may set are taken from every request; claims are kept of verified tokens only.

mod cache;
mod extract;
mod header;
mod problem;
mod ready;
mod token;
mod verify;

use std::sync::Arc;

use http::HeaderValue;
use http::header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use model::claims::{Claim, TokenMetadata};
use model::jwt::{Audiences, JwtAuthn, KeySet, KeySource, Provider, RemoteKeys, Requirement, TokenEdit, TokenPlace};
use model::stream_view::RequestHead;

pub use self::cache::{CACHED_TOKEN_BYTES_MAX, CACHED_TOKENS_MAX, TokenCache};
pub use self::extract::without_parameter;
pub use self::problem::TokenProblem;
use self::token::Token;
use crate::header_match::path_only;
use crate::route;

/// Tokens of one provider in a request, all of which have to be good; with more it is refused.
pub const TOKENS_MAX: usize = 32;

/// What tokens say and change.
#[derive(Debug, Default)]
pub struct Authenticated {
    /// Changes to the request, in order.
    pub edits: Vec<TokenEdit>,
    /// For policies and routes; none without a token.
    pub metadata: Option<TokenMetadata>,
}

/// Keys that are fetched, as far as they are.
#[derive(Clone, Debug)]
pub enum Fetched {
    /// These.
    Keys(Arc<KeySet>),
    /// None; it has to be waited for a fetch.
    NotYet,
    /// None, and a fetch has just failed.
    Failed,
}

/// Why a request does not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unmet {
    /// It is refused.
    Refused(TokenProblem),
    /// It has to be judged anew once these keys are there, or a fetch has failed.
    Needs(Arc<RemoteKeys>),
}

impl From<TokenProblem> for Unmet {
    fn from(problem: TokenProblem) -> Self {
        Self::Refused(problem)
    }
}

/// Around a request: what is known beside it.
pub struct Known<'k> {
    /// Tokens that were verified before.
    pub cache: &'k mut TokenCache,
    /// Keys that are fetched.
    pub fetched: &'k dyn Fn(&Arc<RemoteKeys>) -> Fetched,
    /// Seconds since 1970.
    pub now: u64,
}

impl std::fmt::Debug for Known<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Known").field("now", &self.now).finish_non_exhaustive()
    }
}

/// Judges the tokens of a request.
///
/// # Errors
/// The request is refused, or cannot be judged yet.
pub fn authenticate(authn: &JwtAuthn, head: &RequestHead<'_>, known: Known<'_>) -> Result<Authenticated, Unmet> {
    let mut passed = Authenticated::default();
    let own = authn.own_headers.iter().filter(|name| head.headers.contains_key(*name));
    passed.edits.extend(own.map(|name| TokenEdit::RemoveHeader(name.clone())));
    if authn.bypass_cors_preflight && is_preflight(head) {
        return Ok(passed);
    }
    let path = path_only(head.path);
    let Some(rule) = authn.rules.iter().find(|rule| route::matches(&rule.matches, head, path, None)) else { return Ok(passed) };
    if let Some(requirement) = &rule.requires {
        let mut request = Request { authn, head, known, passed: &mut passed };
        request.meets(requirement)?;
    }
    Ok(passed)
}

fn is_preflight(head: &RequestHead<'_>) -> bool {
    let has = |name| head.headers.get(name).is_some_and(|value: &HeaderValue| !value.is_empty());
    head.method == "OPTIONS" && has(ORIGIN) && has(ACCESS_CONTROL_REQUEST_METHOD)
}

struct Request<'r, 'h, 'k> {
    authn: &'r JwtAuthn,
    head: &'r RequestHead<'h>,
    known: Known<'k>,
    passed: &'r mut Authenticated,
}

impl Request<'_, '_, '_> {
    /// Recursion is bounded where the requirement is read.
    fn meets(&mut self, requirement: &Requirement) -> Result<(), Unmet> {
        match requirement {
            Requirement::Provider { provider, audiences } => {
                let provider = self.authn.providers.get(*provider).ok_or(TokenProblem::UnknownIssuer)?;
                self.passes(provider, audiences.as_ref().unwrap_or(&provider.audiences))
            }
            Requirement::All(all) => all.iter().try_for_each(|one| self.meets(one)),
            Requirement::Any { of, allow_missing } => {
                let mut worst = TokenProblem::Missing;
                for one in of {
                    let problem = match self.meets(one) {
                        Ok(()) => return Ok(()),
                        Err(Unmet::Refused(problem)) => problem,
                        Err(needs) => return Err(needs),
                    };
                    // A token that is bad says more than one of another issuer, and that more than none.
                    if worst == TokenProblem::Missing || !matches!(problem, TokenProblem::Missing | TokenProblem::UnknownIssuer) {
                        worst = problem;
                    }
                }
                if *allow_missing && worst == TokenProblem::Missing { Ok(()) } else { Err(worst.into()) }
            }
        }
    }

    /// All tokens in a provider's places have to be good: a bad one beside a good one might be the one that is used behind us.
    fn passes(&mut self, provider: &Provider, audiences: &Audiences) -> Result<(), Unmet> {
        let found = extract::tokens(self.head, &provider.places);
        if found.is_empty() {
            return Err(TokenProblem::Missing.into());
        }
        if found.len() > TOKENS_MAX {
            return Err(TokenProblem::Verification.into());
        }
        let mut good = Vec::with_capacity(found.len());
        for (text, place) in found.iter().rev() {
            good.push((self.verified(text, provider, audiences)?, &**text, *place));
        }
        for (token, text, place) in good {
            self.keep(&token, text, (provider, place));
        }
        Ok(())
    }

    fn verified(&mut self, text: &str, provider: &Provider, audiences: &Audiences) -> Result<Arc<Token>, Unmet> {
        let keys = match &provider.keys {
            KeySource::Given(keys) => Fetched::Keys(Arc::clone(keys)),
            KeySource::Fetched(remote) => (self.known.fetched)(remote),
        };
        let known = self.known.cache.get(text);
        let is_verified = matches!((&known, &keys), (Some(known), Fetched::Keys(keys)) if known.is_verified_by(keys));
        let token = known.map(|known| Arc::clone(&known.token)).map_or_else(|| Token::parse(text).map(Arc::new), Ok)?;
        self.judge(&token, provider, audiences)?;
        match (keys, &provider.keys) {
            _ if is_verified => {}
            (Fetched::Keys(keys), _) => {
                verify::verify(&token, text, self.known.cache.ready(&keys))?;
                self.known.cache.insert(text, &keys, &token);
            }
            (Fetched::NotYet, KeySource::Fetched(remote)) => return Err(Unmet::Needs(Arc::clone(remote))),
            (Fetched::NotYet | Fetched::Failed, _) => return Err(TokenProblem::FetchFailed.into()),
        }
        Ok(token)
    }

    /// All that is asked of a token but its signature.
    fn judge(&self, token: &Token, provider: &Provider, audiences: &Audiences) -> Result<(), TokenProblem> {
        let now = self.known.now;
        if provider.issuer.as_ref().is_some_and(|issuer| *issuer != token.issuer) {
            return Err(TokenProblem::UnknownIssuer);
        }
        if now.saturating_add(provider.clock_skew_seconds) < token.not_before {
            return Err(TokenProblem::NotYetValid);
        }
        if token.expires != 0 && now > token.expires.saturating_add(provider.clock_skew_seconds) {
            return Err(TokenProblem::Expired);
        }
        if !audiences.allow(token.audiences.iter().map(|audience| &**audience)) {
            return Err(TokenProblem::AudienceNotAllowed);
        }
        Ok(())
    }

    fn keep(&mut self, token: &Token, text: &str, (provider, place): (&Provider, &TokenPlace)) {
        let edits = &mut self.passed.edits;
        if let Some((name, is_padded)) = &provider.payload_header
            && let Some(payload) = text.get(token.payload_range.clone())
        {
            edits.extend(header::payload(payload, *is_padded).map(|value| TokenEdit::AddHeader(name.clone(), value)));
        }
        let mut adds_claim = false;
        for ClaimValue { name, value } in claim_values(provider, &token.payload) {
            adds_claim = true;
            edits.push(TokenEdit::AddHeader(name, value));
        }
        if !provider.forward {
            edits.extend(match place {
                TokenPlace::Header { name, .. } => Some(TokenEdit::RemoveHeader(name.clone())),
                TokenPlace::Parameter(name) => Some(TokenEdit::RemoveParameter(name.clone())),
                TokenPlace::Cookie(_) => None,
            });
        }
        let metadata = self.passed.metadata.get_or_insert_with(TokenMetadata::default);
        metadata.is_seen_by_routes |= provider.clear_route_cache && (adds_claim || provider.metadata_name.is_some());
        if let Some(name) = &provider.metadata_name {
            metadata.insert(name, with_lists(&token.payload, &provider.list_claims));
        }
    }
}

struct ClaimValue {
    name: http::HeaderName,
    value: HeaderValue,
}

/// Claims that are there and can be a header's value.
fn claim_values<'a>(provider: &'a Provider, payload: &'a Claim) -> impl Iterator<Item = ClaimValue> + 'a {
    provider.claim_headers.iter().filter_map(move |header| {
        let claim = header.claim.iter().try_fold(payload, |claim, name| claim.get(name))?;
        Some(ClaimValue { name: header.name.clone(), value: header::claim(claim)? })
    })
}

/// The payload with some texts as lists of their words; itself where there are none.
fn with_lists(payload: &Arc<Claim>, list_claims: &[Box<str>]) -> Arc<Claim> {
    if !list_claims.iter().any(|name| payload.get(name).is_some_and(|claim| claim.as_text().is_some())) {
        return Arc::clone(payload);
    }
    let mut payload = Claim::clone(payload);
    if let Claim::Object(members) = &mut payload {
        for (_, value) in members.iter_mut().filter(|(name, _)| list_claims.contains(name)) {
            if let Claim::Text(text) = value {
                let words: Vec<_> = text.split(' ').filter(|word| !word.is_empty()).map(|word| Claim::Text(word.into())).collect();
                // A text without words stays one, as in Envoy.
                if !words.is_empty() {
                    *value = Claim::List(words);
                }
            }
        }
    }
    Arc::new(payload)
}

#[cfg(test)]
mod tests;
