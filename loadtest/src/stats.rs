//! What a load run counts: latencies in a histogram, and failures by kind.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Latencies above this are counted as this.
const LATENCY_MAX: Duration = Duration::from_secs(3600);
/// Decimal digits that the histogram keeps.
const SIGNIFICANT_DIGITS: u8 = 3;

/// How a request failed; one variant per thing someone would look at next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The HBONE connection could not be made.
    Connection,
    /// The CONNECT was answered with another status than 200.
    ConnectRefused(u16),
    /// The tunnel or the HTTP connection inside broke before the whole answer was there.
    Broken,
    /// An HTTP status other than 200.
    Status(u16),
    /// A gRPC status other than 0; `None`: no status in headers or trailers.
    GrpcStatus(Option<u16>),
    /// No whole answer in time.
    Timeout,
    /// Scheduled by the open loop, and not answered (or not even sent) when the run ended.
    Unfinished,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connection => f.write_str("connection"),
            Self::ConnectRefused(status) => write!(f, "connect_{status}"),
            Self::Broken => f.write_str("broken"),
            Self::Status(status) => write!(f, "status_{status}"),
            Self::GrpcStatus(Some(status)) => write!(f, "grpc_{status}"),
            Self::GrpcStatus(None) => f.write_str("grpc_no_status"),
            Self::Timeout => f.write_str("timeout"),
            Self::Unfinished => f.write_str("unfinished"),
        }
    }
}

/// The counts of one run.
#[derive(Debug)]
pub struct Tally {
    latency_ns: Histogram<u64>,
    failures: BTreeMap<Failure, u64>,
}

impl Tally {
    pub fn new() -> Self {
        let highest = u64::try_from(LATENCY_MAX.as_nanos()).expect("an hour in nanoseconds fits in 64 bits");
        let latency_ns = Histogram::new_with_bounds(1, highest, SIGNIFICANT_DIGITS).expect("the bounds are constants in range");
        Self { latency_ns, failures: BTreeMap::new() }
    }

    /// A request that was answered as it should be.
    pub fn record(&mut self, latency: Duration) {
        self.latency_ns.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// `count` requests that failed alike.
    pub fn fail(&mut self, failure: Failure, count: u64) {
        if count > 0 {
            *self.failures.entry(failure).or_default() += count;
        }
    }

    /// Requests recorded, well answered or failed.
    pub fn requests(&self) -> u64 {
        self.latency_ns.len() + self.failures.values().sum::<u64>()
    }

    /// The numbers a report shows.
    pub fn summary(&self) -> Summary {
        let quantile = |q: f64| Duration::from_nanos(self.latency_ns.value_at_quantile(q)).as_secs_f64() * 1e6;
        Summary {
            ok: self.latency_ns.len(),
            failures: self.failures.iter().map(|(failure, count)| (failure.to_string(), *count)).collect(),
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            max_us: Duration::from_nanos(self.latency_ns.max()).as_secs_f64() * 1e6,
        }
    }
}

/// Counts and latency quantiles (microseconds) of the requests answered as they should be.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub ok: u64,
    pub failures: BTreeMap<String, u64>,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

/// A count as a floating-point number; rounded only above 2^53.
pub fn float(count: u64) -> f64 {
    let half = |bits: u64| f64::from(u32::try_from(bits & u64::from(u32::MAX)).expect("masked to 32 bits"));
    half(count >> 32) * 4_294_967_296.0 + half(count)
}

/// The median of some numbers, with the smallest and the largest; `None` of none.
pub fn median(values: &[f64]) -> Option<Spread> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
    Some(Spread { median, min, max })
}

/// A median and its range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn quantiles_are_within_a_thousandth_of_the_true_ones() {
        let mut tally = Tally::new();
        for micros in 1..=1000 {
            tally.record(Duration::from_micros(micros));
        }
        let summary = tally.summary();
        for (found, expected) in [(summary.p50_us, 500.0), (summary.p90_us, 900.0), (summary.p99_us, 990.0), (summary.p999_us, 999.0)] {
            assert!((found - expected).abs() <= expected * 0.002, "{found} for {expected}");
        }
    }

    #[test]
    fn failures_are_counted_by_kind_and_not_among_latencies() {
        let mut tally = Tally::new();
        tally.record(Duration::from_millis(1));
        tally.fail(Failure::Status(503), 2);
        tally.fail(Failure::Status(404), 1);
        tally.fail(Failure::Unfinished, 0);
        let summary = tally.summary();
        assert_eq!(summary.ok, 1);
        assert_eq!(summary.failures, BTreeMap::from([("status_404".to_owned(), 1), ("status_503".to_owned(), 2)]));
        assert_eq!(tally.requests(), 4);
    }

    #[test]
    fn a_latency_beyond_the_histogram_is_kept_at_its_upper_end() {
        let mut tally = Tally::new();
        tally.record(Duration::from_secs(1_000_000));
        assert!(tally.summary().max_us >= 3.59e9);
    }

    #[test]
    fn the_median_of_an_even_count_is_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(median(&[7.0]).unwrap().median, 7.0);
        assert_eq!(median(&[]), None);
    }
}
