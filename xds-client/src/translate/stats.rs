//! `stats.PluginConfig`: which of Istio's metrics a chain records.

use model::metrics::{Label, Metric, REPORTING_INTERVAL_DEFAULT, Reporter, Stats};
use xds_proto::istio::stats as proto;

use super::{Translated, positive_duration};

/// Reads the configuration of `istio.stats`. Overrides that this build does not know are listed by `coverage`.
pub(super) fn stats(value: &proto::PluginConfig, path: &str) -> Translated<Stats> {
    let reporter = match proto::Reporter::try_from(value.reporter) {
        Ok(proto::Reporter::ServerGateway) => Reporter::Waypoint,
        _ => Reporter::Destination,
    };
    let mut dropped = Vec::new();
    let mut removed_labels = Vec::new();
    for metric in &value.metrics {
        let of = Metric::parse(&metric.name);
        // An empty name means every metric; a name that is not known concerns nothing we record.
        if of.is_none() && !metric.name.is_empty() {
            continue;
        }
        if metric.drop {
            dropped.extend(of.map_or_else(|| Metric::ALL.to_vec(), |one| vec![one]));
        }
        removed_labels.extend(metric.tags_to_remove.iter().filter_map(|name| Label::parse(name)).map(|label| (of, label)));
    }
    let interval = positive_duration(value.tcp_reporting_duration.as_ref(), &format!("{path}.tcp_reporting_duration"))?;
    Ok(Stats { reporter, dropped, removed_labels, reporting_interval: interval.unwrap_or(REPORTING_INTERVAL_DEFAULT) })
}
