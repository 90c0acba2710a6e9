//! Policies on the name in a ClientHello, beside a real Envoy: who may connect, and which name is logged.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::{Peer, client_hello};
use tests::process::Lines;
use tests::scenario::{DB, DB_CHAIN, Mesh, Scenario};
use tests::wait::{Look, until};
use tests::workload::App;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const DEADLINE: Duration = Duration::from_secs(10);

/// A policy of connections to `db` on these names, which are read on its port if `disabled` does not hold for it.
fn with_policy(scenario: &mut Scenario, action: &str, names: &[&str], disabled: Option<Value>) -> Result<()> {
    scenario.keep_endpoints(DB_CHAIN, 1)?;
    let listener = scenario.resource(Kind::Listener, "main_internal")?;
    let filters = listener["listener_filters"].as_array_mut().context("no listener filters")?;
    let inspector = filters.iter_mut().find(|filter| filter["name"] == "envoy.filters.listener.tls_inspector").context("no inspector")?;
    match disabled {
        Some(test) => inspector["filter_disabled"] = test,
        None => drop(inspector.as_object_mut().context("no object")?.remove("filter_disabled")),
    }
    let names: Vec<_> = names.iter().map(|name| json!({"requested_server_name": {"exact": name}})).collect();
    let policy = json!({
        "permissions": [{"and_rules": {"rules": [{"or_rules": {"rules": names}}]}}],
        "principals": [{"and_ids": {"ids": [{"any": true}]}}],
    });
    let rbac = json!({
        "name": "envoy.filters.network.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC",
            "stat_prefix": "tcp.",
            "rules": {"action": action, "policies": {"ns[shop]-policy[names]-rule[0]": policy}},
        },
    });
    let filters = scenario.chain(DB_CHAIN)?["filters"].as_array_mut().context("no filters")?;
    filters.retain(|filter| filter["name"] != "envoy.filters.network.rbac");
    if action != "NONE" {
        filters.insert(1, rbac);
    }
    let proxy = filters.last_mut().context("no proxy")?;
    proxy["typed_config"]["access_log"] = json!([{
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": "/dev/stdout",
            "log_format": {"json_format": {"sni": "%REQUESTED_SERVER_NAME%", "chain": "%FILTER_CHAIN_NAME%"}},
        },
    }]);
    Ok(())
}

/// Whether the endpoint greets a client that has said this, and hears it. Envoy wants to see the name before the client ends.
async fn may(peer: &Peer, proxy: SocketAddr, bytes: &[u8]) -> Result<bool> {
    let Ok(mut tunnel) = peer.connect(proxy).await?.connect(DB).await? else { return Ok(false) };
    let exchange = async {
        tunnel.write_all(bytes).await?;
        tunnel.flush().await?;
        let mut greeting = [0; 6];
        tunnel.read_exact(&mut greeting).await?;
        tunnel.shutdown().await?;
        let mut heard = greeting.to_vec();
        tunnel.read_to_end(&mut heard).await?;
        std::io::Result::Ok(heard)
    };
    let heard = tokio::time::timeout(DEADLINE, exchange).await.context("neither greeted nor refused")?;
    Ok(heard.is_ok_and(|heard| heard == [b"ready\necho:".as_slice(), bytes].concat()))
}

/// The names in the first lines of connections.
async fn names_in(output: &Lines, count: usize) -> Result<Vec<Value>> {
    until(&format!("{count} lines"), DEADLINE, async || {
        let lines: Vec<Value> = output.all().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let names: Vec<_> = lines.iter().filter(|line| line.get("sni").is_some()).map(|line| line["sni"].clone()).collect();
        Ok(if names.len() >= count { Look::Done(names) } else { Look::NotYet(output.all().join("\n")) })
    })
    .await
}

/// Both proxies hear the same; for each client whether it may, and the name in its line.
async fn seen(action: &str, names: &[&str], disabled: Option<Value>) -> Result<Vec<(bool, Value)>> {
    let mesh = Mesh::builder("05-authz")?.edit(|scenario| with_policy(scenario, action, names, disabled))?.start().await?;
    let _db = mesh.pod("db-v1-1", App::Tcp { greets: true }).await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let peer = mesh.peer("frontend-0")?;
    let clients = [client_hello("a.example")?, client_hello("B.Example")?, client_hello("10.0.0.1")?, b"not TLS".to_vec()];
    let mut both = Vec::new();
    for (proxy, output) in [(mesh.hbone(), mesh.waypoint.output_lines()), (envoy.hbone(), envoy.output())] {
        let mut seen = Vec::new();
        for (at, bytes) in clients.iter().enumerate() {
            let may = may(&peer, proxy, bytes).await?;
            seen.push((may, names_in(output, at + 1).await?[at].clone()));
        }
        both.push(seen);
    }
    assert_eq!(both[0], both[1], "{action} {names:?}: here, and in Envoy");
    Ok(both.swap_remove(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn names_in_client_hellos_are_judged_and_logged_alike() -> Result<()> {
    let (a, b) = (json!("a.example"), json!("b.example"));
    let judged = |may: [bool; 4]| may.into_iter().zip([a.clone(), b.clone(), Value::Null, Value::Null]).collect::<Vec<_>>();
    assert_eq!(seen("ALLOW", &["a.example"], None).await?, judged([true, false, false, false]));
    assert_eq!(seen("DENY", &["a.example", ""], None).await?, judged([false, true, false, false]));
    assert_eq!(seen("NONE", &[], None).await?, judged([true; 4]), "no policy reads it, the line does");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_name_is_read_on_ports_that_are_not_inspected() -> Result<()> {
    let on = |start: u16| json!({"destination_port_range": {"start": start, "end": start + 1}});
    let disabled = json!({"or_match": {"rules": [on(80), on(5432)]}});
    assert_eq!(seen("ALLOW", &["a.example"], Some(disabled)).await?, vec![(false, Value::Null); 4]);
    let others = json!({"and_match": {"rules": [{"any_match": true}, {"not_match": on(5432)}]}});
    assert_eq!(seen("ALLOW", &["a.example"], Some(others)).await?[0], (true, json!("a.example")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_that_cannot_be_read_is_refused_where_a_policy_wants_its_name() -> Result<()> {
    let mesh = Mesh::builder("05-authz")?.edit(|scenario| with_policy(scenario, "DENY", &["a.example"], None))?.start().await?;
    let _db = mesh.pod("db-v1-1", App::Tcp { greets: true }).await?;
    let peer = mesh.peer("frontend-0")?;
    let mut broken = client_hello("a.example")?;
    broken[5] = 2;
    assert!(!may(&peer, mesh.hbone(), &broken).await?);
    assert!(may(&peer, mesh.hbone(), &client_hello("b.example")?).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_silent_at_first_goes_on_without_a_name_and_may_not_show_one_later() -> Result<()> {
    let mesh = Mesh::builder("05-authz")?.edit(|scenario| with_policy(scenario, "DENY", &["a.example"], None))?.start().await?;
    let _db = mesh.pod("db-v1-1", App::Tcp { greets: true }).await?;
    let peer = mesh.peer("frontend-0")?;
    let late = async |bytes: Vec<u8>| {
        let mut tunnel = peer.connect(mesh.hbone()).await?.tunnel(DB).await?;
        let mut greeting = [0; 6];
        // The endpoint is dialled when the time for a name is over.
        tokio::time::timeout(3 * DEADLINE, tunnel.read_exact(&mut greeting)).await.context("no greeting")??;
        tunnel.write_all(&bytes).await?;
        tunnel.shutdown().await?;
        let mut heard = Vec::new();
        // How it is cut is no matter.
        drop(tunnel.read_to_end(&mut heard).await);
        anyhow::Ok(heard == [b"echo:".as_slice(), &bytes].concat())
    };
    let (plain, named, other) =
        tokio::join!(late(b"select 1".to_vec()), late(client_hello("a.example")?), late(client_hello("b.example")?));
    assert_eq!((plain?, named?, other?), (true, false, false), "a name that comes late was judged by no policy");
    Ok(())
}
