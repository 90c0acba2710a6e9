//! Like requests go to the same endpoint, and endpoints come and go without a request lost.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::{Answer, empty};
use tests::scenario::{Mesh, Scenario, WEB, WEB_CHAIN};
use tests::workload::{App, Workload};

/// How often endpoints change under load.
const CHANGES: usize = 40;

fn set_policy(scenario: &mut Scenario, balance: &Value, hash_policy: Value) -> Result<()> {
    let cluster = scenario.resource(Kind::Cluster, WEB_CHAIN)?;
    for (name, value) in balance.as_object().context("an object")? {
        cluster[name] = value.clone();
    }
    let route = json!({"cluster": WEB_CHAIN, "timeout": "0s", "hash_policy": hash_policy});
    scenario.add_routes(WEB_CHAIN, vec![json!({"name": "hashed", "match": {"prefix": "/", "case_sensitive": true}, "route": route})])
}

async fn mesh(balance: &Value, hash_policy: Value) -> Result<(Mesh, [Workload; 2])> {
    let mesh = Mesh::builder("01-plain")?.edit(|scenario| set_policy(scenario, balance, hash_policy))?.start().await?;
    let pods = [mesh.pod("web-v1-1", App::Http).await?, mesh.pod("web-v1-2", App::Http).await?];
    Ok((mesh, pods))
}

/// A request through a proxy with this header.
async fn ask(mesh: &Mesh, proxy: SocketAddr, header: (&str, &str)) -> Result<Answer> {
    ask_path(mesh, proxy, "/", header).await
}

async fn ask_path(mesh: &Mesh, proxy: SocketAddr, path: &str, header: (&str, &str)) -> Result<Answer> {
    let mut http = mesh.peer("frontend-0")?.connect(proxy).await?.http1(WEB).await?;
    let request = http.request(Method::GET, path).header(header.0, header.1).body(empty())?;
    http.send(request).await
}

fn pod(answer: &Answer) -> String {
    answer.json()["pod"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_meets_the_endpoint_that_it_meets_in_envoy() -> Result<()> {
    for balance in [
        json!({"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 1024}}),
        json!({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 4099}}),
    ] {
        let policy = json!([{"header": {"header_name": "x-user"}}, {"query_parameter": {"name": "user"}}]);
        let (mesh, _pods) = mesh(&balance, policy).await?;
        let envoy = Envoy::beside(&mesh).start().await?;
        // By a header, by a parameter, and by both.
        for keys in [
            |user: &str| ("/".to_owned(), ("x-user", user.to_owned())),
            |user: &str| (format!("/?a=b&user={user}"), ("x-other", String::new())),
            |user: &str| (format!("/?user={user}&user=second"), ("x-other", String::new())),
            |user: &str| (format!("/?user=%75{user}+%2B"), ("x-other", String::new())),
            |user: &str| (format!("/?user={user}"), ("x-user", format!("{user}-too"))),
        ] {
            let mut met = BTreeSet::new();
            for number in 0..12 {
                let (path, (name, value)) = keys(&format!("user-{number}"));
                let ours = ask_path(&mesh, mesh.hbone(), &path, (name, &value)).await?;
                let theirs = ask_path(&mesh, envoy.hbone(), &path, (name, &value)).await?;
                assert_eq!((ours.status, theirs.status), (StatusCode::OK, StatusCode::OK));
                assert_eq!(pod(&ours), pod(&theirs), "{path}, {value}, {balance}");
                met.insert(pod(&ours));
            }
            assert_eq!(met.len(), 2, "both are met by some");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_cookie_gets_one_and_keeps_its_endpoint_by_it() -> Result<()> {
    let cookie =
        json!([{"cookie": {"name": "session", "ttl": "60s", "path": "/", "attributes": [{"name": "SameSite", "value": "Strict"}]}}]);
    let (mesh, _pods) = mesh(&json!({"lb_policy": "RING_HASH"}), cookie).await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    for proxy in [mesh.hbone(), envoy.hbone()] {
        let first = ask(&mesh, proxy, ("x-other", "1")).await?;
        let set = first.header("set-cookie").to_owned();
        let value = set.strip_prefix("session=\"").and_then(|rest| rest.split_once('"')).context(set.clone())?.0;
        assert!(!value.is_empty() && set.ends_with("; Max-Age=60; Path=/; SameSite=Strict; HttpOnly"), "{set}");
        for _ in 0..5 {
            let next = ask(&mesh, proxy, ("cookie", &format!("a=b; session={value}"))).await?;
            assert_eq!((pod(&next), next.header("set-cookie")), (pod(&first), ""), "{proxy}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_keeps_its_endpoint_by_its_address() -> Result<()> {
    let source = json!([{"connection_properties": {"source_ip": true}}]);
    let (mesh, _pods) = mesh(&json!({"lb_policy": "MAGLEV"}), source).await?;
    let first = pod(&ask(&mesh, mesh.hbone(), ("x-other", "0")).await?);
    for number in 0..8 {
        assert_eq!(pod(&ask(&mesh, mesh.hbone(), ("x-other", &number.to_string())).await?), first);
    }
    Ok(())
}

/// What the endpoints are after so many changes: both, one, the other, or one of them unhealthy.
fn changed(whole: &Value, change: usize) -> Result<Value> {
    let mut assignment = whole.clone();
    let localities = assignment["endpoints"].as_array_mut().context("no endpoints")?;
    match change % 4 {
        0 => drop(localities.remove(0)),
        1 => {}
        2 => localities.truncate(1),
        _ => localities[1]["lb_endpoints"][0]["health_status"] = "UNHEALTHY".into(),
    }
    Ok(assignment)
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_come_and_go_under_load_lose_no_request() -> Result<()> {
    for balance in [json!({}), json!({"lb_policy": "MAGLEV"})] {
        let (mut mesh, _pods) = mesh(&balance, json!([{"header": {"header_name": "x-user"}}])).await?;
        let mut whole = Value::Null;
        mesh.push(|scenario| {
            whole = scenario.resource(Kind::Endpoints, WEB_CHAIN)?.clone();
            Ok(())
        })
        .await?;
        let (is_over, n_served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = Vec::new();
        for client in 0..4 {
            let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
            let (is_over, n_served) = (Arc::clone(&is_over), Arc::clone(&n_served));
            clients.push(tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    let user = format!("{client}-{}", n_served.fetch_add(1, Ordering::Relaxed));
                    let request = http.request(Method::GET, "/churn").header("x-user", user).body(empty())?;
                    let answer = http.send(request).await?;
                    anyhow::ensure!(answer.status == StatusCode::OK, "{} {}", answer.status, answer.text());
                }
                Ok(())
            }));
        }
        for change in 0..CHANGES {
            let next = changed(&whole, change)?;
            mesh.push_accepted(|scenario| {
                scenario.insert(Kind::Endpoints, WEB_CHAIN, next);
                Ok(())
            })
            .await?;
        }
        is_over.store(true, Ordering::Relaxed);
        for client in clients {
            client.await??;
        }
        assert!(n_served.load(Ordering::Relaxed) > 100, "hardly any load");
    }
    Ok(())
}
