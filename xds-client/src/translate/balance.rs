//! How a cluster's endpoints are balanced.

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use model::cluster::{Balance, LEAST_REQUEST_CHOICES_DEFAULT, PANIC_THRESHOLD_PERCENT_DEFAULT, SlowStart};
use proto::cluster::LbPolicy;

use super::{Problem, Translated, duration, required};

/// Envoy's least weight of a new endpoint, in percent.
const WEIGHT_MIN_PERCENT_DEFAULT: f64 = 10.0;

pub(super) fn balance(value: &proto::Cluster) -> Translated<Balance> {
    use proto::cluster::LbConfig;
    match LbPolicy::try_from(value.lb_policy) {
        Ok(LbPolicy::LeastRequest) => {
            let choices = match &value.lb_config {
                Some(LbConfig::LeastRequestLbConfig(config)) => config.choice_count.as_ref().map(|count| count.value),
                _ => None,
            };
            let choices = choices.unwrap_or(LEAST_REQUEST_CHOICES_DEFAULT);
            if choices < 2 {
                return Err(Problem::new("least_request_lb_config.choice_count", "has to be at least two"));
            }
            Ok(Balance::LeastRequest { choices })
        }
        Ok(LbPolicy::RoundRobin) => Ok(Balance::RoundRobin),
        Ok(LbPolicy::Random) => Ok(Balance::Random),
        Ok(other) => Err(Problem::new("lb_policy", format!("{} is not supported yet", other.as_str_name()))),
        Err(_) => Err(Problem::new("lb_policy", format!("{} is not known", value.lb_policy))),
    }
}

/// Of the policy that counts.
pub(super) fn slow_start(value: &proto::Cluster) -> Translated<Option<SlowStart>> {
    use proto::cluster::LbConfig;
    const PATH: &str = "slow_start_config";
    let config = match (LbPolicy::try_from(value.lb_policy), &value.lb_config) {
        (Ok(LbPolicy::LeastRequest), Some(LbConfig::LeastRequestLbConfig(config))) => config.slow_start_config.as_ref(),
        (Ok(LbPolicy::RoundRobin), Some(LbConfig::RoundRobinLbConfig(config))) => config.slow_start_config.as_ref(),
        _ => None,
    };
    let Some(config) = config else { return Ok(None) };
    let window = duration(required(config.slow_start_window.as_ref(), PATH)?, PATH)?;
    if window.is_zero() {
        return Ok(None);
    }
    let aggression = config.aggression.as_ref().map_or(1.0, |aggression| aggression.default_value);
    if !(aggression > 0.0 && aggression.is_finite()) {
        return Err(Problem::new(format!("{PATH}.aggression"), "has to be positive"));
    }
    let weight_min_percent = config.min_weight_percent.as_ref().map_or(WEIGHT_MIN_PERCENT_DEFAULT, |percent| percent.value);
    Ok(Some(SlowStart { window, aggression, weight_min_percent: percent(weight_min_percent, "slow_start_config.min_weight_percent")? }))
}

/// In whole percents, as Envoy reads it.
pub(super) fn panic_threshold(value: &proto::Cluster) -> Translated<f64> {
    let threshold = value.common_lb_config.as_ref().and_then(|common| common.healthy_panic_threshold.as_ref());
    threshold.map_or(Ok(PANIC_THRESHOLD_PERCENT_DEFAULT), |threshold| {
        percent(threshold.value, "common_lb_config.healthy_panic_threshold").map(f64::round)
    })
}

pub(super) fn weighs_localities(value: &proto::Cluster) -> bool {
    use proto::cluster::common_lb_config::LocalityConfigSpecifier;
    let specifier = value.common_lb_config.as_ref().and_then(|common| common.locality_config_specifier.as_ref());
    matches!(specifier, Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)))
}

fn percent(value: f64, path: &str) -> Translated<f64> {
    if (0.0..=100.0).contains(&value) { Ok(value) } else { Err(Problem::new(path, format!("{value} is no percentage"))) }
}
