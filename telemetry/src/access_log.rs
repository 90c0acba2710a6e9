//! Access logs: each line rendered straight into the buffer it leaves from.
//!
//! Not for: what a line says, which is `model::format`. Invariant: logging never waits for a disk or a pipe.

mod writer;

use std::sync::Arc;

use model::access_log::LogTarget;
use model::stream_view::StreamView;

use crate::record::ChainTelemetry;

pub use self::writer::{BUFFER_BYTES_MAX, FLUSH_BYTES, TARGETS_MAX};
pub(crate) use self::writer::{LogCounters, Outlet, Writers};

/// One worker's way to the targets.
#[derive(Debug)]
pub(crate) struct WorkerLogs {
    writers: Arc<Writers>,
    outlets: Vec<(LogTarget, Option<Outlet>)>,
}

impl WorkerLogs {
    pub(crate) fn new(writers: Arc<Writers>) -> Self {
        Self { writers, outlets: Vec::new() }
    }

    /// Writes the lines that the chain wants of this request or connection.
    pub(crate) fn record(&mut self, chain: &ChainTelemetry, view: &dyn StreamView) {
        for log in &chain.access_logs {
            let at = self.outlets.iter().position(|(target, _)| *target == log.target).unwrap_or_else(|| {
                self.outlets.push((log.target.clone(), self.writers.outlet(&log.target)));
                self.outlets.len() - 1
            });
            match &self.outlets[at].1 {
                Some(outlet) => outlet.write(|line| log.render(view, line)),
                None => self.writers.count_refused(),
            }
        }
    }
}

#[cfg(test)]
mod tests;
