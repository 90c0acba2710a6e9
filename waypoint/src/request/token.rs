//! The tokens of a request: judged by `filters::jwt`, and its changes made.
//!
//! Invariant: a header that only a verified token may set is never what the client sent.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use filters::jwt::{Fetched, Known, TokenProblem, Unmet, authenticate, without_parameter};
use http::header::WWW_AUTHENTICATE;
use http::uri::PathAndQuery;
use http::{HeaderValue, Uri};
use model::chain::HttpChain;
use model::claims::TokenMetadata;
use model::jwt::{JwtAuthn, RemoteKeys, TokenEdit};
use model::refusal::{Refusal, RefusedBy};

use super::reply::LocalReply;
use super::{Run, head_of};

/// Bytes of a path that `www-authenticate` repeats, as in Envoy.
const REALM_PATH_BYTES_MAX: usize = 256;

/// What tokens say, or the answer in their place.
pub(super) type Said = Result<Option<TokenMetadata>, Box<LocalReply>>;

impl Run {
    /// What the verified tokens of a request say, once it is changed as they change it; else the answer. Where keys have to be fetched first,
    /// it waits for them, as long as one fetch of each may take.
    pub(super) async fn authenticate_with_remote_keys(
        &mut self,
        authn: &JwtAuthn,
        http: &HttpChain,
        parts: &mut http::request::Parts,
    ) -> Said {
        let mut waited: Vec<(Arc<RemoteKeys>, Fetched)> = Vec::new();
        loop {
            let published = Arc::clone(&self.worker.published);
            let fetched = |remote: &Arc<RemoteKeys>| {
                let known = waited.iter().find(|(known, _)| known == remote);
                // A set that is not there is one of a chain that is not there any more.
                let now = || published.key_sets.get(remote).map_or(Fetched::Failed, |set| set.now());
                known.map_or_else(now, |(_, fetched)| fetched.clone())
            };
            match self.authenticate_with(authn, http, parts, &fetched) {
                Ok(said) => return said,
                Err(remote) => {
                    let set = published.key_sets.get(&remote);
                    let began = Instant::now();
                    let fetched = match (set, self.worker.key_waits.try_acquire()) {
                        (Some(set), Ok(_permit)) => set.wait().await,
                        _ => Fetched::Failed,
                    };
                    self.recording.waited_since(began);
                    // Each is waited for once, so that this ends.
                    waited.push((remote, fetched));
                }
            }
        }
    }

    /// As above, where no keys have to be fetched.
    pub(super) fn authenticate(&mut self, authn: &JwtAuthn, http: &HttpChain, parts: &mut http::request::Parts) -> Said {
        self.authenticate_with(authn, http, parts, &|_| Fetched::Failed).unwrap_or_else(|_| Err(LocalReply::config_rejected().into()))
    }

    /// None of these keys is there yet: an error.
    fn authenticate_with(
        &mut self,
        authn: &JwtAuthn,
        http: &HttpChain,
        parts: &mut http::request::Parts,
        fetched: &dyn Fn(&Arc<RemoteKeys>) -> Fetched,
    ) -> Result<Said, Arc<RemoteKeys>> {
        // A clock that says nothing lets nothing pass that ends.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |since| since.as_secs());
        let head = head_of(parts);
        match self.worker.with_tokens(|cache| authenticate(authn, &head, Known { cache, fetched, now })) {
            Ok(passed) => {
                if !passed.edits.is_empty()
                    && let Err(reply) = self.edit(passed.edits, parts)
                {
                    return Ok(Err(reply));
                }
                Ok(Ok(passed.metadata))
            }
            Err(Unmet::Refused(problem)) => {
                if let Some((_, route)) = filters::route::select(&http.routes, &head) {
                    self.note_route(route);
                }
                let refusal = Refusal { detail: Some(problem.to_string().into()), ..Refusal::new(RefusedBy::Token) };
                self.recording.record().stream.refusal = Some(Box::new(refusal));
                self.told.extend(realm(&head, problem).map(|value| (WWW_AUTHENTICATE, value)));
                Ok(Err(LocalReply::token_refused(problem).into()))
            }
            Err(Unmet::Needs(remote)) => Err(remote),
        }
    }

    /// Changes a request, and what is noted of it. A token that would have to stay in a path refuses the request.
    fn edit(&mut self, edits: Vec<TokenEdit>, parts: &mut http::request::Parts) -> Result<(), Box<LocalReply>> {
        apply_edits(edits, parts).map_err(|NoPath| LocalReply::no_path())?;
        let record = self.recording.record();
        if let Some(head) = &mut record.head {
            head.path = parts.uri.path_and_query().cloned();
        }
        record.capture_request(&parts.headers);
        Ok(())
    }
}

/// What is left of a path without its token is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPath;

/// Changes a request as its tokens do.
///
/// # Errors
/// A token would have to stay in the path.
pub fn apply_edits(edits: Vec<TokenEdit>, parts: &mut http::request::Parts) -> Result<(), NoPath> {
    for edit in edits {
        match edit {
            TokenEdit::RemoveHeader(name) => {
                parts.headers.remove(name);
            }
            TokenEdit::AddHeader(name, value) => {
                parts.headers.append(name, value);
            }
            TokenEdit::RemoveParameter(name) => {
                let path = parts.uri.path_and_query().and_then(|path| without_parameter(path.as_str(), &name));
                if let Some(path) = path {
                    parts.uri = with_path(&parts.uri, path).ok_or(NoPath)?;
                }
            }
        }
    }
    Ok(())
}

pub(super) fn with_path(uri: &Uri, path: String) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    Uri::from_parts(parts).ok()
}

/// `www-authenticate` (RFC 6750) as Envoy writes it.
fn realm(head: &model::stream_view::RequestHead<'_>, problem: TokenProblem) -> Option<HeaderValue> {
    let path = head.path.get(..REALM_PATH_BYTES_MAX).unwrap_or(head.path);
    let error = if problem == TokenProblem::Missing { "" } else { ", error=\"invalid_token\"" };
    let authority = head.authority.unwrap_or_default();
    HeaderValue::from_str(&format!("Bearer realm=\"{}://{authority}{path}\"{error}", head.scheme)).ok()
}
