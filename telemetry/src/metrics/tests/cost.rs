//! What counting a request costs while there are ten thousand series, of which the worker knows each. Prints it; in an optimised build
//! (`make verify`) holds it to what it may take. Instructions are counted by `make costs`, which sees small changes; this is the promise in time.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::*;

/// Clients, each with the four series of a request: requests, durations, sizes of requests and of responses.
const CLIENTS: usize = 2500;
const SERIES: usize = 4 * CLIENTS;
/// Rounds, of which the fastest counts: the others were disturbed.
const ROUNDS: u32 = 20;
const BUDGET: Duration = Duration::from_nanos(1500);

#[test]
fn counting_a_request_among_ten_thousand_series_takes_a_microsecond_and_a_half_at_most() {
    let chain = fixture::chain(Some(fixture::stats()), Vec::new(), None);
    let mut metrics = Metrics::new();
    let mut records: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let mut record = fixture::request(&chain);
            record.stream.source = Some(fixture::workload(&format!("client-{client}"), "default", ("client", "v1")));
            record
        })
        .collect();
    let mut fastest = Duration::MAX;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for record in &mut records {
            metrics.worker.record_request(black_box(record));
        }
        fastest = fastest.min(began.elapsed().div_f64(f64::from(u32::try_from(CLIENTS).unwrap())));
    }
    assert_eq!(metrics.worker.store.series_count(), SERIES);
    assert_eq!(metrics.lines("istio_requests_total")[0].rsplit_once(' ').unwrap().1, ROUNDS.to_string());
    println!("metrics_record {fastest:?} among {SERIES} series");
    if !cfg!(debug_assertions) {
        assert!(fastest < BUDGET, "{fastest:?} of {BUDGET:?}");
    }
}
