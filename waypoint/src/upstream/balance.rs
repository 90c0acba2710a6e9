//! Which endpoint: pure choices over a table of candidates; randomness is an argument.
//!
//! Source: Envoy's load balancers. Least request draws two and takes the less busy one; with unequal weights it draws one in
//! proportion to weight and idleness.

use std::sync::atomic::Ordering;

use filters::route::weighted;
use model::cluster::Balance;
use model::endpoint::EndpointAddress;

use crate::state::published::{EndpointEntry, EndpointTable, ServedCluster};

/// Chooses an endpoint. Those in `avoid` (tried before) are chosen only if there is no other. Envoy gives up after `attempts_max` draws,
/// which with two endpoints wastes one retry in 32 on the one that has just failed; we then take any that was not tried.
///
/// None: there is no endpoint (`UH`).
pub fn choose(
    cluster: &ServedCluster,
    avoid: &[EndpointAddress],
    attempts_max: u32,
    mut draw: impl FnMut() -> u64,
) -> Option<EndpointEntry> {
    let table = cluster.endpoints.load();
    let is_new = |entry: &&EndpointEntry| !avoid.contains(&entry.endpoint.address);
    let mut chosen = choose_once(cluster, &table, &mut draw)?;
    for _ in 1..attempts_max {
        if is_new(&chosen) {
            break;
        }
        chosen = choose_once(cluster, &table, &mut draw)?;
    }
    if !is_new(&chosen) {
        let n_skipped = usize::try_from(draw()).unwrap_or(0) % table.entries.len();
        let (before, from) = table.entries.split_at(n_skipped);
        chosen = from.iter().chain(before).find(is_new).unwrap_or(chosen);
    }
    Some(chosen.clone())
}

fn choose_once<'a>(cluster: &ServedCluster, table: &'a EndpointTable, draw: &mut impl FnMut() -> u64) -> Option<&'a EndpointEntry> {
    let entries = &table.entries;
    let count = u64::try_from(entries.len()).ok().filter(|count| *count > 0)?;
    let mut any = || {
        let drawn = draw();
        let index = if table.equal_weights { usize::try_from(drawn % count).unwrap_or(0) } else { by_weight(table, drawn) };
        &entries[index]
    };
    Some(match cluster.cluster.balance {
        Balance::Random => any(),
        Balance::RoundRobin => {
            let turn = u64::from(cluster.turn.fetch_add(1, Ordering::Relaxed));
            if table.equal_weights { &entries[usize::try_from(turn % count).unwrap_or(0)] } else { &entries[by_weight(table, turn)] }
        }
        Balance::LeastRequest if count == 1 => &entries[0],
        Balance::LeastRequest if table.equal_weights => {
            let (first, second) = (any(), any());
            if first.load.active() <= second.load.active() { first } else { second }
        }
        Balance::LeastRequest => &entries[weighted(entries.iter().map(free_share), draw())],
    })
}

/// The share of an endpoint of unequal weight: its weight, divided by how busy it is (Envoy's active request bias of 1).
fn free_share(entry: &EndpointEntry) -> u32 {
    /// Keeps small weights apart when they are divided.
    const SCALE: u64 = 1024;
    let share = u64::from(entry.endpoint.weight) * SCALE / (u64::from(entry.load.active()) + 1);
    u32::try_from(share).unwrap_or(u32::MAX).max(1)
}

fn by_weight(table: &EndpointTable, draw: u64) -> usize {
    weighted(table.entries.iter().map(|entry| entry.endpoint.weight), draw)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;

    use model::cluster::{Cluster, Discovery};
    use model::endpoint::Endpoint;

    use super::*;
    use crate::state::published::ActiveRequest;

    fn cluster(balance: Balance, weights: &[u32]) -> ServedCluster {
        let endpoints: Vec<_> = weights
            .iter()
            .zip(1..)
            .map(|(weight, last)| {
                let address = EndpointAddress::Plain(format!("10.0.0.{last}:80").parse().unwrap());
                Arc::new(Endpoint { address, socket_labels: Box::default(), host: "".into(), weight: *weight, priority: 0, healthy: true })
            })
            .collect();
        let cluster = Cluster { balance, ..Cluster::named("c", Discovery::Eds("c".into())) };
        ServedCluster::new(Arc::new(cluster), &endpoints)
    }

    fn shares(cluster: &ServedCluster, choices: usize) -> Vec<usize> {
        let table = cluster.endpoints.load_full();
        let mut rng = fastrand::Rng::with_seed(7);
        let mut counts = vec![0; table.entries.len()];
        for _ in 0..choices {
            let chosen = choose(cluster, &[], 1, || rng.u64(..)).unwrap();
            counts[table.entries.iter().position(|entry| Arc::ptr_eq(&entry.endpoint, &chosen.endpoint)).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn round_robin_takes_turns() {
        assert_eq!(shares(&cluster(Balance::RoundRobin, &[1, 1, 1]), 9), [3, 3, 3]);
        assert_eq!(shares(&cluster(Balance::RoundRobin, &[3, 1]), 8), [6, 2]);
    }

    #[test]
    fn random_and_least_request_follow_the_weights() {
        for balance in [Balance::Random, Balance::LeastRequest] {
            let counts = shares(&cluster(balance, &[8, 1, 1]), 10_000);
            assert!((7000..9500).contains(&counts[0]), "{balance:?} {counts:?}");
        }
    }

    #[test]
    fn least_request_avoids_the_busy_one() {
        let cluster = cluster(Balance::LeastRequest, &[1, 1]);
        let table = cluster.endpoints.load_full();
        let _busy: Vec<_> = (0..3).map(|_| ActiveRequest::begin(&table.entries[0].load)).collect();
        let counts = shares(&cluster, 1000);
        assert!(counts[1] > 700, "{counts:?}");
    }

    #[test]
    fn a_tried_endpoint_is_avoided_while_another_can_be_had() {
        let cluster = cluster(Balance::RoundRobin, &[1, 1]);
        let first = EndpointAddress::Plain("10.0.0.1:80".parse().unwrap());
        for _ in 0..4 {
            assert_ne!(choose(&cluster, &[first], 5, || 0).unwrap().endpoint.address, first);
        }
        let draws_the_first_only = choose(&super::tests::cluster(Balance::Random, &[1, 1, 1]), &[first], 5, || 0).unwrap();
        assert_ne!(draws_the_first_only.endpoint.address, first, "unlucky draws waste no retry");
        let only = super::tests::cluster(Balance::RoundRobin, &[1]);
        assert_eq!(choose(&only, &[first], 5, || 0).unwrap().endpoint.address, first);
    }

    #[test]
    fn no_endpoint_is_no_choice() {
        assert!(choose(&cluster(Balance::LeastRequest, &[]), &[], 5, || 0).is_none());
    }
}
