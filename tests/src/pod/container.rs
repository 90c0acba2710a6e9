//! From a rendered Deployment to what a container is started with: arguments, environment and mounts, as kubelet resolves
//! them. Pure: no files, no API server.
//!
//! Invariant: what kubelet would resolve and this does not know is an error, never left out.

use std::net::IpAddr;

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

/// What the scheduler and kubelet would have chosen for the pod.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The pod's name.
    pub name: String,
    /// The pod's address.
    pub address: IpAddr,
    pub node_name: String,
    /// The node's address.
    pub node_address: IpAddr,
}

/// The files of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Volume {
    /// Writable, empty at the start.
    Empty,
    /// The keys of a ConfigMap.
    ConfigMap { name: String },
    /// Files with known content: the downward API.
    Files(Vec<(String, String)>),
    /// A projected service account token.
    Token { path: String, audience: String, lifetime_seconds: u64 },
}

/// A volume and where it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub name: String,
    pub path: String,
    pub volume: Volume,
}

/// What the container is started with.
#[derive(Debug, Clone)]
pub struct Container {
    pub namespace: String,
    pub service_account: String,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub user: u32,
    pub group: u32,
    pub read_only_root: bool,
}

fn string(value: &Value, pointer: &str) -> Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.map(str::to_owned).ok_or_else(|| anyhow!("{pointer} is not a string in {value}"))
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// User and group of the image (`Containerfile`), which count where the Deployment names none.
const IMAGE_USER: u64 = 1337;

/// Kubernetes' binary and decimal suffixes.
const SUFFIXES: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

/// A resource quantity in units of one, rounded up, as the downward API gives it with divisor 1.
fn quantity(text: &str) -> Result<u64> {
    let number = |digits: &str| digits.parse::<u64>().map_err(|_| anyhow!("{text} is not a quantity known here"));
    if let Some(digits) = text.strip_suffix('m') {
        return Ok(number(digits)?.div_ceil(1000));
    }
    for (suffix, factor) in SUFFIXES {
        if let Some(digits) = text.strip_suffix(suffix) {
            return number(digits)?.checked_mul(factor).ok_or_else(|| anyhow!("{text} is too large"));
        }
    }
    number(text)
}

/// Replaces `$(NAME)` by the variable where there is one; `$$` is a literal `$`. As Kubernetes does for args and env.
fn expand(text: &str, environment: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        if let Some(after) = from.strip_prefix("$$") {
            out.push('$');
            rest = after;
            continue;
        }
        let reference = from.strip_prefix("$(").and_then(|inner| inner.split_once(')'));
        let value =
            reference.and_then(|(name, after)| environment.iter().rev().find(|(known, _)| known == name).map(|(_, value)| (value, after)));
        match (value, reference) {
            (Some((value, after)), _) => {
                out.push_str(value);
                rest = after;
            }
            (None, Some((name, after))) => {
                out.push_str(&format!("$({name})"));
                rest = after;
            }
            (None, None) => {
                out.push('$');
                rest = from.get(1..).unwrap_or_default();
            }
        }
    }
    out.push_str(rest);
    out
}

/// `key="value"` lines, sorted, without a last newline: how kubelet writes labels and annotations to a file.
fn map_file(map: Option<&Value>) -> String {
    let mut lines: Vec<String> = map
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", Value::from(value.as_str().unwrap_or_default())))
        .collect();
    lines.sort();
    lines.join("\n")
}

struct Resolver<'a> {
    namespace: String,
    service_account: String,
    template: &'a Value,
    container: &'a Value,
    placement: &'a Placement,
}

impl Resolver<'_> {
    fn field(&self, path: &str) -> Result<String> {
        Ok(match path {
            "metadata.name" => self.placement.name.clone(),
            "metadata.namespace" => self.namespace.clone(),
            "metadata.labels" => map_file(self.template.pointer("/metadata/labels")),
            "metadata.annotations" => map_file(self.template.pointer("/metadata/annotations")),
            "spec.serviceAccountName" => self.service_account.clone(),
            "spec.nodeName" => self.placement.node_name.clone(),
            "status.podIP" => self.placement.address.to_string(),
            "status.hostIP" => self.placement.node_address.to_string(),
            _ => bail!("the field {path} is not known to the downward API here"),
        })
    }

    fn resource(&self, reference: &Value) -> Result<String> {
        let resource = string(reference, "/resource")?;
        let divisor = reference["divisor"].as_str().unwrap_or("1");
        if !matches!(divisor, "0" | "1") {
            bail!("the divisor {divisor} of {resource} is not known here");
        }
        let pointer = format!("/resources/{}", resource.replace('.', "/"));
        Ok(quantity(&string(self.container, &pointer)?)?.to_string())
    }

    fn environment(&self) -> Result<Vec<(String, String)>> {
        // What a container runtime and kubelet add to every container.
        let mut environment = vec![
            ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
            ("HOSTNAME".to_owned(), self.placement.name.clone()),
            ("HOME".to_owned(), "/".to_owned()),
        ];
        for variable in list(self.container, "/env") {
            let name = string(variable, "/name")?;
            let value = if let Some(path) = variable.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str) {
                self.field(path)?
            } else if let Some(reference) = variable.pointer("/valueFrom/resourceFieldRef") {
                self.resource(reference)?
            } else if variable.get("valueFrom").is_some() {
                bail!("the source of {name} is not known here: {variable}");
            } else {
                expand(variable["value"].as_str().unwrap_or_default(), &environment)
            };
            environment.push((name, value));
        }
        Ok(environment)
    }

    fn volume(&self, volume: &Value) -> Result<Volume> {
        if volume.get("emptyDir").is_some() {
            return Ok(Volume::Empty);
        }
        if volume.get("configMap").is_some() {
            return Ok(Volume::ConfigMap { name: string(volume, "/configMap/name")? });
        }
        if volume.get("downwardAPI").is_some() {
            let items = list(volume, "/downwardAPI/items").iter();
            let files = items.map(|item| Ok((string(item, "/path")?, self.field(&string(item, "/fieldRef/fieldPath")?)?)));
            return Ok(Volume::Files(files.collect::<Result<_>>()?));
        }
        match list(volume, "/projected/sources") {
            [source] if source.get("serviceAccountToken").is_some() => Ok(Volume::Token {
                path: string(source, "/serviceAccountToken/path")?,
                audience: string(source, "/serviceAccountToken/audience")?,
                lifetime_seconds: source.pointer("/serviceAccountToken/expirationSeconds").and_then(Value::as_u64).unwrap_or(3600),
            }),
            _ => bail!("this kind of volume is not known here: {volume}"),
        }
    }

    fn mounts(&self) -> Result<Vec<Mount>> {
        let volumes = list(self.template, "/spec/volumes");
        let mount = |mount: &Value| {
            let name = string(mount, "/name")?;
            let volume = volumes.iter().find(|volume| volume["name"] == *name);
            let volume = volume.ok_or_else(|| anyhow!("there is no volume {name}"))?;
            if mount.get("subPath").is_some() {
                bail!("subPath is not known here: {mount}");
            }
            Ok(Mount { path: string(mount, "/mountPath")?, volume: self.volume(volume)?, name })
        };
        list(self.container, "/volumeMounts").iter().map(mount).collect()
    }

    fn id(&self, name: &str) -> Result<u32> {
        let pointer = format!("/securityContext/{name}");
        let id = self.container.pointer(&pointer).and_then(Value::as_u64).unwrap_or(IMAGE_USER);
        u32::try_from(id).map_err(|_| anyhow!("{name} {id} is out of range"))
    }
}

impl Container {
    /// Resolves the only container of a Deployment's pod template.
    pub fn of(deployment: &Value, placement: &Placement) -> Result<Self> {
        let template = &deployment["spec"]["template"];
        let [container] = list(template, "/spec/containers") else {
            bail!("not exactly one container: {template}");
        };
        if container.get("command").is_some() {
            bail!("a command replaces the image's entry point, which is what is tested here: {container}");
        }
        let resolver = Resolver {
            namespace: string(deployment, "/metadata/namespace")?,
            service_account: string(template, "/spec/serviceAccountName")?,
            template,
            container,
            placement,
        };
        let environment = resolver.environment()?;
        let arguments = list(container, "/args").iter().map(|argument| {
            let text = argument.as_str().ok_or_else(|| anyhow!("an argument that is no string: {argument}"))?;
            Ok(expand(text, &environment))
        });
        Ok(Self {
            arguments: arguments.collect::<Result<_>>()?,
            mounts: resolver.mounts()?,
            user: resolver.id("runAsUser")?,
            group: resolver.id("runAsGroup")?,
            read_only_root: container.pointer("/securityContext/readOnlyRootFilesystem") == Some(&Value::Bool(true)),
            namespace: resolver.namespace,
            service_account: resolver.service_account,
            environment,
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn rendered() -> Container {
        let deployment: Value = serde_yaml_ng::from_str(include_str!("../../controlplane/waypoint-deployment.yaml")).unwrap();
        let placement = Placement {
            name: "waypoint-0".to_owned(),
            address: "10.244.0.100".parse().unwrap(),
            node_name: "node-a".to_owned(),
            node_address: "10.244.255.1".parse().unwrap(),
        };
        Container::of(&deployment, &placement).unwrap()
    }

    #[test]
    fn arguments_of_a_rendered_waypoint_have_their_variables_resolved() {
        let arguments = rendered().arguments;
        assert_eq!(&arguments[..6], ["proxy", "waypoint", "--domain", "fresh.svc.cluster.local", "--serviceCluster", "waypoint.fresh"]);
        assert_eq!(arguments.len(), 12);
    }

    #[test]
    fn environment_of_a_rendered_waypoint_comes_from_pod_node_and_limits() {
        let environment = rendered().environment;
        let value = |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        assert_eq!(value("ISTIO_META_SERVICE_ACCOUNT"), Some("waypoint"));
        assert_eq!(value("INSTANCE_IP"), Some("10.244.0.100"));
        assert_eq!(value("HOST_IP"), Some("10.244.255.1"));
        assert_eq!(value("ISTIO_CPU_LIMIT"), Some("2"));
        assert_eq!(value("GOMEMLIMIT"), Some("1073741824"));
        assert_eq!(value("PROXY_CONFIG"), Some("{\"tracing\":{\"sampling\":100}}\n"));
        assert_eq!(value("POD_NAMESPACE"), Some("fresh"));
    }

    #[test]
    fn mounts_of_a_rendered_waypoint_are_those_of_its_template() {
        let mounts = rendered().mounts;
        let volume = |path: &str| &mounts.iter().find(|mount| mount.path == path).unwrap().volume;
        assert_eq!(mounts.len(), 6);
        assert_eq!(volume("/var/run/secrets/istio"), &Volume::ConfigMap { name: "istio-ca-root-cert".to_owned() });
        let token = Volume::Token { path: "istio-token".to_owned(), audience: "istio-ca".to_owned(), lifetime_seconds: 43_200 };
        assert_eq!(volume("/var/run/secrets/tokens"), &token);
        assert_eq!(volume("/var/lib/istio/data"), &Volume::Empty);
        let Volume::Files(files) = volume("/etc/istio/pod") else { panic!("not files") };
        assert_eq!(files[0].0, "labels");
        assert!(files[0].1.contains("gateway.networking.k8s.io/gateway-name=\"waypoint\"\n"), "{}", files[0].1);
        assert!(!files[0].1.ends_with('\n'));
    }

    #[test]
    fn container_runs_as_1337_on_a_read_only_root() {
        let container = rendered();
        assert_eq!((container.user, container.group, container.read_only_root), (1337, 1337, true));
    }

    #[test]
    fn references_expand_as_in_kubernetes() {
        let environment = [("A".to_owned(), "1".to_owned()), ("A".to_owned(), "2".to_owned())];
        for (text, expected) in [
            ("$(A)", "2"),
            ("x$(A)y", "x2y"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$", "$"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$$$(A)", "$2"),
        ] {
            assert_eq!(expand(text, &environment), expected, "{text}");
        }
    }

    #[test]
    fn quantities_are_rounded_up_to_units() {
        for (text, expected) in [("2", 2), ("500m", 1), ("1500m", 2), ("1Gi", 1 << 30), ("128Mi", 128 << 20), ("1k", 1000)] {
            assert_eq!(quantity(text).unwrap(), expected, "{text}");
        }
        assert!(quantity("1.5").is_err());
        assert!(quantity("").is_err());
    }
}
