//! A test's routes: written out, applied, accepted by istiod, deleted.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use tests::wait::{Look, until};

use super::case::Test;
use crate::objects::NAMESPACE;
use crate::stage::Stage;

/// How long istiod may take to write a route's conditions.
const STATUS_DEADLINE: Duration = Duration::from_secs(20);
const GROUP_VERSION: &str = "gateway.networking.k8s.io/v1";

fn fields(value: &mut Value) -> Result<&mut Map<String, Value>> {
    value.as_object_mut().context("not an object")
}

/// Writes a rule's `prefix`, `exact`, `to` and `PORT` out.
fn write_out(rule: &mut Value) -> Result<()> {
    let rule = fields(rule)?;
    for (short, kind) in [("prefix", "PathPrefix"), ("exact", "Exact")] {
        if let Some(value) = rule.remove(short) {
            rule.insert("matches".to_owned(), json!([{"path": {"type": kind, "value": value}}]));
        }
    }
    let port = rule.remove("PORT").unwrap_or_else(|| 80.into());
    let backends = match rule.remove("to") {
        None => return Ok(()),
        Some(Value::String(name)) => vec![json!({"name": name, "port": port})],
        Some(Value::Object(weights)) => {
            weights.iter().map(|(name, weight)| json!({"name": name, "port": port, "weight": weight})).collect()
        }
        Some(other) => bail!("back ends are {other}"),
    };
    rule.insert("backendRefs".to_owned(), backends.into());
    Ok(())
}

/// The objects of a test.
fn objects(test: &Test) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for (number, route) in test.routes.iter().enumerate() {
        let mut spec = route["spec"].clone();
        for rule in spec.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten() {
            write_out(rule)?;
        }
        let parent = || json!([{"group": "", "kind": "Service", "name": "store", "port": 80}]);
        fields(&mut spec)?.entry("parentRefs").or_insert_with(parent);
        let name = format!("{}-{number}", test.name.to_lowercase());
        objects.push(json!({
            "apiVersion": GROUP_VERSION, "kind": route["kind"], "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
        }));
    }
    Ok(objects)
}

/// The status and reason of a condition, of the first parent.
fn condition(object: &Value, name: &str) -> Option<(String, String)> {
    let conditions = object.pointer("/status/parents/0/conditions")?.as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == name)?;
    Some((found["status"].as_str()?.to_owned(), found["reason"].as_str()?.to_owned()))
}

/// Applies a test's routes and waits until istiod says of them what it has to.
pub async fn apply(stage: &Stage, test: &Test) -> Result<()> {
    let wanted = test.unresolved.as_ref().or(test.refused_by_istiod.as_ref()).map_or(("True", None), |reason| ("False", Some(reason)));
    for object in objects(test)? {
        stage.plane.kube().apply_object(&object).await?;
        let (kind, name) = (object["kind"].as_str().unwrap_or_default(), object["metadata"]["name"].as_str().unwrap_or_default());
        until(&format!("istiod accepts {name}"), STATUS_DEADLINE, async || {
            let found = stage.plane.get(GROUP_VERSION, kind, NAMESPACE, name).await?.unwrap_or_default();
            let accepted = condition(&found, "Accepted").is_some_and(|(status, _)| status == "True");
            let resolved = condition(&found, "ResolvedRefs")
                .is_some_and(|(status, reason)| status == wanted.0 && wanted.1.is_none_or(|wanted| *wanted == reason));
            Ok(if accepted && resolved { Look::Done(()) } else { Look::NotYet(found["status"].to_string()) })
        })
        .await?;
    }
    Ok(())
}

/// Deletes what there is of a test's routes.
pub async fn delete(stage: &Stage, test: &Test) -> Result<()> {
    for object in objects(test)? {
        let (kind, name) = (object["kind"].as_str().unwrap_or_default(), object["metadata"]["name"].as_str().unwrap_or_default());
        if stage.plane.get(GROUP_VERSION, kind, NAMESPACE, name).await?.is_some() {
            stage.plane.delete(GROUP_VERSION, kind, NAMESPACE, name).await?;
        }
    }
    Ok(())
}
