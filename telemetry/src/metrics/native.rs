//! Native buckets of a histogram, as Prometheus counts them: their bounds are powers of two and eighths of them.
//!
//! Not for: the classic buckets, which every scraper gets. Source: Prometheus' native histograms, schema 3. Invariant: they are counted
//! only once a scraper has asked for them, and not for long behind the last that did.

use std::time::Duration;

/// How fine they are: eight for each doubling, so that the bounds of one are 9 % apart.
pub(crate) const NATIVE_SCHEMA: i8 = 3;
/// How long nobody has asked for them before they are given back, at another scrape.
pub(crate) const NATIVE_IDLE_MAX: Duration = Duration::from_secs(15 * 60);
/// Of one histogram at most: what a number of 64 bits can fall in, and zero.
pub const NATIVE_BUCKETS_MAX: usize = 513;

/// Where a half to one is divided: powers of two to the eighths.
const EIGHTHS: [f64; 8] = [
    0.5,
    0.545_253_866_332_628_8,
    0.594_603_557_501_360_5,
    0.648_419_777_325_504_8,
    std::f64::consts::FRAC_1_SQRT_2,
    0.771_105_412_703_970_4,
    0.840_896_415_253_714_6,
    0.917_004_043_204_671_2,
];
/// Of `EIGHTHS`, as an index.
const EIGHTHS_COUNT: u16 = 8;

/// A bucket: that of index `i` ends at `2^(i/8)`, and begins behind the one before; none is that of zero.
pub(crate) type NativeBucket = Option<u16>;

/// The bucket of a value. Beyond 2^32, what is less than 1 in 2^31 above a power of two counts as that power.
pub(crate) fn bucket_of(value: u64) -> NativeBucket {
    if value == 0 {
        return None;
    }
    let zeros = value.leading_zeros();
    // The value as a half to one, by its upper 32 bits.
    let upper = u32::try_from((value << zeros) >> 32).expect("the upper half");
    let fraction = f64::from(upper) / 4_294_967_296.0;
    let within = u16::try_from(EIGHTHS.partition_point(|bound| *bound < fraction)).expect("eight at most");
    let doublings = u16::try_from(u64::BITS - 1 - zeros).expect("63 at most");
    Some(doublings * EIGHTHS_COUNT + within)
}

/// How many values fell in each, those that none fell in left out; rising.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NativeCounts(Vec<(NativeBucket, u64)>);

impl NativeCounts {
    /// Counts values of a bucket.
    pub(crate) fn add(&mut self, bucket: NativeBucket, count: u64) {
        match self.0.binary_search_by_key(&bucket, |(known, _)| *known) {
            Ok(at) => self.0[at].1 += count,
            Err(at) => self.0.insert(at, (bucket, count)),
        }
    }

    /// What the counts take.
    pub(crate) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<(NativeBucket, u64)>()
    }

    /// Counts what another has counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(bucket, count)| self.add(*bucket, *count));
    }

    /// All values.
    pub(crate) fn sum(&self) -> u64 {
        self.0.iter().fold(0, |sum, (_, count)| sum.wrapping_add(*count))
    }

    /// The zeros.
    pub(crate) fn zeros(&self) -> u64 {
        self.0.first().map_or(0, |(bucket, count)| if bucket.is_none() { *count } else { 0 })
    }

    /// The others, by index.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (u16, u64)> {
        self.0.iter().filter_map(|(bucket, count)| Some(((*bucket)?, *count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prometheus, native histograms: a bucket of index `i` holds what is above `2^((i-1)/8)` and not above `2^(i/8)`.
    #[test]
    fn a_value_is_in_the_bucket_between_whose_bounds_it_is() {
        for value in (0..5_000).chain((13..64).flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + (1 << (bit - 4))])) {
            let Some(index) = bucket_of(value) else {
                assert_eq!(value, 0);
                continue;
            };
            let (below, above) = (f64::from(index) - 1.0, f64::from(index));
            // What a text of a number reads as is the nearest there is.
            let exact: f64 = value.to_string().parse().expect("a number");
            assert!((below / 8.0).exp2() < exact && exact <= (above / 8.0).exp2() * (1.0 + 1e-15), "{value} in {index}");
        }
        assert_eq!((bucket_of(1), bucket_of(2), bucket_of(1 << 63)), (Some(0), Some(8), Some(504)));
        assert_eq!(usize::from(bucket_of(u64::MAX).expect("above zero")) + 1, NATIVE_BUCKETS_MAX);
    }

    #[test]
    fn counts_are_kept_for_buckets_that_have_any_in_their_order() {
        let mut counts = NativeCounts::default();
        for value in [7, 0, 1, 7, 100] {
            counts.add(bucket_of(value), 1);
        }
        let mut sum = NativeCounts::default();
        sum.merge(&counts);
        sum.merge(&counts);
        assert_eq!((sum.sum(), sum.zeros()), (10, 2));
        assert_eq!(sum.buckets().collect::<Vec<_>>(), [(0, 2), (23, 4), (54, 2)]);
    }
}
