#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;

use super::*;
use crate::fixture::{self, LABELS, wait_until};

fn telemetry(settings: TelemetrySettings) -> Arc<Telemetry> {
    Telemetry::new(settings, Handle::current(), Arc::new(fixture::unreachable))
}

fn exposition(telemetry: &Telemetry) -> String {
    let mut out = Vec::new();
    telemetry.write_exposition(Exposition::Text, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[tokio::test]
async fn one_record_becomes_metrics_a_line_and_a_span() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let telemetry = telemetry(TelemetrySettings { span_flush_interval: Duration::from_secs(3600), ..TelemetrySettings::default() });
    let logs = vec![fixture::log_to(&path, fixture::seed_format())];
    let chain = telemetry.chain("chain".into(), Some(fixture::stats()), logs, Some(fixture::tracing()));
    let mut worker = telemetry.worker();
    let mut record = fixture::request(&chain);
    record.trace = worker.begin(&chain, &http::HeaderMap::new(), true).trace;
    worker.record_request(&mut record);

    assert!(exposition(&telemetry).contains(&format!("istio_requests_total{{{LABELS},")));
    let trace = record.trace.unwrap();
    let ids = [format!("\"trace_id\":\"{:032x}\"", trace.trace_id), format!("\"span_id\":\"{:016x}\"", trace.span_id)];
    wait_until("the line", || {
        fs::read_to_string(&path).is_ok_and(|text| text.lines().count() == 1 && ids.iter().all(|id| text.contains(id)))
    });
    // Nobody takes the span: that it was handed over shows in its loss.
    telemetry.shutdown(Duration::from_millis(1)).await;
    assert!(exposition(&telemetry).contains("waypoint_spans_dropped_total{reason=\"export_failed\"} 1\n"));
}

#[tokio::test]
async fn an_unsampled_request_makes_no_span() {
    let telemetry = telemetry(TelemetrySettings::default());
    let chain = telemetry.chain("chain".into(), None, Vec::new(), Some(fixture::tracing()));
    let mut worker = telemetry.worker();
    let mut record = fixture::request(&chain);
    record.trace = worker.begin(&chain, &http::HeaderMap::new(), true).trace;
    record.trace.as_mut().unwrap().sampled = false;
    worker.record_request(&mut record);
    telemetry.shutdown(Duration::from_millis(1)).await;
    assert!(exposition(&telemetry).contains("waypoint_spans_dropped_total{reason=\"export_failed\"} 0\n"));
}

#[tokio::test]
async fn m33_the_page_has_the_build_once_a_chain_counts_and_the_processs_own_metrics() {
    let telemetry = telemetry(TelemetrySettings { istio_version: "1.29.0".into(), ..TelemetrySettings::default() });
    assert!(!exposition(&telemetry).contains("istio_build"));
    let _chain = telemetry.chain("chain".into(), Some(fixture::stats()), Vec::new(), None);
    let text = exposition(&telemetry);
    assert!(text.contains("# TYPE istio_build gauge\nistio_build{component=\"proxy\",tag=\"1.29.0\"} 1\n"));
    assert!(text.contains("# TYPE envoy_server_live gauge\nenvoy_server_live{} 1\n"));
    assert!(text.contains("# TYPE waypoint_access_log_lines_dropped_total counter\nwaypoint_access_log_lines_dropped_total 0\n"));
    telemetry.set_draining(true);
    assert!(exposition(&telemetry).contains("envoy_server_live{} 0\n"));
}

#[tokio::test]
async fn m41_every_name_has_one_type_line_and_no_series_is_there_twice() {
    let telemetry = telemetry(TelemetrySettings::default());
    let chain = telemetry.chain("chain".into(), Some(fixture::stats()), Vec::new(), None);
    let mut worker = telemetry.worker();
    worker.record_request(&mut fixture::request(&chain));
    worker.record_connection(&mut fixture::connection(&chain));
    let text = exposition(&telemetry);
    let (comments, mut series): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with('#'));
    let mut names: Vec<_> = comments.iter().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let types = names.len();
    names.sort_unstable();
    names.dedup_by_key(|line| line.split(' ').next().unwrap());
    assert_eq!(names.len(), types);
    let lines = series.len();
    series.sort_unstable();
    series.dedup_by_key(|line| line.rsplit_once(' ').unwrap().0);
    assert_eq!(series.len(), lines);
}

#[tokio::test]
async fn a_closed_connection_is_logged_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let telemetry = telemetry(TelemetrySettings::default());
    let logs = vec![fixture::log_to(&path, fixture::text_format("%BYTES_RECEIVED% %BYTES_SENT% %HOSTNAME%\n"))];
    let chain = telemetry.chain("chain".into(), Some(fixture::stats()), logs, None);
    let mut worker = telemetry.worker();
    let mut record = fixture::connection(&chain);
    worker.report_connection(&mut record);
    record.stream.bytes_received = 6;
    worker.record_connection(&mut record);
    telemetry.shutdown(Duration::from_secs(10)).await;
    assert_eq!(fs::read_to_string(&path).unwrap(), "6 0 -\n");
}

#[test]
fn a_workers_telemetry_can_be_handed_to_its_thread() {
    fn is_send<T: Send>() {}
    is_send::<WorkerTelemetry>();
    is_send::<RequestRecord>();
    is_send::<ConnectionRecord>();
}

#[tokio::test]
async fn configuration_after_configuration_lines_reach_each_new_file() {
    let telemetry = telemetry(TelemetrySettings::default());
    let folder = tempfile::tempdir().unwrap();
    let mut worker = telemetry.worker();
    for number in 0..3 * TARGETS_MAX {
        let path = folder.path().join(number.to_string());
        let logs = vec![fixture::log_to(&path, fixture::text_format("line\n"))];
        let chain = telemetry.chain("chain".into(), None, logs, None);
        telemetry.configured([&*chain].into_iter());
        worker.record_request(&mut fixture::request(&chain));
        drop(chain);
        wait_until("the line", || fs::read_to_string(&path).is_ok_and(|text| text == "line\n"));
    }
}
