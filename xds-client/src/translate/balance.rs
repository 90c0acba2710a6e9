//! How a cluster's endpoints are balanced.

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::google::protobuf::UInt64Value;
use model::cluster::{Balance, LEAST_REQUEST_CHOICES_DEFAULT, PANIC_THRESHOLD_PERCENT_DEFAULT, SlowStart};
use proto::cluster::{LbPolicy, MaglevLbConfig, RingHashLbConfig};

use super::{Problem, Translated, duration, required};

/// Points of a ring where it is not said, and the most that there may be: Envoy's.
const RING_SIZE_DEFAULT: u64 = 1024;
const RING_SIZE_MAX: u32 = 8 * 1024 * 1024;
/// Size of a Maglev table where it is not said, and the largest that there may be: Envoy's.
const MAGLEV_SIZE_DEFAULT: u64 = 65_537;
const MAGLEV_SIZE_MAX: u32 = 5_000_011;
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
        Ok(LbPolicy::RingHash) => match &value.lb_config {
            Some(LbConfig::RingHashLbConfig(config)) => ring_hash(config),
            _ => ring_hash(&RingHashLbConfig::default()),
        },
        Ok(LbPolicy::Maglev) => match &value.lb_config {
            Some(LbConfig::MaglevLbConfig(config)) => maglev(config),
            _ => maglev(&MaglevLbConfig::default()),
        },
        // Of a cluster whose endpoints a request names: there is nothing to choose.
        Ok(LbPolicy::ClusterProvided) if names_its_own(value) => Ok(Balance::default()),
        Ok(other) => Err(Problem::new("lb_policy", format!("{} is not supported yet", other.as_str_name()))),
        Err(_) => Err(Problem::new("lb_policy", format!("{} is not known", value.lb_policy))),
    }
}

fn names_its_own(value: &proto::Cluster) -> bool {
    use proto::cluster::{ClusterDiscoveryType, DiscoveryType};
    let original = i32::from(DiscoveryType::OriginalDst);
    matches!(&value.cluster_discovery_type, Some(ClusterDiscoveryType::ClusterType(_)))
        || value.cluster_discovery_type == Some(ClusterDiscoveryType::Type(original))
}

fn ring_hash(value: &RingHashLbConfig) -> Translated<Balance> {
    let size = |size: Option<&UInt64Value>, default, field| {
        let path = format!("ring_hash_lb_config.{field}");
        let size = u32::try_from(size.map_or(default, |size| size.value)).ok().filter(|size| *size <= RING_SIZE_MAX);
        size.ok_or_else(|| Problem::new(path, format!("is above {RING_SIZE_MAX}")))
    };
    let size_min = size(value.minimum_ring_size.as_ref(), RING_SIZE_DEFAULT, "minimum_ring_size")?;
    let size_max = size(value.maximum_ring_size.as_ref(), u64::from(RING_SIZE_MAX), "maximum_ring_size")?;
    if size_min > size_max {
        return Err(Problem::new("ring_hash_lb_config", "the smallest ring is larger than the largest"));
    }
    Ok(Balance::RingHash { size_min, size_max })
}

fn maglev(value: &MaglevLbConfig) -> Translated<Balance> {
    let size = value.table_size.as_ref().map_or(MAGLEV_SIZE_DEFAULT, |size| size.value);
    match u32::try_from(size).ok().filter(|size| *size <= MAGLEV_SIZE_MAX && is_prime(*size)) {
        Some(size) => Ok(Balance::Maglev { size }),
        None => Err(Problem::new("maglev_lb_config.table_size", format!("{size} is no prime up to {MAGLEV_SIZE_MAX}"))),
    }
}

fn is_prime(number: u32) -> bool {
    number > 1 && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
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

pub(super) fn has_locality_weights(value: &proto::Cluster) -> bool {
    use proto::cluster::common_lb_config::LocalityConfigSpecifier;
    let specifier = value.common_lb_config.as_ref().and_then(|common| common.locality_config_specifier.as_ref());
    matches!(specifier, Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)))
}

fn percent(value: f64, path: &str) -> Translated<f64> {
    if (0.0..=100.0).contains(&value) { Ok(value) } else { Err(Problem::new(path, format!("{value} is no percentage"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_envoys_sizes() {
        assert_eq!(ring_hash(&RingHashLbConfig::default()), Ok(Balance::RingHash { size_min: 1024, size_max: 8_388_608 }));
        assert_eq!(maglev(&MaglevLbConfig::default()), Ok(Balance::Maglev { size: 65_537 }));
        let ring = RingHashLbConfig { minimum_ring_size: Some(UInt64Value { value: 9 << 20 }), ..RingHashLbConfig::default() };
        assert_eq!(ring_hash(&ring).map_err(|problem| problem.path), Err("ring_hash_lb_config.minimum_ring_size".to_owned()));
        let table = MaglevLbConfig { table_size: Some(UInt64Value { value: 65_536 }) };
        assert_eq!(maglev(&table).map_err(|problem| problem.path), Err("maglev_lb_config.table_size".to_owned()));
    }
}
