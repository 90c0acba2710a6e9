//! What one worker has for itself: its sessions, tunnels, randomness and telemetry; and what all share.
//!
//! Not for: decisions. Invariant: locks here are a worker's own and held for no `await`.

use std::sync::Arc;
use std::time::Duration;

use filters::jwt::TokenCache;
use model::rate_limit::TokenBucket;
use parking_lot::Mutex;
use telemetry::WorkerTelemetry;
use telemetry::costs::WorkerCosts;
use tokio::sync::Semaphore;

use crate::external::Checks;
use crate::state::published::Published;
use crate::upstream::connect::Dialer;
use crate::upstream::pool::SessionPool;

/// Copies of requests that one worker has under way; more are not sent, and counted.
const MIRRORS_MAX: usize = 1024;
/// KiB of bodies that one worker keeps while authorization services look at them; what goes beyond is refused.
const CHECK_BODIES_KIB_MAX: usize = 64 * 1024;

/// Requests of one worker that wait for keys of tokens; of more, those whose keys are not there are refused as if they could not be had.
const KEY_WAITS_MAX: usize = 1024;

/// Refusals a second of which a worker finds the policy that came nearest; of more it is not told.
const EXPLANATIONS_PER_SECOND_MAX: u32 = 100;

/// One worker.
pub struct Worker {
    /// What istiod said.
    pub published: Arc<Published>,
    /// HTTP sessions.
    pub sessions: SessionPool,
    /// Connections to endpoints.
    pub dialer: Dialer,
    /// Copies of requests that may be under way.
    pub mirrors: Arc<Semaphore>,
    /// Requests that may wait for keys of tokens.
    pub key_waits: Semaphore,
    /// Calls of authorization services that may be under way.
    pub checks: Checks,
    /// KiB of bodies that may be kept while such services look at them.
    pub check_bodies: Arc<Semaphore>,
    /// Refusals of which the nearest policy may be found.
    pub explanations: TokenBucket,
    /// What serving costs.
    pub costs: Arc<WorkerCosts>,
    telemetry: Mutex<WorkerTelemetry>,
    random: Mutex<fastrand::Rng>,
    tokens: Mutex<TokenCache>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Worker").finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker that has done nothing yet.
    #[must_use]
    pub fn new(published: Arc<Published>, dialer: Dialer, telemetry: WorkerTelemetry) -> Self {
        Self {
            published,
            sessions: SessionPool::default(),
            dialer,
            mirrors: Arc::new(Semaphore::new(MIRRORS_MAX)),
            key_waits: Semaphore::new(KEY_WAITS_MAX),
            checks: Checks::default(),
            check_bodies: Arc::new(Semaphore::new(CHECK_BODIES_KIB_MAX)),
            explanations: TokenBucket::new(EXPLANATIONS_PER_SECOND_MAX, EXPLANATIONS_PER_SECOND_MAX, Duration::from_secs(1))
                .expect("it holds some and gets some"),
            costs: Arc::clone(&telemetry.costs),
            telemetry: Mutex::new(telemetry),
            random: Mutex::new(fastrand::Rng::new()),
            tokens: Mutex::default(),
        }
    }

    /// 64 random bits.
    pub fn draw(&self) -> u64 {
        self.random.lock().u64(..)
    }

    /// The worker's source of randomness.
    pub fn with_random<R>(&self, with: impl FnOnce(&mut fastrand::Rng) -> R) -> R {
        with(&mut self.random.lock())
    }

    /// The tokens that the worker has verified.
    pub fn with_tokens<R>(&self, with: impl FnOnce(&mut TokenCache) -> R) -> R {
        with(&mut self.tokens.lock())
    }

    /// The worker's telemetry.
    pub fn with_telemetry<R>(&self, with: impl FnOnce(&mut WorkerTelemetry) -> R) -> R {
        with(&mut self.telemetry.lock())
    }
}
