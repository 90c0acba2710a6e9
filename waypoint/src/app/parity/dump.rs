//! An Envoy's configuration dump as the resources that istiod had sent.
//!
//! Not for: judging them. Invariant: what is in the dump and cannot be read is named, not left out.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use xds_client::ads::{Resource, ResourceType, Update};
use xds_client::translate::listener::MAIN_INTERNAL;
use xds_proto::{descriptors, message_from_json, message_name};

use super::{Kind, Snapshot};

/// What wraps a resource of each kind, in Envoy's `…ConfigDump` messages: lists of entries, and where in an entry it is.
const KINDS: [(ResourceType, &[&str], &[&str]); 4] = [
    (ResourceType::Cluster, &["static_clusters", "dynamic_active_clusters", "dynamic_warming_clusters"], &["cluster"]),
    (ResourceType::Endpoint, &["static_endpoint_configs", "dynamic_endpoint_configs"], &["endpoint_config"]),
    (ResourceType::Listener, &["static_listeners", "dynamic_listeners"], &["active_state", "warming_state", "listener"]),
    (ResourceType::Extension, &["ecds_filters"], &["ecds_filter"]),
];
/// The message that carries a configuration whose own type is not known.
const TYPED_STRUCT: &str = "type.googleapis.com/udpa.type.v1.TypedStruct";

/// Reads a dump.
///
/// # Errors
/// It is no configuration dump, or has no listeners.
pub(super) fn read(json: &Value) -> Result<Snapshot, String> {
    let configs = json["configs"].as_array().ok_or("it has no \"configs\": not a configuration dump of Envoy")?;
    let mut snapshot = Snapshot::default();
    for (of, lists, inside) in KINDS {
        let mut resources = BTreeMap::new();
        for entry in configs.iter().flat_map(|config| lists.iter().filter_map(|list| get(config, list)?.as_array())).flatten() {
            if let Some(resource) = inside.iter().try_fold(entry, |at, name| Some(get(at, name).unwrap_or(at))) {
                add(of, resource, &mut resources, &mut snapshot);
            }
        }
        let resources = resources.into_values().collect::<Vec<_>>();
        if of == ResourceType::Listener && resources.is_empty() {
            return Err("it has no listeners: was it taken with the right pod?".to_owned());
        }
        snapshot.updates.push(Update { of, resources, removed: Vec::new() });
    }
    Ok(snapshot)
}

fn add(of: ResourceType, resource: &Value, resources: &mut BTreeMap<String, Resource>, snapshot: &mut Snapshot) {
    let name = ["name", "cluster_name"].iter().find_map(|field| get(resource, field)?.as_str()).unwrap_or_default().to_owned();
    let mut resource = resource.clone();
    if let Value::Object(fields) = &mut resource {
        fields.remove("@type");
    }
    wrap_unknown(&mut resource);
    match message_from_json(of.type_url(), &resource) {
        Ok(body) => {
            resources.insert(name.clone(), Resource { name: name.clone(), version: String::new(), body: Bytes::from(body) });
        }
        Err(error) => snapshot.unreadable.push((name.clone(), with_causes(&error))),
    }
    match of {
        ResourceType::Listener => keep_chains(&resource, snapshot),
        ResourceType::Cluster => {
            snapshot.parts.insert((Kind::Cluster, name), resource);
        }
        _ => {}
    }
}

/// An error and what is behind it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Keeps the chains of `main_internal` by name, for their origins.
pub(super) fn keep_chains(listener: &Value, snapshot: &mut Snapshot) {
    if listener["name"] != MAIN_INTERNAL {
        return;
    }
    for chain in get(listener, "filter_chains").and_then(Value::as_array).into_iter().flatten() {
        if let Some(name) = chain["name"].as_str() {
            snapshot.parts.insert((Kind::Chain, name.to_owned()), chain.clone());
        }
    }
}

/// An extension whose type nobody here knows keeps its name, so that it can be refused by it.
fn wrap_unknown(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(wrap_unknown),
        Value::Object(fields) => {
            let unknown = fields.get("@type").and_then(Value::as_str).filter(|url| !is_known(url)).map(str::to_owned);
            match unknown {
                None => fields.values_mut().for_each(wrap_unknown),
                Some(type_url) => {
                    fields.remove("@type");
                    let inner = std::mem::take(fields);
                    *fields = Map::from_iter([
                        ("@type".to_owned(), json!(TYPED_STRUCT)),
                        ("type_url".to_owned(), json!(type_url)),
                        ("value".to_owned(), Value::Object(inner)),
                    ]);
                }
            }
        }
        _ => {}
    }
}

fn is_known(type_url: &str) -> bool {
    descriptors().get_message_by_name(message_name(type_url)).is_some()
}

/// A field by its original name or in camel case, as Envoy and istioctl write them.
fn get<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    super::origin::field(value, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_found_wherever_a_dump_has_them() {
        let dump = json!({"configs": [
            {"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump", "bootstrap": {}},
            {"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump", "dynamicActiveClusters": [
                {"cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "a", "connectTimeout": "1s"}},
            ]},
            {"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
             "static_listeners": [{"listener": {"name": "b"}}],
             "dynamic_listeners": [
                {"name": "c", "active_state": {"listener": {"name": "c", "filter_chains": [{"name": "of its own"}]}}},
                {"active_state": {"listener": {"name": "main_internal", "filter_chains": [{"name": "chain"}]}}},
             ]},
            {"dynamic_endpoint_configs": [{"endpoint_config": {"cluster_name": "d"}}]},
        ]});
        let snapshot = read(&dump).expect("a dump");
        let names: Vec<_> = snapshot.updates.iter().flat_map(|update| update.resources.iter().map(|one| one.name.as_str())).collect();
        assert_eq!(names, ["a", "d", "b", "c", "main_internal"]);
        let parts: Vec<_> = snapshot.parts.keys().map(|(kind, name)| (*kind, name.as_str())).collect();
        assert_eq!(parts, [(Kind::Chain, "chain"), (Kind::Cluster, "a")]);
    }

    #[test]
    fn what_is_no_dump_is_said_to_be_none() {
        assert!(read(&json!({"resources": []})).is_err_and(|error| error.contains("configs")));
        assert!(read(&json!({"configs": []})).is_err_and(|error| error.contains("listeners")));
    }

    #[test]
    fn a_resource_that_cannot_be_read_is_named() {
        let dump = json!({"configs": [
            {"static_clusters": [{"cluster": {"name": "new", "a_field_of_the_future": 1}}], "static_listeners": [{"listener": {"name": "b"}}]},
        ]});
        let snapshot = read(&dump).expect("a dump");
        assert_eq!(snapshot.unreadable.len(), 1);
        assert!(snapshot.unreadable[0].1.contains("a_field_of_the_future"), "{:?}", snapshot.unreadable);
    }
}
