//! What a test asks of the API server: apply, delete, get, tokens. Not a general Kubernetes client: no watches, no informers.
//!
//! Invariant: every change is a server-side apply of one field manager, so applying the same object twice changes nothing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Value, json};

use super::exchange::send_over_tls;
use crate::wait::{Look, until};

/// How long a kind may take to be served after its CRD was applied.
const DISCOVERY_DEADLINE: Duration = Duration::from_secs(15);

const APPLY: &str = "fieldManager=waypoint-tests&force=true";

/// Where the objects of a kind are.
#[derive(Debug, Clone)]
struct Resource {
    base: String,
    plural: String,
    namespaced: bool,
}

/// A client of the API server, as a member of `system:masters`.
#[derive(Debug)]
pub struct Kube {
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    token: String,
    resources: Mutex<HashMap<(String, String), Resource>>,
}

/// The documents of a YAML text that are not empty.
pub fn documents(yaml: &str) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(yaml) {
        let value = Value::deserialize(document)?;
        if !value.is_null() {
            found.push(value);
        }
    }
    Ok(found)
}

fn text<'a>(object: &'a Value, pointer: &str) -> Result<&'a str> {
    let found = object.pointer(pointer).and_then(Value::as_str);
    found.ok_or_else(|| anyhow!("an object without {pointer}: {object}"))
}

/// `Kind namespace/name`, for messages.
fn described(object: &Value) -> String {
    let part = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    format!("{} {}/{}", part("/kind"), part("/metadata/namespace"), part("/metadata/name"))
}

impl Kube {
    pub(super) fn new(address: SocketAddr, tls: Arc<rustls::ClientConfig>, token: String) -> Self {
        Self { address, tls, token, resources: Mutex::default() }
    }

    /// One call; `Ok(None)` for 404, an error with the server's message for every other failure.
    pub async fn call(&self, method: Method, path: &str, body: Option<(&str, &Value)>) -> Result<Option<Value>> {
        let mut request = Request::builder()
            .method(&method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::ACCEPT, "application/json");
        let mut bytes = Bytes::new();
        if let Some((content_type, value)) = body {
            request = request.header(header::CONTENT_TYPE, content_type);
            bytes = serde_json::to_vec(value)?.into();
        }
        let answer = send_over_tls(self.address, Arc::clone(&self.tls), request.body(Full::new(bytes))?)
            .await
            .with_context(|| format!("{method} {path}"))?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !answer.status.is_success() {
            bail!("{method} {path}: {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
        }
        // `/readyz` answers in plain text.
        Ok(Some(serde_json::from_slice(&answer.body).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&answer.body).into_owned()))))
    }

    fn known(&self, api_version: &str, kind: &str) -> Option<Resource> {
        let resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        resources.get(&(api_version.to_owned(), kind.to_owned())).cloned()
    }

    async fn discover(&self, api_version: &str) -> Result<()> {
        let base = if api_version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{api_version}") };
        let Some(list) = self.call(Method::GET, &base, None).await? else {
            return Ok(());
        };
        let mut resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in list["resources"].as_array().into_iter().flatten() {
            let plural = text(resource, "/name")?;
            if !plural.contains('/') {
                let found = Resource { base: base.clone(), plural: plural.to_owned(), namespaced: resource["namespaced"] == true };
                resources.insert((api_version.to_owned(), text(resource, "/kind")?.to_owned()), found);
            }
        }
        Ok(())
    }

    async fn path(&self, api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Result<String> {
        let resource = until(&format!("{api_version} {kind} is served"), DISCOVERY_DEADLINE, async || {
            if self.known(api_version, kind).is_none() {
                self.discover(api_version).await?;
            }
            Ok(self.known(api_version, kind).map_or_else(|| Look::NotYet("no such kind".to_owned()), Look::Done))
        })
        .await?;
        let Resource { base, plural, namespaced } = resource;
        Ok(if namespaced {
            format!("{base}/namespaces/{}/{plural}/{name}", namespace.unwrap_or("default"))
        } else {
            format!("{base}/{plural}/{name}")
        })
    }

    async fn path_of(&self, object: &Value) -> Result<String> {
        let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str);
        self.path(text(object, "/apiVersion")?, text(object, "/kind")?, namespace, text(object, "/metadata/name")?).await
    }

    /// Applies one object; its `status` too, if it has one (there is no kubelet to write it).
    pub async fn apply_object(&self, object: &Value) -> Result<Value> {
        let path = self.path_of(object).await?;
        let body = Some(("application/apply-patch+yaml", object));
        let applied = self.call(Method::PATCH, &format!("{path}?{APPLY}"), body).await.with_context(|| described(object))?;
        let applied = applied.ok_or_else(|| anyhow!("{}: its namespace does not exist", described(object)))?;
        if object["status"].as_object().is_some_and(|status| !status.is_empty()) {
            let status = json!({
                "apiVersion": object["apiVersion"], "kind": object["kind"],
                "metadata": {"name": object["metadata"]["name"]}, "status": object["status"],
            });
            let body = Some(("application/apply-patch+yaml", &status));
            self.call(Method::PATCH, &format!("{path}/status?{APPLY}"), body).await.with_context(|| described(object))?;
        }
        Ok(applied)
    }

    /// Applies every document of a YAML text, in order; stops at the first that is refused.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        for object in documents(yaml)? {
            self.apply_object(&object).await?;
        }
        Ok(())
    }

    /// [`Self::apply`] for texts without namespaces, as `kubectl apply -n NAMESPACE` takes them.
    pub async fn apply_in(&self, namespace: &str, yaml: &str) -> Result<()> {
        for mut object in documents(yaml)? {
            let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
            let metadata = metadata.ok_or_else(|| anyhow!("an object without metadata"))?;
            metadata.entry("namespace").or_insert_with(|| namespace.into());
            self.apply_object(&object).await?;
        }
        Ok(())
    }

    /// Deletes one object. One that is not there is an error.
    pub async fn delete(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let path = self.path(api_version, kind, Some(namespace), name).await?;
        let deleted = self.call(Method::DELETE, &path, None).await?;
        deleted.map(drop).ok_or_else(|| anyhow!("{kind} {namespace}/{name} does not exist"))
    }

    /// Deletes what [`Self::apply`] applied, last first.
    pub async fn delete_yaml(&self, yaml: &str) -> Result<()> {
        for object in documents(yaml)?.iter().rev() {
            let path = self.path_of(object).await?;
            let deleted = self.call(Method::DELETE, &path, None).await?;
            deleted.ok_or_else(|| anyhow!("{} does not exist", described(object)))?;
        }
        Ok(())
    }

    /// An object, or `None` if there is none of that name.
    pub async fn get(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let path = self.path(api_version, kind, Some(namespace), name).await?;
        self.call(Method::GET, &path, None).await
    }

    /// A token of a service account, as kubelet would project it. `lifetime` is at least ten minutes, says the API server.
    pub async fn token(&self, namespace: &str, service_account: &str, audience: &str, lifetime: Duration) -> Result<String> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": [audience], "expirationSeconds": lifetime.as_secs()},
        });
        let answer = self.call(Method::POST, &path, Some(("application/json", &request))).await?;
        let answer = answer.ok_or_else(|| anyhow!("there is no service account {namespace}/{service_account}"))?;
        Ok(text(&answer, "/status/token")?.to_owned())
    }
}
