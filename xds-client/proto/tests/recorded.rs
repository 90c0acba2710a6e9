//! What a real istiod sent loads, encodes and decodes, and nothing is lost on the way.
#![expect(clippy::unwrap_used, reason = "tests")]
use std::path::{Path, PathBuf};

use envoy_types::pb::envoy::config::{cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener};
use prost::Message;
use serde_json::Value;
use xds_proto::istio::workload::Workload;
use xds_proto::{dynamic_from_json, message_from_json, message_name, message_to_json};

struct Recorded {
    file: PathBuf,
    type_url: String,
    name: String,
    json: Value,
}

fn recorded() -> Vec<Recorded> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let mut all = Vec::new();
    for release in ["istiod-1.28", "istiod-1.31"] {
        for scenario in std::fs::read_dir(fixtures.join(release)).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
            for file in std::fs::read_dir(scenario).unwrap().map(|entry| entry.unwrap().path()) {
                let content: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
                for resource in content["resources"].as_array().unwrap() {
                    all.push(Recorded {
                        file: file.clone(),
                        type_url: content["type_url"].as_str().unwrap().to_owned(),
                        name: resource["name"].as_str().unwrap().to_owned(),
                        json: resource["resource"].clone(),
                    });
                }
            }
        }
    }
    all
}

/// Without what a canonical JSON may say or leave out: fields at their default, and the difference of `1` and `1.0`.
fn without_defaults(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().map(|(name, value)| (name.clone(), without_defaults(value)));
            Value::Object(kept.filter(|(_, value)| !is_default(value)).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_defaults).collect()),
        Value::Number(number) => Value::from(number.as_f64().unwrap()),
        other => other.clone(),
    }
}

fn is_default(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        _ => false,
    }
}

#[test]
fn every_resource_is_the_same_message_after_a_round_trip() {
    let recorded = recorded();
    assert!(recorded.len() > 500, "only {} resources found", recorded.len());
    for resource in recorded {
        let at = format!("{} {}", resource.file.display(), resource.name);
        let message = dynamic_from_json(&resource.type_url, &resource.json).unwrap_or_else(|error| panic!("{at}: {error}"));
        let bytes = message.encode_to_vec();
        let mut decoded = message.clone();
        decoded.clear();
        decoded.merge(&bytes[..]).unwrap();
        assert_eq!(decoded, message, "{at}");
        let json = message_to_json(&resource.type_url, &bytes).unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_eq!(without_defaults(&json), without_defaults(&resource.json), "{at}");
    }
}

#[test]
fn the_rust_types_and_the_descriptors_agree() {
    for resource in recorded() {
        let bytes = message_from_json(&resource.type_url, &resource.json).unwrap();
        let typed = match message_name(&resource.type_url) {
            "envoy.config.listener.v3.Listener" => Listener::decode(&bytes[..]).unwrap().encode_to_vec(),
            "envoy.config.cluster.v3.Cluster" => Cluster::decode(&bytes[..]).unwrap().encode_to_vec(),
            "envoy.config.endpoint.v3.ClusterLoadAssignment" => ClusterLoadAssignment::decode(&bytes[..]).unwrap().encode_to_vec(),
            "istio.workload.Workload" => Workload::decode(&bytes[..]).unwrap().encode_to_vec(),
            other => panic!("{}: {other} is not tested", resource.file.display()),
        };
        let json = |bytes: &[u8]| message_to_json(&resource.type_url, bytes).unwrap();
        assert_eq!(json(&typed), json(&bytes), "{} {}", resource.file.display(), resource.name);
    }
}
