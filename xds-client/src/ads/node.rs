//! How we introduce ourselves to istiod: the node id and the node metadata that Istio's agent would send.
//!
//! Not for: reading arguments, environment and files; what they said is handed in.
//! Invariants: the id has exactly four parts; a value that protobuf's `Struct` cannot carry is an error, never rounded.

use std::collections::BTreeMap;
use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::Node as EnvoyNode;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value as StructValue, value::Kind};
use serde_json::{Map, Value};
use thiserror::Error;

/// The part of the id that makes istiod treat us as a waypoint.
const NODE_TYPE: &str = "waypoint";

/// Deepest nesting of metadata that is read. istiod's protobuf decoder gives up at 100 messages, and each level of JSON takes three.
const METADATA_DEPTH_MAX: usize = 30;

/// Largest integer that a double holds exactly, as are all smaller ones.
const INTEGER_MAX: u64 = 1 << 53;

/// What a node is put together from.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// The pod's address (`INSTANCE_IP`).
    pub ip: IpAddr,
    /// The pod's name.
    pub pod_name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// What `--domain` says: `<namespace>.svc.<cluster domain>`.
    pub dns_domain: String,
    /// What `--serviceCluster` says: `<service account>.<namespace>`.
    pub service_cluster: String,
    /// The metadata, as [`metadata`] builds it.
    pub metadata: Map<String, Value>,
}

/// What the metadata is put together from.
#[derive(Clone, Debug, Default)]
pub struct MetadataInputs {
    /// `ISTIO_META_<key>=<value>` of environment and `proxyMetadata`, without the prefix.
    pub pairs: Vec<(String, String)>,
    /// The objects of `ISTIO_METAJSON_*`.
    pub objects: Vec<Map<String, Value>>,
    /// `/etc/istio/pod/labels`.
    pub labels: BTreeMap<String, String>,
    /// `/etc/istio/pod/annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `PROXY_CONFIG`, as JSON.
    pub proxy_config: Option<Value>,
    /// The pod's addresses, the primary one first. They decide which services istiod gives us.
    pub instance_ips: Vec<IpAddr>,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's service account.
    pub service_account: String,
    /// The version that we report unless `ISTIO_META_ISTIO_VERSION` is set.
    pub istio_version: String,
}

/// Why there is no node.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NodeError {
    /// A part of the id is empty or holds the `~` that separates parts.
    #[error("{name} is {value:?}: expected a text that is not empty and has no ~")]
    Part {
        /// Which one.
        name: &'static str,
        /// What it is.
        value: String,
    },
    /// `Struct` has only doubles.
    #[error("metadata {0}: the number has no exact double")]
    Number(String),
    /// Deeper than istiod could decode.
    #[error("metadata {0}: nested more than 30 deep")]
    Depth(String),
}

/// A node, ready to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Node(pub(crate) EnvoyNode);

impl Node {
    /// Puts the node together.
    ///
    /// # Errors
    /// A part of the id that istiod could not take apart again, or metadata that a `Struct` cannot carry.
    pub fn new(settings: NodeSettings) -> Result<Self, NodeError> {
        let parts = [("pod name", &settings.pod_name), ("namespace", &settings.namespace), ("DNS domain", &settings.dns_domain)];
        for (name, value) in parts {
            if value.is_empty() || value.contains('~') {
                return Err(NodeError::Part { name, value: value.clone() });
            }
        }
        let NodeSettings { ip, pod_name, namespace, dns_domain, .. } = &settings;
        let id = format!("{NODE_TYPE}~{ip}~{pod_name}.{namespace}~{dns_domain}");
        let metadata = Some(to_struct(settings.metadata, "", 0)?);
        Ok(Self(EnvoyNode { id, cluster: settings.service_cluster, metadata, ..EnvoyNode::default() }))
    }

    /// All of it, as the bytes of its message.
    #[must_use]
    pub fn encoded(&self) -> Vec<u8> {
        prost::Message::encode_to_vec(&self.0)
    }

    /// `waypoint~IP~POD.NAMESPACE~DOMAIN`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0.id
    }
}

/// The metadata of Istio's agent (`pkg/bootstrap/config.go`): environment first, then objects, then what the pod is. Labels and
/// annotations are merged into those that came as objects; the pod's own win.
#[must_use]
pub fn metadata(inputs: MetadataInputs) -> Map<String, Value> {
    let mut metadata = Map::new();
    metadata.insert("ISTIO_VERSION".to_owned(), inputs.istio_version.into());
    metadata.extend(inputs.pairs.into_iter().map(|(key, value)| (key, Value::String(value))));
    metadata.extend(inputs.objects.into_iter().flatten());
    merge(&mut metadata, "LABELS", inputs.labels);
    merge(&mut metadata, "ANNOTATIONS", inputs.annotations);
    if let Some(proxy_config) = inputs.proxy_config {
        metadata.insert("PROXY_CONFIG".to_owned(), proxy_config);
    }
    let addresses: Vec<String> = inputs.instance_ips.iter().map(IpAddr::to_string).collect();
    for (key, value) in
        [("INSTANCE_IPS", addresses.join(",")), ("NAMESPACE", inputs.namespace), ("SERVICE_ACCOUNT", inputs.service_account)]
    {
        metadata.insert(key.to_owned(), value.into());
    }
    metadata
}

fn merge(metadata: &mut Map<String, Value>, key: &str, entries: BTreeMap<String, String>) {
    let entries = entries.into_iter().map(|(name, value)| (name, Value::String(value)));
    match metadata.get_mut(key) {
        Some(Value::Object(object)) => object.extend(entries),
        _ => {
            metadata.insert(key.to_owned(), Value::Object(entries.collect()));
        }
    }
}

fn to_struct(object: Map<String, Value>, path: &str, depth: usize) -> Result<Struct, NodeError> {
    if depth > METADATA_DEPTH_MAX {
        return Err(NodeError::Depth(path.to_owned()));
    }
    let fields = object.into_iter().map(|(key, value)| {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        Ok((key, to_value(value, &path, depth + 1)?))
    });
    Ok(Struct { fields: fields.collect::<Result<_, NodeError>>()? })
}

fn to_value(value: Value, path: &str, depth: usize) -> Result<StructValue, NodeError> {
    if depth > METADATA_DEPTH_MAX {
        return Err(NodeError::Depth(path.to_owned()));
    }
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(number) => {
            let exact = number.as_i64().map_or_else(|| number.is_f64(), |integer| integer.unsigned_abs() <= INTEGER_MAX);
            let double = number.as_f64().filter(|double| exact && double.is_finite());
            Kind::NumberValue(double.ok_or_else(|| NodeError::Number(path.to_owned()))?)
        }
        Value::String(value) => Kind::StringValue(value),
        Value::Array(values) => {
            let values = values.into_iter().map(|value| to_value(value, path, depth + 1)).collect::<Result<_, _>>()?;
            Kind::ListValue(ListValue { values })
        }
        Value::Object(object) => Kind::StructValue(to_struct(object, path, depth + 1)?),
    };
    Ok(StructValue { kind: Some(kind) })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings(metadata: Value) -> NodeSettings {
        NodeSettings {
            ip: "10.244.1.9".parse().unwrap(),
            pod_name: "waypoint-6c9f".to_owned(),
            namespace: "default".to_owned(),
            dns_domain: "default.svc.cluster.local".to_owned(),
            service_cluster: "waypoint.default".to_owned(),
            metadata: metadata.as_object().unwrap().clone(),
        }
    }

    fn inputs() -> MetadataInputs {
        let text = |text: &str| text.to_owned();
        MetadataInputs {
            pairs: vec![(text("CLUSTER_ID"), text("Kubernetes")), (text("NAMESPACE"), text("ignored"))],
            objects: vec![json!({"LABELS": {"app": "old", "kept": "yes"}, "OWNER": {"a": 1}}).as_object().unwrap().clone()],
            labels: BTreeMap::from([(text("app"), text("new"))]),
            annotations: BTreeMap::from([(text("note"), text("x"))]),
            proxy_config: Some(json!({"concurrency": 2})),
            instance_ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            namespace: text("shop"),
            service_account: text("waypoint"),
            istio_version: text("1.30.0"),
        }
    }

    #[test]
    fn the_id_has_four_parts() {
        let node = Node::new(settings(json!({}))).unwrap();
        assert_eq!(node.id(), "waypoint~10.244.1.9~waypoint-6c9f.default~default.svc.cluster.local");
        assert_eq!(node.0.cluster, "waypoint.default");
    }

    #[test]
    fn parts_that_would_break_the_id_are_refused() {
        for pod_name in ["", "a~b"] {
            let error = Node::new(NodeSettings { pod_name: pod_name.to_owned(), ..settings(json!({})) }).unwrap_err();
            assert_eq!(error, NodeError::Part { name: "pod name", value: pod_name.to_owned() });
        }
    }

    #[test]
    fn metadata_is_what_the_agent_would_send() {
        assert_eq!(
            Value::Object(metadata(inputs())),
            json!({
                "ISTIO_VERSION": "1.30.0",
                "CLUSTER_ID": "Kubernetes",
                "OWNER": {"a": 1},
                "LABELS": {"app": "new", "kept": "yes"},
                "ANNOTATIONS": {"note": "x"},
                "PROXY_CONFIG": {"concurrency": 2},
                "INSTANCE_IPS": "10.0.0.1,fd00::1",
                "NAMESPACE": "shop",
                "SERVICE_ACCOUNT": "waypoint",
            })
        );
    }

    #[test]
    fn the_environment_may_set_another_version() {
        let inputs = MetadataInputs { pairs: vec![("ISTIO_VERSION".to_owned(), "1.29.2".to_owned())], ..inputs() };
        assert_eq!(metadata(inputs)["ISTIO_VERSION"], "1.29.2");
    }

    #[test]
    fn every_kind_of_json_becomes_the_same_kind_of_value() {
        let node = Node::new(settings(json!({"a": null, "b": true, "c": 1.5, "d": "x", "e": [1, "y"], "f": {"g": -2}}))).unwrap();
        let mut fields = node.0.metadata.unwrap().fields;
        let mut kind = |key: &str| fields.remove(key).unwrap().kind.unwrap();
        assert_eq!(kind("a"), Kind::NullValue(0));
        assert_eq!(kind("b"), Kind::BoolValue(true));
        assert_eq!(kind("c"), Kind::NumberValue(1.5));
        assert_eq!(kind("d"), Kind::StringValue("x".to_owned()));
        let value = |kind| StructValue { kind: Some(kind) };
        let list = vec![value(Kind::NumberValue(1.0)), value(Kind::StringValue("y".to_owned()))];
        assert_eq!(kind("e"), Kind::ListValue(ListValue { values: list }));
        let object = Struct { fields: [("g".to_owned(), value(Kind::NumberValue(-2.0)))].into() };
        assert_eq!(kind("f"), Kind::StructValue(object));
    }

    #[test]
    fn what_a_struct_cannot_carry_is_named() {
        let error = Node::new(settings(json!({"a": {"b": 9_007_199_254_740_993_u64}}))).unwrap_err();
        assert_eq!(error, NodeError::Number("a.b".to_owned()));
        assert_eq!(Node::new(settings(json!({"a": u64::MAX}))).unwrap_err(), NodeError::Number("a".to_owned()));
        let deep = (0..40).fold(json!(1), |inner, _| json!([inner]));
        assert_eq!(Node::new(settings(json!({"deep": deep}))).unwrap_err(), NodeError::Depth("deep".to_owned()));
    }
}
