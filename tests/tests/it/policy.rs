//! AuthorizationPolicies as istiod translates them.

use std::time::Duration;

use anyhow::Result;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tests::peer::{empty, plain_get};
use tests::scenario::{DB, LEGACY, Mesh, PRIVILEGED_PORT_SHIFT, WEB, WEB_CHAIN};
use tests::workload::App;

const SPAN_DEADLINE: Duration = Duration::from_secs(15);

/// An RBAC filter with one policy, in the form istiod writes.
pub(crate) fn rbac(action: &str, policy: &str, permission: &Value, principal: &Value) -> Value {
    json!({
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": action, "policies": {policy: {
                "permissions": [{"and_rules": {"rules": [permission]}}],
                "principals": [{"and_ids": {"ids": [principal]}}],
            }}},
            "shadow_rules_stat_prefix": "istio_dry_run_allow_",
        },
    })
}

pub(crate) fn identity(spiffe_id: &str) -> Value {
    json!({"or_ids": {"ids": [{"filter_state": {"key": "io.istio.peer_principal", "string_match": {"exact": spiffe_id}}}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn one_identity_is_allowed_and_another_is_not_whatever_it_claims() -> Result<()> {
    let allow =
        rbac("ALLOW", "ns[shop]-policy[web]-rule[0]", &json!({"any": true}), &identity("spiffe://cluster.local/ns/clients/sa/frontend"));
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            scenario.add_http_filters(WEB_CHAIN, vec![allow])
        })?
        .start()
        .await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/mine").await?.status, StatusCode::OK);
    let refused = mesh.connect("batch-0").await?.get(WEB, "/not-mine").await?;
    assert_eq!((refused.status, refused.text().as_str()), (StatusCode::FORBIDDEN, "RBAC: access denied"));
    // Who calls is who the certificate of its connection is.
    let allowed = "spiffe://cluster.local/ns/clients/sa/frontend";
    let mut http = mesh.connect("batch-0").await?.http1(WEB).await?;
    for (name, value) in [
        ("x-forwarded-client-cert", format!("By=spiffe://cluster.local/ns/shop/sa/waypoint;URI={allowed}")),
        ("baggage", "k8s.namespace.name=clients,k8s.deployment.name=frontend,service.name=frontend".to_owned()),
        ("x-forwarded-for", "10.42.0.10".to_owned()),
        ("io.istio.peer_principal", allowed.to_owned()),
    ] {
        let request = http.request(Method::GET, "/not-mine").header(name, &value).body(empty())?;
        assert_eq!(http.send(request).await?.status, StatusCode::FORBIDDEN, "{name}: {value}");
    }
    assert_eq!((web.record().requests("GET /mine"), web.record().requests_total()), (1, 1));
    let is_refusal = |line: &str| line.starts_with("istio_requests_total{") && line.contains("response_code=\"403\"");
    let line = mesh.waypoint.metric("the refusal's series", is_refusal).await?;
    assert!(line.contains("source_workload=\"batch-0\"") && line.contains("destination_service_name=\"web\""), "{line}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_explained_in_line_and_span_and_not_to_the_client() -> Result<()> {
    let to = json!({"or_rules": {"rules": [{"url_path": {"path": {"exact": "/mine"}}}]}});
    let allow = rbac("ALLOW", "ns[shop]-policy[web]-rule[2]", &to, &identity("spiffe://cluster.local/ns/clients/sa/frontend"));
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            let format = &mut scenario.http(WEB_CHAIN)?["access_log"][0]["typed_config"]["log_format"]["json_format"];
            format["refusal"] = json!("%DYNAMIC_METADATA(waypoint.refusal)%");
            format["nearest"] = json!("%DYNAMIC_METADATA(waypoint.refusal:nearest_policy)%");
            scenario.add_http_filters(WEB_CHAIN, vec![allow])
        })?
        .start()
        .await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let refused = mesh.connect("frontend-0").await?.get(WEB, "/other").await?;
    assert_eq!((refused.status, refused.text().as_str()), (StatusCode::FORBIDDEN, "RBAC: access denied"));
    assert!(refused.headers.values().all(|value| value.to_str().is_ok_and(|value| !value.contains("shop/web"))));
    let (_, line) = mesh.waypoint.access_line("the line of /other", |line| line["path"] == "/other").await?;
    assert_eq!(line["nearest"], "shop/web");
    let failed = "request.path is \"/mine\"";
    let told = json!({"by": "no_allow_policy", "nearest_policy": "shop/web", "nearest_rule": "2", "failed_condition": failed});
    assert_eq!(line["refusal"], told);
    let span =
        mesh.spans.wait_for("the span of /other", SPAN_DEADLINE, |span| Some(span.trace_id.as_str()) == line["trace_id"].as_str()).await?;
    assert_eq!(span.attributes["waypoint.refusal.by"], "no_allow_policy");
    assert_eq!(
        (&*span.attributes["waypoint.refusal.nearest_policy"], &*span.attributes["waypoint.refusal.failed_condition"]),
        ("shop/web", failed)
    );
    let by_another = mesh.connect("batch-0").await?.get(WEB, "/mine").await?;
    assert_eq!(by_another.status, StatusCode::FORBIDDEN);
    let (_, line) = mesh.waypoint.access_line("the line of /mine", |line| line["path"] == "/mine").await?;
    assert_eq!(line["refusal"]["failed_condition"], "source.principal is \"spiffe://cluster.local/ns/clients/sa/frontend\"");
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/mine").await?.status, StatusCode::OK);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_are_counted_by_policy_and_dry_runs_only_told_of() -> Result<()> {
    let any = json!({"any": true});
    let path = |exact: &str| json!({"or_rules": {"rules": [{"url_path": {"path": {"exact": exact}}}]}});
    let mut deny = rbac("DENY", "ns[shop]-policy[no-admin]-rule[0]", &path("/admin"), &any);
    deny["typed_config"]["shadow_rules"] =
        rbac("DENY", "ns[shop]-policy[try]-rule[1]", &path("/old"), &any)["typed_config"]["rules"].clone();
    deny["typed_config"]["shadow_rules_stat_prefix"] = json!("istio_dry_run_deny_");
    let allow = rbac("ALLOW", "ns[shop]-policy[web]-rule[0]", &any, &identity("spiffe://cluster.local/ns/clients/sa/frontend"));
    // As istiod orders them. What is audited is not refused for that, nor because it is not.
    let audit = rbac("LOG", "ns[shop]-policy[watch]-rule[0]", &path("/admin"), &any);
    let mesh = Mesh::builder("01-plain")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            scenario.add_http_filters(WEB_CHAIN, vec![audit, deny, allow])
        })?
        .start()
        .await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let frontend = mesh.connect("frontend-0").await?;
    for (path, status) in [("/old?a=1", StatusCode::OK), ("/old?a=2", StatusCode::OK), ("/admin", StatusCode::FORBIDDEN)] {
        assert_eq!(frontend.get(WEB, path).await?.status, status, "{path}");
    }
    assert_eq!(mesh.connect("batch-0").await?.get(WEB, "/").await?.status, StatusCode::FORBIDDEN);
    for series in [
        "decisions_total{policy=\"shop/web\",rule=\"0\",action=\"ALLOW\",decision=\"allowed\"} 2",
        "decisions_total{policy=\"shop/no-admin\",rule=\"0\",action=\"DENY\",decision=\"denied\"} 1",
        "decisions_total{policy=\"shop/watch\",rule=\"0\",action=\"AUDIT\",decision=\"audited\"} 1",
        "decisions_total{policy=\"none\",rule=\"none\",action=\"ALLOW\",decision=\"denied\"} 1",
        "shadow_decisions_total{policy=\"shop/try\",rule=\"1\",action=\"DENY\",decision=\"denied\"} 2",
    ] {
        mesh.waypoint.metric(series, |line| line == format!("waypoint_authz_{series}")).await?;
    }
    let listed = plain_get(mesh.waypoint.port(15000), "/refusals").await?.json();
    let told = |list: &str| {
        let entries = listed[list].as_array().cloned().unwrap_or_default();
        entries.into_iter().map(|one| json!([one["path"], one["count"], one["reason"], one["source"]])).collect::<Vec<_>>()
    };
    let (frontend, batch) = ("spiffe://cluster.local/ns/clients/sa/frontend", "spiffe://cluster.local/ns/clients/sa/batch");
    let dry_run = json!({"by": "deny_policy", "policy": "shop/try", "rule": "1"});
    assert_eq!(told("would_be_refused"), [json!(["/old", 2, dry_run, frontend])]);
    let denied = json!({"by": "deny_policy", "policy": "shop/no-admin", "rule": "0"});
    let failed = format!("source.principal is \"{frontend}\"");
    let nearest = json!({"by": "no_allow_policy", "nearest_policy": "shop/web", "nearest_rule": "0", "failed_condition": failed});
    assert_eq!(told("refused"), [json!(["/", 1, nearest, batch]), json!(["/admin", 1, denied, frontend])]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_be_read_leaves_what_was_or_refuses_everything() -> Result<()> {
    for (setting, status) in [(None, StatusCode::OK), (Some("deny"), StatusCode::FORBIDDEN)] {
        let builder = Mesh::builder("01-plain")?.environment("WAYPOINT_ON_REFUSED_POLICY", setting);
        let mut mesh = builder.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
        let _web = mesh.pod("web-v1-1", App::Http).await?;
        let connection = mesh.connect("frontend-0").await?;
        assert_eq!(connection.get(WEB, "/before").await?.status, StatusCode::OK);
        let unreadable = rbac("ALLOW", "ns[shop]-policy[new]-rule[0]", &json!({"any": true}), &json!({"authenticated": {}}));
        let replies = mesh.push(|scenario| scenario.add_http_filters(WEB_CHAIN, vec![unreadable])).await?;
        let reason = replies.iter().find_map(|reply| reply.refusal.clone()).unwrap_or_default();
        assert!(reason.contains("ns[shop]-policy[new]-rule[0]"), "{replies:?}");
        assert_eq!(connection.get(WEB, "/after").await?.status, status);
        let listed = plain_get(mesh.waypoint.port(15000), "/refusals").await?.json();
        let policy = setting.map_or(Value::Null, |_| json!("shop/new"));
        assert_eq!(listed["refused"][0]["reason"]["policy"], policy, "{listed}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_second_header_line_hides_the_first() -> Result<()> {
    let is_evil = json!({"or_rules": {"rules": [{"header": {"name": "x-role", "string_match": {"exact": "evil"}}}]}});
    let deny = rbac("DENY", "ns[shop]-policy[role]-rule[0]", &is_evil, &json!({"any": true}));
    let mesh = Mesh::builder("01-plain")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            scenario.add_http_filters(WEB_CHAIN, vec![deny])
        })?
        .start()
        .await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    for (lines, status) in
        [(["good", "fine"], StatusCode::OK), (["good", "evil"], StatusCode::FORBIDDEN), (["evil", "good"], StatusCode::FORBIDDEN)]
    {
        let request = http.request(Method::GET, "/").header("x-role", lines[0]).header("x-role", lines[1]).body(empty())?;
        assert_eq!(http.send(request).await?.status, status, "{lines:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_policies_are_obeyed() -> Result<()> {
    let mesh = Mesh::start("05-authz").await?;
    let _legacy = mesh.plain_pod("legacy-v1-1", PRIVILEGED_PORT_SHIFT + 80, App::Http).await?;
    let db = mesh.pod("db-v1-1", App::Tcp { greets: true }).await?;
    let connection = mesh.connect("frontend-0").await?;
    let forbidden = connection.get(LEGACY, "/forbidden").await?;
    assert_eq!((forbidden.status, forbidden.text().as_str()), (StatusCode::FORBIDDEN, "RBAC: access denied"));
    assert_eq!(connection.get(LEGACY, "/allowed").await?.status, StatusCode::OK);
    // The Gateway's policy denies every TCP connection: no tunnel, and the pod sees nothing.
    assert_eq!(connection.connect(DB).await?.err(), Some(StatusCode::FORBIDDEN));
    assert_eq!(db.record().connections(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_pushed_takes_effect_on_open_connections() -> Result<()> {
    let mut mesh = Mesh::builder("01-plain")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let connection = mesh.connect("batch-0").await?;
    assert_eq!(connection.get(WEB, "/before").await?.status, StatusCode::OK);
    let mut kept = connection.http1(WEB).await?;
    assert_eq!(kept.get("/before").await?.status, StatusCode::OK);
    let deny = rbac("DENY", "ns[shop]-policy[none]-rule[0]", &json!({"any": true}), &json!({"any": true}));
    mesh.push_accepted(|scenario| scenario.add_http_filters(WEB_CHAIN, vec![deny])).await?;
    assert_eq!(connection.get(WEB, "/after").await?.status, StatusCode::FORBIDDEN);
    assert_eq!(kept.get("/after").await?.status, StatusCode::FORBIDDEN, "a tunnel that was open before sees it too");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_sees_paths_normalised_as_pushed_with_it_on_open_connections() -> Result<()> {
    let mut mesh = Mesh::builder("01-plain")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let mut kept = mesh.connect("batch-0").await?.http1(WEB).await?;
    assert_eq!(kept.get("//admin").await?.status, StatusCode::OK);
    let admin = json!({"url_path": {"path": {"prefix": "/admin"}}});
    let deny = rbac("DENY", "ns[shop]-policy[admin]-rule[0]", &admin, &json!({"any": true}));
    mesh.push_accepted(|scenario| {
        scenario.http(WEB_CHAIN)?["merge_slashes"] = json!(true);
        scenario.add_http_filters(WEB_CHAIN, vec![deny])
    })
    .await?;
    assert_eq!(kept.get("//admin").await?.status, StatusCode::FORBIDDEN);
    assert_eq!(kept.get("/other").await?.status, StatusCode::OK);
    Ok(())
}
