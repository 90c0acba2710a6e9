//! The Prometheus text format as Envoy prints it: no help, `name{}` without labels, counters before gauges before histograms; and
//! OpenMetrics with the same series, whose durations name traces.
//!
//! Source: `envoy:source/server/admin/prometheus_stats.cc`. Invariant: one `# TYPE` line per name, its series next to each other.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use prometheus::TextEncoder;
use prometheus::proto::MetricFamily;

use super::custom::CustomFamily;
use super::histogram::{Bounds, Cell, Counter, HistogramTotal};
use super::labels::push_pair;
use super::protobuf;
use super::store::{Family, Store};

/// A gauge of the process itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gauge {
    pub(crate) name: &'static str,
    pub(crate) labels: Vec<(&'static str, String)>,
    pub(crate) value: u64,
}

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus' text format 0.0.4, as Envoy prints it.
    Text,
    /// OpenMetrics 1.0: names, labels and bounds are those of the text.
    OpenMetrics,
    /// Prometheus' protobuf, delimited: the same, and native histograms.
    Protobuf,
}

impl Exposition {
    /// What scrapers are told that it is.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; charset=UTF-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
        }
    }

    /// A counter's name where its type is said: OpenMetrics leaves the ending to its samples.
    pub(crate) fn family(self, name: &str) -> &str {
        match self {
            Self::Text | Self::Protobuf => name,
            Self::OpenMetrics => name.strip_suffix(COUNTER_ENDING).unwrap_or(name),
        }
    }
}

/// What counters' names end in.
const COUNTER_ENDING: &str = "_total";

/// Writes the process's own metrics.
pub(crate) fn own(families: &[MetricFamily], exposition: Exposition, out: &mut dyn Write) -> io::Result<()> {
    if exposition == Exposition::Protobuf {
        return protobuf::own(families, out);
    }
    let text = TextEncoder::new().encode_to_string(families).map_err(io::Error::other)?;
    if exposition == Exposition::Text {
        return out.write_all(text.as_bytes());
    }
    for line in text.lines() {
        let comment = ["# HELP ", "# TYPE "].into_iter().find_map(|start| Some((start, line.strip_prefix(start)?.split_once(' ')?)));
        match comment {
            // OpenMetrics knows no counter without the ending, which Envoy's have not.
            Some((start, (name, "counter"))) if !name.ends_with(COUNTER_ENDING) => writeln!(out, "{start}{name} unknown")?,
            Some((start, (name, rest))) => writeln!(out, "{start}{} {rest}", exposition.family(name))?,
            None => writeln!(out, "{line}")?,
        }
    }
    out.write_all(b"# EOF\n")
}

/// Writes every series of the store and the gauges, which must be sorted by name.
pub(crate) fn write(store: &Store, gauges: &[Gauge], exposition: Exposition, out: &mut dyn Write) -> io::Result<()> {
    if exposition == Exposition::Protobuf {
        return protobuf::write(store, gauges, out);
    }
    let custom = store.custom.families();
    for family in in_order(&store.counters, custom.iter().filter_map(|family| family.counter())) {
        write_counters(family, exposition, out)?;
    }
    write_gauges(gauges, &custom, exposition, out)?;
    for family in in_order(&store.histograms, custom.iter().filter_map(|family| family.histogram())) {
        let name = &*family.name;
        for (at, series) in family.snapshot().iter().enumerate() {
            if at == 0 {
                writeln!(out, "# TYPE {name} histogram")?;
            }
            let total = series.fold(HistogramTotal::default(), |total, cell| cell.add_to(total));
            let exemplars = (exposition == Exposition::OpenMetrics).then_some(&total);
            write_histogram(name, &series.labels, (&family.shape, &total), exemplars, out)?;
        }
    }
    Ok(())
}

/// Istio's own families and others, by name.
pub(super) fn in_order<'a, C: Cell>(own: &'a [Family<C>], others: impl Iterator<Item = &'a Family<C>>) -> Vec<&'a Family<C>> {
    let mut all: Vec<_> = own.iter().chain(others).collect();
    all.sort_by(|left, right| left.name.cmp(&right.name));
    all
}

/// What is written of a gauge: its name, and labels and values of its series.
pub(super) type GaugeSeries<'a> = (&'a str, Vec<(String, u64)>);

/// The process's gauges and others, by name; those without a series are left out.
pub(super) fn gauges_in_order<'a>(gauges: &'a [Gauge], custom: &'a [Arc<CustomFamily>]) -> Vec<GaugeSeries<'a>> {
    let mut all: Vec<GaugeSeries<'a>> = Vec::new();
    for gauge in gauges {
        let mut labels = String::new();
        for (name, value) in &gauge.labels {
            push_pair(&mut labels, name, value);
        }
        all.push((gauge.name, vec![(labels, gauge.value)]));
    }
    for family in custom.iter().filter_map(|family| family.gauge()) {
        let series = family.snapshot();
        let values = series.iter().map(|series| (series.labels.to_string(), series.fold(0, |value, cell| *value = cell.value())));
        all.push((&family.name, values.collect()));
    }
    all.retain(|(_, series)| !series.is_empty());
    all.sort_by_key(|(name, _)| *name);
    all
}

fn write_gauges(gauges: &[Gauge], custom: &[Arc<CustomFamily>], exposition: Exposition, out: &mut dyn Write) -> io::Result<()> {
    for (name, series) in gauges_in_order(gauges, custom) {
        // OpenMetrics knows no gauge with the ending of counters.
        let is_odd = exposition == Exposition::OpenMetrics && name.ends_with(COUNTER_ENDING);
        writeln!(out, "# TYPE {name} {}", if is_odd { "unknown" } else { "gauge" })?;
        for (labels, value) in series {
            write_line(out, &[name, "{", &labels], value)?;
        }
    }
    Ok(())
}

fn write_counters(family: &Family<Counter>, exposition: Exposition, out: &mut dyn Write) -> io::Result<()> {
    let name = &*family.name;
    for (at, series) in family.snapshot().iter().enumerate() {
        if at == 0 {
            // OpenMetrics knows no counter without the ending.
            let is_odd = exposition == Exposition::OpenMetrics && !name.ends_with(COUNTER_ENDING);
            writeln!(out, "# TYPE {} {}", exposition.family(name), if is_odd { "unknown" } else { "counter" })?;
        }
        let value = series.fold(0_u64, |sum, cell| *sum = sum.wrapping_add(cell.value()));
        write_line(out, &[name, "{", &series.labels], value)?;
    }
    Ok(())
}

fn write_histogram(
    name: &str,
    labels: &str,
    (bounds, total): (&Bounds, &HistogramTotal),
    exemplars: Option<&HistogramTotal>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let comma = if labels.is_empty() { "" } else { "," };
    let mut count = 0;
    for (at, bucket) in total.buckets.iter().enumerate() {
        count += bucket;
        write_value(out, &[name, "_bucket{", labels, comma, "le=\"", bounds.text(at), "\""], count)?;
        if let Some(exemplar) = exemplars.and_then(|total| total.exemplar(at)) {
            let at = exemplar.at.duration_since(UNIX_EPOCH).unwrap_or_default();
            write!(out, " # {{trace_id=\"{:032x}\"}} {} {}.{:03}", exemplar.trace_id, exemplar.value, at.as_secs(), at.subsec_millis())?;
        }
        out.write_all(b"\n")?;
    }
    write_line(out, &[name, "_sum{", labels], total.sum)?;
    write_line(out, &[name, "_count{", labels], count)
}

fn write_line(out: &mut dyn Write, parts: &[&str], value: u64) -> io::Result<()> {
    write_value(out, parts, value)?;
    out.write_all(b"\n")
}

/// Writes the parts, a closing brace and the value. Formatting macros cost more, and a page has a hundred thousand lines.
fn write_value(out: &mut dyn Write, parts: &[&str], value: u64) -> io::Result<()> {
    for part in parts {
        out.write_all(part.as_bytes())?;
    }
    out.write_all(b"} ")?;
    out.write_all(itoa::Buffer::new().format(value).as_bytes())
}
