//! Metrics that are not Istio's own: definitions of `stats.PluginConfig`. Their values and labels are expressions.
//!
//! Not for: reading definitions; `xds-client` does. Invariants: no more than a fixed number of names exist, none of which is told apart
//! from another by its ending alone; a name keeps the kind that it was first defined with; their series have a bound of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use model::metrics::{CustomKind, CustomMetric, Metric, Stats};
use model::stream_view::StreamView;
use parking_lot::Mutex;

use super::histogram::{Cell, Counter, Histogram};
use super::labels::{OVERFLOW, UNKNOWN, push_pair, with_label};
use super::store::{Family, Store};

/// Names of such metrics in the process, of all chains that ever were; what comes later is not counted.
pub const CUSTOM_NAMES_MAX: usize = 256;

/// Series of such metrics; what comes later is counted in one series per metric whose labels are `overflow`.
pub const CUSTOM_SERIES_MAX: usize = 10_000;

/// What samples' names end in beside their metric's.
const ENDINGS: [&str; 6] = ["_total", "_bucket", "_sum", "_count", "_created", "_info"];

/// Names of Istio beside its standard metrics: a gauge, and how those of its agent go on behind `istio_`.
const BUILD: &str = "istio_build";
const AGENT: &str = "agent_";

/// The latest value of all workers.
#[derive(Debug, Default)]
pub(crate) struct GaugeCell {
    value: AtomicU64,
    touched: AtomicU64,
}

impl GaugeCell {
    fn set(&self, value: u64) {
        self.value.store(value, Relaxed);
        self.touched.fetch_add(1, Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.value.load(Relaxed)
    }
}

impl Cell for GaugeCell {
    type Shape = ();

    fn new((): &()) -> Self {
        Self::default()
    }

    fn total(&self) -> u64 {
        self.touched.load(Relaxed)
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
    }
}

/// All series of one name.
#[derive(Debug)]
pub(crate) enum CustomFamily {
    Counter(Family<Counter>),
    Gauge(Family<GaugeCell>),
    Histogram(Family<Histogram>),
}

impl CustomFamily {
    fn new(metric: &CustomMetric, store: &Store) -> Self {
        let name = metric.name.to_string();
        match metric.kind {
            CustomKind::Counter => Self::Counter(Family::named(name, ())),
            CustomKind::Gauge => Self::Gauge(Family::named(name, ())),
            CustomKind::Histogram => {
                let bounds = store.bounds_of(&name);
                Self::Histogram(Family::named(name, bounds))
            }
        }
    }

    fn kind(&self) -> CustomKind {
        match self {
            Self::Counter(_) => CustomKind::Counter,
            Self::Gauge(_) => CustomKind::Gauge,
            Self::Histogram(_) => CustomKind::Histogram,
        }
    }

    pub(crate) fn counter(&self) -> Option<&Family<Counter>> {
        if let Self::Counter(family) = self { Some(family) } else { None }
    }

    pub(crate) fn gauge(&self) -> Option<&Family<GaugeCell>> {
        if let Self::Gauge(family) = self { Some(family) } else { None }
    }

    pub(crate) fn histogram(&self) -> Option<&Family<Histogram>> {
        if let Self::Histogram(family) = self { Some(family) } else { None }
    }
}

/// All such metrics of the process, by name.
#[derive(Debug, Default)]
pub(crate) struct Custom {
    families: Mutex<BTreeMap<Arc<str>, Arc<CustomFamily>>>,
    /// Names of which it was said that they are not counted.
    told: Mutex<BTreeSet<Arc<str>>>,
}

impl Custom {
    /// Those there are, by name.
    pub(crate) fn families(&self) -> Vec<Arc<CustomFamily>> {
        self.families.lock().values().cloned().collect()
    }

    /// As [`Family::bytes`].
    pub(crate) fn bytes(&self) -> usize {
        let families = self.families();
        let bytes = families.iter().map(|family| match &**family {
            CustomFamily::Counter(family) => family.bytes(),
            CustomFamily::Gauge(family) => family.bytes(),
            CustomFamily::Histogram(family) => family.bytes(),
        });
        bytes.sum()
    }

    /// As [`Family::expire`].
    pub(crate) fn expire(&self, now: Instant, idle_max: Duration) -> (usize, bool) {
        let families = self.families();
        let ended = families.iter().map(|family| match &**family {
            CustomFamily::Counter(family) => family.expire(now, idle_max),
            CustomFamily::Gauge(family) => family.expire(now, idle_max),
            CustomFamily::Histogram(family) => family.expire(now, idle_max),
        });
        ended.fold((0, false), |(freed, held), (more, also)| (freed + more, held | also))
    }

    /// Says once of each name, and of no more than may be counted, that it is not.
    fn tell(&self, name: &Arc<str>) {
        let mut told = self.told.lock();
        if told.len() < CUSTOM_NAMES_MAX && told.insert(Arc::clone(name)) {
            tracing::warn!(
                metric = &**name,
                "a metric is not counted: another since the start has its name, with another kind or ending, or there are too many"
            );
        }
    }

    /// The family of a metric; none if its name has another kind, could be taken for another's, or there are too many.
    fn family(&self, metric: &CustomMetric, store: &Store) -> Option<Arc<CustomFamily>> {
        let mut families = self.families.lock();
        if let Some(family) = families.get(&metric.name) {
            return (family.kind() == metric.kind).then(|| Arc::clone(family));
        }
        if families.len() >= CUSTOM_NAMES_MAX || is_of_agent(&metric.name) || is_taken(&metric.name, families.keys()) {
            return None;
        }
        let family = Arc::new(CustomFamily::new(metric, store));
        families.insert(Arc::clone(&metric.name), Arc::clone(&family));
        Some(family)
    }
}

fn is_of_agent(name: &str) -> bool {
    name.strip_prefix("istio_").is_some_and(|rest| rest.starts_with(AGENT))
}

/// Whether samples of the name could be those of another metric.
fn is_taken<'a>(name: &str, others: impl Iterator<Item = &'a Arc<str>>) -> bool {
    let own = Metric::ALL.iter().map(|metric| metric.name()).chain([BUILD]);
    own.chain(others.map(|other| &**other)).any(|other| stem(other) == stem(name))
}

/// A name without the endings of its samples: all of them, since what is left of one name may be another with an ending.
fn stem(mut name: &str) -> &str {
    while let Some(rest) = ENDINGS.iter().find_map(|ending| name.strip_suffix(ending)) {
        name = rest;
    }
    name
}

/// What one metric of a request or connection is counted in.
#[derive(Clone, Debug)]
pub(crate) enum CustomCell {
    Counter(Arc<Counter>),
    Gauge(Arc<GaugeCell>),
    Histogram(Arc<Histogram>),
    /// The metric cannot be counted.
    Nowhere,
}

impl CustomCell {
    /// Counts what the metric says of a request or connection.
    pub(crate) fn record(&self, metric: &CustomMetric, view: &dyn StreamView, is_native: bool) {
        match self {
            Self::Counter(counter) => counter.add(metric.value.whole_number(view)),
            Self::Gauge(gauge) => gauge.set(metric.value.whole_number(view)),
            Self::Histogram(histogram) if is_native => histogram.record_native(metric.value.whole_number(view)),
            Self::Histogram(histogram) => histogram.record(metric.value.whole_number(view)),
            Self::Nowhere => {}
        }
    }
}

/// Finds what the metrics of a chain are counted in, in their order.
pub(crate) fn resolve(store: &Store, worker: usize, stats: &Stats, view: &dyn StreamView) -> Vec<CustomCell> {
    stats.custom.iter().map(|metric| cell(store, worker, metric, view)).collect()
}

fn cell(store: &Store, worker: usize, metric: &CustomMetric, view: &dyn StreamView) -> CustomCell {
    let Some(family) = store.custom.family(metric, store) else {
        store.custom.tell(&metric.name);
        return CustomCell::Nowhere;
    };
    let labels: Arc<str> = render(metric, view).into();
    let (places, overflow) = (store.custom_places(), || render_overflow(metric));
    match &*family {
        CustomFamily::Counter(family) => CustomCell::Counter(places.cell(family, &labels, worker, overflow)),
        // The latest value of all workers: one cell.
        CustomFamily::Gauge(family) => CustomCell::Gauge(places.cell(family, &labels, 0, overflow)),
        CustomFamily::Histogram(family) => CustomCell::Histogram(places.cell(family, &labels, worker, overflow)),
    }
}

fn render(metric: &CustomMetric, view: &dyn StreamView) -> String {
    let mut out = String::new();
    for (name, value) in &metric.labels {
        with_label(value, view, |text| push_pair(&mut out, name, text.unwrap_or(UNKNOWN)));
    }
    out
}

fn render_overflow(metric: &CustomMetric) -> String {
    let mut out = String::new();
    for name in metric.labels.keys() {
        push_pair(&mut out, name, OVERFLOW);
    }
    out
}
