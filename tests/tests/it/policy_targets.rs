//! Policies by path and host, whatever way a caller writes them: who is refused, here and in Envoy.

use anyhow::Result;
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::scenario::{Mesh, Scenario, WEB_CHAIN};
use tests::workload::App;

use super::differential::exchange;
use super::policy::rbac;

/// `operation: {paths: [/admin, /admin/*, "*/secret"]}` and `operation: {hosts: [admin.example, admin.example:*]}`.
fn deny() -> Value {
    let path = |matcher: Value| json!({"url_path": {"path": matcher}});
    let host = |matcher: Value| json!({"header": {"name": ":authority", "string_match": matcher}});
    let any_of = json!({"or_rules": {"rules": [
        path(json!({"exact": "/admin"})),
        path(json!({"prefix": "/admin/"})),
        path(json!({"suffix": "/secret"})),
        host(json!({"exact": "admin.example", "ignore_case": true})),
        host(json!({"prefix": "admin.example:", "ignore_case": true})),
    ]}});
    rbac("DENY", "ns[shop]-policy[admin]-rule[0]", &any_of, &json!({"any": true}))
}

/// The path, and whether it is refused with paths normalised as `BASE` says, and as `DECODE_AND_MERGE_SLASHES` says.
const PATHS: [(&str, bool, bool); 33] = [
    ("/admin", true, true),
    ("/administrator", false, false),
    ("/ADMIN", false, false),
    ("/admin?x=1", true, true),
    ("/other?/admin", false, false),
    ("/admin/", true, true),
    ("/admin/x", true, true),
    ("//admin", false, true),
    ("/admin//", true, true),
    ("///admin///x", false, true),
    ("/./admin", true, true),
    ("/x/../admin", true, true),
    ("/x/./../admin/.", true, true),
    ("/../admin", true, true),
    ("/admin/../other", false, false),
    ("/admin/..", false, false),
    ("/%61dmin", true, true),
    ("/%2561dmin", false, false),
    ("/%2e%2e/admin", true, true),
    ("/x/%2e%2E/admin", true, true),
    ("/x/%252e%252e/admin", false, false),
    ("/admin%2fx", false, true),
    ("/admin%2Fx", false, true),
    ("/%2fadmin", false, true),
    ("/x%2f..%2fadmin", false, true),
    ("/admin%5cx", false, true),
    ("/admin\\x", true, true),
    ("/x\\..\\admin", true, true),
    ("/admin;x", false, false),
    ("/admin%3fx", false, false),
    ("/files/secret", true, true),
    ("/files/secret/.", false, false),
    ("/files/x/../secret", true, true),
];

/// The target of the request line, the `Host`, and whether it is refused.
const HOSTS: [(&str, &str, bool); 13] = [
    ("/x", "admin.example", true),
    ("/x", "ADMIN.Example", true),
    ("/x", "admin.example:80", true),
    ("/x", "Admin.Example:8080", true),
    ("/x", "admin.example.", false),
    ("/x", "xadmin.example", false),
    ("/x", "admin.example.org", false),
    ("http://admin.example/x", "web.shop", true),
    ("http://ADMIN.example:80/x", "web.shop", true),
    ("http://web.shop/x", "admin.example", false),
    ("http://web.shop/admin", "web.shop", true),
    ("http://web.shop/x/../admin", "web.shop", true),
    ("http://web.shop/%61dmin", "web.shop", true),
];

/// Each request with whether it is to be refused, which both proxies have to agree with.
async fn refused_alike(edit: impl FnOnce(&mut Scenario) -> Result<()>, asked: &[(&str, &str, bool)]) -> Result<()> {
    let mesh = Mesh::builder("01-plain")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            scenario.add_http_filters(WEB_CHAIN, vec![deny()])?;
            edit(scenario)
        })?
        .start()
        .await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let peer = mesh.peer("frontend-0")?;
    let (ours, theirs) = (peer.connect(mesh.hbone()).await?, peer.connect(envoy.hbone()).await?);
    let mut wrong = Vec::new();
    for (target, host, is_refused) in asked {
        let request = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        let (ours, theirs) = (exchange(&ours, &request).await?.status, exchange(&theirs, &request).await?.status);
        if ours != theirs || ours.contains(" 403 ") != *is_refused {
            wrong.push(format!("{target} of {host}: {ours} here, {theirs} in Envoy"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_way_to_write_a_path_passes_by_a_policy() -> Result<()> {
    let asked = PATHS.map(|(path, is_refused, _)| (path, "web.shop", is_refused));
    refused_alike(|_| Ok(()), &asked).await?;
    let asked = PATHS.map(|(path, _, is_refused)| (path, "web.shop", is_refused));
    let decode_and_merge = |scenario: &mut Scenario| {
        let http = scenario.http(WEB_CHAIN)?;
        http["merge_slashes"] = json!(true);
        http["path_with_escaped_slashes_action"] = json!("UNESCAPE_AND_FORWARD");
        Ok(())
    };
    refused_alike(decode_and_merge, &asked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_way_to_write_a_host_passes_by_a_policy() -> Result<()> {
    refused_alike(|_| Ok(()), &HOSTS).await
}
