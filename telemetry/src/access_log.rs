//! Access logs: each line rendered straight into the buffer it leaves from, each record for a collector as the bytes that leave.
//!
//! Not for: what a line says, which is `model::format`. Invariant: logging never waits for a disk, a pipe or a collector.

mod entry;
mod record;
mod writer;

use std::sync::Arc;

use model::access_log::{AccessLog, LogFormat, LogTarget};
use model::stream_view::StreamView;

use self::entry::EntryWriter;
use self::record::RecordWriter;
use crate::export::Outbox;
use crate::record::ChainTelemetry;

pub use self::writer::{BUFFER_BYTES_MAX, FLUSH_BYTES, TARGETS_MAX};
pub(crate) use self::writer::{LogCounters, Outlet, Writers};

/// One logger of a chain.
#[derive(Debug)]
pub(crate) struct ChainLog {
    /// Where to, how, and what.
    pub(crate) log: AccessLog,
    /// Of one whose target is a collector.
    pub(crate) outbox: Option<Arc<Outbox>>,
}

/// One worker's way to the targets.
#[derive(Debug)]
pub(crate) struct WorkerLogs {
    writers: Arc<Writers>,
    /// Of files; none if there are too many.
    outlets: Vec<(LogTarget, Option<Outlet>)>,
    records: RecordWriter,
    entries: EntryWriter,
}

impl WorkerLogs {
    pub(crate) fn new(writers: Arc<Writers>) -> Self {
        Self { writers, outlets: Vec::new(), records: RecordWriter::default(), entries: EntryWriter::default() }
    }

    /// Writes the lines and records that the chain wants of this request or connection.
    pub(crate) fn record(&mut self, chain: &ChainTelemetry, view: &dyn StreamView) {
        for ChainLog { log, outbox } in &chain.logs {
            match &log.format {
                LogFormat::Text(_) | LogFormat::Json(_) => match self.outlet(&log.target) {
                    Some(outlet) => outlet.write(|line| log.render(view, line)),
                    None => self.writers.count_refused(),
                },
                LogFormat::Record { body, attributes, adds_refusal } => {
                    if let Some(outbox) = outbox.as_ref().filter(|_| log.passes(view)) {
                        let refusal = view.refusal().filter(|_| *adds_refusal);
                        outbox.push(|| self.records.write(body.as_ref(), attributes, refusal, view));
                    }
                }
                LogFormat::Entry(fields) => {
                    if let Some(outbox) = outbox.as_ref().filter(|_| log.passes(view)) {
                        outbox.push(|| self.entries.write(fields, view));
                    }
                }
            }
        }
    }

    fn outlet(&mut self, target: &LogTarget) -> Option<&Outlet> {
        let at = self.outlets.iter().position(|(known, _)| known == target).unwrap_or_else(|| {
            self.outlets.push((target.clone(), self.writers.outlet(target)));
            self.outlets.len() - 1
        });
        self.outlets[at].1.as_ref()
    }
}

#[cfg(test)]
mod tests;
