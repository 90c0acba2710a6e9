#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::AtomicUsize;

use model::collector::Collector;
use prometheus::IntCounter;

use super::*;
use crate::export::{Connecting, EXPORT_TIMEOUT};
use crate::fixture;

const NEVER: Duration = Duration::from_secs(3600);
const SPAN: &[u8] = b"\x2a\x01n";

struct Fixture {
    exporters: Arc<Exporters>,
    counters: ExportCounters,
    dialled: Arc<AtomicUsize>,
}

impl Fixture {
    fn provider(number: usize) -> SpanProvider {
        let collector = Collector { cluster: format!("cluster {number}").into(), ..fixture::collector() };
        SpanProvider { collector, dialect: Dialect::Otlp { service_name: "waypoint.emojivoto".into(), reads_environment: false } }
    }

    fn outboxes(&self, numbers: std::ops::Range<usize>) -> Vec<Arc<Outbox>> {
        numbers.map(|number| self.exporters.spans(&Self::provider(number))).collect()
    }

    /// Outboxes that have each been written to.
    fn used(&self, numbers: std::ops::Range<usize>) -> Vec<Arc<Outbox>> {
        let outboxes = self.outboxes(numbers);
        outboxes.iter().for_each(|outbox| outbox.push(|| SPAN));
        outboxes
    }

    fn running(&self) -> usize {
        self.exporters.tasks.lock().running.len()
    }

    async fn ended(&self) {
        while self.exporters.tasks.lock().retired.iter().any(|retired| !retired.task.is_finished()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Exporters whose collectors never answer a dial.
fn hanging() -> Fixture {
    let counter = |name| IntCounter::new(name, name).unwrap();
    let counters = ExportCounters {
        exported: counter("e"),
        dropped_queue: counter("q"),
        dropped_export: counter("x"),
        dropped_provider: counter("p"),
    };
    let both = Counters { spans: counters.clone(), records: counters.clone() };
    let dialled = Arc::new(AtomicUsize::new(0));
    let dials = Arc::clone(&dialled);
    let connector = move |_: &Collector| -> Connecting {
        dials.fetch_add(1, Relaxed);
        Box::pin(std::future::pending())
    };
    let exporters = Exporters::new(Handle::current(), Arc::new(connector), NEVER, Origin::default(), both);
    Fixture { exporters, counters, dialled }
}

#[tokio::test(start_paused = true)]
async fn configuration_after_configuration_each_new_collector_gets_what_is_for_it() {
    let it = hanging();
    for number in 0..3 * EXPORTERS_MAX {
        let chain = it.outboxes(number..number + 1);
        it.exporters.configured(chain.iter());
        chain[0].push(|| SPAN);
        assert_eq!((it.counters.dropped_provider.get(), it.running()), (0, 1), "collector {number}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_collector_that_nothing_names_any_more_still_leaves_or_counts_as_lost() {
    let it = hanging();
    drop(it.used(0..1));
    assert_eq!(it.running(), 0, "its place is free at once");
    let begin = Instant::now();
    it.ended().await;
    assert!(it.dialled.load(Relaxed) > 0, "what waited was tried");
    assert!(begin.elapsed() <= EXPORT_TIMEOUT + Duration::from_secs(1));
    assert_eq!(it.counters.dropped_export.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_exporter_stays_as_long_as_one_of_its_chains() {
    let it = hanging();
    let (one, other) = (it.used(0..1), it.outboxes(0..1));
    drop(one);
    assert_eq!(it.running(), 1);
    drop(other);
    assert_eq!(it.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn more_collectors_than_places_are_refused_and_counted_and_ask_again_when_one_is_free() {
    let it = hanging();
    let mut all = it.used(0..EXPORTERS_MAX + 1);
    it.exporters.configured(all.iter());
    let refused = all.pop().unwrap();
    refused.push(|| SPAN);
    assert_eq!(it.counters.dropped_provider.get(), 2);
    drop(all.pop());
    refused.push(|| SPAN);
    assert_eq!((it.counters.dropped_provider.get(), it.running()), (2, EXPORTERS_MAX));
}

#[tokio::test(start_paused = true)]
async fn collectors_that_only_old_connections_still_name_give_way_to_configured_ones() {
    let it = hanging();
    let old = it.used(0..EXPORTERS_MAX);
    let new = it.outboxes(EXPORTERS_MAX..2 * EXPORTERS_MAX);
    // Before the configuration names them there is no place.
    new[0].push(|| panic!("made for nobody"));
    assert_eq!(it.counters.dropped_provider.get(), 1);
    it.exporters.configured(new.iter());
    new.iter().for_each(|outbox| outbox.push(|| SPAN));
    assert_eq!((it.counters.dropped_provider.get(), it.running()), (1, EXPORTERS_MAX));
    old[0].push(|| panic!("made for nobody"));
    assert_eq!((it.counters.dropped_provider.get(), it.running()), (2, EXPORTERS_MAX), "an old one does not come back at its cost");
}

#[tokio::test(start_paused = true)]
async fn of_too_many_retired_exporters_the_oldest_gives_up_what_it_has() {
    let it = hanging();
    for number in 0..RETIRED_EXPORTERS_MAX + 1 {
        drop(it.used(number..number + 1));
        // Its task has begun, and taken what waited.
        tokio::task::yield_now().await;
    }
    assert_eq!(it.exporters.tasks.lock().retired.len(), RETIRED_EXPORTERS_MAX);
    while it.counters.dropped_export.get() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(it.counters.dropped_export.get(), 1);
}
