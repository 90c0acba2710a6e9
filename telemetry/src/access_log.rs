//! Access logs: each line rendered straight into the buffer it leaves from, each record for a collector as the bytes that leave.
//!
//! Not for: what a line says, which is `model::format`. Invariant: logging never waits for a disk, a pipe or a collector.

mod entry;
mod record;
mod writer;

use std::sync::Arc;

use model::access_log::{LogFormat, LogTarget};
use model::stream_view::StreamView;

use self::entry::EntryWriter;
use self::record::RecordWriter;
use crate::export::{Exporters, Queue};
use crate::record::ChainTelemetry;

pub use self::writer::{BUFFER_BYTES_MAX, FLUSH_BYTES, TARGETS_MAX};
pub(crate) use self::writer::{LogCounters, Outlet, Writers};

/// Where what is for a target goes.
#[derive(Debug)]
enum Way {
    File(Outlet),
    Collector(Queue),
    /// There are too many files.
    NoFile,
    /// There are too many collectors.
    NoCollector,
}

/// One worker's way to the targets.
#[derive(Debug)]
pub(crate) struct WorkerLogs {
    writers: Arc<Writers>,
    exporters: Arc<Exporters>,
    ways: Vec<(LogTarget, Way)>,
    records: RecordWriter,
    entries: EntryWriter,
}

impl WorkerLogs {
    pub(crate) fn new(writers: Arc<Writers>, exporters: Arc<Exporters>) -> Self {
        Self { writers, exporters, ways: Vec::new(), records: RecordWriter::default(), entries: EntryWriter::default() }
    }

    /// Writes the lines and records that the chain wants of this request or connection.
    pub(crate) fn record(&mut self, chain: &ChainTelemetry, view: &dyn StreamView) {
        for log in &chain.access_logs {
            let at = self.ways.iter().position(|(target, _)| *target == log.target).unwrap_or_else(|| {
                self.ways.push((log.target.clone(), self.way(&log.target)));
                self.ways.len() - 1
            });
            match &self.ways[at].1 {
                Way::File(outlet) => outlet.write(|line| log.render(view, line)),
                Way::Collector(queue) if log.passes(view) => match &log.format {
                    LogFormat::Record { body, attributes, adds_refusal } => {
                        let refusal = view.refusal().filter(|_| *adds_refusal);
                        queue.push(|| self.records.write(body.as_ref(), attributes, refusal, view));
                    }
                    LogFormat::Entry(fields) => queue.push(|| self.entries.write(fields, view)),
                    LogFormat::Text(_) | LogFormat::Json(_) => {}
                },
                Way::Collector(_) => {}
                Way::NoFile => self.writers.count_refused(),
                Way::NoCollector if log.passes(view) => self.exporters.count_refused_record(),
                Way::NoCollector => {}
            }
        }
    }

    fn way(&self, target: &LogTarget) -> Way {
        match target {
            LogTarget::Collector(logs) => self.exporters.logs(logs).map_or(Way::NoCollector, Way::Collector),
            LogTarget::Stdout | LogTarget::Stderr | LogTarget::File(_) => self.writers.outlet(target).map_or(Way::NoFile, Way::File),
        }
    }
}

#[cfg(test)]
mod tests;
