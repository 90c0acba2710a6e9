//! Counters and histograms: what recording touches.
//!
//! Invariant: a value is counted in the first bucket whose bound is not below it (`v <= le`), and sums are exact integers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds of Envoy's default histogram, and how they print. Values are whole numbers, so 0.5 takes zeros only.
pub(crate) const BOUNDS: [(u64, &str); 19] = [
    (0, "0.5"),
    (1, "1"),
    (5, "5"),
    (10, "10"),
    (25, "25"),
    (50, "50"),
    (100, "100"),
    (250, "250"),
    (500, "500"),
    (1_000, "1000"),
    (2_500, "2500"),
    (5_000, "5000"),
    (10_000, "10000"),
    (30_000, "30000"),
    (60_000, "60000"),
    (300_000, "300000"),
    (600_000, "600000"),
    (1_800_000, "1800000"),
    (3_600_000, "3600000"),
];

/// The bounds and `+Inf`.
pub(crate) const BUCKETS: usize = BOUNDS.len() + 1;

/// A count that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How many values fell between the bounds, and their sum.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

impl Histogram {
    pub(crate) fn record(&self, value: u64) {
        self.buckets[BOUNDS.partition_point(|(bound, _)| *bound < value)].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    pub(crate) fn add_to(&self, total: &mut HistogramTotal) {
        for (total, bucket) in total.buckets.iter_mut().zip(&self.buckets) {
            *total += bucket.load(Relaxed);
        }
        total.sum = total.sum.wrapping_add(self.sum.load(Relaxed));
    }
}

/// A histogram's numbers at one moment: per bucket, not yet cumulative.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct HistogramTotal {
    pub(crate) buckets: [u64; BUCKETS],
    pub(crate) sum: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_in_the_first_bucket_whose_bound_is_not_below_it() {
        for (value, le) in [
            (0, "0.5"),
            (1, "1"),
            (2, "5"),
            (5, "5"),
            (7, "10"),
            (66, "100"),
            (100, "100"),
            (101, "250"),
            (3_600_000, "3600000"),
            (3_600_001, "+Inf"),
            (u64::MAX, "+Inf"),
        ] {
            let histogram = Histogram::default();
            histogram.record(value);
            let mut total = HistogramTotal::default();
            histogram.add_to(&mut total);
            let at = total.buckets.iter().position(|count| *count == 1).expect("counted");
            assert_eq!(BOUNDS.get(at).map_or("+Inf", |(_, text)| *text), le, "{value}");
            assert_eq!(total.sum, value);
        }
    }

    #[test]
    fn bounds_print_as_the_numbers_they_are() {
        for (bound, text) in &BOUNDS[1..] {
            assert_eq!(bound.to_string(), *text);
        }
        assert!(BOUNDS.is_sorted());
    }
}
