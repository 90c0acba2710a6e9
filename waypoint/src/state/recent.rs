//! How many requests began within an interval that ends now.
//!
//! Not for: those in flight (`breaker`). Source: Envoy's `budget_interval`, which forgets in tenths of it too. Invariants: a request counts
//! for the interval, and for a tenth more at most; nobody waits to count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Parts of the interval that are forgotten together.
const PARTS: u32 = 10;
/// The parts of the interval, and the one that has not ended.
const SLOTS: usize = 11;
/// Bits of a slot that are its count; the others are the number of its part.
const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const PART_MASK: u64 = u64::MAX >> COUNT_BITS;

/// The counts of the last parts, each in the slot of its number.
#[derive(Debug)]
pub(super) struct Recent {
    interval: Duration,
    began: Instant,
    part: Duration,
    slots: [AtomicU64; SLOTS],
}

impl Recent {
    /// Nothing began before `now`.
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        // Parts that are too short would be numbered anew too soon.
        let part = (interval / PARTS).max(Duration::from_millis(1));
        Self { interval, began: now, part, slots: Default::default() }
    }

    /// How long a request counts.
    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// The number of the part at this time. Slots are empty in part 0, so that the first is 1.
    fn part_at(&self, now: Instant) -> u64 {
        let part = now.saturating_duration_since(self.began).as_nanos() / self.part.as_nanos() + 1;
        u64::try_from(part).unwrap_or(u64::MAX) & PART_MASK
    }

    /// A request begins.
    pub(super) fn add(&self, now: Instant) {
        let part = self.part_at(now);
        let more = |slot: u64| {
            let count = if slot >> COUNT_BITS == part { (slot & COUNT_MASK).saturating_add(1).min(COUNT_MASK) } else { 1 };
            Some((part << COUNT_BITS) | count)
        };
        if let Some(slot) = self.slot(part) {
            // It always changes.
            let _before = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        }
    }

    fn slot(&self, part: u64) -> Option<&AtomicU64> {
        usize::try_from(part % (u64::from(PARTS) + 1)).ok().and_then(|at| self.slots.get(at))
    }

    /// Requests that began lately.
    pub(super) fn count(&self, now: Instant) -> u32 {
        let part = self.part_at(now);
        let oldest = part.saturating_sub(u64::from(PARTS));
        let counts = self.slots.iter().map(|slot| slot.load(Ordering::Relaxed));
        let recent = counts.filter(|slot| (oldest..=part).contains(&(slot >> COUNT_BITS))).map(|slot| slot & COUNT_MASK);
        u32::try_from(recent.sum::<u64>()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_for_the_interval_and_is_forgotten_soon_after() {
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let recent = Recent::new(Duration::from_secs(1), began);
        assert_eq!(recent.count(at(0)), 0);
        for millis in [0, 50, 550] {
            recent.add(at(millis));
        }
        assert_eq!([550, 1000, 1050].map(|millis| recent.count(at(millis))), [3, 3, 3], "as long as they have to");
        assert_eq!([1100, 1550, 1650, 9000].map(|millis| recent.count(at(millis))), [1, 1, 0, 0]);
        recent.add(at(9000));
        assert_eq!([9000, 10_000, 10_100].map(|millis| recent.count(at(millis))), [1, 1, 0]);
    }

    #[test]
    fn an_interval_of_hardly_anything_counts_what_begins_at_once() {
        let began = Instant::now();
        let recent = Recent::new(Duration::from_nanos(1), began);
        recent.add(began);
        assert_eq!((recent.count(began), recent.count(began + Duration::from_millis(11))), (1, 0));
    }
}
