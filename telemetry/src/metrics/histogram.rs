//! Counters and histograms: what recording touches.
//!
//! Invariant: a value is counted in the first bucket whose bound is not below it (`v <= le`), and sums are exact integers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use parking_lot::Mutex;

use super::native::{NativeCounts, bucket_of};

/// Upper bounds of Envoy's default histogram.
const BOUNDS_DEFAULT: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Bounds of one histogram at most.
pub const HISTOGRAM_BOUNDS_MAX: usize = 100;

/// Upper bounds of a histogram, rising; `+Inf` comes after the last.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounds(Box<[Bound]>);

#[derive(Clone, Debug, PartialEq)]
struct Bound {
    /// The largest whole number that is not above it: values are whole numbers, so 0.5 takes zeros only.
    largest: u64,
    value: f64,
    text: Box<str>,
}

impl Bounds {
    /// Reads bounds; none if they are none, too many, not rising, or not above zero.
    #[must_use]
    pub fn new(bounds: &[f64]) -> Option<Self> {
        let rises = bounds.is_sorted_by(|before, after| before < after);
        if bounds.is_empty()
            || bounds.len() > HISTOGRAM_BOUNDS_MAX
            || !rises
            || !bounds.iter().all(|bound| bound.is_finite() && *bound > 0.0)
        {
            return None;
        }
        Some(Self(bounds.iter().map(|bound| Bound { largest: floor(*bound), value: *bound, text: bound.to_string().into() }).collect()))
    }

    fn of(&self, value: u64) -> usize {
        self.0.partition_point(|bound| bound.largest < value)
    }

    /// The largest whole number of a bucket; of the last one, that of the bucket before it.
    fn largest(&self, bucket: usize) -> u64 {
        self.0.get(bucket).or(self.0.last()).map_or(0, |bound| bound.largest)
    }

    /// The bound of a bucket; none of the last one, which has none.
    pub(crate) fn value(&self, bucket: usize) -> Option<f64> {
        self.0.get(bucket).map(|bound| bound.value)
    }

    /// How the bound of a bucket prints.
    pub(crate) fn text(&self, bucket: usize) -> &str {
        self.0.get(bucket).map_or("+Inf", |bound| &bound.text)
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self::new(&BOUNDS_DEFAULT).expect("they rise from above zero")
    }
}

/// The largest whole number not above `bound`, which is positive. Without a cast: by its decimal text, which is exact.
fn floor(bound: f64) -> u64 {
    bound.floor().to_string().parse().unwrap_or(u64::MAX)
}

/// What a series is counted in, by one worker.
pub(crate) trait Cell {
    /// What all cells of a metric have in common.
    type Shape: std::fmt::Debug;
    /// An empty one.
    fn new(shape: &Self::Shape) -> Self;
    /// How often it was touched, or how much it counted: different after it was recorded to.
    fn total(&self) -> u64;
    /// What it takes, but for what the allocator adds.
    fn bytes(&self) -> usize;
}

impl Cell for Counter {
    type Shape = ();

    fn new((): &()) -> Self {
        Self::default()
    }

    fn total(&self) -> u64 {
        self.value()
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
    }
}

impl Cell for Histogram {
    type Shape = Arc<Bounds>;

    fn new(bounds: &Arc<Bounds>) -> Self {
        let buckets = (0..=bounds.0.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds: Arc::clone(bounds), buckets, sum: AtomicU64::new(0), exemplars: Mutex::default(), native: Mutex::default() }
    }

    fn total(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).fold(0, u64::wrapping_add)
    }

    fn bytes(&self) -> usize {
        let exemplars = self.exemplars.lock().capacity() * size_of::<Exemplar>();
        let native = self.native.lock().as_ref().map_or(0, NativeCounts::bytes);
        size_of::<Self>() + size_of_val(&*self.buckets) + exemplars + native
    }
}

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
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: Arc<Bounds>,
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
    exemplars: Mutex<Vec<Exemplar>>,
    /// Of the same values; none until a scraper asked for them.
    native: Mutex<Option<NativeCounts>>,
}

/// A request that stands for a bucket, by its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exemplar {
    bucket: usize,
    pub(crate) trace_id: u128,
    pub(crate) value: u64,
    pub(crate) at: SystemTime,
}

impl Histogram {
    pub(crate) fn record(&self, value: u64) {
        self.buckets[self.bounds.of(value)].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// Counts a value in its native bucket as well, once this one is read so.
    ///
    /// Apart from its caller, whose way without native buckets would be longer otherwise.
    #[inline(never)]
    pub(crate) fn record_native(&self, value: u64) {
        // Held for both, so that who reads finds it in both or in none.
        let mut native = self.native.lock();
        self.record(value);
        if let Some(native) = &mut *native {
            native.add(bucket_of(value), 1);
        }
    }

    /// Adds all to a total, native buckets too. They begin, the first time, with what was counted before, at the bounds of the classic
    /// buckets: a histogram's count has to be the sum of its native buckets.
    pub(crate) fn add_native_to(&self, total: &mut HistogramTotal) {
        let mut native = self.native.lock();
        self.add_to(total);
        let native = native.get_or_insert_with(|| {
            let mut native = NativeCounts::default();
            for (at, bucket) in self.buckets.iter().enumerate() {
                let count = bucket.load(Relaxed);
                if count > 0 {
                    native.add(bucket_of(self.bounds.largest(at)), count);
                }
            }
            native
        });
        total.native.merge(native);
    }

    /// Counts native buckets no more.
    pub(crate) fn forget_native(&self) {
        *self.native.lock() = None;
    }

    /// Keeps a request for its bucket, in place of the one before.
    pub(crate) fn exemplify(&self, value: u64, trace_id: u128, at: SystemTime) {
        keep(&mut self.exemplars.lock(), Exemplar { bucket: self.bounds.of(value), trace_id, value, at });
    }

    pub(crate) fn add_to(&self, total: &mut HistogramTotal) {
        total.buckets.resize(self.buckets.len(), 0);
        for (total, bucket) in total.buckets.iter_mut().zip(&self.buckets) {
            *total += bucket.load(Relaxed);
        }
        total.sum = total.sum.wrapping_add(self.sum.load(Relaxed));
        for exemplar in &*self.exemplars.lock() {
            keep(&mut total.exemplars, *exemplar);
        }
    }
}

/// A histogram's numbers at one moment: per bucket, not yet cumulative.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct HistogramTotal {
    pub(crate) buckets: Vec<u64>,
    pub(crate) sum: u64,
    /// Of the native buckets, where they were asked for.
    pub(crate) native: NativeCounts,
    exemplars: Vec<Exemplar>,
}

impl HistogramTotal {
    /// The newest exemplar of a bucket.
    pub(crate) fn exemplar(&self, bucket: usize) -> Option<&Exemplar> {
        self.exemplars.iter().find(|exemplar| exemplar.bucket == bucket)
    }
}

/// Of two exemplars of a bucket the newer stays.
fn keep(exemplars: &mut Vec<Exemplar>, new: Exemplar) {
    match exemplars.iter_mut().find(|known| known.bucket == new.bucket) {
        Some(known) if known.at <= new.at => *known = new,
        Some(_) => {}
        None => exemplars.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_in_the_first_bucket_whose_bound_is_not_below_it() {
        let bounds = Arc::new(Bounds::default());
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
            let histogram = Histogram::new(&bounds);
            histogram.record(value);
            let mut total = HistogramTotal::default();
            histogram.add_to(&mut total);
            let at = total.buckets.iter().position(|count| *count == 1).expect("counted");
            assert_eq!(bounds.text(at), le, "{value}");
            assert_eq!(total.sum, value);
        }
    }

    #[test]
    fn bounds_have_to_rise_from_above_zero() {
        for wrong in [&[][..], &[0.0], &[-1.0, 2.0], &[1.0, 1.0], &[2.0, 1.0], &[f64::NAN], &[1.0, f64::INFINITY]] {
            assert_eq!(Bounds::new(wrong), None, "{wrong:?}");
        }
        let bounds = Bounds::new(&[0.25, 1.5, 1e3]).expect("they rise");
        assert_eq!([0, 1, 2, 3].map(|bucket| bounds.text(bucket).to_owned()), ["0.25", "1.5", "1000", "+Inf"]);
        assert_eq!([0, 1, 2, 1000, 1001].map(|value| bounds.of(value)), [0, 1, 2, 2, 3]);
    }
}
