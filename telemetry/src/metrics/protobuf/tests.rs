#![expect(clippy::unwrap_used, reason = "tests")]

use ::prometheus::core::Collector as _;
use ::prometheus::{HistogramOpts, IntCounterVec, IntGauge, Opts};
use std::time::{Duration, Instant};

use prost::Message;

use super::*;
use crate::fixture::{self, LABELS};
use crate::metrics::native::NATIVE_IDLE_MAX;
use crate::metrics::{Exposition, SERIES_MAX, WorkerMetrics, write};

/// The messages of Prometheus' client model, as far as they are used here: `io/prometheus/client/metrics.proto`.
mod client {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct MetricFamily {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "2")]
        pub(super) help: String,
        #[prost(int32, tag = "3")]
        pub(super) kind: i32,
        #[prost(message, repeated, tag = "4")]
        pub(super) metric: Vec<Metric>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Metric {
        #[prost(message, repeated, tag = "1")]
        pub(super) label: Vec<LabelPair>,
        #[prost(message, optional, tag = "2")]
        pub(super) gauge: Option<Single>,
        #[prost(message, optional, tag = "3")]
        pub(super) counter: Option<Single>,
        #[prost(message, optional, tag = "7")]
        pub(super) histogram: Option<Histogram>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct LabelPair {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "2")]
        pub(super) value: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Single {
        #[prost(double, tag = "1")]
        pub(super) value: f64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Histogram {
        #[prost(uint64, tag = "1")]
        pub(super) sample_count: u64,
        #[prost(double, tag = "2")]
        pub(super) sample_sum: f64,
        #[prost(message, repeated, tag = "3")]
        pub(super) bucket: Vec<Bucket>,
        #[prost(sint32, tag = "5")]
        pub(super) schema: i32,
        #[prost(double, tag = "6")]
        pub(super) zero_threshold: f64,
        #[prost(uint64, tag = "7")]
        pub(super) zero_count: u64,
        #[prost(message, repeated, tag = "12")]
        pub(super) positive_span: Vec<BucketSpan>,
        #[prost(sint64, repeated, packed = "false", tag = "13")]
        pub(super) positive_delta: Vec<i64>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Bucket {
        #[prost(uint64, tag = "1")]
        pub(super) cumulative_count: u64,
        #[prost(double, tag = "2")]
        pub(super) upper_bound: f64,
        #[prost(message, optional, tag = "3")]
        pub(super) exemplar: Option<Exemplar>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(super) struct BucketSpan {
        #[prost(sint32, tag = "1")]
        pub(super) offset: i32,
        #[prost(uint32, tag = "2")]
        pub(super) length: u32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Exemplar {
        #[prost(message, repeated, tag = "1")]
        pub(super) label: Vec<LabelPair>,
        #[prost(double, tag = "2")]
        pub(super) value: f64,
        #[prost(message, optional, tag = "3")]
        pub(super) timestamp: Option<Timestamp>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(super) struct Timestamp {
        #[prost(int64, tag = "1")]
        pub(super) seconds: i64,
        #[prost(int32, tag = "2")]
        pub(super) nanos: i32,
    }
}

fn families(mut page: &[u8]) -> Vec<client::MetricFamily> {
    let mut all = Vec::new();
    while !page.is_empty() {
        all.push(client::MetricFamily::decode_length_delimited(&mut page).unwrap());
    }
    all
}

fn page(store: &Store, gauges: &[Gauge]) -> Vec<client::MetricFamily> {
    let mut out = Vec::new();
    write(store, gauges, Exposition::Protobuf, &mut out).unwrap();
    families(&out)
}

fn worker() -> WorkerMetrics {
    let folded = ::prometheus::IntCounter::new("folded", "folded").unwrap();
    WorkerMetrics::new(Arc::new(Store::new(SERIES_MAX, folded, &[])), 0)
}

/// A request that took so many milliseconds.
fn took(worker: &mut WorkerMetrics, milliseconds: u64) {
    let mut record = fixture::request(&fixture::chain(Some(fixture::stats()), Vec::new(), None));
    record.stream.end = Some(record.stream.start + std::time::Duration::from_millis(milliseconds));
    worker.record_request(&mut record);
}

fn durations(store: &Store) -> client::Histogram {
    let all = page(store, &[]);
    let family = all.iter().find(|family| family.name == "istio_request_duration_milliseconds").unwrap();
    assert_eq!(family.kind, 4);
    family.metric[0].histogram.clone().unwrap()
}

/// What native buckets hold, by the index of each.
fn native(histogram: &client::Histogram) -> Vec<(i32, i64)> {
    let (mut index, mut count) = (0, 0);
    let mut deltas = histogram.positive_delta.iter();
    let mut all = Vec::new();
    for span in &histogram.positive_span {
        index += span.offset;
        for _ in 0..span.length {
            count += deltas.next().unwrap();
            all.push((index, count));
            index += 1;
        }
    }
    assert_eq!(deltas.next(), None);
    all
}

#[test]
fn series_are_those_of_the_text() {
    let mut worker = worker();
    took(&mut worker, 7);
    let gauges = [Gauge { name: "envoy_server_live", labels: vec![("a", "b\"c".to_owned())], value: 1 }];
    let all = page(&worker.store, &gauges);
    assert_eq!(
        all.iter().map(|family| (family.name.as_str(), family.kind)).collect::<Vec<_>>(),
        [
            ("istio_requests_total", 0),
            ("envoy_server_live", 1),
            ("istio_request_bytes", 4),
            ("istio_request_duration_milliseconds", 4),
            ("istio_response_bytes", 4),
        ]
    );
    let requests = &all[0].metric[0];
    assert_eq!(requests.counter.as_ref().unwrap().value, 1.0);
    let labels: Vec<_> = requests.label.iter().map(|label| format!("{}=\"{}\"", label.name, label.value)).collect();
    let empty = "grpc_response_status=\"\",";
    let rendered = worker.store.counters[1].snapshot()[0].labels.to_string();
    assert_eq!(labels.join(","), rendered.replace(empty, ""));
    assert!(rendered.starts_with(LABELS));
    assert_eq!(all[1].metric[0].label[0].value, "b\"c");
    assert_eq!(all[1].metric[0].gauge.as_ref().unwrap().value, 1.0);
}

#[test]
fn labels_lose_what_the_text_escapes() {
    let mut out = Vec::new();
    write_labels(&mut out, "a=\"x,y=\\\"z\\\"\",b=\"\\\\n\\n\",c=\"\"");
    let metric = client::Metric::decode(&out[..]).unwrap();
    let labels: Vec<_> = metric.label.iter().map(|label| (label.name.as_str(), label.value.as_str())).collect();
    assert_eq!(labels, [("a", "x,y=\"z\""), ("b", "\\n\n")]);
}

#[test]
fn native_buckets_begin_with_what_was_counted_and_go_on_exactly() {
    let mut worker = worker();
    // Before anybody asks: the classic buckets up to 10, and up to 0.5.
    took(&mut worker, 7);
    took(&mut worker, 0);
    worker.store.want_native(Instant::now());
    let first = durations(&worker.store);
    assert_eq!((first.sample_count, first.sample_sum, first.zero_count, first.schema, first.zero_threshold), (2, 7.0, 1, 3, 0.5));
    // 10 is in (2^(26/8), 2^(27/8)].
    assert_eq!(native(&first), [(27, 1)]);
    for milliseconds in [7, 7, 100, 108, 0] {
        took(&mut worker, milliseconds);
    }
    let second = durations(&worker.store);
    assert_eq!((second.sample_count, second.sample_sum, second.zero_count), (7, 229.0, 2));
    assert_eq!(native(&second), [(23, 2), (27, 1), (54, 1), (55, 1)]);
    let classic: Vec<_> = second.bucket.iter().map(|bucket| (bucket.upper_bound, bucket.cumulative_count)).collect();
    assert_eq!((classic[0], classic[3], classic[6], classic[7]), ((0.5, 2), (10.0, 5), (100.0, 6), (250.0, 7)));
    assert_eq!(classic.last(), Some(&(f64::INFINITY, 7)));
}

#[test]
fn native_buckets_that_nobody_asks_for_any_more_are_given_back_and_made_anew() {
    let mut worker = worker();
    let asked = Instant::now();
    worker.store.want_native(asked);
    took(&mut worker, 7);
    assert_eq!(native(&durations(&worker.store)), [(27, 1)], "of what was counted before the first page");
    took(&mut worker, 7);
    worker.store.rest_native(asked + NATIVE_IDLE_MAX - Duration::from_secs(1));
    assert_eq!(native(&durations(&worker.store)), [(23, 1), (27, 1)], "somebody has just asked");
    worker.store.rest_native(asked + NATIVE_IDLE_MAX);
    assert!(!worker.store.wants_native());
    took(&mut worker, 7);
    let again = durations(&worker.store);
    assert_eq!((again.sample_count, native(&again)), (3, vec![(27, 3)]), "their sum is the count");
}

#[test]
fn a_histogram_of_zeros_says_that_it_is_native() {
    let mut worker = worker();
    took(&mut worker, 0);
    worker.store.want_native(Instant::now());
    let zeros = durations(&worker.store);
    assert_eq!((zeros.zero_count, zeros.positive_span), (1, vec![client::BucketSpan { offset: 0, length: 0 }]));
}

#[test]
fn a_bucket_names_the_trace_of_its_newest_request() {
    let mut worker = worker();
    worker.store.want_exemplars();
    let tracing = fixture::tracing();
    let mut record = fixture::request(&fixture::chain(Some(fixture::stats()), Vec::new(), Some(tracing.clone())));
    record.trace = crate::trace::begin(Some(&tracing), &http::HeaderMap::new(), true, &mut fastrand::Rng::new()).trace;
    worker.record_request(&mut record);
    let histogram = durations(&worker.store);
    let exemplar = histogram.bucket[3].exemplar.clone().unwrap();
    assert_eq!((exemplar.label[0].name.as_str(), exemplar.value), ("trace_id", 7.0));
    assert_eq!(exemplar.label[0].value, format!("{:032x}", record.trace.as_ref().unwrap().trace_id));
    assert_eq!(exemplar.timestamp, Some(client::Timestamp { seconds: 1_795_465_906, nanos: 507_900_000 }));
    assert!(histogram.bucket.iter().enumerate().all(|(at, bucket)| at == 3 || bucket.exemplar.is_none()));
}

#[test]
fn the_processs_own_metrics_are_there_with_their_help() {
    let counters = IntCounterVec::new(Opts::new("waypoint_x_total", "X."), &["reason"]).unwrap();
    counters.with_label_values(&["a"]).inc_by(3);
    let gauge = IntGauge::new("waypoint_y", "Y.").unwrap();
    gauge.set(-2);
    let histogram = ::prometheus::Histogram::with_opts(HistogramOpts::new("waypoint_z", "Z.").buckets(vec![1.0, 2.0])).unwrap();
    histogram.observe(1.5);
    let mut out = Vec::new();
    own(&[counters.collect(), gauge.collect(), histogram.collect()].concat(), &mut out).unwrap();
    let all = families(&out);
    assert_eq!(all.iter().map(|family| family.help.as_str()).collect::<Vec<_>>(), ["X.", "Y.", "Z."]);
    assert_eq!(all[0].metric[0].label[0].value, "a");
    assert_eq!((all[0].metric[0].counter.as_ref().unwrap().value, all[1].metric[0].gauge.as_ref().unwrap().value), (3.0, -2.0));
    let histogram = all[2].metric[0].histogram.as_ref().unwrap();
    assert_eq!((histogram.sample_count, histogram.sample_sum), (1, 1.5));
    assert_eq!(histogram.bucket.iter().map(|bucket| bucket.cumulative_count).collect::<Vec<_>>(), [0, 1]);
}
