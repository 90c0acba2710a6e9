//! Outlier detection: which endpoints are left out for a while because of how they answered.
//!
//! Not for: counting and ejecting, which live beside the endpoints. Source: Envoy's `OutlierDetection` and its defaults.

use std::time::Duration;

/// So many failures in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consecutive {
    /// How many; zero is never.
    pub failures: u32,
    /// In how many of a hundred cases an endpoint is then ejected.
    pub enforcing_percent: u32,
}

/// Endpoints that succeed less often than the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    /// In how many of a hundred cases one that answers badly is then ejected.
    pub enforcing_percent: u32,
    /// The same for local failures, with [`OutlierDetection::split_local`] only.
    pub local_enforcing_percent: u32,
    /// Endpoints that have to be compared at least.
    pub hosts_min: u32,
    /// Requests of an interval without which an endpoint is not compared.
    pub requests_min: u32,
    /// How many standard deviations below the average are too many, in thousandths.
    pub deviation_thousandths: u32,
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self { enforcing_percent: 100, local_enforcing_percent: 100, hosts_min: 5, requests_min: 100, deviation_thousandths: 1900 }
    }
}

/// Endpoints that fail too often whatever the others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureShare {
    /// In how many of a hundred cases one that answers badly is then ejected.
    pub enforcing_percent: u32,
    /// The same for local failures, with [`OutlierDetection::split_local`] only.
    pub local_enforcing_percent: u32,
    /// Endpoints that have to be judged at least.
    pub hosts_min: u32,
    /// Requests of an interval without which an endpoint is not judged.
    pub requests_min: u32,
    /// Of a hundred requests so many failures are too many.
    pub threshold_percent: u32,
}

impl Default for FailureShare {
    fn default() -> Self {
        Self { enforcing_percent: 0, local_enforcing_percent: 0, hosts_min: 5, requests_min: 50, threshold_percent: 85 }
    }
}

/// When and for how long endpoints of a cluster are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// `consecutive_5xx`: answers from 500 on; without [`Self::split_local`] local failures too.
    pub server_errors: Consecutive,
    /// `consecutive_gateway_failure`: 502, 503, 504; without [`Self::split_local`] local failures too.
    pub gateway_errors: Consecutive,
    /// `consecutive_local_origin_failure`: no connection, no answer, or none in time; with [`Self::split_local`] only.
    pub local_failures: Consecutive,
    /// Local failures are counted on their own.
    pub split_local: bool,
    /// After each interval: who falls behind the others.
    pub success_rate: SuccessRate,
    /// After each interval: who fails too often.
    pub failure_share: FailureShare,
    /// How often it is looked whether an endpoint comes back.
    pub interval: Duration,
    /// An endpoint is left out this long times the number of its ejections …
    pub ejection_time_base: Duration,
    /// … and at most this long.
    pub ejection_time_max: Duration,
    /// A random time up to this is added.
    pub ejection_jitter_max: Duration,
    /// How many of a hundred endpoints may be left out.
    pub ejected_percent_max: u32,
    /// One may be left out whatever that says.
    pub always_eject_one: bool,
}

impl OutlierDetection {
    /// Whether successes have to be counted, beside rows of failures.
    #[must_use]
    pub fn compares(&self) -> bool {
        let SuccessRate { enforcing_percent: rate, local_enforcing_percent: local_rate, .. } = self.success_rate;
        let FailureShare { enforcing_percent: share, local_enforcing_percent: local_share, .. } = self.failure_share;
        rate | share > 0 || (self.split_local && local_rate | local_share > 0)
    }
}

impl Default for OutlierDetection {
    fn default() -> Self {
        let five = |enforcing_percent| Consecutive { failures: 5, enforcing_percent };
        Self {
            server_errors: five(100),
            gateway_errors: five(0),
            local_failures: five(100),
            split_local: false,
            success_rate: SuccessRate::default(),
            failure_share: FailureShare::default(),
            interval: Duration::from_secs(10),
            ejection_time_base: Duration::from_secs(30),
            ejection_time_max: Duration::from_secs(300),
            ejection_jitter_max: Duration::ZERO,
            ejected_percent_max: 10,
            always_eject_one: false,
        }
    }
}
