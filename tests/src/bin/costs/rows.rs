//! What is measured, by name.

mod decisions;
mod hbone;
mod listeners;
mod records;
mod requests;

use anyhow::Result;

use crate::window::Windows;

/// One row of the table.
pub struct Row {
    /// Its name, which is its key in the baseline.
    pub name: &'static str,
    /// Prepares what is needed, and works in windows.
    pub run: fn(&mut Windows) -> Result<()>,
}

/// All rows, in the order of the table.
pub const ALL: &[Row] = &[
    Row { name: "request", run: requests::full },
    Row { name: "request_bare", run: requests::bare },
    Row { name: "request_hbone", run: hbone::full },
    Row { name: "rbac_3", run: decisions::rbac_few },
    Row { name: "rbac_last_of_1000", run: decisions::rbac_many },
    Row { name: "route_match_10", run: decisions::routes_few },
    Row { name: "route_match_1000", run: decisions::routes_many },
    Row { name: "route_match_10000", run: decisions::routes_most },
    Row { name: "metrics_record", run: records::metrics },
    Row { name: "log_line", run: records::line },
    Row { name: "span", run: records::span },
    Row { name: "span_export", run: records::span_export },
    Row { name: "lds_diff", run: listeners::other_order },
    Row { name: "lds_same_bytes", run: listeners::same_bytes },
];
