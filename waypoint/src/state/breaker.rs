//! Circuit breakers: what a cluster may have at a time, all workers together.
//!
//! Not for: what happens to whoever finds one open. Source: Envoy's `ResourceManager`. Invariants: counts outlive updates of
//! the cluster; a permit gives back what it took once, when it is dropped; where nothing is limited nothing is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use model::cluster::{Cluster, Limits, RetryBudget};
use model::route::Priority;
use parking_lot::Mutex;

use super::recent::Recent;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Connections, idle ones too.
    Connection,
    /// Requests that wait for a connection.
    PendingRequest,
    /// Requests on a connection.
    Request,
    /// Tries after the first, until their answer begins.
    Retry,
}

/// There is as much as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow;

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU32,
    pending_requests: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
    /// Where a budget of retries counts the requests of an interval.
    recent: Mutex<Option<Arc<Recent>>>,
}

impl Counts {
    fn of(&self, resource: Resource) -> &AtomicU32 {
        match resource {
            Resource::Connection => &self.connections,
            Resource::PendingRequest => &self.pending_requests,
            Resource::Request => &self.requests,
            Resource::Retry => &self.retries,
        }
    }

    /// The count of the interval that a budget asks for, which goes on as long as that is the same.
    fn recent(&self, limits: &Limits) -> Option<Arc<Recent>> {
        let interval = limits.retry_budget?.interval?;
        let mut held = self.recent.lock();
        match &*held {
            Some(recent) if recent.interval() == interval => Some(Arc::clone(recent)),
            _ => Some(Arc::clone(held.insert(Arc::new(Recent::new(interval, Instant::now()))))),
        }
    }

    /// With a budget it grows with the requests of the moment, or of its interval.
    fn retries_max(&self, budget: RetryBudget, recent: Option<u32>) -> u32 {
        let of_the_moment = || self.requests.load(Ordering::Relaxed).saturating_add(self.pending_requests.load(Ordering::Relaxed));
        let requests = recent.unwrap_or_else(of_the_moment);
        let retries = self.retries.load(Ordering::Relaxed);
        // Whether one more is within the budget: all that is asked.
        let is_within = f64::from(retries.saturating_add(1)) <= f64::from(requests) * budget.percent / 100.0;
        let by_requests = if is_within { retries.saturating_add(1) } else { 0 };
        by_requests.max(budget.retries_min)
    }
}

/// The counts of one cluster, by priority.
#[derive(Debug, Default)]
pub struct BreakerCounts {
    default: Arc<Counts>,
    high: Arc<Counts>,
}

/// One thing that counts until it is dropped.
#[derive(Debug)]
pub struct Permit {
    counts: Arc<Counts>,
    resource: Resource,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.counts.of(self.resource).fetch_sub(1, Ordering::Relaxed);
    }
}

/// The breakers of one priority, if anything is limited.
#[derive(Debug)]
struct Breaker {
    limits: Limits,
    counts: Arc<Counts>,
    recent: Option<Arc<Recent>>,
}

impl Breaker {
    fn take(&self, resource: Resource, now: impl Fn() -> Instant) -> Result<(), Overflow> {
        let (limits, counts) = (&self.limits, &self.counts);
        let max = match (resource, limits.retry_budget) {
            (Resource::Connection, _) => limits.connections_max,
            (Resource::PendingRequest, _) => limits.pending_requests_max,
            (Resource::Request, _) => limits.requests_max,
            (Resource::Retry, None) => limits.retries_max,
            (Resource::Retry, Some(budget)) => counts.retries_max(budget, self.recent.as_ref().map(|recent| recent.count(now()))),
        };
        let more = |count: u32| (count < max).then(|| count.saturating_add(1));
        counts.of(resource).fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).map_err(|_| Overflow)?;
        // Retries are requests as well, once they are sent (Envoy).
        if let (Resource::Request, Some(recent)) = (resource, &self.recent) {
            recent.add(now());
        }
        Ok(())
    }
}

/// The breakers of a cluster as it is now.
#[derive(Debug)]
pub struct Breakers {
    default: Option<Breaker>,
    high: Option<Breaker>,
}

impl Breakers {
    /// A cluster's limits, on counts that it had before.
    #[must_use]
    pub fn new(cluster: &Cluster, counts: &BreakerCounts) -> Self {
        let breaker = |limits: &Limits, counts: &Arc<Counts>| {
            (!limits.is_none()).then(|| Breaker { limits: *limits, counts: Arc::clone(counts), recent: counts.recent(limits) })
        };
        Self { default: breaker(&cluster.limits, &counts.default), high: breaker(&cluster.limits_high, &counts.high) }
    }

    fn of(&self, priority: Priority) -> Option<&Breaker> {
        match priority {
            Priority::Default => self.default.as_ref(),
            Priority::High => self.high.as_ref(),
        }
    }

    /// Takes one; none where nothing is limited.
    ///
    /// # Errors
    /// There is as much as there may be.
    pub fn take(&self, resource: Resource, priority: Priority) -> Result<Option<Permit>, Overflow> {
        self.take_at(resource, priority, Instant::now)
    }

    /// As [`Self::take`]; the time is asked for where an interval counts.
    fn take_at(&self, resource: Resource, priority: Priority, now: impl Fn() -> Instant) -> Result<Option<Permit>, Overflow> {
        let Some(breaker) = self.of(priority) else { return Ok(None) };
        breaker.take(resource, now)?;
        Ok(Some(Permit { counts: Arc::clone(&breaker.counts), resource }))
    }

    /// Takes one although there may be as much as there may be.
    #[must_use]
    pub fn take_anyway(&self, resource: Resource, priority: Priority) -> Option<Permit> {
        let breaker = self.of(priority)?;
        breaker.counts.of(resource).fetch_add(1, Ordering::Relaxed);
        Some(Permit { counts: Arc::clone(&breaker.counts), resource })
    }

    /// Whether there is a limit of connections.
    #[must_use]
    pub fn limits_connections(&self, priority: Priority) -> bool {
        self.of(priority).is_some_and(|breaker| breaker.limits.connections_max != u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::time::Duration;

    use model::cluster::Discovery;

    use super::*;

    fn breakers(limits: Limits, counts: &BreakerCounts) -> Breakers {
        Breakers::new(&Cluster { limits, ..Cluster::named("c", Discovery::Eds("c".into())) }, counts)
    }

    #[test]
    fn no_more_are_let_through_than_may_be_and_what_ends_makes_room() {
        let breakers = breakers(Limits { requests_max: 2, ..Limits::NONE }, &BreakerCounts::default());
        let take = || breakers.take(Resource::Request, Priority::Default);
        let (first, _second) = (take().unwrap(), take().unwrap());
        assert_eq!(take().unwrap_err(), Overflow);
        assert!(breakers.take(Resource::Retry, Priority::Default).is_ok(), "each resource has a limit of its own");
        assert!(breakers.take(Resource::Request, Priority::High).unwrap().is_none(), "each priority has limits of its own");
        drop(first);
        assert!(take().is_ok());
    }

    #[test]
    fn counts_outlive_an_update_of_the_limits() {
        let counts = BreakerCounts::default();
        let before = breakers(Limits { connections_max: 1, ..Limits::NONE }, &counts);
        let held = before.take(Resource::Connection, Priority::Default).unwrap();
        let after = breakers(Limits { connections_max: 1, requests_max: 9, ..Limits::NONE }, &counts);
        assert!(after.take(Resource::Connection, Priority::Default).is_err());
        drop(held);
        assert!(after.take(Resource::Connection, Priority::Default).is_ok());
    }

    #[test]
    fn a_retry_budget_follows_the_requests_and_has_a_floor() {
        // Envoy: max(budget_percent of active and pending requests, min_retry_concurrency), instead of max_retries.
        let budget = RetryBudget { percent: 25.0, interval: None, retries_min: 1 };
        let breakers = breakers(Limits { retries_max: 0, retry_budget: Some(budget), ..Limits::NONE }, &BreakerCounts::default());
        let take = |resource| breakers.take(resource, Priority::Default);
        let first = take(Resource::Retry).unwrap();
        assert!(take(Resource::Retry).is_err(), "without requests the floor counts");
        let mut requests: Vec<_> = (0..7).map(|_| take(Resource::Request).unwrap()).collect();
        assert!(take(Resource::Retry).is_err(), "a quarter of seven is less than two");
        requests.push(take(Resource::PendingRequest).unwrap());
        let second = take(Resource::Retry).unwrap();
        assert!(take(Resource::Retry).is_err());
        drop((first, second));
    }

    #[test]
    fn with_an_interval_a_retry_budget_follows_the_requests_that_began_in_it() {
        let budget = RetryBudget { percent: 50.0, interval: Some(Duration::from_secs(10)), retries_min: 0 };
        let limits = Limits { retry_budget: Some(budget), ..Limits::NONE };
        let counts = BreakerCounts::default();
        let before = breakers(limits, &counts);
        let began = Instant::now();
        let take = |breakers: &Breakers, resource, seconds| {
            breakers.take_at(resource, Priority::Default, || began + Duration::from_secs(seconds)).map(Option::unwrap)
        };
        let lasts = take(&before, Resource::Request, 0).unwrap();
        assert!(take(&before, Resource::Retry, 0).is_err(), "a half of one is none");
        drop(take(&before, Resource::Request, 1).unwrap());
        let after = breakers(Limits { requests_max: 9, ..limits }, &counts);
        let retry = take(&after, Resource::Retry, 5).unwrap();
        assert!(take(&after, Resource::Retry, 5).is_err(), "of two, one that has ended and counted before an update");
        drop(retry);
        assert!(take(&after, Resource::Retry, 20).is_err(), "neither began lately, though one lasts");
        drop(lasts);
    }

    #[test]
    fn where_nothing_is_limited_nothing_is_counted() {
        let breakers = breakers(Limits::NONE, &BreakerCounts::default());
        assert!(breakers.take(Resource::Request, Priority::Default).unwrap().is_none());
        assert!(breakers.take_anyway(Resource::Connection, Priority::Default).is_none());
    }
}
