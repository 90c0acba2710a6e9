//! From what istiod sent to a static bootstrap of a stock Envoy, by the table of [`super::substitution`].
//!
//! Not for: judging whether Envoy accepts it; Envoy does. Invariants: each resource is visited once; a `typed_config` that a stock Envoy
//! cannot have compiled in is an error that names it and its place, unless it is in the table and stands where it can be left out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::substitution::{SUBSTITUTIONS, Subject};
use crate::fake_istiod::Kind;
use crate::scenario::Scenario;

/// What [`type_name`] is stripped of.
const TYPE_URL_PREFIX: &str = "type.googleapis.com/";
/// Packages whose messages a stock Envoy may know; whether it does, it says itself.
const STOCK_PACKAGES: [&str; 4] = ["envoy.", "google.protobuf.", "xds.", "udpa."];
/// A message wrapped as JSON, with the name of its own.
const TYPED_STRUCT: &str = "udpa.type.v1.TypedStruct";
const FILE_ACCESS_LOG: &str = "envoy.extensions.access_loggers.file.v3.FileAccessLog";

/// The files of its identity, PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub root: PathBuf,
}

/// What does not come from istiod.
#[derive(Debug)]
pub struct Settings<'a> {
    pub hbone: SocketAddr,
    pub admin: SocketAddr,
    pub tls: &'a TlsFiles,
    /// Where every file access log goes instead of where istiod said.
    pub access_log: Option<&'a Path>,
}

/// The bootstrap of an Envoy that acts as the waypoint of these resources.
///
/// # Errors
/// A resource has what a stock Envoy does not know and the table does not name, or a secret that no file stands for.
pub fn bootstrap(scenario: &Scenario, settings: &Settings<'_>) -> Result<Value> {
    let rules = Rules::new(settings);
    let assignments: BTreeMap<&str, &Value> = scenario.resources(Kind::Endpoints).collect();
    let mut clusters = Vec::new();
    for (name, sent) in scenario.resources(Kind::Cluster) {
        let mut cluster = sent.clone();
        inline_endpoints(&mut cluster, &assignments);
        rules.apply(&mut cluster).with_context(|| format!("cluster {name}"))?;
        clusters.push(cluster);
    }
    let mut listeners = Vec::new();
    for (name, sent) in scenario.resources(Kind::Listener) {
        let mut listener = sent.clone();
        if name == "connect_terminate" {
            let fields = listener.as_object_mut().context("connect_terminate is no object")?;
            fields.insert("address".to_owned(), socket_address(settings.hbone));
            fields.remove("additional_addresses");
        }
        rules.apply(&mut listener).with_context(|| format!("listener {name}"))?;
        listeners.push(listener);
    }
    let mut bootstrap = frame(settings.admin);
    bootstrap["static_resources"] = json!({ "listeners": listeners, "clusters": clusters });
    Ok(bootstrap)
}

/// What pilot-agent writes around the resources.
fn frame(admin: SocketAddr) -> Value {
    json!({
        "node": { "id": "envoy-oracle", "cluster": "waypoint.shop" },
        "admin": { "address": socket_address(admin) },
        "bootstrap_extensions": [{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
                "buffer_size_kb": 64,
            },
        }],
        "layered_runtime": { "layers": [{ "name": "agent", "static_layer": {
            "re2.max_program_size.error_level": "32768",
            "envoy.reloadable_features.http_reject_path_with_fragment": false,
        } }] },
        "stats_config": { "use_all_default_tags": false, "stats_matcher": { "inclusion_list": { "patterns": [
            { "prefix": "cluster_manager" }, { "prefix": "listener_manager" }, { "prefix": "server" },
        ] } } },
    })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

/// Puts the assignment into a cluster that would ask for it.
fn inline_endpoints(cluster: &mut Value, assignments: &BTreeMap<&str, &Value>) {
    let Some(fields) = cluster.as_object_mut() else { return };
    let Some(asks) = fields.remove("eds_cluster_config") else { return };
    let name = fields.get("name").and_then(Value::as_str).unwrap_or_default();
    let service = asks["service_name"].as_str().filter(|service| !service.is_empty()).unwrap_or(name);
    let assignment = assignments.get(service).map_or_else(|| json!({ "cluster_name": service }), |assignment| (*assignment).clone());
    fields.insert("type".to_owned(), "STATIC".into());
    fields.insert("load_assignment".to_owned(), assignment);
}

/// The table, ready to be looked up.
struct Rules<'a> {
    settings: &'a Settings<'a>,
    filters: Vec<&'static str>,
    factories: Vec<(&'static str, &'static str)>,
}

/// The full name of a message in an `Any`, or of the one that it wraps.
fn type_name(any: &Map<String, Value>) -> Option<&str> {
    let outer = any.get("@type")?.as_str()?;
    let outer = outer.strip_prefix(TYPE_URL_PREFIX).unwrap_or(outer);
    let inner = if outer == TYPED_STRUCT { any.get("type_url")?.as_str() } else { None };
    Some(inner.map_or(outer, |inner| inner.strip_prefix(TYPE_URL_PREFIX).unwrap_or(inner)))
}

impl<'a> Rules<'a> {
    fn new(settings: &'a Settings<'a>) -> Self {
        let (mut filters, mut factories) = (Vec::new(), Vec::new());
        for row in SUBSTITUTIONS {
            match row.subject {
                Subject::Filter(name) => filters.push(name),
                Subject::Factory(theirs, stock) => factories.push((theirs, stock)),
                Subject::Place(_) => {}
            }
        }
        Self { settings, filters, factories }
    }

    /// Whether an element of a list is left out.
    fn leaves_out(&self, element: &Value) -> bool {
        let config = element.get("typed_config").and_then(Value::as_object);
        element.get("config_discovery").is_some() || config.and_then(type_name).is_some_and(|name| self.filters.contains(&name))
    }

    /// Applies the table to everything below `value`. An error says where, from the outside inwards.
    fn apply(&self, value: &mut Value) -> Result<()> {
        match value {
            Value::Array(elements) => {
                elements.retain(|element| !self.leaves_out(element));
                (0..).zip(elements).try_for_each(|(at, element): (u32, _)| self.apply(element).with_context(|| format!("[{at}]")))
            }
            Value::Object(fields) => self.apply_to_object(fields),
            _ => Ok(()),
        }
    }

    fn apply_to_object(&self, fields: &mut Map<String, Value>) -> Result<()> {
        for asks in ["config_discovery", "rds", "scoped_routes", "eds_cluster_config"] {
            if fields.contains_key(asks) {
                bail!("{asks} stands where nothing can be left out or put in its place");
            }
        }
        if let Some(foreign) = type_name(fields).filter(|name| !self.is_stock(name)) {
            bail!("a stock Envoy does not know {foreign}, and the table of substitutions does not say what to do about it here");
        }
        if let Some(Value::String(factory)) = fields.get_mut("factory_key")
            && let Some((_, stock)) = self.factories.iter().find(|(theirs, _)| theirs == factory)
        {
            (*stock).clone_into(factory);
        }
        if let Some(path) = self.settings.access_log
            && fields.get("@type").and_then(Value::as_str).is_some_and(|name| name.ends_with(FILE_ACCESS_LOG))
        {
            fields.insert("path".to_owned(), path.display().to_string().into());
        }
        self.replace_certificates(fields)?;
        self.replace_roots(fields)?;
        if fields.contains_key("sds_config") {
            bail!("a secret that no file stands for: {}", fields.get("name").unwrap_or(&Value::Null));
        }
        fields.iter_mut().try_for_each(|(name, field)| self.apply(field).with_context(|| name.clone()))
    }

    /// Messages in the table are of packages that begin as stock ones do, too.
    fn is_stock(&self, name: &str) -> bool {
        !self.filters.contains(&name) && STOCK_PACKAGES.iter().any(|package| name.starts_with(package))
    }

    fn replace_certificates(&self, fields: &mut Map<String, Value>) -> Result<()> {
        let Some(asked) = fields.remove("tls_certificate_sds_secret_configs") else { return Ok(()) };
        let mut certificates = Vec::new();
        for secret in asked.as_array().into_iter().flatten() {
            let name = secret["name"].as_str().unwrap_or_default();
            let tls = self.settings.tls;
            let (certificate, key) = match name.strip_prefix("file-cert:").and_then(|files| files.split_once('~')) {
                Some((certificate, key)) => (certificate.to_owned(), key.to_owned()),
                None if name == "default" => (tls.certificate.display().to_string(), tls.key.display().to_string()),
                None => bail!("no files stand for the certificate {name:?}"),
            };
            certificates.push(json!({ "certificate_chain": { "filename": certificate }, "private_key": { "filename": key } }));
        }
        fields.insert("tls_certificates".to_owned(), certificates.into());
        Ok(())
    }

    fn replace_roots(&self, fields: &mut Map<String, Value>) -> Result<()> {
        let combined = fields.remove("combined_validation_context");
        let mut context = combined.as_ref().map_or_else(|| json!({}), |combined| combined["default_validation_context"].clone());
        let asked = match &combined {
            Some(combined) => Some(combined["validation_context_sds_secret_config"].clone()),
            None => fields.remove("validation_context_sds_secret_config"),
        };
        let Some(asked) = asked else { return Ok(()) };
        let name = asked["name"].as_str().unwrap_or_default();
        let root = match name.strip_prefix("file-root:") {
            None if name == "ROOTCA" => self.settings.tls.root.display().to_string(),
            Some("system") => self.settings.tls.root.display().to_string(),
            Some(file) => file.to_owned(),
            None => bail!("no file stands for the roots {name:?}"),
        };
        if !context.is_object() {
            context = json!({});
        }
        context["trusted_ca"] = json!({ "filename": root });
        fields.insert("validation_context".to_owned(), context);
        Ok(())
    }
}
