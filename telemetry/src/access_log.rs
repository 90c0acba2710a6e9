//! Access logs: each line rendered straight into the buffer it leaves from, each record for a collector as the bytes that leave.
//!
//! Not for: what a line says, which is `model::format`. Invariant: logging never waits for a disk, a pipe or a collector.

mod entry;
mod files;
mod record;
mod writer;

use std::sync::Arc;

use model::access_log::{AccessLog, LogFormat};
use model::stream_view::StreamView;

use self::entry::EntryWriter;
use self::record::RecordWriter;
use self::writer::Outlet;
use crate::export::Outbox;
use crate::record::ChainTelemetry;

pub use self::files::TARGETS_MAX;
pub(crate) use self::files::{LogFile, Writers};
pub(crate) use self::writer::LogCounters;
pub use self::writer::{BUFFER_BYTES_MAX, FLUSH_BYTES};

/// One logger of a chain.
#[derive(Debug)]
pub(crate) struct ChainLog {
    /// Where to, how, and what.
    pub(crate) log: AccessLog,
    /// Of one whose target is a file or a standard stream.
    pub(crate) file: Option<Arc<LogFile>>,
    /// Of one whose target is a collector.
    pub(crate) outbox: Option<Arc<Outbox>>,
}

/// One worker's way to the targets.
#[derive(Debug, Default)]
pub(crate) struct WorkerLogs {
    /// Of targets that were not retired when the last was added.
    outlets: Vec<Outlet>,
    records: RecordWriter,
    entries: EntryWriter,
}

impl WorkerLogs {
    /// Writes the lines and records that the chain wants of this request or connection.
    pub(crate) fn record(&mut self, chain: &ChainTelemetry, view: &dyn StreamView) {
        for ChainLog { log, file, outbox } in &chain.logs {
            match &log.format {
                LogFormat::Text(_) | LogFormat::Json(_) => {
                    if let Some(file) = file {
                        self.write(file, log, view);
                    }
                }
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

    fn write(&mut self, file: &LogFile, log: &AccessLog, view: &dyn StreamView) {
        // Between finding its thread and writing, a target may give way to another; it then asks once more.
        for _ in 0..2 {
            let Some(outlet) = self.outlet(file) else { break };
            if outlet.write(|line| log.render(view, line)) {
                return;
            }
        }
        if log.passes(view) {
            file.count_refused();
        }
    }

    fn outlet(&mut self, file: &LogFile) -> Option<&Outlet> {
        let inbox = file.inbox();
        let known = inbox.as_ref().and_then(|inbox| self.outlets.iter().position(|outlet| outlet.leads_to(inbox)));
        if let Some(at) = known {
            return self.outlets.get(at);
        }
        drop(inbox);
        let outlet = file.outlet()?;
        self.outlets.retain(Outlet::is_in_use);
        self.outlets.push(outlet);
        self.outlets.last()
    }
}

#[cfg(test)]
mod tests;
