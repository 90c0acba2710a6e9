//! Consistent hashing: like hashes meet the same endpoint, and most still do after an endpoint came or went.
//!
//! Not for: what is hashed (`filters::hash`). Source: Envoy's ring hash and Maglev load balancers, whose tables these are, so that
//! a hash meets here the endpoint that it would meet there. Invariant: tables are built when endpoints change, and only read after.

use filters::hash::of_bytes;
use model::cluster::Balance;

/// Endpoints by hash; positions are those of the list that it was made of.
#[derive(Debug)]
pub(super) enum HashTable {
    /// By the first point at or after the hash.
    Ring(Vec<(u64, u32)>),
    /// By the hash modulo the size.
    Maglev(Vec<u32>),
}

/// One endpoint of a table to be built: its key, and its part of the sum of weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weighed<'a> {
    pub(super) key: &'a str,
    pub(super) weight: f64,
}

impl HashTable {
    /// None: the policy does not hash, or there is nobody.
    pub(super) fn new(balance: Balance, hosts: &[Weighed<'_>]) -> Option<Self> {
        match balance {
            _ if hosts.is_empty() => None,
            Balance::RingHash { size_min, size_max } => Some(Self::Ring(ring(hosts, f64::from(size_min), f64::from(size_max)))),
            Balance::Maglev { size } => Some(Self::Maglev(maglev(hosts, u64::from(size)))),
            Balance::LeastRequest { .. } | Balance::RoundRobin | Balance::Random => None,
        }
    }

    /// The position for a hash. `attempt` counts the choices before of the same request, which met endpoints it does not want.
    pub(super) fn position(&self, hash: u64, attempt: u32) -> usize {
        let position = match self {
            Self::Ring(points) => {
                let first = points.partition_point(|(point, _)| *point < hash);
                let at = (first % points.len().max(1) + usize::try_from(attempt).unwrap_or(0)) % points.len().max(1);
                points.get(at).map(|(_, position)| *position)
            }
            Self::Maglev(slots) => {
                let moved = if attempt > 0 { hash ^ (u64::MAX - u64::from(attempt) + 1) } else { hash };
                let size = u64::try_from(slots.len()).unwrap_or(u64::MAX).max(1);
                usize::try_from(moved % size).ok().and_then(|at| slots.get(at)).copied()
            }
        };
        position.and_then(|position| usize::try_from(position).ok()).unwrap_or(0)
    }
}

fn positions<'a>(hosts: &'a [Weighed<'a>]) -> impl Iterator<Item = (u32, Weighed<'a>)> {
    (0_u32..).zip(hosts.iter().copied())
}

/// Points in proportion to the weights, so that the lightest endpoint has a whole number of them.
fn ring(hosts: &[Weighed<'_>], size_min: f64, size_max: f64) -> Vec<(u64, u32)> {
    let lightest = hosts.iter().map(|host| host.weight).fold(f64::INFINITY, f64::min);
    let scale = ((lightest * size_min).ceil() / lightest).min(size_max);
    let mut points = Vec::new();
    let (mut current, mut target) = (0.0, 0.0);
    for (position, host) in positions(hosts) {
        target += scale * host.weight;
        let mut number: u64 = 0;
        while current < target {
            points.push((of_bytes(format!("{}_{number}", host.key).as_bytes(), 0), position));
            number += 1;
            current += 1.0;
        }
    }
    points.sort_by_key(|(point, _)| *point);
    points
}

struct Candidate {
    position: u32,
    offset: u64,
    skip: u64,
    weight: f64,
    target: f64,
    next: u64,
}

impl Candidate {
    fn slot(&mut self, size: u64) -> usize {
        let slot = self.offset.wrapping_add(self.skip.wrapping_mul(self.next)) % size;
        self.next += 1;
        usize::try_from(slot).unwrap_or(0)
    }
}

/// Endpoints take slots in turns, each by an order of its own; lighter ones sit out some of the turns. `size` is a prime.
fn maglev(hosts: &[Weighed<'_>], size: u64) -> Vec<u32> {
    let size = size.max(2);
    let heaviest = hosts.iter().map(|host| host.weight).fold(0.0, f64::max);
    let mut sorted: Vec<_> = positions(hosts).collect();
    sorted.sort_by(|(_, a), (_, b)| a.key.cmp(b.key));
    let candidates = sorted.into_iter().map(|(position, host)| Candidate {
        position,
        offset: of_bytes(host.key.as_bytes(), 0) % size,
        skip: of_bytes(host.key.as_bytes(), 1) % (size - 1) + 1,
        weight: host.weight,
        target: 0.0,
        next: 0,
    });
    let mut candidates: Vec<_> = candidates.collect();
    let mut slots: Vec<Option<u32>> = vec![None; usize::try_from(size).unwrap_or(2)];
    let (mut n_free, mut turn) = (slots.len(), 1.0);
    while n_free > 0 {
        for candidate in &mut candidates {
            if n_free == 0 {
                break;
            }
            if turn * candidate.weight < candidate.target {
                continue;
            }
            candidate.target += heaviest;
            let mut slot = candidate.slot(size);
            while slots[slot].is_some() {
                slot = candidate.slot(size);
            }
            slots[slot] = Some(candidate.position);
            n_free -= 1;
        }
        turn += 1.0;
    }
    slots.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const RING: Balance = Balance::RingHash { size_min: 1024, size_max: 8_388_608 };
    const MAGLEV: Balance = Balance::Maglev { size: 65_537 };

    fn keys(n: usize) -> Vec<String> {
        (0..n).map(|number| format!("envoy://connect_originate/10.244.1.{number}:8080")).collect()
    }

    fn table(balance: Balance, keys: &[String], weights: &[u32]) -> HashTable {
        let sum: u32 = weights.iter().sum();
        let hosts = keys.iter().zip(weights).map(|(key, weight)| Weighed { key, weight: f64::from(*weight) / f64::from(sum) });
        HashTable::new(balance, &hosts.collect::<Vec<_>>()).unwrap()
    }

    fn hash(number: u32) -> u64 {
        of_bytes(number.to_string().as_bytes(), 0)
    }

    #[test]
    fn a_ring_has_envoys_points() {
        // Envoy's documentation of the ring: xxHash64 of "address_index", a point for each hash of each endpoint.
        let HashTable::Ring(points) = table(Balance::RingHash { size_min: 12, size_max: 8_388_608 }, &keys(3), &[1, 1, 2]) else {
            panic!()
        };
        let count = |position| points.iter().filter(|(_, at)| *at == position).count();
        assert_eq!((count(0), count(1), count(2)), (3, 3, 6));
        let first = of_bytes(b"envoy://connect_originate/10.244.1.0:8080_0", 0);
        assert!(points.contains(&(first, 0)));
        let ring = HashTable::Ring(points.clone());
        assert_eq!(ring.position(first, 0), 0, "a hash meets the point that it is");
        assert_eq!(ring.position(u64::MAX, 0), usize::try_from(points[0].1).unwrap(), "beyond the last point is the first");
        assert_eq!(ring.position(0, 1), usize::try_from(points[1].1).unwrap());
    }

    #[test]
    fn a_ring_is_not_larger_than_it_may_be() {
        let HashTable::Ring(points) = table(Balance::RingHash { size_min: 1024, size_max: 8 }, &keys(4), &[1, 1, 1, 1]) else { panic!() };
        assert_eq!(points.len(), 8);
    }

    #[test]
    fn shares_follow_the_weights() {
        for balance in [RING, MAGLEV] {
            let table = table(balance, &keys(3), &[1, 1, 2]);
            let mut counts = [0_u32; 3];
            (0..30_000).for_each(|number| counts[table.position(hash(number), 0)] += 1);
            assert!((12_000..18_000).contains(&counts[2]) && counts[0] > 5_500 && counts[1] > 5_500, "{balance:?} {counts:?}");
        }
    }

    #[test]
    fn few_keys_move_when_an_endpoint_goes() {
        for balance in [RING, MAGLEV] {
            for gone in 0..10 {
                let all = keys(10);
                let left: Vec<_> = all.iter().enumerate().filter(|(at, _)| *at != gone).map(|(_, key)| key.clone()).collect();
                let (before, after) = (table(balance, &all, &[1; 10]), table(balance, &left, &[1; 9]));
                let moved = (0..10_000).filter(|number| {
                    let key = &all[before.position(hash(*number), 0)];
                    *key != all[gone] && left[after.position(hash(*number), 0)] != *key
                });
                // Those of the endpoint that went have to move; of the others a few do, since all get more points or slots.
                let moved = moved.count();
                assert!(moved <= 1_000, "{balance:?}: {moved} of 10,000 moved though their endpoint is there");
            }
        }
    }

    #[test]
    fn the_order_of_endpoints_does_not_matter_to_maglev() {
        let all = keys(5);
        let reversed: Vec<_> = all.iter().rev().cloned().collect();
        let (one, other) = (table(MAGLEV, &all, &[1; 5]), table(MAGLEV, &reversed, &[1; 5]));
        assert!((0..1_000).all(|number| all[one.position(hash(number), 0)] == reversed[other.position(hash(number), 0)]));
    }

    #[test]
    fn another_attempt_meets_another_slot() {
        let table = table(MAGLEV, &keys(5), &[1; 5]);
        let differ = (0..1_000).filter(|number| table.position(hash(*number), 0) != table.position(hash(*number), 1)).count();
        assert!(differ > 700, "{differ}");
    }
}
