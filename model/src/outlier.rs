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

impl Default for OutlierDetection {
    fn default() -> Self {
        let five = |enforcing_percent| Consecutive { failures: 5, enforcing_percent };
        Self {
            server_errors: five(100),
            gateway_errors: five(0),
            local_failures: five(100),
            split_local: false,
            interval: Duration::from_secs(10),
            ejection_time_base: Duration::from_secs(30),
            ejection_time_max: Duration::from_secs(300),
            ejection_jitter_max: Duration::ZERO,
            ejected_percent_max: 10,
            always_eject_one: false,
        }
    }
}
