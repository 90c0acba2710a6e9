//! All series of the process. Recording touches a worker's own cells; this is where they are made, found and summed.
//!
//! Not for: hot paths; a worker comes here once per series and remembers. Invariants: no more than a fixed number of series exist,
//! whatever peers send; a series lives as long as the process, unless idle ones are to expire, and one that is recorded to never does.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use model::metrics::{Metric, Reporter};
use parking_lot::Mutex;
use prometheus::IntCounter;
use smallvec::SmallVec;

use super::custom::{CUSTOM_SERIES_MAX, Custom};
use super::histogram::{Bounds, Cell, Counter, Histogram};
use super::labels;
use super::native::NATIVE_IDLE_MAX;

/// Series that are kept, of all metrics together; what comes later is counted in one series per metric, labelled `overflow`.
pub const SERIES_MAX: usize = 50_000;

/// What Envoy's own names of these metrics begin with; users name it to choose buckets.
const STAT_PREFIX: &str = "istiocustom.";

/// Counters, sorted by name as they print.
const COUNTERS: [Metric; 7] = [
    Metric::RequestMessagesTotal,
    Metric::RequestsTotal,
    Metric::ResponseMessagesTotal,
    Metric::TcpConnectionsClosedTotal,
    Metric::TcpConnectionsOpenedTotal,
    Metric::TcpReceivedBytesTotal,
    Metric::TcpSentBytesTotal,
];

/// Histograms, sorted by name as they print.
const HISTOGRAMS: [Metric; 3] = [Metric::RequestBytes, Metric::RequestDurationMilliseconds, Metric::ResponseBytes];

/// A worker's number and its cell.
type WorkerCell<C> = (usize, Arc<C>);

/// One series: its labels, and a cell per worker that recorded it.
#[derive(Debug)]
pub(crate) struct Series<C> {
    pub(crate) labels: Arc<str>,
    /// Whether it has one of the places.
    has_place: bool,
    /// What it had counted when it was last seen to change, and when that was.
    seen: Mutex<(u64, Option<Instant>)>,
    cells: Mutex<SmallVec<[WorkerCell<C>; 2]>>,
}

impl<C: Cell> Series<C> {
    pub(crate) fn new(labels: Arc<str>, has_place: bool) -> Self {
        Self { labels, has_place, seen: Mutex::default(), cells: Mutex::default() }
    }

    pub(crate) fn cell(&self, worker: usize, shape: &C::Shape) -> Arc<C> {
        let mut cells = self.cells.lock();
        if let Some((_, cell)) = cells.iter().find(|(of, _)| *of == worker) {
            return Arc::clone(cell);
        }
        let cell = Arc::new(C::new(shape));
        cells.push((worker, Arc::clone(&cell)));
        cell
    }

    /// How long nobody has recorded to it, as far as was looked.
    fn idle(&self, now: Instant) -> Duration {
        let total = self.fold(0_u64, |total, cell| *total = total.wrapping_add(cell.total()));
        let mut seen = self.seen.lock();
        match *seen {
            (before, Some(at)) if before == total => now.saturating_duration_since(at),
            _ => {
                *seen = (total, Some(now));
                Duration::ZERO
            }
        }
    }

    /// What it takes, with its place in a family, but for what the allocator adds. Of a text that others have, too, its share.
    fn bytes(&self) -> usize {
        // The place's key, and its own.
        const HOLDERS: usize = 2;
        /// Of an [`Arc`].
        const COUNTS: usize = 2 * size_of::<usize>();
        let text = self.labels.len() * HOLDERS / Arc::strong_count(&self.labels).max(HOLDERS);
        let place = size_of::<(Arc<str>, Arc<Self>)>();
        self.fold(size_of::<Self>() + COUNTS + place + text, |bytes, cell| *bytes += cell.bytes() + COUNTS)
    }

    /// Whether a worker or a connection still has one of its cells.
    fn is_held(&self) -> bool {
        self.cells.lock().iter().any(|(_, cell)| Arc::strong_count(cell) > 1)
    }

    pub(crate) fn fold<T>(&self, start: T, mut with: impl FnMut(&mut T, &C)) -> T {
        let mut total = start;
        for (_, cell) in self.cells.lock().iter() {
            with(&mut total, cell);
        }
        total
    }
}

/// All series of one metric, sorted by labels.
#[derive(Debug)]
pub(crate) struct Family<C: Cell> {
    pub(crate) name: Cow<'static, str>,
    /// Whether open connections hold its series.
    is_tcp: bool,
    pub(crate) shape: C::Shape,
    series: Mutex<BTreeMap<Arc<str>, Arc<Series<C>>>>,
}

impl<C: Cell> Family<C> {
    fn of(metric: Metric, shape: C::Shape) -> Self {
        Self { name: metric.name().into(), is_tcp: metric.is_tcp(), shape, series: Mutex::default() }
    }

    /// One that is not Istio's own.
    pub(crate) fn named(name: String, shape: C::Shape) -> Self {
        Self { name: name.into(), is_tcp: false, shape, series: Mutex::default() }
    }

    /// Takes away series that were idle for so long; how many places that frees, and whether some are still held.
    pub(crate) fn expire(&self, now: Instant, idle_max: Duration) -> (usize, bool) {
        let (mut freed, mut some_held) = (0, false);
        // Nobody finds a series meanwhile, so that none that is taken away gets a new holder.
        self.series.lock().retain(|_, series| {
            if series.idle(now) < idle_max {
                return true;
            }
            let is_held = series.is_held();
            // Those of open connections go when these close, whatever workers remember.
            some_held |= is_held && !self.is_tcp;
            freed += usize::from(!is_held && series.has_place);
            is_held
        });
        (freed, some_held)
    }

    /// What its series take.
    pub(crate) fn bytes(&self) -> usize {
        self.series.lock().values().map(|series| series.bytes()).sum()
    }

    /// The series there are, in the order in which they print. The lock is not held while they are printed.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Series<C>>> {
        self.series.lock().values().cloned().collect()
    }
}

/// Where a series' cell is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) metric: Metric,
    pub(crate) reporter: Reporter,
    pub(crate) labels: &'a Arc<str>,
    pub(crate) worker: usize,
}

/// How many series there may be.
#[derive(Debug)]
pub(crate) struct Places {
    taken: AtomicUsize,
    max: usize,
    folded: IntCounter,
}

impl Places {
    /// The cell of a worker in the series of these labels, or in that of `overflow` if the series would be a new one and there is no
    /// place for it.
    pub(crate) fn cell<C: Cell>(&self, family: &Family<C>, labels: &Arc<str>, worker: usize, overflow: impl FnOnce() -> String) -> Arc<C> {
        let mut all = family.series.lock();
        if let Some(series) = all.get(labels) {
            return series.cell(worker, &family.shape);
        }
        let has_place = self.claim();
        let labels = if has_place {
            Arc::clone(labels)
        } else {
            self.folded.inc();
            overflow().into()
        };
        let series = all.entry(Arc::clone(&labels)).or_insert_with(|| Arc::new(Series::new(labels, has_place)));
        series.cell(worker, &family.shape)
    }

    /// Takes one of the places, if one is left.
    fn claim(&self) -> bool {
        self.taken.fetch_update(Relaxed, Relaxed, |count| (count < self.max).then_some(count + 1)).is_ok()
    }
}

#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) counters: [Family<Counter>; 7],
    pub(crate) histograms: [Family<Histogram>; 3],
    /// Those that are not Istio's own.
    pub(crate) custom: Custom,
    bounds: Vec<(String, Bounds)>,
    places: Places,
    /// Apart from the others, which clients could fill through labels that somebody defined.
    custom_places: Places,
    /// Grows when workers are to forget what they remember, so that idle series can go.
    generation: AtomicU64,
    /// When it last grew.
    told: Mutex<Option<Instant>>,
    /// Whether somebody reads exemplars.
    exemplars: AtomicBool,
    /// Whether somebody reads native buckets.
    native: AtomicBool,
    /// When somebody last did.
    native_asked: Mutex<Option<Instant>>,
}

impl Store {
    /// A store of at most `series_max` series; `folded` counts how often one found no place. Which bounds histograms have is
    /// said by the beginnings of their names, as [`crate::TelemetrySettings::histogram_bounds`].
    pub(crate) fn new(series_max: usize, folded: IntCounter, bounds: &[(String, Bounds)]) -> Self {
        Self {
            counters: COUNTERS.map(|metric| Family::of(metric, ())),
            histograms: HISTOGRAMS.map(|metric| Family::of(metric, bounds_of(bounds, metric.name()))),
            custom: Custom::default(),
            bounds: bounds.to_vec(),
            places: Places { taken: AtomicUsize::new(0), max: series_max, folded: folded.clone() },
            custom_places: Places { taken: AtomicUsize::new(0), max: series_max.min(CUSTOM_SERIES_MAX), folded },
            generation: AtomicU64::new(0),
            told: Mutex::default(),
            exemplars: AtomicBool::new(false),
            native: AtomicBool::new(false),
            native_asked: Mutex::default(),
        }
    }

    /// Takes away series that nobody has recorded to for `idle_max`. One that a worker remembers goes the next time: workers are told
    /// to forget, so that no count is ever lost.
    pub(crate) fn expire(&self, now: Instant, idle_max: Duration) {
        let counters = self.counters.iter().map(|family| family.expire(now, idle_max));
        let histograms = self.histograms.iter().map(|family| family.expire(now, idle_max));
        let ended = counters.chain(histograms);
        let (freed, held) = ended.fold((0, false), |(freed, held), (more, also)| (freed + more, held | also));
        self.places.taken.fetch_sub(freed, Relaxed);
        let (freed, custom_held) = self.custom.expire(now, idle_max);
        self.custom_places.taken.fetch_sub(freed, Relaxed);
        let some_held = held | custom_held;
        let mut told = self.told.lock();
        // Once per that time: a worker that has nothing to do does not forget, and others are not to forget for it at every scrape.
        if some_held && told.is_none_or(|told| now.saturating_duration_since(told) >= idle_max) {
            *told = Some(now);
            self.generation.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// From now on exemplars are kept.
    pub(crate) fn want_exemplars(&self) {
        self.exemplars.store(true, Relaxed);
    }

    pub(crate) fn wants_exemplars(&self) -> bool {
        self.exemplars.load(Relaxed)
    }

    /// From now on native buckets are counted.
    pub(crate) fn want_native(&self, now: Instant) {
        *self.native_asked.lock() = Some(now);
        self.native.store(true, Relaxed);
    }

    /// Another scrape: if nobody has asked for native buckets for [`NATIVE_IDLE_MAX`], they are counted no more, and given back. Who asks
    /// again finds them made anew of the classic ones.
    pub(crate) fn rest_native(&self, now: Instant) {
        let mut asked = self.native_asked.lock();
        if asked.is_some_and(|asked| now.saturating_duration_since(asked) >= NATIVE_IDLE_MAX) {
            *asked = None;
            self.native.store(false, Relaxed);
            let custom = self.custom.families();
            for series in self.histograms.iter().chain(custom.iter().filter_map(|family| family.histogram())).flat_map(Family::snapshot) {
                series.fold((), |(), histogram| histogram.forget_native());
            }
        }
    }

    pub(crate) fn wants_native(&self) -> bool {
        self.native.load(Relaxed)
    }

    pub(crate) fn counter(&self, wanted: Wanted<'_>) -> Arc<Counter> {
        let at = COUNTERS.iter().position(|metric| *metric == wanted.metric).expect("asked for a counter");
        self.cell(&self.counters[at], wanted)
    }

    pub(crate) fn histogram(&self, wanted: Wanted<'_>) -> Arc<Histogram> {
        let at = HISTOGRAMS.iter().position(|metric| *metric == wanted.metric).expect("asked for a histogram");
        self.cell(&self.histograms[at], wanted)
    }

    pub(crate) fn series_count(&self) -> usize {
        self.places.taken.load(Relaxed) + self.custom_places.taken.load(Relaxed)
    }

    /// What all series take, their labels and cells added up. What workers remember them by is not in it.
    pub(crate) fn bytes(&self) -> u64 {
        let counters: usize = self.counters.iter().map(Family::bytes).sum();
        let histograms: usize = self.histograms.iter().map(Family::bytes).sum();
        u64::try_from(counters + histograms + self.custom.bytes()).expect("a size fits")
    }

    /// The bounds of a histogram that is not Istio's own.
    pub(crate) fn bounds_of(&self, name: &str) -> Arc<Bounds> {
        bounds_of(&self.bounds, name)
    }

    /// For series that are not Istio's own.
    pub(crate) fn custom_places(&self) -> &Places {
        &self.custom_places
    }

    fn cell<C: Cell>(&self, family: &Family<C>, wanted: Wanted<'_>) -> Arc<C> {
        self.places.cell(family, wanted.labels, wanted.worker, || labels::render_overflow(wanted.reporter, wanted.metric))
    }
}

/// Which bounds were asked for by the beginning of the name, or Envoy's.
fn bounds_of(asked: &[(String, Bounds)], name: &str) -> Arc<Bounds> {
    let name = format!("{STAT_PREFIX}{name}");
    let found = asked.iter().find(|(prefix, _)| name.starts_with(prefix.as_str()));
    Arc::new(found.map_or_else(Bounds::default, |(_, bounds)| bounds.clone()))
}
