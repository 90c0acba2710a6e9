//! `stats.PluginConfig`: which of Istio's metrics a chain records, with which labels.

use std::collections::BTreeMap;

use model::format::Expression;
use model::metrics::{CUSTOM_METRICS_MAX, CustomKind, CustomMetric, Label, Metric, REPORTING_INTERVAL_DEFAULT, Reporter, Stats, Tag};
use xds_proto::istio::stats as proto;

use super::{Translated, positive_duration};

/// Reads the configuration of `istio.stats`. Overrides that this build does not know are listed by `coverage`.
pub(super) fn stats(value: &proto::PluginConfig, path: &str) -> Translated<Stats> {
    let reporter = match proto::Reporter::try_from(value.reporter) {
        Ok(proto::Reporter::ServerGateway) => Reporter::Waypoint,
        _ => Reporter::Destination,
    };
    let (mut dropped, mut tags) = (Vec::new(), Vec::new());
    for metric in &value.metrics {
        let of = Metric::parse(&metric.name);
        // An empty name means every metric; a name that is not known concerns nothing we record.
        if of.is_none() && !metric.name.is_empty() {
            continue;
        }
        if metric.drop {
            dropped.extend(of.map_or_else(|| Metric::ALL.to_vec(), |one| vec![one]));
        }
        let removed = metric.tags_to_remove.iter().filter(|name| Label::parse(name).is_some());
        tags.extend(removed.map(|name| Tag { metric: of, name: name.as_str().into(), value: None }));
        let dimensions: BTreeMap<_, _> = metric.dimensions.iter().collect();
        tags.extend(dimensions.into_iter().filter_map(|(name, text)| tag(of, name, text)));
    }
    let interval = positive_duration(value.tcp_reporting_duration.as_ref(), &format!("{path}.tcp_reporting_duration"))?;
    let custom = custom(value);
    Ok(Stats { reporter, dropped, tags, custom, reporting_interval: interval.unwrap_or(REPORTING_INTERVAL_DEFAULT) })
}

/// Metrics beside Istio's own. Of two with the same name the first counts, as in Istio; one of Istio's own is not defined anew.
fn custom(value: &proto::PluginConfig) -> Vec<CustomMetric> {
    let mut all: Vec<CustomMetric> = Vec::new();
    for definition in &value.definitions {
        let name = metric_name(&definition.name);
        if Metric::parse(&definition.name).is_some() || all.iter().any(|known| *known.name == *name) {
            continue;
        }
        if all.len() == CUSTOM_METRICS_MAX {
            ::tracing::warn!(metric = name, max = CUSTOM_METRICS_MAX, "there are too many definitions of metrics, so that it is left out");
            continue;
        }
        let kind = match definition.r#type() {
            proto::MetricType::Counter => CustomKind::Counter,
            proto::MetricType::Gauge => CustomKind::Gauge,
            proto::MetricType::Histogram => CustomKind::Histogram,
        };
        match Expression::parse(&definition.value) {
            Ok(of) => all.push(CustomMetric { labels: custom_labels(value, &definition.name), name: name.into(), kind, value: of }),
            Err(error) => ::tracing::warn!(metric = name, %error, "the value of a metric cannot be read, so that it is left out"),
        }
    }
    all
}

/// The labels of such a metric: what names it or every one. None of Istio's are there, so that none are taken away.
fn custom_labels(value: &proto::PluginConfig, metric: &str) -> BTreeMap<Box<str>, Expression> {
    let own = value.metrics.iter().filter(|one| !one.drop && (one.name.is_empty() || one.name == metric));
    let labels = own.flat_map(|one| &one.dimensions).filter_map(|(name, text)| Some((label(name)?.into(), Expression::parse(text).ok()?)));
    labels.collect()
}

/// A metric's name with an underscore for what no name has.
fn metric_name(short: &str) -> String {
    let letters = short.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' });
    format!("istio_{}", letters.collect::<String>())
}

/// A label by expression. One that cannot be read takes a standard label away and adds none of its own, as in Istio.
fn tag(metric: Option<Metric>, name: &str, text: &str) -> Option<Tag> {
    let Some(label) = label(name) else {
        ::tracing::warn!(label = name, "Prometheus has the name of this label for itself, so that it is left out");
        return None;
    };
    let value = match Expression::parse(text) {
        Ok(value) => Some(value),
        Err(error) => {
            ::tracing::warn!(label = name, %error, "the expression of a label cannot be read");
            Label::parse(name)?;
            None
        }
    };
    Some(Tag { metric, name: label.into(), value })
}

/// A label's name with an underscore for what no name has; none if Prometheus has it for itself.
pub(crate) fn label(name: &str) -> Option<String> {
    let mut label: String = name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect();
    if label.is_empty() || label.starts_with(|first: char| first.is_ascii_digit()) {
        label.insert(0, '_');
    }
    (label != "le" && !label.starts_with("__")).then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(name: &str, dimensions: &[(&str, &str)], removed: &[&str]) -> proto::MetricConfig {
        proto::MetricConfig {
            name: name.to_owned(),
            dimensions: dimensions.iter().map(|(label, text)| ((*label).to_owned(), (*text).to_owned())).collect(),
            tags_to_remove: removed.iter().map(|label| (*label).to_owned()).collect(),
            ..proto::MetricConfig::default()
        }
    }

    fn read(metrics: Vec<proto::MetricConfig>) -> Stats {
        stats(&proto::PluginConfig { metrics, ..proto::PluginConfig::default() }, "stats").expect("reads")
    }

    #[test]
    fn of_two_changes_of_a_label_the_later_counts() {
        let all = read(vec![metric("requests_total", &[], &["source_app"]), metric("", &[("source_app", "'all'"), ("x-y", "'1'")], &[])]);
        let tag = all.tag(Metric::RequestsTotal, Label::SourceApp).expect("changed");
        assert_eq!(tag.value, Expression::parse("'all'").ok());
        assert_eq!(all.added(Metric::TcpSentBytesTotal).into_keys().collect::<Vec<_>>(), ["x_y"], "letters that no label has");
        assert_eq!(all.tag(Metric::RequestsTotal, Label::Reporter), None);
    }

    #[test]
    fn names_of_labels_are_names_to_prometheus_and_not_its_own() {
        let of = |name| label(name);
        assert_eq!([of("2xx"), of(""), of("a-b.c"), of("é")], ["_2xx", "_", "a_b_c", "_"].map(|name| Some(name.to_owned())));
        assert_eq!([of("le"), of("__name__"), of("--name--")], [None, None, None]);
        assert_eq!(read(vec![metric("", &[("le", "'1'"), ("ok", "'1'")], &[])]).tags.len(), 1);
    }

    #[test]
    fn metrics_are_defined_once_and_have_the_labels_that_name_them_or_all() {
        let define = |name: &str, value: &str, kind: proto::MetricType| proto::MetricDefinition {
            name: name.to_owned(),
            value: value.to_owned(),
            r#type: kind.into(),
        };
        let config = proto::PluginConfig {
            definitions: vec![
                define("own.count", "1", proto::MetricType::Counter),
                define("own_count", "2", proto::MetricType::Gauge),
                define("size", "request.size", proto::MetricType::Histogram),
                define("requests_total", "7", proto::MetricType::Counter),
                define("unreadable", "1 +", proto::MetricType::Gauge),
            ],
            metrics: vec![
                metric("", &[("everywhere", "'1'")], &["reporter"]),
                metric("size", &[("reporter", "'own'"), ("unreadable", "1 +")], &[]),
                metric("requests_total", &[("elsewhere", "'1'")], &[]),
                proto::MetricConfig { drop: true, ..metric("own.count", &[], &[]) },
            ],
            ..proto::PluginConfig::default()
        };
        let stats = stats(&config, "stats").expect("reads");
        let told: Vec<_> = stats.custom.iter().map(|one| (&*one.name, one.kind, one.labels.keys().map(|name| &**name).collect())).collect();
        let expected: [(_, _, Vec<&str>); 2] = [
            ("istio_own_count", CustomKind::Counter, vec!["everywhere"]),
            ("istio_size", CustomKind::Histogram, vec!["everywhere", "reporter"]),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn definitions_beyond_the_limit_are_left_out() {
        let definition = |number: usize| proto::MetricDefinition { name: format!("m{number}"), value: "1".to_owned(), r#type: 0 };
        let definitions = (0..CUSTOM_METRICS_MAX + 2).map(definition).collect();
        let stats = stats(&proto::PluginConfig { definitions, ..proto::PluginConfig::default() }, "stats").expect("reads");
        assert_eq!(stats.custom.len(), CUSTOM_METRICS_MAX);
    }

    #[test]
    fn an_expression_that_cannot_be_read_takes_a_standard_label_away_and_adds_none() {
        let all = read(vec![metric("requests_total", &[("source_app", "'open"), ("own", "1 +")], &["not_a_label"])]);
        assert_eq!(all.tag(Metric::RequestsTotal, Label::SourceApp).expect("changed").value, None);
        assert_eq!(all.tags.len(), 1);
    }
}
