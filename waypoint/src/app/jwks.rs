//! Fetches the key sets that providers of tokens name, ahead of time, and again before they grow old.
//!
//! Not for: what requests do meanwhile (`state::jwks`), or reading keys (`xds_client::jwks`). Lives on the control thread, with sessions of
//! its own. Invariants: one fetch of a set at a time, [`FETCHES_MAX`] of all; what is not a whole and usable set leaves the one before.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use filters::jwt::Fetched;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use model::jwt::{FetchRetries, KeyMaterial, KeySet, RemoteKeys};
use model::route::Priority;
use prometheus::core::Collector;
use prometheus::{GaugeVec, IntCounterVec, Opts, Registry};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use xds_client::jwks::key_set;

use crate::call::{self, Caller};
use crate::http::body::{Body, BodyError};
use crate::state::health::Verdict;
use crate::state::jwks::RemoteKeySet;
use crate::state::published::{ClusterEntry, Published, ServedCluster};
use crate::state::table::EndpointEntry;
use crate::upstream::balance::{self, Wish};
use crate::upstream::connect::Dialer;
use crate::upstream::failure::UpstreamFailure;
use crate::upstream::pool::SessionPool;

/// Fetches at a time; more wait.
const FETCHES_MAX: usize = 8;
/// Bytes of an answer; a longer one is a failed fetch.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Keys of a set; one with more is a failed fetch. A token that names no key is tried with all.
const KEYS_MAX: usize = 128;
/// The longest pause between fetches that fail, while no request waits.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The shortest time after which keys are fetched anew.
const REFRESH_MIN: Duration = Duration::from_secs(1);

/// Bytes of an RSA modulus; a larger key is left out, since verifying with it takes too long.
const RSA_BYTES_MAX: usize = 512;
/// How fetches are counted.
const RESULTS: [&str; 2] = ["fetched", "failed"];

/// Why a fetch failed.
#[derive(Debug, Error)]
enum FetchError {
    #[error("there is no cluster {0}")]
    NoCluster(Arc<str>),
    #[error("the cluster {0} was refused")]
    ClusterRefused(Arc<str>),
    #[error("no healthy upstream")]
    NoEndpoint,
    #[error("{0}")]
    Upstream(Cow<'static, str>),
    #[error("overflow")]
    Overflow,
    #[error("the answer broke off: {0}")]
    Body(#[from] BodyError),
    #[error("the answer is {0}")]
    Status(StatusCode),
    #[error("the answer is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    #[error("the answer {0}")]
    NoKeySet(String),
    #[error("the answer has no key that can be used")]
    NoKeys,
    #[error("the answer has {0} keys, more than {KEYS_MAX}")]
    TooManyKeys(usize),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

impl From<UpstreamFailure> for FetchError {
    fn from(failure: UpstreamFailure) -> Self {
        match &failure {
            UpstreamFailure::Overflow => Self::Overflow,
            other => Self::Upstream(other.transport_reason().map_or_else(|| other.details(), |reason| reason.to_string().into())),
        }
    }
}

impl FetchError {
    /// Whether more of the configuration may have to come first.
    fn is_too_early(&self) -> bool {
        matches!(self, Self::NoCluster(_) | Self::NoEndpoint)
    }
}

struct Fetcher {
    published: Arc<Published>,
    sessions: SessionPool,
    dialer: Dialer,
    limit: Semaphore,
    /// Told when clusters or endpoints may have changed.
    applied: watch::Sender<()>,
    fetches: IntCounterVec,
}

/// Keeps all sets that chains name.
pub(super) struct JwksKeeper {
    fetcher: Arc<Fetcher>,
    /// Dropped, they end.
    running: HashMap<Arc<RemoteKeys>, JoinSet<()>>,
}

/// What is told of key sets.
#[derive(Clone)]
pub(super) struct JwksView {
    published: Arc<Published>,
    age: GaugeVec,
}

impl JwksKeeper {
    pub(super) fn new(published: Arc<Published>, dialer: Dialer, registry: &Registry) -> (Self, JwksView) {
        let fetches = Opts::new("waypoint_jwks_fetches_total", "Fetches of key sets.");
        let fetches = IntCounterVec::new(fetches, &["uri", "result"]).expect("a well-formed name");
        let age = Opts::new("waypoint_jwks_age_seconds", "How long ago a key set was last fetched.");
        let age = GaugeVec::new(age, &["uri"]).expect("a well-formed name");
        for collector in [Box::new(fetches.clone()) as Box<dyn Collector>, Box::new(age.clone())] {
            registry.register(collector).expect("each name is registered once");
        }
        let view = JwksView { published: Arc::clone(&published), age };
        let fetcher = Fetcher {
            published,
            sessions: SessionPool::default(),
            dialer,
            limit: Semaphore::new(FETCHES_MAX),
            applied: watch::Sender::default(),
            fetches,
        };
        (Self { fetcher: Arc::new(fetcher), running: HashMap::new() }, view)
    }

    /// Clusters or endpoints may have changed.
    pub(super) fn on_applied(&self) -> impl Fn() + Send + Sync + 'static {
        let fetcher = Arc::clone(&self.fetcher);
        move || fetcher.applied.send_modify(|()| ())
    }

    /// These sets are wanted now. Those that are known go on. Must be called on the control thread's runtime.
    pub(super) fn want(&mut self, wanted: &[Arc<RemoteKeys>]) {
        for gone in self.running.keys().filter(|remote| !wanted.iter().any(|kept| kept.name == remote.name)) {
            for result in RESULTS {
                // Not every result has been counted.
                drop(self.fetcher.fetches.remove_label_values(&[&*gone.name, result]));
            }
        }
        self.running.retain(|remote, _| wanted.contains(remote));
        for remote in wanted {
            if !self.running.contains_key(remote)
                && let Some(set) = self.fetcher.published.key_sets.get(remote)
            {
                let mut task = JoinSet::new();
                task.spawn(keep(Arc::clone(&self.fetcher), set));
                self.running.insert(Arc::clone(remote), task);
            }
        }
    }
}

impl JwksView {
    /// Brings ages up to now.
    pub(super) fn refresh(&self) {
        self.age.reset();
        for set in self.published.key_sets.all() {
            if let Some(held) = set.held() {
                let age = self.age.with_label_values(&[&*set.remote.name]);
                age.set(age.get().max(held.fetched.elapsed().as_secs_f64()));
            }
        }
    }

    /// All sets, as JSON.
    pub(super) fn page(&self) -> String {
        let all: Vec<_> = self.published.key_sets.all().iter().map(|set| page_entry(set)).collect();
        format!("{:#}\n", Value::Array(all))
    }
}

fn page_entry(set: &RemoteKeySet) -> Value {
    let (held, attempt) = (set.held(), set.attempt());
    let keys = held.as_ref().map(|held| held.keys.keys.iter().map(|key| key.id.to_string()).collect::<Vec<_>>());
    json!({
        "uri": &*set.remote.name,
        "cluster": &*set.remote.cluster,
        "keys": keys,
        "age_seconds": held.map(|held| held.fetched.elapsed().as_secs()),
        "good_for_seconds": set.remote.cache_duration.as_secs(),
        "fetches": attempt.number,
        "failure": attempt.failed.map(|(_, reason)| reason.to_string()),
    })
}

/// Fetches a set again and again.
async fn keep(fetcher: Arc<Fetcher>, set: Arc<RemoteKeySet>) {
    let remote = &set.remote;
    let mut failures = 0;
    loop {
        let outcome = fetcher.fetch(&set).await;
        let result = RESULTS[usize::from(outcome.is_err())];
        fetcher.fetches.with_label_values(&[&*remote.name, result]).inc();
        failures = if outcome.is_ok() { 0 } else { failures + 1 };
        if let Err(error) = &outcome {
            tracing::warn!(uri = %remote.name, cluster = %remote.cluster, %error, "keys of tokens cannot be fetched; those that are held stay");
        }
        match outcome {
            Ok(keys) => set.fetched(Ok(keys)),
            Err(error @ FetchError::NoKeys) => set.withdrawn(error.to_string().into()),
            Err(error) => set.fetched(Err(error.to_string().into())),
        }
        let pause = if failures == 0 {
            refresh_after(remote.cache_duration, fastrand::f64())
        } else {
            pause(remote.failed_pause, PAUSE_MAX, failures, fastrand::f64())
        };
        // Who began to wait before the fetch ended wants no other one.
        let is_wanted = async {
            loop {
                set.wanted().await;
                if matches!(set.now(), Fetched::NotYet) {
                    return;
                }
            }
        };
        // Either way it is time.
        drop(tokio::time::timeout(pause, is_wanted).await);
    }
}

/// Ahead of their end by a tenth to three tenths of their time, so that proxies that began together do not ask together.
fn refresh_after(cache_duration: Duration, draw: f64) -> Duration {
    cache_duration.mul_f64(0.7 + 0.2 * draw).max(REFRESH_MIN)
}

/// Doubles from the first on, and half of it is by chance.
fn pause(first: Duration, max: Duration, failures: u32, draw: f64) -> Duration {
    let doubled = first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    doubled.min(max.max(first)).mul_f64(0.5 + 0.5 * draw).max(Duration::from_millis(1))
}

impl Fetcher {
    /// Tries as often as is configured, within the time of a fetch; waiting for others' fetches does not count.
    async fn fetch(&self, set: &RemoteKeySet) -> Result<KeySet, FetchError> {
        let remote = &set.remote;
        let retries = remote.retries.unwrap_or(FetchRetries { count: 0, pause_first: Duration::ZERO, pause_max: Duration::ZERO });
        let mut deadline = Instant::now() + set.time_max();
        let mut applied = self.applied.subscribe();
        let mut failures = 0;
        loop {
            match self.once(set, &mut deadline).await {
                // While there is nobody to ask, it waits for more of the configuration.
                Err(early) if early.is_too_early() => {
                    if tokio::time::timeout_at(deadline, applied.changed()).await.is_err() {
                        return Err(early);
                    }
                }
                Err(error) if failures < retries.count => {
                    failures += 1;
                    let pause = pause(retries.pause_first, retries.pause_max, failures, fastrand::f64());
                    if Instant::now() + pause >= deadline {
                        return Err(error);
                    }
                    tokio::time::sleep(pause).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn once(&self, set: &RemoteKeySet, deadline: &mut Instant) -> Result<KeySet, FetchError> {
        let remote = &set.remote;
        let cluster = match self.published.cluster(&remote.cluster) {
            Some(ClusterEntry::Served(cluster)) => cluster,
            Some(ClusterEntry::Refused(_)) => return Err(FetchError::ClusterRefused(Arc::clone(&remote.cluster))),
            None => return Err(FetchError::NoCluster(Arc::clone(&remote.cluster))),
        };
        let entry = balance::choose(&cluster, &Wish::default(), || fastrand::u64(..)).ok_or(FetchError::NoEndpoint)?;
        let began = Instant::now();
        let permit = self.limit.acquire().await.expect("the semaphore is never closed");
        *deadline += began.elapsed();
        let asked = tokio::time::timeout_at(*deadline, self.ask(remote, (&cluster, &entry))).await;
        drop(permit);
        let asked = asked.unwrap_or_else(|_elapsed| Err(FetchError::TimedOut(set.time_max())));
        // What is wrong with the answer's text is not the endpoint's health.
        match &asked {
            Err(FetchError::Overflow) => {}
            Err(FetchError::TimedOut(_)) => cluster.note(&entry, Verdict::TimedOut),
            Err(FetchError::Upstream(_) | FetchError::Body(_)) => cluster.note(&entry, Verdict::NoAnswer),
            Err(FetchError::Status(status)) => cluster.note(&entry, Verdict::Answered(status.as_u16())),
            Ok(_) | Err(_) => cluster.note(&entry, Verdict::Answered(StatusCode::OK.as_u16())),
        }
        read(&asked?)
    }

    async fn ask(&self, remote: &RemoteKeys, to: (&ServedCluster, &EndpointEntry)) -> Result<Vec<u8>, FetchError> {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = remote.path.clone().into();
        request.headers_mut().insert(header::HOST, remote.host.clone());
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let caller = Caller { sessions: &self.sessions, dialer: &self.dialer };
        let (mut response, holding) = call::send(caller, to, request, Priority::default()).await?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(FetchError::Status(status));
        }
        let mut text = Vec::new();
        while let Some(frame) = response.body_mut().frame().await {
            let frame = frame?;
            text.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]));
            if text.len() > ANSWER_BYTES_MAX {
                return Err(FetchError::TooLong);
            }
        }
        holding.give_back(caller);
        Ok(text)
    }
}

fn read(text: &[u8]) -> Result<KeySet, FetchError> {
    let mut set = key_set(text).map_err(FetchError::NoKeySet)?;
    set.keys.retain(|key| !matches!(&key.material, KeyMaterial::Rsa { modulus, .. } if modulus.len() > RSA_BYTES_MAX));
    match set.keys.len() {
        0 => Err(FetchError::NoKeys),
        count if count > KEYS_MAX => Err(FetchError::TooManyKeys(count)),
        _ => Ok(set),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_fetched_before_they_are_old_and_not_all_at_once() {
        let after = |seconds, draw| refresh_after(Duration::from_secs(seconds), draw).as_secs();
        assert_eq!((after(300, 0.0), after(300, 1.0), after(1, 0.0)), (210, 270, 1));
    }

    #[test]
    fn pauses_grow_from_what_is_configured_to_a_bound() {
        let second = Duration::from_secs(1);
        let after = |failures, draw| pause(second, PAUSE_MAX, failures, draw).as_secs_f64();
        assert_eq!((after(1, 1.0), after(1, 0.0), after(3, 1.0), after(99, 1.0)), (1.0, 0.5, 4.0, 60.0));
        assert_eq!(pause(2 * PAUSE_MAX, PAUSE_MAX, 1, 1.0), 2 * PAUSE_MAX, "who wants to be asked seldom is");
    }

    #[test]
    fn rsa_keys_that_take_too_long_are_left_out() {
        // Four characters of base64 are three bytes of ones.
        let of = |characters: usize| json!({"keys": [{"kty": "RSA", "n": "_".repeat(characters), "e": "AQAB"}]}).to_string();
        assert!(read(of(RSA_BYTES_MAX / 3 * 4).as_bytes()).is_ok());
        assert!(matches!(read(of(RSA_BYTES_MAX / 3 * 4 + 4).as_bytes()), Err(FetchError::NoKeys)));
    }

    #[test]
    fn an_answer_without_usable_keys_or_with_too_many_is_none() {
        let of = |count: usize| json!({"keys": vec![json!({"kty": "oct", "k": "AA"}); count]}).to_string();
        assert_eq!(read(of(KEYS_MAX).as_bytes()).map(|set| set.keys.len()).ok(), Some(KEYS_MAX));
        for bad in ["", "{}", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"what"}]}"#, &of(KEYS_MAX + 1)] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
