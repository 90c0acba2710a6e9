//! Filters that come by discovery (ECDS), as WasmPlugin and EnvoyFilter send them: asked for, obeyed where they are known, and answered by
//! their failure policy where they would run code.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tests::fake_istiod::Kind;
use tests::scenario::{DB, DB_CHAIN, Mesh, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::App;

const DEADLINE: Duration = Duration::from_secs(10);
const WASM: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
const NETWORK_WASM: &str = "type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm";
const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const RATE_LIMIT: &str = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
const NAME: &str = "extensions.istio.io/wasmplugin/shop.auth";

/// A filter as istiod refers to it (`pilot/pkg/networking/core/extension`).
fn discovered(name: &str, types: &[&str]) -> Value {
    let source = json!({"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"});
    json!({"name": name, "config_discovery": {"config_source": source, "type_urls": types}})
}

/// The configuration of a Wasm extension as istiod sends it.
fn wasm(type_url: &str, policy: &str) -> Value {
    let code = json!({"remote": {"http_uri": {"uri": "oci://registry/auth", "timeout": "30s", "cluster": "_"}, "sha256": "0"}});
    let vm = json!({"runtime": "envoy.wasm.runtime.v8", "code": code});
    let config = json!({"name": "shop.auth", "root_id": "auth", "failure_policy": policy, "vm_config": vm});
    json!({"name": NAME, "typed_config": {"@type": type_url, "config": config}})
}

fn with_wasm(scenario: &mut Scenario) -> Result<()> {
    scenario.keep_endpoints(WEB_CHAIN, 1)?;
    scenario.add_http_filters(WEB_CHAIN, vec![discovered(NAME, &[WASM, RBAC])])
}

/// Waits until a request is answered like this.
async fn answered(mesh: &Mesh, status: u16) -> Result<()> {
    let connection = mesh.connect("frontend-0").await?;
    until("the answer", DEADLINE, async || {
        let answer = connection.get(WEB, "/a").await?;
        Ok(if answer.status.as_u16() == status { Look::Done(()) } else { Look::NotYet(answer.status.to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_that_fails_open_is_passed_and_listed() -> Result<()> {
    let edit = |scenario: &mut Scenario| {
        scenario.insert(Kind::Extension, NAME, wasm(WASM, "FAIL_OPEN"));
        with_wasm(scenario)
    };
    let mesh = Mesh::builder("07-telemetry")?.edit(edit)?.start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    answered(&mesh, 200).await?;
    let counted = "waypoint_unsupported_fields{field=\"vm_config\",type=\"envoy.extensions.wasm.v3.PluginConfig\"} 1";
    mesh.waypoint.metric(counted, |line| line == counted).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_that_fails_closed_refuses_requests_by_its_name() -> Result<()> {
    let edit = |scenario: &mut Scenario| {
        scenario.insert(Kind::Extension, NAME, wasm(WASM, "FAIL_CLOSED"));
        let format = &mut scenario.http(WEB_CHAIN)?["access_log"][0]["typed_config"]["log_format"]["json_format"];
        format["details"] = json!("%RESPONSE_CODE_DETAILS%");
        with_wasm(scenario)
    };
    let mut mesh = Mesh::builder("07-telemetry")?.edit(edit)?.start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    answered(&mesh, 503).await?;
    let (_, line) = mesh.waypoint.access_line("the refusal", |line| line["path"] == "/a").await?;
    assert_eq!(line["details"], format!("wasm_fail_stream{{{NAME}}}"));
    assert_eq!(web.record().requests("GET /a"), 0);
    // What it is now counts for the next request.
    mesh.push_accepted(|scenario| {
        scenario.insert(Kind::Extension, NAME, wasm(WASM, "FAIL_OPEN"));
        Ok(())
    })
    .await?;
    answered(&mesh, 200).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_waits_for_its_extension_and_the_process_with_it() -> Result<()> {
    let mut mesh = Mesh::builder("07-telemetry")?.edit(with_wasm)?.start_unready().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    until("the wait", DEADLINE, async || {
        let page = mesh.waypoint.readiness().await.map(|answer| answer.text()).unwrap_or_default();
        Ok(if page.contains("refused") && !page.contains("no certificate") { Look::Done(()) } else { Look::NotYet(page) })
    })
    .await?;
    // istiod sent nothing wrong.
    assert!(mesh.istiod.replies().iter().all(|reply| reply.refusal.is_none()), "{:?}", mesh.istiod.replies());
    answered(&mesh, 503).await?;
    // The agent puts this in the place of what it cannot fetch and may pass.
    let rbac = json!({"name": NAME, "typed_config": {"@type": RBAC}});
    mesh.push_accepted(|scenario| {
        scenario.insert(Kind::Extension, NAME, rbac);
        Ok(())
    })
    .await?;
    mesh.waypoint.ready().await?;
    answered(&mesh, 200).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_that_is_known_is_obeyed_and_its_default_until_it_comes() -> Result<()> {
    let limit = |tokens: u32| {
        let all = json!({"default_value": {"numerator": 100}});
        let bucket = json!({"max_tokens": tokens, "tokens_per_fill": tokens, "fill_interval": "3600s"});
        json!({"@type": RATE_LIMIT, "stat_prefix": "x", "token_bucket": bucket, "filter_enabled": all, "filter_enforced": all})
    };
    let edit = |scenario: &mut Scenario| {
        scenario.keep_endpoints(WEB_CHAIN, 1)?;
        let mut filter = discovered("limit", &[RATE_LIMIT]);
        filter["config_discovery"]["default_config"] = json!({"@type": RATE_LIMIT, "stat_prefix": "x"});
        filter["config_discovery"]["apply_default_config_without_warming"] = json!(true);
        scenario.add_http_filters(WEB_CHAIN, vec![filter])
    };
    let mut mesh = Mesh::builder("07-telemetry")?.edit(edit)?.start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    answered(&mesh, 200).await?;
    let config = json!({"name": "limit", "typed_config": limit(1)});
    mesh.push_accepted(|scenario| {
        scenario.insert(Kind::Extension, "limit", config);
        Ok(())
    })
    .await?;
    answered(&mesh, 429).await?;
    // One of another type than was said is refused, and changes nothing.
    let other = json!({"name": "limit", "typed_config": {"@type": RBAC}});
    let replies = mesh
        .push(|scenario| {
            scenario.insert(Kind::Extension, "limit", other);
            Ok(())
        })
        .await?;
    assert!(replies.iter().any(|reply| reply.refusal.as_ref().is_some_and(|text| text.contains("type_urls"))), "{replies:?}");
    answered(&mesh, 429).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_of_connections_that_fails_closed_refuses_them() -> Result<()> {
    for (policy, is_open) in [("FAIL_OPEN", true), ("FAIL_CLOSED", false)] {
        let edit = |scenario: &mut Scenario| {
            scenario.keep_endpoints(DB_CHAIN, 1)?;
            scenario.insert(Kind::Extension, NAME, wasm(NETWORK_WASM, policy));
            let filters = scenario.chain(DB_CHAIN)?["filters"].as_array_mut().expect("filters");
            filters.insert(0, discovered(NAME, &[NETWORK_WASM]));
            Ok(())
        };
        let mesh = Mesh::builder("07-telemetry")?.edit(edit)?.start().await?;
        let _db = mesh.pod("db-v1-1", App::Tcp { greets: false }).await?;
        let connection = mesh.connect("frontend-0").await?;
        until("the answer", DEADLINE, async || {
            let answer = connection.connect(DB).await?.err();
            Ok(if answer.is_none() == is_open { Look::Done(()) } else { Look::NotYet(format!("{answer:?}")) })
        })
        .await?;
    }
    Ok(())
}
