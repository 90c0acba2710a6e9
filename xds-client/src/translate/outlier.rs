//! Outlier detection of a cluster.

use envoy_types::pb::envoy::config::cluster::v3::OutlierDetection as Proto;
use envoy_types::pb::google::protobuf::{Duration as ProtoDuration, UInt32Value};
use model::outlier::{Consecutive, FailureShare, OutlierDetection, SuccessRate};

use super::{Problem, Translated, duration};

pub(super) fn outlier(value: &Proto) -> Translated<OutlierDetection> {
    let default = OutlierDetection::default();
    let base = positive(value.base_ejection_time.as_ref(), "base_ejection_time")?.unwrap_or(default.ejection_time_base);
    let longest = positive(value.max_ejection_time.as_ref(), "max_ejection_time")?;
    if longest.is_some_and(|longest| longest < base) {
        return Err(Problem::new("outlier_detection.max_ejection_time", "is below base_ejection_time"));
    }
    let jitter = value.max_ejection_time_jitter.as_ref().map(|jitter| duration(jitter, "outlier_detection.max_ejection_time_jitter"));
    Ok(OutlierDetection {
        server_errors: consecutive((value.consecutive_5xx, value.enforcing_consecutive_5xx), default.server_errors, "consecutive_5xx")?,
        gateway_errors: consecutive(
            (value.consecutive_gateway_failure, value.enforcing_consecutive_gateway_failure),
            default.gateway_errors,
            "consecutive_gateway_failure",
        )?,
        local_failures: consecutive(
            (value.consecutive_local_origin_failure, value.enforcing_consecutive_local_origin_failure),
            default.local_failures,
            "consecutive_local_origin_failure",
        )?,
        split_local: value.split_external_local_origin_errors,
        success_rate: success_rate(value)?,
        failure_share: failure_share(value)?,
        interval: positive(value.interval.as_ref(), "interval")?.unwrap_or(default.interval),
        ejection_time_base: base,
        ejection_time_max: longest.unwrap_or(default.ejection_time_max.max(base)),
        ejection_jitter_max: jitter.transpose()?.unwrap_or(default.ejection_jitter_max),
        ejected_percent_max: percent(value.max_ejection_percent, default.ejected_percent_max, "max_ejection_percent")?,
        always_eject_one: value.always_eject_one_host.as_ref().is_some_and(|always| always.value),
    })
}

/// How many in a row, and how often that ejects.
fn consecutive(
    (failures, enforcing): (Option<UInt32Value>, Option<UInt32Value>),
    default: Consecutive,
    field: &str,
) -> Translated<Consecutive> {
    Ok(Consecutive {
        failures: failures.map_or(default.failures, |failures| failures.value),
        enforcing_percent: percent(enforcing, default.enforcing_percent, &format!("enforcing_{field}"))?,
    })
}

fn success_rate(value: &Proto) -> Translated<SuccessRate> {
    let default = SuccessRate::default();
    let local = value.enforcing_local_origin_success_rate;
    Ok(SuccessRate {
        enforcing_percent: percent(value.enforcing_success_rate, default.enforcing_percent, "enforcing_success_rate")?,
        local_enforcing_percent: percent(local, default.local_enforcing_percent, "enforcing_local_origin_success_rate")?,
        hosts_min: number(value.success_rate_minimum_hosts, default.hosts_min),
        requests_min: number(value.success_rate_request_volume, default.requests_min),
        deviation_thousandths: number(value.success_rate_stdev_factor, default.deviation_thousandths),
    })
}

fn failure_share(value: &Proto) -> Translated<FailureShare> {
    let default = FailureShare::default();
    let local = value.enforcing_failure_percentage_local_origin;
    Ok(FailureShare {
        enforcing_percent: percent(value.enforcing_failure_percentage, default.enforcing_percent, "enforcing_failure_percentage")?,
        local_enforcing_percent: percent(local, default.local_enforcing_percent, "enforcing_failure_percentage_local_origin")?,
        hosts_min: number(value.failure_percentage_minimum_hosts, default.hosts_min),
        requests_min: number(value.failure_percentage_request_volume, default.requests_min),
        threshold_percent: percent(value.failure_percentage_threshold, default.threshold_percent, "failure_percentage_threshold")?,
    })
}

fn number(value: Option<UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}

fn percent(value: Option<UInt32Value>, default: u32, field: &str) -> Translated<u32> {
    match value.map_or(default, |value| value.value) {
        percent @ 0..=100 => Ok(percent),
        more => Err(Problem::new(format!("outlier_detection.{field}"), format!("{more} is no percentage"))),
    }
}

fn positive(value: Option<&ProtoDuration>, field: &str) -> Translated<Option<std::time::Duration>> {
    let path = format!("outlier_detection.{field}");
    let Some(value) = value else { return Ok(None) };
    match duration(value, &path)? {
        zero if zero.is_zero() => Err(Problem::new(path, "has to be positive")),
        time => Ok(Some(time)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_not_said_is_as_envoy_has_it() {
        assert_eq!(outlier(&Proto::default()), Ok(OutlierDetection::default()));
        let long = Proto { base_ejection_time: Some(ProtoDuration { seconds: 400, nanos: 0 }), ..Proto::default() };
        assert_eq!(outlier(&long).map(|rules| rules.ejection_time_max), Ok(Duration::from_secs(400)));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let never = Proto { interval: Some(ProtoDuration::default()), ..Proto::default() };
        assert_eq!(outlier(&never).map_err(|problem| problem.path), Err("outlier_detection.interval".to_owned()));
        let more = Proto { max_ejection_percent: Some(UInt32Value { value: 101 }), ..Proto::default() };
        assert_eq!(outlier(&more).map_err(|problem| problem.path), Err("outlier_detection.max_ejection_percent".to_owned()));
        let more = Proto { enforcing_consecutive_5xx: Some(UInt32Value { value: 101 }), ..Proto::default() };
        assert_eq!(outlier(&more).map_err(|problem| problem.path), Err("outlier_detection.enforcing_consecutive_5xx".to_owned()));
        let more = Proto { failure_percentage_threshold: Some(UInt32Value { value: 101 }), ..Proto::default() };
        assert_eq!(outlier(&more).map_err(|problem| problem.path), Err("outlier_detection.failure_percentage_threshold".to_owned()));
        let short = Proto { max_ejection_time: Some(ProtoDuration { seconds: 29, nanos: 0 }), ..Proto::default() };
        assert_eq!(outlier(&short).map_err(|problem| problem.path), Err("outlier_detection.max_ejection_time".to_owned()));
    }
}
