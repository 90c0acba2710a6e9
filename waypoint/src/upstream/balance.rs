//! Which endpoint: pure choices over a table of candidates; randomness and time are arguments.
//!
//! Not for: who is a candidate (`state::table`). Source: Envoy's load balancers. Least request draws some and takes the least busy
//! one; with unequal weights it draws one in proportion to weight and idleness.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use filters::route::weighted;
use model::cluster::{Balance, Discovery, SlowStart};
use model::endpoint::EndpointAddress;
use model::subset::Label;

use crate::state::by_host::{KnownHost, NoHost};
use crate::state::published::ServedCluster;
use crate::state::table::{EndpointEntry, EndpointTable, Excluded, Group};

/// What a request wants of its endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish<'a> {
    /// Endpoints that were tried before; they are chosen only if there is no other.
    pub avoid: &'a [EndpointAddress],
    /// Draws, while they meet an endpoint to be avoided.
    pub attempts_max: u32,
    /// Priorities that were tried before, if others are to be tried first.
    pub excluded: Excluded<'a>,
    /// The request's hash, where like requests go to the same endpoint.
    pub hash: Option<u64>,
    /// Which subset of the cluster, where that is divided.
    pub subset: &'a [Label],
    /// Where the client wanted to go; the endpoint of a cluster that has none.
    pub destination: Option<SocketAddr>,
    /// What is known of the host that the request names, where its cluster has those.
    pub host: Option<&'a KnownHost>,
}

/// The host of a request, where its cluster looks hosts up when they are asked for.
///
/// # Errors
/// It has no endpoint.
///
/// # Cancel safety
/// Safe.
pub async fn host_of(cluster: &ServedCluster, authority: Option<&str>) -> Result<Option<Arc<KnownHost>>, NoHost> {
    match &cluster.by_host {
        None => Ok(None),
        Some(table) => table.host(authority.unwrap_or_default()).await.map(Some),
    }
}

/// Chooses an endpoint. Envoy gives up after so many draws, which with two endpoints wastes one retry in 32 on the one that has just
/// failed; we then take any that was not tried.
///
/// None: there is no endpoint (`UH`).
pub fn choose(cluster: &ServedCluster, wish: &Wish<'_>, mut draw: impl FnMut() -> u64) -> Option<EndpointEntry> {
    if let Some(host) = wish.host {
        return host.choose(wish.avoid);
    }
    if let Discovery::Passthrough(passthrough) = cluster.cluster.discovery {
        let endpoint = Arc::new(passthrough.endpoint(wish.destination?));
        // Nobody ejects it, and nobody is compared with it: what it had before does not matter.
        return Some(EndpointEntry { endpoint, state: Arc::default() });
    }
    let tables = cluster.endpoints.load();
    let table = tables.of(wish.subset)?;
    let is_new = |entry: &&EndpointEntry| !wish.avoid.contains(&entry.endpoint.address);
    let mut chosen = choose_once(cluster, table, (wish, 0), &mut draw)?;
    for attempt in 1..wish.attempts_max {
        if is_new(&chosen) {
            break;
        }
        chosen = choose_once(cluster, table, (wish, attempt), &mut draw)?;
    }
    if !is_new(&chosen) {
        let count = table.entries().filter(is_new).count();
        let skipped = usize::try_from(draw()).unwrap_or(0).checked_rem(count).unwrap_or(0);
        chosen = table.entries().filter(is_new).nth(skipped).unwrap_or(chosen);
    }
    Some(chosen.clone())
}

fn choose_once<'a>(
    cluster: &ServedCluster,
    table: &'a EndpointTable,
    (wish, attempt): (&Wish<'_>, u32),
    draw: &mut impl FnMut() -> u64,
) -> Option<&'a EndpointEntry> {
    if !cluster.cluster.balance.is_hashing() {
        return among((cluster, table), table.pool(draw, wish.excluded)?.group(draw)?, draw);
    }
    // A request without a hash goes anywhere, but by the same table.
    let hash = wish.hash.unwrap_or_else(&mut *draw);
    table.pool(&mut || hash, wish.excluded)?.hashed(hash, attempt)
}

fn among<'a>(
    (cluster, table): (&ServedCluster, &EndpointTable),
    group: &'a Group,
    draw: &mut impl FnMut() -> u64,
) -> Option<&'a EndpointEntry> {
    let entries = &group.entries;
    let count = u64::try_from(entries.len()).ok().filter(|count| *count > 0)?;
    if count == 1 {
        return entries.first();
    }
    let balance = cluster.cluster.balance;
    if let Some(slow) = cluster.cluster.slow_start.filter(|_| group.warm_at.is_some())
        && balance != Balance::Random
    {
        let now = Instant::now();
        if group.warm_at.is_some_and(|warm_at| now < warm_at) {
            let by_load = matches!(balance, Balance::LeastRequest { .. });
            return by_share(
                entries,
                |entry| {
                    let whole = if by_load { f64::from(free_share(entry)) } else { f64::from(entry.endpoint.weight) };
                    whole * warmth(&slow, now.saturating_duration_since(entry.state.since()))
                },
                draw(),
            );
        }
    }
    let at = |drawn: u64| {
        if group.equal_weights { usize::try_from(drawn % count).unwrap_or(0) } else { weighted(entries.iter().map(weight), drawn) }
    };
    match balance {
        Balance::RoundRobin => entries.get(at(u64::from(table.next_turn()))),
        Balance::LeastRequest { choices } if group.equal_weights => {
            let mut best = entries.get(at(draw()))?;
            for _ in 1..choices {
                let other = entries.get(at(draw()))?;
                if other.state.active() < best.state.active() {
                    best = other;
                }
            }
            Some(best)
        }
        Balance::LeastRequest { .. } => entries.get(weighted(entries.iter().map(free_share), draw())),
        Balance::Random | Balance::RingHash { .. } | Balance::Maglev { .. } => entries.get(at(draw())),
    }
}

fn weight(entry: &EndpointEntry) -> u32 {
    entry.endpoint.weight
}

/// The share of an endpoint of unequal weight: its weight, divided by how busy it is (Envoy's active request bias of 1).
fn free_share(entry: &EndpointEntry) -> u32 {
    /// Keeps small weights apart when they are divided.
    const SCALE: u64 = 1024;
    let share = u64::from(entry.endpoint.weight) * SCALE / (u64::from(entry.state.active()) + 1);
    u32::try_from(share).unwrap_or(u32::MAX).max(1)
}

/// How much of its weight counts of an endpoint that has been there for so long: Envoy's
/// `max(min_weight_percent, time_factor ^ (1 / aggression))`.
fn warmth(slow: &SlowStart, age: Duration) -> f64 {
    let time = (age.max(Duration::from_millis(1)).as_secs_f64() / slow.window.as_secs_f64()).min(1.0);
    time.powf(1.0 / slow.aggression).max(slow.weight_min_percent / 100.0)
}

fn by_share(entries: &[EndpointEntry], share: impl Fn(&EndpointEntry) -> f64, draw: u64) -> Option<&EndpointEntry> {
    let part = u32::try_from(draw >> 32).map_or(0.0, f64::from) / (f64::from(u32::MAX) + 1.0);
    let mut left = part * entries.iter().map(&share).sum::<f64>();
    let found = entries.iter().find(|entry| {
        left -= share(entry);
        left < 0.0
    });
    found.or(entries.last())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;

    use model::cluster::{Cluster, Discovery};
    use model::endpoint::{Endpoint, EndpointSet};
    use model::subset::{Selector, SubsetRules};

    use super::*;
    use crate::state::health::ActiveRequest;

    const LEAST_REQUEST: Balance = Balance::LeastRequest { choices: 2 };

    fn set(weights: &[u32]) -> Arc<EndpointSet> {
        let endpoints = weights.iter().zip(1..).map(|(weight, last)| {
            let address = EndpointAddress::Plain(format!("10.0.0.{last}:80").parse().unwrap());
            Arc::new(Endpoint { host: "".into(), weight: *weight, ..Endpoint::at(address) })
        });
        Arc::new(EndpointSet { endpoints: endpoints.collect(), ..EndpointSet::default() })
    }

    fn cluster(balance: Balance, weights: &[u32]) -> ServedCluster {
        ServedCluster::new(Arc::new(Cluster { balance, ..Cluster::named("c", Discovery::Eds("c".into())) }), set(weights))
    }

    fn entries(cluster: &ServedCluster) -> Vec<EndpointEntry> {
        cluster.endpoints.load().all.entries().cloned().collect()
    }

    fn shares(cluster: &ServedCluster, choices: usize) -> Vec<usize> {
        let entries = entries(cluster);
        let mut rng = fastrand::Rng::with_seed(7);
        let mut counts = vec![0; entries.len()];
        for _ in 0..choices {
            let chosen = choose(cluster, &Wish::default(), || rng.u64(..)).unwrap();
            counts[entries.iter().position(|entry| Arc::ptr_eq(&entry.endpoint, &chosen.endpoint)).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn round_robin_takes_turns() {
        assert_eq!(shares(&cluster(Balance::RoundRobin, &[1, 1, 1]), 9), [3, 3, 3]);
        assert_eq!(shares(&cluster(Balance::RoundRobin, &[3, 1]), 8), [6, 2]);
    }

    #[test]
    fn each_subset_has_turns_of_its_own() {
        let label = |value: &str| Label { key: "v".into(), value: value.into() };
        let endpoints = (1_u8..=4).map(|last| {
            let address = EndpointAddress::Plain(format!("10.0.0.{last}:80").parse().unwrap());
            let labels = [label(if last < 3 { "1" } else { "2" })].into();
            Arc::new(Endpoint { labels, ..Endpoint::at(address) })
        });
        let set = Arc::new(EndpointSet { endpoints: endpoints.collect(), ..EndpointSet::default() });
        let selectors = [Selector { keys: ["v".into()].into(), fallback: None }].into();
        let rules = SubsetRules { selectors, ..SubsetRules::default() };
        let cluster =
            Cluster { balance: Balance::RoundRobin, subsets: Some(Arc::new(rules)), ..Cluster::named("c", Discovery::Eds("c".into())) };
        let cluster = ServedCluster::new(Arc::new(cluster), set);
        let chosen = |value: &str| choose(&cluster, &Wish { subset: &[label(value)], ..Wish::default() }, || 0);
        let mut met: Vec<_> = (0..4).map(|turn| chosen(if turn % 2 == 0 { "1" } else { "2" }).unwrap().endpoint.host.to_string()).collect();
        met.sort_unstable();
        assert_eq!(met, ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"]);
    }

    #[test]
    fn random_and_least_request_follow_the_weights() {
        for balance in [Balance::Random, LEAST_REQUEST] {
            let counts = shares(&cluster(balance, &[8, 1, 1]), 10_000);
            assert!((7000..9500).contains(&counts[0]), "{balance:?} {counts:?}");
        }
    }

    #[test]
    fn least_request_avoids_the_busy_one_the_more_the_more_it_compares() {
        for (choices, least) in [(2, 700), (8, 990)] {
            let cluster = cluster(Balance::LeastRequest { choices }, &[1, 1]);
            let _busy: Vec<_> = (0..3).map(|_| ActiveRequest::begin(&entries(&cluster)[0].state)).collect();
            let counts = shares(&cluster, 1000);
            assert!(counts[1] > least, "{choices} {counts:?}");
        }
    }

    #[test]
    fn a_tried_endpoint_is_avoided_while_another_can_be_had() {
        let first = [EndpointAddress::Plain("10.0.0.1:80".parse().unwrap())];
        let wish = Wish { avoid: &first, attempts_max: 5, ..Wish::default() };
        let round_robin = cluster(Balance::RoundRobin, &[1, 1]);
        for _ in 0..4 {
            assert_ne!(choose(&round_robin, &wish, || 0).unwrap().endpoint.address, first[0]);
        }
        let draws_the_first_only = choose(&cluster(Balance::Random, &[1, 1, 1]), &wish, || 0).unwrap();
        assert_ne!(draws_the_first_only.endpoint.address, first[0], "unlucky draws waste no retry");
        let only = cluster(Balance::RoundRobin, &[1]);
        assert_eq!(choose(&only, &wish, || 0).unwrap().endpoint.address, first[0]);
    }

    #[test]
    fn no_endpoint_is_no_choice() {
        assert!(choose(&cluster(LEAST_REQUEST, &[]), &Wish::default(), || 0).is_none());
    }

    #[test]
    fn an_endpoint_warms_up_as_envoy_lets_it() {
        let slow = |aggression| SlowStart { window: Duration::from_secs(60), aggression, weight_min_percent: 10.0 };
        let warmth = |aggression, seconds| warmth(&slow(aggression), Duration::from_secs(seconds));
        assert!((warmth(1.0, 30) - 0.5).abs() < 1e-9 && (warmth(1.0, 0) - 0.1).abs() < 1e-9 && (warmth(1.0, 90) - 1.0).abs() < 1e-9);
        assert!((warmth(2.0, 15) - 0.5).abs() < 1e-9, "the square root of a quarter");
    }

    #[test]
    fn an_endpoint_that_is_new_gets_the_share_that_it_is_warm() {
        let entries = entries(&cluster(LEAST_REQUEST, &[1, 1]));
        let is_first = |entry: &EndpointEntry| Arc::ptr_eq(&entry.state, &entries[0].state);
        let share = |entry: &EndpointEntry| if is_first(entry) { 0.25 } else { 1.0 };
        let mut rng = fastrand::Rng::with_seed(7);
        let n_first = (0..10_000).filter(|_| is_first(by_share(&entries, share, rng.u64(..)).unwrap())).count();
        assert!((1_800..2_200).contains(&n_first), "{n_first}");
    }
}
