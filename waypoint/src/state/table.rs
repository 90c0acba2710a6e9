//! The endpoints of a cluster as they may be chosen: by priority, by health, by locality. Built when any of that changes.
//!
//! Not for: choosing (`upstream::balance`). Source: Envoy's load balancers. Invariants: a reader sees a whole table; what a
//! request pays does not grow with the number of priorities or localities that get no share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use model::cluster::Cluster;
use model::endpoint::{Endpoint, EndpointSet, Health};

use super::hashing::{HashTable, Weighed};
use super::health::EndpointState;
use super::loads::{Availability, Counted, Loads, loads, spread};

/// An endpoint and its state.
#[derive(Clone, Debug)]
pub struct EndpointEntry {
    /// As EDS lists it.
    pub endpoint: Arc<Endpoint>,
    /// Kept by address across updates.
    pub state: Arc<EndpointState>,
}

impl EndpointEntry {
    fn health(&self) -> Health {
        if self.state.is_ejected() { Health::Unhealthy } else { self.endpoint.health }
    }
}

/// Endpoints among which one is chosen by weight and load.
#[derive(Debug, Default)]
pub struct Group {
    /// In the order of EDS.
    pub entries: Vec<EndpointEntry>,
    /// Whether all have the same weight.
    pub equal_weights: bool,
    /// Until then some of them have been there for a short time only, and get less.
    pub warm_at: Option<Instant>,
}

impl Group {
    fn new(entries: Vec<EndpointEntry>, cluster: &Cluster) -> Self {
        let equal_weights = entries.windows(2).all(|pair| pair[0].endpoint.weight == pair[1].endpoint.weight);
        let warm_at = cluster.slow_start.and_then(|slow| entries.iter().map(|entry| entry.state.since() + slow.window).max());
        Self { entries, equal_weights, warm_at }
    }
}

/// The endpoints of one priority that are healthy, or degraded, or all of them where it panics.
#[derive(Debug, Default)]
pub struct Pool {
    /// One, or with locality weights one for each locality that has a share.
    groups: Vec<(u32, Group)>,
    hashed: Option<Hashed>,
}

/// All endpoints of a pool by hash.
#[derive(Debug)]
struct Hashed {
    table: HashTable,
    entries: Vec<EndpointEntry>,
}

impl Hashed {
    /// `parts` are localities with their part of all, or all together.
    fn new<'a>(cluster: &Cluster, parts: impl Iterator<Item = (f64, &'a Group)>) -> Option<Self> {
        if !cluster.balance.is_hashing() {
            return None;
        }
        let (mut entries, mut weights) = (Vec::new(), Vec::new());
        for (part, group) in parts {
            let sum: f64 = group.entries.iter().map(|entry| f64::from(entry.endpoint.weight)).sum();
            weights.extend(group.entries.iter().map(|entry| part * f64::from(entry.endpoint.weight) / sum));
            entries.extend_from_slice(&group.entries);
        }
        let hosts = entries
            .iter()
            .zip(weights)
            .map(|(entry, weight)| Weighed { key: entry.endpoint.hash_key.as_ref().unwrap_or(&entry.endpoint.host), weight });
        let table = HashTable::new(cluster.balance, &hosts.collect::<Vec<_>>())?;
        Some(Self { table, entries })
    }
}

impl Pool {
    fn of_all(entries: Vec<EndpointEntry>, cluster: &Cluster) -> Self {
        let groups = if entries.is_empty() { Vec::new() } else { vec![(1, Group::new(entries, cluster))] };
        let hashed = Hashed::new(cluster, groups.iter().map(|(_, group)| (1.0, group)));
        Self { groups, hashed }
    }

    /// The endpoint of a hash. `attempt` counts those before that the same request does not want.
    #[must_use]
    pub fn hashed(&self, hash: u64, attempt: u32) -> Option<&EndpointEntry> {
        let hashed = self.hashed.as_ref()?;
        hashed.entries.get(hashed.table.position(hash, attempt))
    }

    /// A group; localities get their shares by a random number.
    #[must_use]
    pub fn group(&self, draw: &mut impl FnMut() -> u64) -> Option<&Group> {
        match &self.groups[..] {
            [] => None,
            [(_, only)] => Some(only),
            several => Some(&several.get(filters::route::weighted(several.iter().map(|(weight, _)| *weight), draw()))?.1),
        }
    }

    /// All its endpoints.
    pub fn entries(&self) -> impl Iterator<Item = &EndpointEntry> {
        self.groups.iter().flat_map(|(_, group)| &group.entries)
    }
}

#[derive(Debug, Default)]
struct Level {
    healthy: Pool,
    degraded: Pool,
    availability: Availability,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    /// Of a hundred, those from the share before up to here.
    below: u64,
    level: usize,
    is_degraded: bool,
}

/// The endpoints of one cluster.
#[derive(Debug, Default)]
pub struct EndpointTable {
    levels: Vec<Level>,
    shares: Vec<Share>,
    turn: AtomicU32,
}

/// Priorities that have been tried, which get no share if any other can.
pub type Excluded<'a> = &'a [u32];

impl EndpointTable {
    /// `state_of` has the state of each endpoint.
    #[must_use]
    pub fn new(cluster: &Cluster, set: &EndpointSet, mut state_of: impl FnMut(&Endpoint) -> Arc<EndpointState>) -> Self {
        let n_levels = set.endpoints.iter().map(|endpoint| index(endpoint.priority) + 1).max().unwrap_or(0);
        let mut by_level: Vec<Vec<EndpointEntry>> = (0..n_levels).map(|_| Vec::new()).collect();
        for endpoint in set.endpoints.iter().filter(|endpoint| endpoint.weight > 0) {
            by_level[index(endpoint.priority)].push(EndpointEntry { endpoint: Arc::clone(endpoint), state: state_of(endpoint) });
        }
        let numbers: Vec<_> = by_level.iter().map(|entries| count(entries, |_| 1)).collect();
        let availability = by_level.iter().zip(&numbers).map(|(entries, number)| {
            let counted = if set.weighted_priority_health { count(entries, |entry| entry.endpoint.weight) } else { *number };
            Availability::new(counted, set.overprovisioning_percent)
        });
        let availability: Vec<_> = availability.collect();
        let (loads, panics) = loads(&numbers, &availability, cluster.panic_threshold_percent);
        let levels = by_level.into_iter().zip(panics).zip(availability);
        let levels = levels.map(|((entries, panics), availability)| match panics {
            true => Level { healthy: Pool::of_all(entries, cluster), degraded: Pool::default(), availability },
            false => Level {
                healthy: pool(&entries, Health::Healthy, cluster, set),
                degraded: pool(&entries, Health::Degraded, cluster, set),
                availability,
            },
        });
        Self { levels: levels.collect(), shares: shares(&loads), turn: AtomicU32::new(0) }
    }

    /// A turn of round robin, all workers together.
    #[must_use]
    pub fn next_turn(&self) -> u32 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Goes on with the turns of the table before.
    pub(super) fn resume(&self, before: &Self) {
        self.turn.store(before.turn.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The endpoints of the priority that `draw` falls to. None: nobody can be chosen.
    #[must_use]
    pub fn pool(&self, draw: &mut impl FnMut() -> u64, excluded: Excluded<'_>) -> Option<&Pool> {
        if !excluded.is_empty()
            && let Some(shares) = self.shares_without(excluded)
        {
            return self.drawn(&shares, draw);
        }
        self.drawn(&self.shares, draw)
    }

    fn drawn(&self, shares: &[Share], draw: &mut impl FnMut() -> u64) -> Option<&Pool> {
        let share = match shares {
            [] => return None,
            [only] => only,
            several => {
                let drawn = draw() % 100;
                several.iter().find(|share| drawn < share.below)?
            }
        };
        let level = self.levels.get(share.level)?;
        Some(if share.is_degraded { &level.degraded } else { &level.healthy })
    }

    fn shares_without(&self, excluded: Excluded<'_>) -> Option<Vec<Share>> {
        let left = self.levels.iter().enumerate().map(|(at, level)| {
            let is_excluded = excluded.iter().any(|priority| index(*priority) == at);
            if is_excluded { Availability::default() } else { level.availability }
        });
        spread(&left.collect::<Vec<_>>()).map(|loads| shares(&loads))
    }

    /// All endpoints that can be chosen, those of the best priority first.
    pub fn entries(&self) -> impl Iterator<Item = &EndpointEntry> {
        self.shares
            .iter()
            .filter_map(|share| {
                let level = self.levels.get(share.level)?;
                Some(if share.is_degraded { level.degraded.entries() } else { level.healthy.entries() })
            })
            .flatten()
    }
}

fn index(priority: u32) -> usize {
    usize::try_from(priority).unwrap_or(usize::MAX)
}

fn shares(loads: &Loads) -> Vec<Share> {
    let kinds = [(&loads.healthy, false), (&loads.degraded, true)];
    let all = kinds.into_iter().flat_map(|(percents, is_degraded)| percents.iter().enumerate().map(move |one| (one, is_degraded)));
    let mut below = 0;
    let all = all.filter(|((_, percent), _)| **percent > 0).map(|((level, percent), is_degraded)| {
        below += u64::from(*percent);
        Share { below, level, is_degraded }
    });
    all.collect()
}

fn count(entries: &[EndpointEntry], weigh: impl Fn(&EndpointEntry) -> u32) -> Counted {
    entries.iter().fold(Counted::default(), |mut counted, entry| {
        let weight = weigh(entry);
        counted.total = counted.total.saturating_add(weight);
        match entry.health() {
            Health::Healthy => counted.healthy = counted.healthy.saturating_add(weight),
            Health::Degraded => counted.degraded = counted.degraded.saturating_add(weight),
            Health::Unhealthy => {}
        }
        counted
    })
}

/// The endpoints of one health, together or by locality.
fn pool(entries: &[EndpointEntry], health: Health, cluster: &Cluster, set: &EndpointSet) -> Pool {
    let of_health = |entries: &mut dyn Iterator<Item = &EndpointEntry>| -> Vec<EndpointEntry> {
        entries.filter(|entry| entry.health() == health).cloned().collect()
    };
    if cluster.weighs_localities {
        let localities = set.locality_weights.iter().enumerate().filter(|(_, weight)| **weight > 0);
        let groups = localities.filter_map(|(at, weight)| {
            let all: Vec<_> = entries.iter().filter(|entry| entry.endpoint.locality == at).cloned().collect();
            let eligible = of_health(&mut all.iter());
            let effective = effective_weight(*weight, (eligible.len(), all.len()), set.overprovisioning_percent);
            (effective > 0).then(|| (*weight, (effective, Group::new(eligible, cluster))))
        });
        // By hash localities count with their whole weight, as in Envoy.
        let (weights, groups): (Vec<u32>, Vec<_>) = groups.unzip();
        if !groups.is_empty() {
            let sum: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            let parts = weights.iter().zip(&groups).map(|(weight, (_, group))| (f64::from(*weight) / sum, group));
            return Pool { hashed: Hashed::new(cluster, parts), groups };
        }
    }
    Pool::of_all(of_health(&mut entries.iter()), cluster)
}

/// A locality's weight falls with its health, as a priority's share does.
fn effective_weight(weight: u32, (eligible, all): (usize, usize), overprovisioning_percent: u32) -> u32 {
    /// Keeps small weights apart when they are divided.
    const SCALE: u64 = 1024;
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let whole = 100 * number(all);
    let available = u64::from(overprovisioning_percent).saturating_mul(number(eligible)).min(whole);
    let scaled = u128::from(u64::from(weight) * SCALE) * u128::from(available) / u128::from(whole.max(1));
    u32::try_from(scaled).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use model::cluster::{Balance, Discovery};
    use model::endpoint::EndpointAddress;

    use super::*;

    fn endpoint(last: u8, priority: u32, health: Health, locality: usize) -> Arc<Endpoint> {
        let address = EndpointAddress::Plain(format!("10.0.0.{last}:80").parse().unwrap());
        Arc::new(Endpoint { host: last.to_string().into(), priority, health, locality, ..Endpoint::at(address) })
    }

    fn cluster() -> Cluster {
        Cluster { panic_threshold_percent: 0.0, ..Cluster::named("c", Discovery::Eds("c".into())) }
    }

    fn table(cluster: &Cluster, endpoints: Vec<Arc<Endpoint>>, locality_weights: Vec<u32>) -> EndpointTable {
        let set = EndpointSet { endpoints, locality_weights, ..EndpointSet::default() };
        EndpointTable::new(cluster, &set, |_| Arc::default())
    }

    /// Who is drawn by each of a hundred numbers, counted by name.
    fn drawn(table: &EndpointTable, excluded: Excluded<'_>) -> Vec<(String, usize)> {
        let mut counts = std::collections::BTreeMap::new();
        for number in 0..100 {
            let pool = table.pool(&mut || number, excluded).unwrap();
            for entry in pool.entries() {
                *counts.entry(entry.endpoint.host.to_string()).or_insert(0) += 1;
            }
        }
        counts.into_iter().collect()
    }

    #[test]
    fn a_priority_that_is_ill_in_part_shares_with_the_next() {
        use Health::{Healthy, Unhealthy};
        let endpoints = vec![endpoint(1, 0, Healthy, 0), endpoint(2, 0, Unhealthy, 0), endpoint(3, 1, Healthy, 0)];
        let table = table(&cluster(), endpoints, Vec::new());
        assert_eq!(drawn(&table, &[]), [("1".into(), 70), ("3".into(), 30)]);
        assert_eq!(drawn(&table, &[0]), [("3".into(), 100)], "a retry goes on to another priority");
        assert_eq!(drawn(&table, &[0, 1]), [("1".into(), 70), ("3".into(), 30)], "with none left as if none had been tried");
    }

    #[test]
    fn an_ejected_endpoint_is_not_in_the_table_unless_its_priority_panics() {
        let endpoints: Vec<_> = (1..=2).map(|last| endpoint(last, 0, Health::Healthy, 0)).collect();
        let set = EndpointSet { endpoints, ..EndpointSet::default() };
        let hosts = |panic_threshold_percent, ejected: &[&str]| -> Vec<_> {
            let cluster = Cluster { panic_threshold_percent, ..cluster() };
            let table = EndpointTable::new(&cluster, &set, |endpoint| {
                let state = EndpointState::default();
                state.set_ejected(ejected.contains(&&*endpoint.host));
                Arc::new(state)
            });
            table.entries().map(|entry| entry.endpoint.host.to_string()).collect()
        };
        assert_eq!(hosts(0.0, &["1"]), ["2"]);
        assert_eq!(hosts(50.0, &["1"]), ["2"], "half is not below half");
        assert_eq!(hosts(51.0, &["1"]), ["1", "2"]);
        assert_eq!(hosts(50.0, &["1", "2"]), ["1", "2"]);
        assert!(hosts(0.0, &["1", "2"]).is_empty());
    }

    #[test]
    fn localities_get_their_weights_and_less_when_they_are_ill() {
        use Health::{Healthy, Unhealthy};
        let endpoints =
            vec![endpoint(1, 0, Healthy, 0), endpoint(2, 0, Healthy, 1), endpoint(3, 0, Unhealthy, 1), endpoint(4, 0, Healthy, 2)];
        let weigh = Cluster { weighs_localities: true, ..cluster() };
        let table = table(&weigh, endpoints, vec![1, 10, 0]);
        let pool = table.pool(&mut || 0, &[]).unwrap();
        let weights: Vec<_> = pool.groups.iter().map(|(weight, group)| (*weight, group.entries.len())).collect();
        // Half of ten is well, times 1.4; a locality without weight gets nothing.
        assert_eq!(weights, [(1024, 1), (7168, 1)]);
    }

    #[test]
    fn a_share_is_drawn_only_where_there_is_more_than_one() {
        let table = table(&cluster(), vec![endpoint(1, 0, Health::Healthy, 0), endpoint(2, 1, Health::Healthy, 0)], Vec::new());
        let pool = table.pool(&mut || panic!("nothing to draw"), &[]).unwrap();
        assert_eq!(pool.group(&mut || panic!("nothing to draw")).unwrap().entries.len(), 1);
    }

    #[test]
    fn an_endpoint_is_hashed_by_its_key_whatever_its_address() {
        let cluster = Cluster { balance: Balance::RingHash { size_min: 64, size_max: 1024 }, ..cluster() };
        let known = |last, key: &str| Arc::new(Endpoint { hash_key: Some(key.into()), ..(*endpoint(last, 0, Health::Healthy, 0)).clone() });
        let (one, other) = (
            table(&cluster, vec![known(1, "a"), known(2, "b")], Vec::new()),
            table(&cluster, vec![known(7, "a"), known(8, "b")], Vec::new()),
        );
        let keys = |table: &EndpointTable| -> Vec<_> {
            let pool = table.pool(&mut || 0, &[]).unwrap();
            (0..64_u64).map(|part| pool.hashed(part << 58, 0).unwrap().endpoint.hash_key.clone()).collect()
        };
        assert_eq!(keys(&one), keys(&other));
        assert!(keys(&one).contains(&Some("a".into())) && keys(&one).contains(&Some("b".into())));
    }
}
