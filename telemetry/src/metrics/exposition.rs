//! The Prometheus text format as Envoy prints it: no help, `name{}` without labels, counters before gauges before histograms.
//!
//! Source: `envoy:source/server/admin/prometheus_stats.cc`. Invariant: one `# TYPE` line per name, its series next to each other.

use std::io::{self, Write};

use super::histogram::{Bounds, Counter, HistogramTotal};
use super::labels::push_pair;
use super::store::{Family, Store};

/// A gauge of the process itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gauge {
    pub(crate) name: &'static str,
    pub(crate) labels: Vec<(&'static str, String)>,
    pub(crate) value: u64,
}

/// Writes every series of the store and the gauges, which must be sorted by name.
pub(crate) fn write(store: &Store, gauges: &[Gauge], out: &mut dyn Write) -> io::Result<()> {
    for family in &store.counters {
        write_counters(family, out)?;
    }
    for gauge in gauges {
        let mut labels = String::new();
        for (name, value) in &gauge.labels {
            push_pair(&mut labels, name, value);
        }
        writeln!(out, "# TYPE {} gauge\n{}{{{labels}}} {}", gauge.name, gauge.name, gauge.value)?;
    }
    for family in &store.histograms {
        let name = family.metric.name();
        for (at, series) in family.snapshot().iter().enumerate() {
            if at == 0 {
                writeln!(out, "# TYPE {name} histogram")?;
            }
            let total = series.fold(HistogramTotal::default(), |total, cell| cell.add_to(total));
            write_histogram(name, &series.labels, (&family.shape, &total), out)?;
        }
    }
    Ok(())
}

fn write_counters(family: &Family<Counter>, out: &mut dyn Write) -> io::Result<()> {
    let name = family.metric.name();
    for (at, series) in family.snapshot().iter().enumerate() {
        if at == 0 {
            writeln!(out, "# TYPE {name} counter")?;
        }
        let value = series.fold(0_u64, |sum, cell| *sum = sum.wrapping_add(cell.value()));
        write_line(out, &[name, "{", &series.labels], value)?;
    }
    Ok(())
}

fn write_histogram(name: &str, labels: &str, (bounds, total): (&Bounds, &HistogramTotal), out: &mut dyn Write) -> io::Result<()> {
    let comma = if labels.is_empty() { "" } else { "," };
    let mut count = 0;
    for (at, bucket) in total.buckets.iter().enumerate() {
        count += bucket;
        write_line(out, &[name, "_bucket{", labels, comma, "le=\"", bounds.text(at), "\""], count)?;
    }
    write_line(out, &[name, "_sum{", labels], total.sum)?;
    write_line(out, &[name, "_count{", labels], count)
}

/// Writes the parts, a closing brace and the value. Formatting macros cost more, and a page has a hundred thousand lines.
fn write_line(out: &mut dyn Write, parts: &[&str], value: u64) -> io::Result<()> {
    for part in parts {
        out.write_all(part.as_bytes())?;
    }
    out.write_all(b"} ")?;
    out.write_all(itoa::Buffer::new().format(value).as_bytes())?;
    out.write_all(b"\n")
}
