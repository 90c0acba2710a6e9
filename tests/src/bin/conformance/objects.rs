//! The Kubernetes objects of the mesh that the suites run in: what controllers, a scheduler and kubelets would have written.
//!
//! Node, GatewayClass and waypoint are those of `tests/controlplane/mesh.yaml`, put into the suites' namespace.
//! Invariant: every pod is Ready and every service has its address, so that nothing waits for a controller that is not there.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::istiod::MESH;
use tests::istiod::kube::documents;
use tests::net;

/// Where routes, services and back ends are; the official suite's name for it.
pub const NAMESPACE: &str = "gateway-conformance-mesh";
/// Where the official suite's other client is.
pub const CONSUMER_NAMESPACE: &str = "gateway-conformance-mesh-consumer";
/// Namespaces of the official suite's gateway part, in which it waits for a pod even when only meshes are tested.
const GATEWAY_NAMESPACES: [&str; 2] = ["gateway-conformance-app-backend", "gateway-conformance-web-backend"];
/// Labels that make a namespace a part of the mesh and of its waypoint.
pub const NAMESPACE_LABELS: [(&str, &str); 2] = [("istio.io/dataplane-mode", "ambient"), ("istio.io/use-waypoint", "waypoint")];
/// The pod whose kubelet is called for `exec`.
pub const NODE_NAME: &str = "node-a";

/// A port of a service: name, number, the pods' number, `appProtocol`.
pub type Port = (&'static str, u16, u16, Option<&'static str>);

/// A pod of a service.
#[derive(Debug, Clone, Copy)]
pub struct PodSpec {
    pub namespace: &'static str,
    pub name: &'static str,
    pub address: &'static str,
    pub app: &'static str,
    pub version: &'static str,
}

/// A service, and the pods behind it.
#[derive(Debug, Clone)]
pub struct ServiceSpec<'a> {
    pub name: &'static str,
    pub address: &'static str,
    pub ports: &'a [Port],
    pub pods: Vec<PodSpec>,
}

fn namespace(name: &str) -> Value {
    let labels: Value = NAMESPACE_LABELS.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))).collect();
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn account(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}})
}

/// A running pod of account `default`.
pub fn pod(spec: &PodSpec) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": spec.name, "namespace": spec.namespace, "labels": {"app": spec.app, "version": spec.version},
            "annotations": {"ambient.istio.io/redirection": "enabled"},
        },
        "spec": {"serviceAccountName": "default", "nodeName": NODE_NAME, "containers": [{"name": "echo", "image": "echo"}]},
        "status": {
            "phase": "Running", "podIP": spec.address, "podIPs": [{"ip": spec.address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// A service and its endpoints.
pub fn service(spec: &ServiceSpec<'_>) -> [Value; 2] {
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|(name, port, target, protocol)| json!({"name": name, "port": port, "targetPort": target, "appProtocol": protocol}))
        .collect();
    let targets: Vec<Value> =
        spec.ports.iter().map(|(name, _, target, _)| json!({"name": name, "port": target, "protocol": "TCP"})).collect();
    let endpoints: Vec<Value> = spec.pods.iter().map(endpoint).collect();
    let metadata = json!({"name": spec.name, "namespace": NAMESPACE});
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"clusterIP": spec.address, "clusterIPs": [spec.address], "ports": ports},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{}-1", spec.name), "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": spec.name}},
            "addressType": "IPv4", "ports": targets, "endpoints": endpoints,
        }),
    ]
}

fn endpoint(pod: &PodSpec) -> Value {
    json!({
        "addresses": [pod.address], "conditions": {"ready": true}, "nodeName": NODE_NAME,
        "targetRef": {"kind": "Pod", "name": pod.name, "namespace": pod.namespace},
    })
}

/// An object of the other tests' mesh that this one has too.
fn shared(mut object: Value, kubelet_port: u16) -> Result<Option<Value>> {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if object["metadata"]["namespace"] == "shop" {
        object["metadata"]["namespace"] = NAMESPACE.into();
        for target in object.get_mut("endpoints").and_then(Value::as_array_mut).into_iter().flatten() {
            target["targetRef"]["namespace"] = NAMESPACE.into();
        }
        return Ok(name.starts_with("waypoint").then_some(object));
    }
    if kind == "Node" && name == NODE_NAME {
        let fields = object.as_object_mut().context("a Node that is no object")?;
        let addresses = json!([{"type": "InternalIP", "address": net::NODE}]);
        fields.insert("status".to_owned(), json!({"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet_port}}}));
        return Ok(Some(object));
    }
    Ok((kind == "GatewayClass" || name == "istio-system").then_some(object))
}

/// Everything but services and their pods, in the order in which it can be applied.
pub fn foundation(kubelet_port: u16) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for name in [NAMESPACE, CONSUMER_NAMESPACE].into_iter().chain(GATEWAY_NAMESPACES) {
        objects.extend([namespace(name), account(name, "default")]);
    }
    for (number, name) in GATEWAY_NAMESPACES.into_iter().enumerate() {
        let address = ["10.244.29.1", "10.244.29.2"][number];
        objects.push(pod(&PodSpec { namespace: name, name: "placeholder", address, app: "placeholder", version: "v1" }));
    }
    for object in documents(MESH)? {
        objects.extend(shared(object, kubelet_port)?);
    }
    Ok(objects)
}
