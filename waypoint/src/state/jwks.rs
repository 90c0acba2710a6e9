//! Key sets that are fetched: what requests read of them, and how they wait for the first.
//!
//! Not for: fetching; `app::jwks` does, on the control thread. Invariants: keys are used while they are good, and beyond that while fetches
//! fail, up to [`STALE_MAX`]; however many requests wait for a set, it is fetched once; right after a failed fetch nobody waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use filters::jwt::Fetched;
use model::jwt::{KeySet, RemoteKeys};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// How long keys are used beyond their time while newer ones cannot be fetched. A key that its issuer takes back verifies for so long and the
/// time that keys are good at most, whoever keeps us from hearing of it.
pub const STALE_MAX: Duration = Duration::from_secs(3600);

/// The longest that a fetch may take, and a request waits for it, when configuration names no limit.
pub const FETCH_TIME_MAX: Duration = Duration::from_secs(30);

/// A key set, and since when it is known.
#[derive(Debug)]
pub struct Held {
    /// The keys.
    pub keys: Arc<KeySet>,
    /// When the fetch that brought them ended.
    pub fetched: Instant,
}

/// How fetching stands.
#[derive(Clone, Debug, Default)]
pub struct Attempt {
    /// How many there were.
    pub number: u64,
    /// When and why the last one failed; none if it did not.
    pub failed: Option<(Instant, Arc<str>)>,
}

/// One key set.
#[derive(Debug)]
pub struct RemoteKeySet {
    /// What it is.
    pub remote: Arc<RemoteKeys>,
    held: ArcSwapOption<Held>,
    attempts: watch::Sender<Attempt>,
    wanted: Notify,
}

impl RemoteKeySet {
    /// Nothing is fetched yet.
    #[must_use]
    pub fn new(remote: Arc<RemoteKeys>) -> Self {
        Self { remote, held: ArcSwapOption::empty(), attempts: watch::Sender::default(), wanted: Notify::new() }
    }

    /// As another one that asks the same server for the same, with other limits: what that has, this has.
    fn after(remote: Arc<RemoteKeys>, other: &Self) -> Self {
        Self { held: ArcSwapOption::new(other.held()), ..Self::new(remote) }
    }

    /// How long a fetch may take.
    #[must_use]
    pub fn time_max(&self) -> Duration {
        self.remote.timeout.unwrap_or(FETCH_TIME_MAX)
    }

    /// What was fetched last, however long ago.
    #[must_use]
    pub fn held(&self) -> Option<Arc<Held>> {
        self.held.load_full()
    }

    /// How fetching stands.
    #[must_use]
    pub fn attempt(&self) -> Attempt {
        self.attempts.borrow().clone()
    }

    /// What a request may use now.
    #[must_use]
    pub fn now(&self) -> Fetched {
        if let Some(held) = &*self.held.load()
            && held.fetched.elapsed() <= self.remote.cache_duration.saturating_add(STALE_MAX)
        {
            return Fetched::Keys(Arc::clone(&held.keys));
        }
        match &self.attempts.borrow().failed {
            Some((at, _)) if at.elapsed() < self.remote.failed_pause => Fetched::Failed,
            _ => Fetched::NotYet,
        }
    }

    /// Waits for a fetch to end, whoever else does; no longer than one may take.
    ///
    /// # Cancel safety
    /// Safe; the fetch goes on.
    pub async fn wait(&self) -> Fetched {
        let mut attempts = self.attempts.subscribe();
        match self.now() {
            Fetched::NotYet => {}
            known => return known,
        }
        self.wanted.notify_one();
        // What came of it is seen below; the sender is in this object.
        drop(tokio::time::timeout(self.time_max(), attempts.changed()).await);
        match self.now() {
            Fetched::NotYet => Fetched::Failed,
            known => known,
        }
    }

    /// Returns when a request waits.
    ///
    /// # Cancel safety
    /// Safe; a request that waits is remembered.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Takes note that the issuer has no keys any more that can be used: no token passes until it has.
    pub fn withdrawn(&self, reason: Arc<str>) {
        self.held.store(None);
        self.fetched(Err(reason));
    }

    /// Takes what a fetch brought. Keys equal to those that are held stay the same, so that the tokens they verified stay known.
    pub fn fetched(&self, outcome: Result<KeySet, Arc<str>>) {
        let failed = match outcome {
            Ok(keys) => {
                let keys =
                    self.held.load().as_ref().map(|held| Arc::clone(&held.keys)).filter(|held| **held == keys).unwrap_or(Arc::new(keys));
                self.held.store(Some(Arc::new(Held { keys, fetched: Instant::now() })));
                None
            }
            Err(reason) => Some((Instant::now(), reason)),
        };
        self.attempts.send_modify(|attempt| {
            attempt.number += 1;
            attempt.failed = failed;
        });
    }
}

/// All key sets that chains name.
#[derive(Debug, Default)]
pub struct RemoteKeySets(ArcSwap<HashMap<Arc<RemoteKeys>, Arc<RemoteKeySet>>>);

impl RemoteKeySets {
    /// One of them.
    #[must_use]
    pub fn get(&self, remote: &Arc<RemoteKeys>) -> Option<Arc<RemoteKeySet>> {
        self.0.load().get(remote).cloned()
    }

    /// All, by URL.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<RemoteKeySet>> {
        let mut all: Vec<_> = self.0.load().values().cloned().collect();
        all.sort_by(|one, other| one.remote.name.cmp(&other.remote.name));
        all
    }

    /// Adds those that are not known; what is known stays, with its keys.
    pub fn add(&self, wanted: &[Arc<RemoteKeys>]) {
        let known = self.0.load();
        if wanted.iter().all(|remote| known.contains_key(remote)) {
            return;
        }
        let mut sets = HashMap::clone(&known);
        for remote in wanted {
            if !sets.contains_key(remote) {
                let alike = sets.iter().find(|(known, _)| asks_the_same(known, remote)).map(|(_, set)| Arc::clone(set));
                let new = || RemoteKeySet::new(Arc::clone(remote));
                let set = alike.map_or_else(new, |alike| RemoteKeySet::after(Arc::clone(remote), &alike));
                sets.insert(Arc::clone(remote), Arc::new(set));
            }
        }
        self.0.store(Arc::new(sets));
    }

    /// Forgets all others.
    pub fn retain(&self, wanted: &[Arc<RemoteKeys>]) {
        let known = self.0.load();
        if known.keys().any(|remote| !wanted.contains(remote)) {
            let kept = known.iter().filter(|(remote, _)| wanted.contains(remote));
            self.0.store(Arc::new(kept.map(|(remote, set)| (Arc::clone(remote), Arc::clone(set))).collect()));
        }
    }
}

/// Whether two differ in how long they wait and how often they ask only.
fn asks_the_same(one: &RemoteKeys, other: &RemoteKeys) -> bool {
    (&one.name, &one.cluster, &one.host, &one.path) == (&other.name, &other.cluster, &other.host, &other.path)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::uri::PathAndQuery;
    use model::jwt::{Key, KeyMaterial};

    use super::*;

    fn remote(uri: &str) -> Arc<RemoteKeys> {
        Arc::new(RemoteKeys {
            name: uri.into(),
            cluster: "keys".into(),
            host: HeaderValue::from_static("issuer"),
            path: PathAndQuery::from_static("/keys"),
            timeout: None,
            cache_duration: Duration::from_secs(300),
            failed_pause: Duration::from_secs(1),
            retries: None,
        })
    }

    fn keys(id: &str) -> KeySet {
        KeySet { keys: vec![Key { id: id.into(), algorithm: None, material: KeyMaterial::Secret([1].into()) }] }
    }

    fn id(fetched: Fetched) -> String {
        match fetched {
            Fetched::Keys(keys) => keys.keys[0].id.to_string(),
            other => format!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keys_outlive_their_time_within_a_bound_while_fetches_fail() {
        let set = RemoteKeySet::new(remote("a"));
        assert_eq!(id(set.now()), "NotYet");
        set.fetched(Ok(keys("one")));
        tokio::time::advance(Duration::from_secs(300)).await;
        set.fetched(Err("no connection".into()));
        assert_eq!(id(set.now()), "one");
        tokio::time::advance(STALE_MAX).await;
        assert_eq!(id(set.now()), "one");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(id(set.now()), "NotYet", "it is tried again for the next request");
        set.fetched(Err("no connection".into()));
        assert_eq!(id(set.now()), "Failed", "but not for every one");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(id(set.now()), "NotYet");
        set.fetched(Ok(keys("two")));
        assert_eq!(id(set.now()), "two");
    }

    #[tokio::test(start_paused = true)]
    async fn keys_that_an_issuer_withdraws_are_gone_at_once() {
        let set = RemoteKeySet::new(remote("a"));
        set.fetched(Ok(keys("one")));
        set.withdrawn("no keys".into());
        assert_eq!(id(set.now()), "Failed");
    }

    #[tokio::test]
    async fn a_set_with_other_limits_begins_with_what_is_known() {
        let sets = RemoteKeySets::default();
        sets.add(&[remote("a")]);
        if let Some(set) = sets.get(&remote("a")) {
            set.fetched(Ok(keys("one")));
        }
        let slower = Arc::new(RemoteKeys { timeout: Some(Duration::from_secs(9)), ..RemoteKeys::clone(&remote("a")) });
        let elsewhere = Arc::new(RemoteKeys { cluster: "other".into(), ..RemoteKeys::clone(&remote("a")) });
        sets.add(&[Arc::clone(&slower), Arc::clone(&elsewhere)]);
        let now = |remote| sets.get(remote).map(|set| id(set.now()));
        assert_eq!((now(&slower).as_deref(), now(&elsewhere).as_deref()), (Some("one"), Some("NotYet")));
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_hear_of_the_same_fetch() {
        let set = Arc::new(RemoteKeySet::new(remote("a")));
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let set = Arc::clone(&set);
                tokio::spawn(async move { id(set.wait().await) })
            })
            .collect();
        set.wanted().await;
        // All of them have begun to wait once the runtime has nothing else to do.
        tokio::time::advance(Duration::from_millis(1)).await;
        set.fetched(Ok(keys("one")));
        for one in waiting {
            assert_eq!(one.await.ok().as_deref(), Some("one"));
        }
        assert_eq!(set.attempt().number, 1);
    }

    #[tokio::test]
    async fn equal_keys_stay_the_same_and_sets_outlive_the_chains_that_named_them_first() {
        let sets = RemoteKeySets::default();
        sets.add(&[remote("a"), remote("b")]);
        let set = sets.get(&remote("a"));
        let set = set.as_deref();
        let same =
            |one: Fetched, other: Fetched| matches!((one, other), (Fetched::Keys(one), Fetched::Keys(other)) if Arc::ptr_eq(&one, &other));
        let fetched = |id| {
            set.inspect(|set| set.fetched(Ok(keys(id))));
            set.map_or(Fetched::NotYet, RemoteKeySet::now)
        };
        let first = fetched("one");
        assert!(same(first.clone(), fetched("one")) && !same(first, fetched("two")));
        sets.add(&[remote("a")]);
        sets.retain(&[remote("a")]);
        assert_eq!(sets.all().iter().map(|set| &*set.remote.name).collect::<Vec<_>>(), ["a"]);
        assert_eq!(sets.get(&remote("a")).map(|set| id(set.now())).as_deref(), Some("two"));
    }
}
