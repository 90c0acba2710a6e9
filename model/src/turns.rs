//! Turns: each of several gets its share exactly over a round, and evenly within it.
//!
//! Not for: choices that must not depend on each other, such as of endpoints. Invariant: over as many turns as the weights sum to,
//! divided by what divides them all, each comes as often as its weight says; wherever the counting began.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Whose turn it is, by weights.
#[derive(Debug)]
pub struct Turns {
    weights: Box<[u32]>,
    /// What divides all weights.
    unit: u64,
    /// Turns of one round.
    round: u64,
    /// From one turn's place in the round to the next one's: about the golden section of it, so that the places spread evenly, and
    /// without a common divisor, so that each comes once.
    step: u64,
    /// By chance: many that begin anew do not all begin with the first.
    first: OnceLock<u64>,
    taken: AtomicU64,
}

impl Turns {
    /// None if the weights sum to nothing, or to more than Envoy takes: 32 bits.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Option<Self> {
        let weights: Box<[u32]> = weights.into_iter().collect();
        let total: u64 = weights.iter().copied().map(u64::from).sum();
        if total == 0 || u32::try_from(total).is_err() {
            return None;
        }
        let unit = weights.iter().copied().map(u64::from).fold(0, greatest_common_divisor);
        let round = total / unit;
        let golden = round * 618 / 1000;
        let step = (golden.max(1)..=round).find(|step| greatest_common_divisor(*step, round) == 1).unwrap_or(1);
        Some(Self { weights, unit, round, step, first: OnceLock::new(), taken: AtomicU64::new(0) })
    }

    /// The weights, by position.
    #[must_use]
    pub fn weights(&self) -> &[u32] {
        &self.weights
    }

    /// Whose turn is next, by position. `draw`: 64 random bits, of which one call's count.
    pub fn take(&self, draw: u64) -> usize {
        self.at(self.taken.fetch_add(1, Ordering::Relaxed), draw)
    }

    /// Whose turn would be next.
    pub fn peek(&self, draw: u64) -> usize {
        self.at(self.taken.load(Ordering::Relaxed), draw)
    }

    fn at(&self, turn: u64, draw: u64) -> usize {
        let first = *self.first.get_or_init(|| draw % self.round);
        let turn = (turn % self.round + first) % self.round;
        let mut left = turn * self.step % self.round * self.unit;
        for (position, weight) in self.weights.iter().copied().map(u64::from).enumerate() {
            if left < weight {
                return position;
            }
            left -= weight;
        }
        0
    }
}

const fn greatest_common_divisor(mut one: u64, mut other: u64) -> u64 {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nine_of_ten_are_nine_of_every_ten() {
        let turns = Turns::new([90, 0, 10]).unwrap();
        let taken: Vec<usize> = (0..40).map(|_| turns.take(7)).collect();
        assert!(taken.windows(10).all(|ten| ten.iter().filter(|one| **one == 2).count() == 1 && !ten.contains(&1)), "{taken:?}");
    }

    #[test]
    fn who_looks_takes_no_turn() {
        let turns = Turns::new([1, 1, 1]).unwrap();
        let next = turns.peek(5);
        assert_eq!((turns.peek(9), turns.take(1)), (next, next));
    }

    #[test]
    fn weights_that_sum_to_nothing_or_too_much_are_none() {
        assert!(Turns::new([0, 0]).is_none() && Turns::new([]).is_none() && Turns::new([u32::MAX, 1]).is_none());
        assert!(Turns::new([u32::MAX]).is_some());
    }

    proptest! {
        #[test]
        fn each_gets_its_share_of_any_round(weights in prop::collection::vec(0_u32..30, 1..6), draw in any::<u64>(), before in 0_usize..50) {
            prop_assume!(weights.iter().any(|weight| *weight > 0));
            let turns = Turns::new(weights.iter().copied()).unwrap();
            for _ in 0..before {
                turns.take(draw);
            }
            let mut counts = vec![0_u64; weights.len()];
            for _ in 0..turns.round {
                counts[turns.take(0)] += turns.unit;
            }
            prop_assert_eq!(counts, weights.into_iter().map(u64::from).collect::<Vec<_>>());
        }

        #[test]
        fn half_a_round_has_about_half_of_each(heavy in 1_u32..100, draw in any::<u64>()) {
            let turns = Turns::new([heavy, 100 - heavy]).unwrap();
            let half = turns.round / 2;
            let first = (0..half).filter(|_| turns.take(draw) == 0).count();
            let exact = f64::from(heavy) / 100.0 * f64::from(u32::try_from(half).unwrap());
            prop_assert!((f64::from(u32::try_from(first).unwrap()) - exact).abs() <= 3.0, "{first} of {half}");
        }
    }
}
