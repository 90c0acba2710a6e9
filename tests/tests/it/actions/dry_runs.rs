//! Dry runs: what they came to, in lines as in Envoy's and in spans.

use super::*;

const TAGS: [(&str, &str); 4] = [
    ("allow_name", "istio_dry_run_allow_shadow_effective_policy_id"),
    ("allow_result", "istio_dry_run_allow_shadow_engine_result"),
    ("deny_name", "istio_dry_run_deny_shadow_effective_policy_id"),
    ("deny_result", "istio_dry_run_deny_shadow_engine_result"),
];

/// A filter that only tries: a policy on paths that begin so.
fn dry_run(action: &str, policy: &str, prefix: &str) -> Value {
    let policy = json!({
        policy: {"permissions": [{"url_path": {"path": {"prefix": prefix}}}], "principals": [{"any": true}]},
    });
    json!({"name": "envoy.filters.http.rbac", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "shadow_rules": {"action": action, "policies": policy},
        "shadow_rules_stat_prefix": format!("istio_dry_run_{}_", action.to_lowercase()),
    }})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dry_runs_come_to_is_logged_alike_and_tagged() -> Result<()> {
    let (deny, allow) = ("ns[shop]-policy[no-admin]-rule[0]", "ns[shop]-policy[readers]-rule[0]");
    let mut both = Both::edited(|scenario| {
        with_routes(scenario, vec![])?;
        let format = &mut scenario.http(WEB_CHAIN)?["access_log"][0]["typed_config"]["log_format"]["json_format"];
        for (name, key) in TAGS {
            format[name] = format!("%DYNAMIC_METADATA(envoy.filters.http.rbac:{key})%").into();
        }
        scenario.add_http_filters(WEB_CHAIN, vec![dry_run("DENY", deny, "/admin"), dry_run("ALLOW", allow, "/read")])
    })
    .await?;
    let seen = both.all_same(&[Ask::get("/admin/a"), Ask::get("/read/a"), Ask::get("/other")]).await?;
    let told = |seen: &Seen| TAGS.map(|(name, _)| seen.line[name].as_str().map(str::to_owned));
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(told(&seen[0]), [None, some("denied"), some(deny), some("denied")]);
    assert_eq!(told(&seen[1]), [some(allow), some("allowed"), None, some("allowed")]);
    assert_eq!(told(&seen[2]), [None, some("denied"), None, some("allowed")]);
    let trace = both.mesh.waypoint.access_line("the line of /admin/a", |line| line["path"] == "/admin/a").await?.1["trace_id"].clone();
    let span = both.mesh.spans.wait_for("the span of /admin/a", DEADLINE, |span| Some(&*span.trace_id) == trace.as_str()).await?;
    let tag = |name: &str| span.attributes.get(&format!("istio.authorization.dry_run.{name}")).cloned();
    assert_eq!(tag("deny_policy.name"), some(deny));
    assert_eq!((tag("deny_policy.result"), tag("allow_policy.result")), (some("denied"), some("denied")));
    assert_eq!(tag("allow_policy.name"), None);
    Ok(())
}
