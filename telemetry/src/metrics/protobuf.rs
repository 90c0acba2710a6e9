//! Prometheus' protobuf exposition: one delimited `MetricFamily` after the other, with native histograms beside the classic buckets.
//!
//! Not for: what is measured, or the text formats ([`super::exposition`]). Source: `io.prometheus.client` of Prometheus' client model.
//! Invariant: the series are those of the text; a label without a value is left out, which means the same.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use prometheus::proto;

use super::exposition::{Gauge, gauges_in_order, in_order};
use super::histogram::{Bounds, Counter, Exemplar, HistogramTotal};
use super::native::NATIVE_SCHEMA;
use super::store::{Series, Store};
use crate::wire;

/// Numbers of the fields of `MetricFamily` and `Metric`.
mod family {
    pub(super) const NAME: u32 = 1;
    pub(super) const HELP: u32 = 2;
    pub(super) const TYPE: u32 = 3;
    pub(super) const METRIC: u32 = 4;
    pub(super) const LABEL: u32 = 1;
    pub(super) const GAUGE: u32 = 2;
    pub(super) const COUNTER: u32 = 3;
    pub(super) const HISTOGRAM: u32 = 7;
}

/// Of `Histogram`, `Bucket` and `BucketSpan`.
mod histogram {
    pub(super) const COUNT: u32 = 1;
    pub(super) const SUM: u32 = 2;
    pub(super) const BUCKET: u32 = 3;
    pub(super) const BUCKET_COUNT: u32 = 1;
    pub(super) const BUCKET_BOUND: u32 = 2;
    pub(super) const BUCKET_EXEMPLAR: u32 = 3;
    pub(super) const SCHEMA: u32 = 5;
    pub(super) const ZERO_THRESHOLD: u32 = 6;
    pub(super) const ZERO_COUNT: u32 = 7;
    pub(super) const SPAN: u32 = 12;
    pub(super) const SPAN_OFFSET: u32 = 1;
    pub(super) const SPAN_LENGTH: u32 = 2;
    pub(super) const DELTA: u32 = 13;
}

/// Of `Exemplar`, `Timestamp`, `LabelPair` and the messages of a single value.
mod part {
    pub(super) const NAME: u32 = 1;
    pub(super) const VALUE: u32 = 2;
    pub(super) const LABEL: u32 = 1;
    pub(super) const TIMESTAMP: u32 = 3;
    pub(super) const SECONDS: u32 = 1;
    pub(super) const NANOS: u32 = 2;
    pub(super) const SINGLE: u32 = 1;
}

/// Numbers of the types of metrics.
const COUNTER: u64 = 0;
const GAUGE: u64 = 1;
const HISTOGRAM: u64 = 4;

/// Values are whole numbers: what is not above this is zero.
const ZERO_THRESHOLD: f64 = 0.5;

/// Writes every series of the store and the gauges.
pub(crate) fn write(store: &Store, gauges: &[Gauge], out: &mut dyn Write) -> io::Result<()> {
    let custom = store.custom.families();
    for family in in_order(&store.counters, custom.iter().filter_map(|family| family.counter())) {
        write_counters((&family.name, ""), &family.snapshot(), out)?;
    }
    for (name, series) in gauges_in_order(gauges, &custom) {
        write_family((name, "", GAUGE), out, |message| {
            for (labels, value) in &series {
                wire::nested(message, family::METRIC, |metric| {
                    write_labels(metric, labels);
                    single(metric, family::GAUGE, float(*value));
                });
            }
        })?;
    }
    for of_metric in in_order(&store.histograms, custom.iter().filter_map(|family| family.histogram())) {
        let all = of_metric.snapshot();
        if all.is_empty() {
            continue;
        }
        write_family((&of_metric.name, "", HISTOGRAM), out, |message| {
            for series in &all {
                let total = series.fold(HistogramTotal::default(), |total, cell| cell.add_native_to(total));
                wire::nested(message, family::METRIC, |metric| {
                    write_labels(metric, &series.labels);
                    wire::nested(metric, family::HISTOGRAM, |out| write_histogram(out, &of_metric.shape, &total));
                });
            }
        })?;
    }
    Ok(())
}

/// Writes the series of a counter; nothing if there are none.
pub(crate) fn write_counters((name, help): (&str, &str), all: &[Arc<Series<Counter>>], out: &mut dyn Write) -> io::Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    write_family((name, help, COUNTER), out, |message| {
        for series in all {
            let value = series.fold(0_u64, |sum, cell| *sum = sum.wrapping_add(cell.value()));
            wire::nested(message, family::METRIC, |metric| {
                write_labels(metric, &series.labels);
                single(metric, family::COUNTER, float(value));
            });
        }
    })
}

/// Writes the process's own metrics: counters, gauges and histograms with classic buckets.
pub(crate) fn own(families: &[proto::MetricFamily], out: &mut dyn Write) -> io::Result<()> {
    for of_metric in families {
        let (number, write): (u64, fn(&mut Vec<u8>, &proto::Metric)) = match of_metric.get_field_type() {
            proto::MetricType::COUNTER => (COUNTER, |out, metric| single(out, family::COUNTER, metric.get_counter().get_value())),
            proto::MetricType::GAUGE => (GAUGE, |out, metric| single(out, family::GAUGE, metric.get_gauge().get_value())),
            proto::MetricType::HISTOGRAM => (HISTOGRAM, |out, metric| write_own_histogram(out, metric.get_histogram())),
            proto::MetricType::SUMMARY | proto::MetricType::UNTYPED => continue,
        };
        write_family((of_metric.name(), of_metric.help(), number), out, |message| {
            for metric in of_metric.get_metric() {
                wire::nested(message, family::METRIC, |out| {
                    for label in metric.get_label() {
                        write_label(out, label.name(), label.value());
                    }
                    write(out, metric);
                });
            }
        })?;
    }
    Ok(())
}

fn write_own_histogram(out: &mut Vec<u8>, of_metric: &proto::Histogram) {
    wire::nested(out, family::HISTOGRAM, |out| {
        wire::number(out, histogram::COUNT, of_metric.get_sample_count());
        wire::double(out, histogram::SUM, of_metric.get_sample_sum());
        for bucket in of_metric.get_bucket() {
            wire::nested(out, histogram::BUCKET, |out| {
                wire::number(out, histogram::BUCKET_COUNT, bucket.cumulative_count());
                wire::double(out, histogram::BUCKET_BOUND, bucket.upper_bound());
            });
        }
    });
}

/// One family, after its length.
fn write_family((name, help, number): (&str, &str, u64), out: &mut dyn Write, metrics: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
    let mut message = Vec::new();
    wire::bytes(&mut message, family::NAME, name.as_bytes());
    wire::bytes(&mut message, family::HELP, help.as_bytes());
    wire::number(&mut message, family::TYPE, number);
    metrics(&mut message);
    let mut length = Vec::new();
    wire::length(&mut length, message.len());
    out.write_all(&length)?;
    out.write_all(&message)
}

fn write_histogram(out: &mut Vec<u8>, bounds: &Bounds, total: &HistogramTotal) {
    // A scraper compares the sum of the native buckets with the count, and takes that for the bucket without a bound.
    let count = total.native.sum();
    wire::number(out, histogram::COUNT, count);
    wire::double(out, histogram::SUM, float(total.sum));
    let mut cumulative = 0;
    for (at, bucket) in total.buckets.iter().enumerate() {
        // What was counted while native buckets were first asked for may be in one of them only.
        cumulative = count.min(cumulative + bucket);
        let bound = bounds.value(at);
        wire::nested(out, histogram::BUCKET, |out| {
            wire::number(out, histogram::BUCKET_COUNT, if bound.is_some() { cumulative } else { count });
            wire::double(out, histogram::BUCKET_BOUND, bound.unwrap_or(f64::INFINITY));
            if let Some(exemplar) = total.exemplar(at) {
                wire::nested(out, histogram::BUCKET_EXEMPLAR, |out| write_exemplar(out, exemplar));
            }
        });
    }
    write_native(out, total);
}

/// Buckets as spans of neighbours, each count as the difference to the one before.
fn write_native(out: &mut Vec<u8>, total: &HistogramTotal) {
    wire::signed(out, histogram::SCHEMA, NATIVE_SCHEMA.into());
    wire::double(out, histogram::ZERO_THRESHOLD, ZERO_THRESHOLD);
    wire::number(out, histogram::ZERO_COUNT, total.native.zeros());
    let mut spans: Vec<(i64, u64)> = Vec::new();
    let (mut end, mut before) = (0, 0_i64);
    let mut deltas = Vec::new();
    for (index, count) in total.native.buckets() {
        let index = i64::from(index);
        match spans.last_mut() {
            Some((_, length)) if index == end => *length += 1,
            _ => spans.push((index - end, 1)),
        }
        end = index + 1;
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        deltas.push(count - before);
        before = count;
    }
    if spans.is_empty() {
        // Says that it is a native histogram all the same.
        spans.push((0, 0));
    }
    for (offset, length) in spans {
        wire::nested(out, histogram::SPAN, |out| {
            wire::signed(out, histogram::SPAN_OFFSET, offset);
            wire::number(out, histogram::SPAN_LENGTH, length);
        });
    }
    for delta in deltas {
        wire::signed(out, histogram::DELTA, delta);
    }
}

fn write_exemplar(out: &mut Vec<u8>, exemplar: &Exemplar) {
    wire::nested(out, part::LABEL, |out| {
        wire::bytes(out, part::NAME, b"trace_id");
        wire::bytes(out, part::VALUE, format!("{:032x}", exemplar.trace_id).as_bytes());
    });
    wire::double(out, part::VALUE, float(exemplar.value));
    let at = exemplar.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    wire::nested(out, part::TIMESTAMP, |out| {
        wire::number(out, part::SECONDS, at.as_secs());
        wire::number(out, part::NANOS, at.subsec_nanos());
    });
}

/// A message of one value.
fn single(out: &mut Vec<u8>, field: u32, value: f64) {
    wire::nested(out, field, |out| wire::double(out, part::SINGLE, value));
}

fn write_label(out: &mut Vec<u8>, name: &str, value: &str) {
    if !value.is_empty() {
        wire::nested(out, family::LABEL, |out| {
            wire::bytes(out, part::NAME, name.as_bytes());
            wire::bytes(out, part::VALUE, value.as_bytes());
        });
    }
}

/// Labels that are rendered already: `a="b",c="d"`, with `\\`, `\"` and `\n` for what would end a value or a line.
fn write_labels(out: &mut Vec<u8>, rendered: &str) {
    let mut rest = rendered;
    while let Some((name, after)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next() {
                Some((at, '"')) => break at,
                Some((_, '\\')) => match characters.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, other)) => value.push(other),
                    None => break after.len(),
                },
                Some((_, other)) => value.push(other),
                None => break after.len(),
            }
        };
        write_label(out, name, &value);
        rest = after.get(end + 1..).unwrap_or_default().trim_start_matches(',');
    }
}

/// As the format wants numbers; beyond 2^53 to the nearest that there is.
pub(crate) fn float(number: u64) -> f64 {
    let high = u32::try_from(number >> 32).expect("the upper half");
    let low = u32::try_from(number & u64::from(u32::MAX)).expect("the lower half");
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

#[cfg(test)]
mod tests;
