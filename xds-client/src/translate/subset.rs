//! Subsets of clusters: how a cluster is divided, what endpoints say of themselves, what routes ask for.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use model::subset::{Fallback, Label, Labels, Selector, SelectorFallback, SubsetRules};
use proto::cluster::LbSubsetConfig;
use proto::cluster::lb_subset_config::lb_subset_selector::LbSubsetSelectorFallbackPolicy;
use proto::cluster::lb_subset_config::{LbSubsetFallbackPolicy, LbSubsetSelector};

use super::{Problem, Translated, balance};

/// The metadata that is read.
const LB: &str = "envoy.lb";
const PATH: &str = "lb_subset_config";
/// Selectors of a cluster, and keys of one.
const SELECTORS_MAX: usize = 16;
const SELECTOR_KEYS_MAX: usize = 16;

/// How a cluster is divided; without selectors it is not, as in Envoy.
pub(super) fn rules(value: &proto::Cluster) -> Translated<Option<Arc<SubsetRules>>> {
    let Some(config) = value.lb_subset_config.as_ref().filter(|config| !config.subset_selectors.is_empty()) else { return Ok(None) };
    if proto::cluster::LbPolicy::try_from(value.lb_policy) == Ok(proto::cluster::LbPolicy::ClusterProvided) {
        return Err(Problem::new(PATH, "there are no endpoints to divide"));
    }
    if config.locality_weight_aware && !balance::has_locality_weights(value) {
        return Err(Problem::new(
            format!("{PATH}.locality_weight_aware"),
            "localities have no weights without locality_weighted_lb_config",
        ));
    }
    let fallback = match LbSubsetFallbackPolicy::try_from(config.fallback_policy) {
        Ok(LbSubsetFallbackPolicy::NoFallback) => Fallback::Nowhere,
        Ok(LbSubsetFallbackPolicy::AnyEndpoint) => Fallback::Any,
        Ok(LbSubsetFallbackPolicy::DefaultSubset) => Fallback::Default,
        Err(_) => return Err(Problem::new(format!("{PATH}.fallback_policy"), format!("{} is not known", config.fallback_policy))),
    };
    Ok(Some(Arc::new(SubsetRules {
        selectors: selectors(config)?,
        fallback,
        default: config.default_subset.as_ref().map(labels).unwrap_or_default(),
        scales_localities: config.scale_locality_weight,
        panics_to_any: config.panic_mode_any,
    })))
}

/// Whether weights of localities count: not in subsets, unless that is said.
pub(super) fn weighs_localities(value: &proto::Cluster) -> bool {
    let divided = value.lb_subset_config.as_ref().filter(|config| !config.subset_selectors.is_empty());
    balance::has_locality_weights(value) && divided.is_none_or(|config| config.locality_weight_aware)
}

fn selectors(config: &LbSubsetConfig) -> Translated<Box<[Selector]>> {
    let path = format!("{PATH}.subset_selectors");
    if config.subset_selectors.len() > SELECTORS_MAX {
        return Err(Problem::new(path, format!("are more than {SELECTORS_MAX}")));
    }
    let mut all: Vec<Selector> = Vec::with_capacity(config.subset_selectors.len());
    for (at, one) in config.subset_selectors.iter().enumerate() {
        let selector = selector(one, &format!("{path}[{at}]"))?;
        // No endpoint is in a subset without keys.
        if selector.keys.is_empty() || all.iter().any(|before| before.keys == selector.keys) {
            continue;
        }
        // As in Envoy, where the keys of a selector before begin with its own.
        let is_lost = all.iter().any(|before| before.keys.starts_with(&selector.keys));
        all.push(if is_lost { Selector { fallback: None, ..selector } } else { selector });
    }
    Ok(all.into())
}

fn selector(value: &LbSubsetSelector, path: &str) -> Translated<Selector> {
    let sorted = |keys: &[String]| -> Box<[Arc<str>]> {
        keys.iter().map(String::as_str).collect::<BTreeSet<_>>().into_iter().map(Arc::from).collect()
    };
    let (keys, fewer) = (sorted(&value.keys), sorted(&value.fallback_keys_subset));
    if keys.len() > SELECTOR_KEYS_MAX {
        return Err(Problem::new(format!("{path}.keys"), format!("are more than {SELECTOR_KEYS_MAX}")));
    }
    let policy = LbSubsetSelectorFallbackPolicy::try_from(value.fallback_policy)
        .map_err(|_| Problem::new(format!("{path}.fallback_policy"), format!("{} is not known", value.fallback_policy)))?;
    let is_by_keys = policy == LbSubsetSelectorFallbackPolicy::KeysSubset;
    let is_smaller = !fewer.is_empty() && fewer.len() < keys.len() && fewer.iter().all(|key| keys.contains(key));
    if is_by_keys && !is_smaller {
        return Err(Problem::new(format!("{path}.fallback_keys_subset"), "has to have some of the keys, but not all"));
    }
    if !is_by_keys && !fewer.is_empty() {
        return Err(Problem::new(format!("{path}.fallback_keys_subset"), "is for KEYS_SUBSET only"));
    }
    let fallback = match policy {
        LbSubsetSelectorFallbackPolicy::NotDefined => None,
        LbSubsetSelectorFallbackPolicy::NoFallback => Some(SelectorFallback::To(Fallback::Nowhere)),
        LbSubsetSelectorFallbackPolicy::AnyEndpoint => Some(SelectorFallback::To(Fallback::Any)),
        LbSubsetSelectorFallbackPolicy::DefaultSubset => Some(SelectorFallback::To(Fallback::Default)),
        LbSubsetSelectorFallbackPolicy::KeysSubset => Some(SelectorFallback::Fewer(fewer)),
    };
    Ok(Selector { keys, fallback })
}

/// What metadata says for balancing.
pub(super) fn labels_in(value: Option<&core::Metadata>) -> Labels {
    value.and_then(|metadata| metadata.filter_metadata.get(LB)).map(labels).unwrap_or_default()
}

fn labels(fields: &Struct) -> Labels {
    let mut labels: Vec<_> =
        fields.fields.iter().map(|(key, value)| Label { key: key.as_str().into(), value: text(value).into() }).collect();
    labels.sort_unstable();
    labels.into()
}

/// A value as a text that it has in common with like values only.
fn text(value: &Value) -> String {
    let mut text = String::new();
    write_value(value, &mut text);
    text
}

fn write_value(value: &Value, text: &mut String) {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => text.push_str("null"),
        Some(Kind::BoolValue(value)) => text.push_str(if *value { "true" } else { "false" }),
        Some(Kind::NumberValue(value)) => write!(text, "{value}").expect("writing to a string does not fail"),
        Some(Kind::StringValue(value)) => write_text(value, text),
        Some(Kind::ListValue(list)) => {
            text.push('[');
            for (at, value) in list.values.iter().enumerate() {
                text.push_str(if at > 0 { "," } else { "" });
                write_value(value, text);
            }
            text.push(']');
        }
        Some(Kind::StructValue(fields)) => {
            let mut sorted: Vec<_> = fields.fields.iter().collect();
            sorted.sort_unstable_by_key(|(key, _)| *key);
            text.push('{');
            for (at, (key, value)) in sorted.into_iter().enumerate() {
                text.push_str(if at > 0 { "," } else { "" });
                write_text(key, text);
                text.push(':');
                write_value(value, text);
            }
            text.push('}');
        }
    }
}

fn write_text(value: &str, text: &mut String) {
    write!(text, "{value:?}").expect("writing to a string does not fail");
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use prost::Message;
    use serde_json::json;

    use super::*;

    fn read(config: &serde_json::Value, more: &serde_json::Value) -> Translated<Option<Arc<SubsetRules>>> {
        let mut json = json!({"name": "c", "type": "EDS", "lb_subset_config": config});
        more.as_object().into_iter().flatten().for_each(|(name, value)| json[name] = value.clone());
        let bytes = xds_proto::message_from_json("envoy.config.cluster.v3.Cluster", &json).unwrap();
        rules(&proto::Cluster::decode(&bytes[..]).unwrap())
    }

    #[test]
    fn a_cluster_without_selectors_is_not_divided() {
        assert_eq!(read(&json!({"fallback_policy": "NO_FALLBACK"}), &json!({})), Ok(None));
    }

    #[test]
    fn keys_are_sorted_and_the_first_of_like_selectors_counts() {
        let selectors = json!([
            {"keys": ["b", "a", "b"], "fallback_policy": "KEYS_SUBSET", "fallback_keys_subset": ["b"]},
            {"keys": ["a", "b"], "fallback_policy": "NO_FALLBACK"},
            {"keys": ["a"], "fallback_policy": "NO_FALLBACK"},
            {"keys": ["b"], "fallback_policy": "NO_FALLBACK"},
        ]);
        let rules = read(&json!({"subset_selectors": selectors}), &json!({})).unwrap().unwrap();
        let of = |keys: &[&str], fallback| Selector { keys: keys.iter().map(|key| Arc::from(*key)).collect(), fallback };
        let nowhere = Some(SelectorFallback::To(Fallback::Nowhere));
        let expected = [of(&["a", "b"], Some(SelectorFallback::Fewer(["b".into()].into()))), of(&["a"], None), of(&["b"], nowhere)];
        assert_eq!(*rules.selectors, expected);
    }

    #[test]
    fn what_envoy_would_not_take_is_refused() {
        let selectors = |one| json!({"subset_selectors": [one]});
        let path = |config, more| read(&config, &more).unwrap_err().path;
        let (keys, none) = ("lb_subset_config.subset_selectors[0].fallback_keys_subset", json!({}));
        for fewer in [json!([]), json!(["c"]), json!(["a", "b"])] {
            let one = json!({"keys": ["a", "b"], "fallback_policy": "KEYS_SUBSET", "fallback_keys_subset": fewer});
            assert_eq!(path(selectors(one), none.clone()), keys);
        }
        assert_eq!(path(selectors(json!({"keys": ["a", "b"], "fallback_keys_subset": ["a"]})), none.clone()), keys);
        assert_eq!(path(selectors(json!({"keys": ["a"]})), json!({"lb_policy": "CLUSTER_PROVIDED"})), PATH);
        let aware = json!({"locality_weight_aware": true, "subset_selectors": [{"keys": ["a"]}]});
        assert_eq!(path(aware.clone(), none), "lb_subset_config.locality_weight_aware");
        assert!(read(&aware, &json!({"common_lb_config": {"locality_weighted_lb_config": {}}})).is_ok());
        let many: Vec<_> = (0..=SELECTORS_MAX).map(|at| json!({"keys": [at.to_string()]})).collect();
        assert_eq!(path(json!({"subset_selectors": many}), json!({})), "lb_subset_config.subset_selectors");
    }

    #[test]
    fn values_are_alike_by_kind_and_content() {
        let texts: Vec<_> = [json!(1), json!("1"), json!(true), json!("true"), json!(null), json!("null"), json!([1, "a"]), json!("a\"b")]
            .iter()
            .map(|value| {
                let json = json!({"filter_metadata": {LB: {"k": value}}});
                let bytes = xds_proto::message_from_json("envoy.config.core.v3.Metadata", &json).unwrap();
                labels_in(Some(&core::Metadata::decode(&bytes[..]).unwrap()))[0].value.to_string()
            })
            .collect();
        assert_eq!(texts, ["1", "\"1\"", "true", "\"true\"", "null", "\"null\"", "[1,\"a\"]", "\"a\\\"b\""]);
    }
}
