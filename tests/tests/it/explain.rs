//! `waypoint explain` and `/explain`: what is said of a request is what becomes of it.

use anyhow::{Context, Result};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tests::peer::{empty, plain_get};
use tests::scenario::{DB, Mesh, WEB, WEB_CHAIN};
use tests::workload::App;

const ADMIN: u16 = 15000;

fn rbac(action: &str, shadow: Option<Value>, policies: Value) -> Value {
    let mut filter = json!({
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": action, "policies": policies},
        },
    });
    if let Some(shadow) = shadow {
        filter["typed_config"]["shadow_rules"] = json!({"action": action, "policies": shadow});
    }
    filter
}

fn policy(to: &[Value], from: &[Value]) -> Value {
    let one_of = |all: &[Value], name: &str, inner: &str| -> Vec<Value> { all.iter().map(|one| json!({name: {inner: [one]}})).collect() };
    json!({
        "permissions": [{"and_rules": {"rules": one_of(to, "or_rules", "rules")}}],
        "principals": [{"and_ids": {"ids": one_of(from, "or_ids", "ids")}}],
    })
}

async fn mesh() -> Result<Mesh> {
    let any = json!({"any": true});
    let path = |matcher: Value| json!({"url_path": {"path": matcher}});
    let method = |exact: &str| json!({"header": {"name": ":method", "string_match": {"exact": exact}}});
    let header = json!({"header": {"name": "x-token", "string_match": {"exact": "secret"}}});
    let account = |name: &str| {
        let regex = format!("spiffe://.+/ns/clients/(.+/|)sa/{name}(/.+)?");
        json!({"filter_state": {"key": "io.istio.peer_principal", "string_match": {"safe_regex": {"regex": regex}}}})
    };
    let deny = json!({"ns[shop]-policy[no-admin]-rule[0]": policy(&[path(json!({"prefix": "/admin"}))], std::slice::from_ref(&any))});
    let shadow = json!({"ns[shop]-policy[try]-rule[0]": policy(&[method("POST")], std::slice::from_ref(&any))});
    let allow = json!({
        "ns[shop]-policy[readers]-rule[0]": policy(&[method("GET"), path(json!({"prefix": "/read/"}))], &[account("frontend")]),
        "ns[shop]-policy[writers]-rule[0]": policy(&[method("POST"), header], &[account("batch")]),
    });
    Mesh::builder("01-plain")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            scenario.http(WEB_CHAIN)?["merge_slashes"] = json!(true);
            scenario.add_http_filters(WEB_CHAIN, vec![rbac("DENY", Some(shadow), deny), rbac("ALLOW", None, allow)])
        })?
        .start()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_explained_is_what_becomes_of_a_request() -> Result<()> {
    let mesh = mesh().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let mut statuses = Vec::new();
    for caller in ["frontend", "batch"] {
        let mut http = mesh.connect(&format!("{caller}-0")).await?.http1(WEB).await?;
        for path in ["/read/1?x=/admin", "/write", "//admin/x", "/read/../admin"] {
            for (method, token) in [(Method::GET, "none"), (Method::POST, "secret")] {
                let request = http.request(method.clone(), path).header("x-token", token).body(empty())?;
                let status = http.send(request).await?.status.as_u16();
                let query = format!(
                    "/explain?output=json&service={WEB}&identity=spiffe://cluster.local/ns/clients/sa/{caller}&method={method}&path={}&header=x-token:{token}",
                    path.replace('?', "%3F").replace('=', "%3D"),
                );
                let told = plain_get(mesh.waypoint.port(ADMIN), &query).await?.json();
                let verdict = &told["verdict"];
                assert_eq!(verdict["passes"], status == 200, "{caller} {method} {path}: {status}, {verdict}");
                assert_eq!(verdict["status"], if status == 200 { Value::Null } else { json!(status) });
                assert_eq!(told["chain"], WEB_CHAIN);
                statuses.push(status);
            }
        }
    }
    assert_eq!((statuses.iter().filter(|status| **status == 200).count(), statuses.len()), (3, 16), "{statuses:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn people_and_tools_are_told_by_the_command() -> Result<()> {
    let mesh = mesh().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let admin = mesh.waypoint.port(ADMIN).to_string();
    let identity = "spiffe://cluster.local/ns/clients/sa/frontend";
    let asked = |service: &'static str, more: &[&'static str]| {
        let fixed = ["explain", service, "--identity", identity, "--admin", &admin].map(str::to_owned);
        fixed.into_iter().chain(more.iter().map(|one| (*one).to_owned())).collect::<Vec<_>>()
    };
    let run = async |args: Vec<String>| mesh.waypoint.run_beside(&args.iter().map(String::as_str).collect::<Vec<_>>()).await;

    let text = run(asked("web.shop:80", &["--path", "/read//1", "--method", "POST", "--header", "x-token: secret"])).await?;
    let text = String::from_utf8(text.stdout)?;
    for expected in [
        "REFUSED with 403: by=no_allow_policy, nearest_policy=shop/readers, nearest_rule=0, failed_condition=request.method is \"GET\"",
        &format!("chain   {WEB_CHAIN}  (destination {WEB})"),
        "path    /read/1\n",
        "DENY  refuses  dry run: only told, not done\n  shop/try rule 0: matches\n",
        "ALLOW  refuses\n  shop/readers rule 0: does not match\n    + source.serviceAccount is \"clients/frontend\"\n    - request.method is \"GET\"\n    + request.path begins with \"/read/\"\n",
        "    - source.serviceAccount is \"clients/batch\"\n    + request.method is \"POST\"\n    + request.headers[x-token] is \"secret\"\n",
        "were it not refused\n",
        &format!("cluster {WEB_CHAIN}  weight 1  served\n"),
        ":8080  healthy  weight 1  active 0\n",
    ] {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
    let json = run(asked("web.shop.svc.cluster.local:80", &["--path", "/read/1", "--output", "json"])).await?;
    let told: Value = serde_json::from_slice(&json.stdout)?;
    assert_eq!((&told["verdict"]["passes"], &told["filters"][2]["says"]), (&json!(true), &json!("allows")));
    let endpoint = told["clusters"][0]["endpoints"][0]["host"].as_str().context("no endpoint")?;
    assert!(endpoint.ends_with(":8080"), "{endpoint}");

    let tcp = run(asked(Box::leak(DB.to_owned().into_boxed_str()), &[])).await?;
    assert!(String::from_utf8(tcp.stdout)?.starts_with("PASSES: all policies let it pass\n"));
    let unknown = run(asked("nobody.shop:80", &[])).await?;
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8(unknown.stderr)?.contains("nothing here serves nobody.shop:80"));
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/read/1").await?.status, StatusCode::OK);
    Ok(())
}
