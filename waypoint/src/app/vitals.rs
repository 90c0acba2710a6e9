//! Series by which tools of an Envoy and of pilot-agent look after a proxy: its stream to istiod, what it took from it, its certificate.
//!
//! Not for: our own, `waypoint_*`. Invariant: a name of theirs is there only where what it means holds here, too.

use std::sync::Arc;
use std::time::SystemTime;

use prometheus::core::Collector;
use prometheus::{GaugeVec, IntCounter, IntGauge, IntGaugeVec, Opts, Registry};
use xds_client::ads::{ResourceType, Verdict};

use crate::identity::Identities;
use crate::state::published::{ClusterEntry, Published};

/// What Istio's bootstrap of Envoy calls the cluster of istiod.
const ISTIOD: &str = "xds-grpc";
/// What pilot-agent calls the certificate of the workload itself.
const OWN_CERTIFICATE: &str = "default";
/// What the kernel says of this process.
const STATUS: &str = "/proc/self/status";
/// The kernel's.
const KILOBYTE: i64 = 1024;
const DAY_SECONDS: f64 = 86_400.0;

/// Responses of one type, by what became of them.
struct Updates {
    success: IntCounter,
    rejected: IntCounter,
}

pub(super) struct Vitals {
    published: Arc<Published>,
    identities: Arc<Identities>,
    streams: IntGaugeVec,
    clusters: Updates,
    listeners: Updates,
    active_clusters: IntGauge,
    memory_physical: IntGauge,
    memory_heap: IntGauge,
    certificate_days: IntGauge,
    certificate_seconds: GaugeVec,
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> C {
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    registered(registry, IntGauge::new(name, help).expect("a well-formed name"))
}

fn updates(registry: &Registry, (success, rejected): (&str, &str)) -> Updates {
    let counter = |name: &str, help: &str| registered(registry, IntCounter::new(name, help).expect("a well-formed name"));
    Updates {
        success: counter(success, "Responses of istiod that were taken."),
        rejected: counter(rejected, "Responses that were refused."),
    }
}

impl Vitals {
    pub(super) fn new(registry: &Registry, published: Arc<Published>, identities: Arc<Identities>) -> Self {
        let streams = Opts::new("envoy_cluster_upstream_cx_active", "Connections that are open, by cluster.");
        let streams = registered(registry, IntGaugeVec::new(streams, &["cluster_name"]).expect("a well-formed name"));
        // There from the beginning.
        streams.with_label_values(&[ISTIOD]).set(0);
        let seconds = Opts::new("istio_agent_cert_expiry_seconds", "Seconds until the certificate expires; less than none afterwards.");
        let seconds = GaugeVec::new(seconds, &["resource_name"]).expect("a well-formed name");
        Self {
            published,
            identities,
            streams,
            clusters: updates(registry, ("envoy_cluster_manager_cds_update_success", "envoy_cluster_manager_cds_update_rejected")),
            listeners: updates(registry, ("envoy_listener_manager_lds_update_success", "envoy_listener_manager_lds_update_rejected")),
            active_clusters: gauge(registry, "envoy_cluster_manager_active_clusters", "Clusters that are obeyed."),
            memory_physical: gauge(registry, "envoy_server_memory_physical_size", "Resident memory, in bytes."),
            memory_heap: gauge(registry, "envoy_server_memory_heap_size", "Resident memory that is of no file, in bytes."),
            certificate_days: gauge(
                registry,
                "envoy_server_days_until_first_cert_expiring",
                "Whole days until the workload's certificate expires.",
            ),
            certificate_seconds: registered(registry, seconds),
        }
    }

    /// Whether there is a stream to istiod.
    pub(super) fn connected(&self, is_connected: bool) {
        self.streams.with_label_values(&[ISTIOD]).set(is_connected.into());
    }

    /// A response was applied.
    pub(super) fn applied(&self, of: ResourceType, verdict: &Verdict) {
        let updates = match of {
            ResourceType::Cluster => &self.clusters,
            ResourceType::Listener => &self.listeners,
            _ => return,
        };
        match verdict {
            Verdict::Ack => updates.success.inc(),
            Verdict::Nack(_) => updates.rejected.inc(),
        }
    }

    /// Brings what is not told up to now.
    pub(super) fn refresh(&self) {
        let n_obeyed = self.published.clusters().values().filter(|entry| matches!(entry, ClusterEntry::Served(_))).count();
        self.active_clusters.set(i64::try_from(n_obeyed).unwrap_or(i64::MAX));
        if let Ok(status) = std::fs::read_to_string(STATUS) {
            for (gauge, name) in [(&self.memory_physical, "VmRSS:"), (&self.memory_heap, "RssAnon:")] {
                if let Some(bytes) = bytes_of(&status, name) {
                    gauge.set(bytes);
                }
            }
        }
        if let Some(end) = self.identities.expire_at() {
            let left = seconds_until(end, SystemTime::now());
            self.certificate_seconds.with_label_values(&[OWN_CERTIFICATE]).set(left);
            self.certificate_days.set(whole_days(left));
        }
    }
}

/// What the kernel says of the process under this name, in bytes.
fn bytes_of(status: &str, name: &str) -> Option<i64> {
    let said = status.lines().find_map(|line| line.strip_prefix(name))?;
    said.trim().strip_suffix(" kB")?.parse::<i64>().ok()?.checked_mul(KILOBYTE)
}

/// Less than none if it was before.
fn seconds_until(end: SystemTime, now: SystemTime) -> f64 {
    match end.duration_since(now) {
        Ok(left) => left.as_secs_f64(),
        Err(error) => -error.duration().as_secs_f64(),
    }
}

/// None of what has expired, as Envoy counts them.
fn whole_days(seconds: f64) -> i64 {
    let days = (seconds / DAY_SECONDS).floor().max(0.0);
    // By way of text: exact as far as the type is.
    days.to_string().parse().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn memory_is_what_the_kernel_says() {
        let status = "Name:\twaypoint\nVmRSS:\t   12345 kB\nRssAnon:\t    2000 kB\nRssFile:\t x kB\n";
        let said = |name| bytes_of(status, name);
        assert_eq!([said("VmRSS:"), said("RssAnon:"), said("RssFile:"), said("None:")], [Some(12_641_280), Some(2_048_000), None, None]);
    }

    #[test]
    fn days_of_a_certificate_are_whole_and_none_of_what_has_expired() {
        let now = SystemTime::now();
        let left = |end: SystemTime| whole_days(seconds_until(end, now));
        assert_eq!(left(now + Duration::from_secs(86_400 * 2 - 1)), 1);
        assert_eq!(left(now + Duration::from_secs(86_400 * 90)), 90);
        assert_eq!(left(now - Duration::from_secs(86_400)), 0);
        assert!(seconds_until(now - Duration::from_secs(5), now) <= -5.0);
    }
}
