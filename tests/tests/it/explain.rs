//! `waypoint explain` and `/explain`: what is said of a request is what becomes of it.

use anyhow::{Context, Result};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tests::fake_istiod::Kind;
use tests::peer::{empty, plain_get};
use tests::scenario::{DB, Mesh, REVIEWS, REVIEWS_CHAIN, Scenario, WEB, WEB_CHAIN};
use tests::workload::App;

use crate::subsets::{requests, subsets};

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

/// The clusters of a request of `frontend` to `reviews`.
async fn clusters(mesh: &Mesh, path: &str) -> Result<Vec<Value>> {
    let query = format!("/explain?output=json&service={REVIEWS}&identity=spiffe://cluster.local/ns/clients/sa/frontend&path={path}");
    let told = plain_get(mesh.waypoint.port(ADMIN), &query).await?.json();
    told["clusters"].as_array().cloned().with_context(|| format!("no clusters in {told}"))
}

/// Which of the three pods of `reviews` may be chosen, and why others may not.
fn chosen(mesh: &Mesh, cluster: &Value) -> [Value; 3] {
    [1, 2, 3].map(|pod| {
        let address = format!("{}:", mesh.net.pod(2, pod));
        let endpoints = cluster["endpoints"].as_array().into_iter().flatten();
        let mut found = endpoints.filter(|endpoint| endpoint["host"].as_str().is_some_and(|host| host.contains(&address)));
        found.next().map_or_else(|| "not there".into(), |endpoint| endpoint["not_chosen"].clone())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_divided_cluster_only_those_are_candidates_whom_the_route_asks_for() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?.edit(subsets)?.start().await?;
    for (at, (name, asked, share, pod)) in requests().into_iter().enumerate() {
        let clusters = clusters(&mesh, &format!("/{at}/")).await?;
        assert_eq!((clusters.len(), &clusters[0]["name"]), (1, &json!(name)));
        let may_be = chosen(&mesh, &clusters[0]).map(|why| why.is_null());
        let expected = match pod {
            None => [true; 3],
            Some(pod) => [1, 2, 3].map(|number| pod == format!("reviews-v{number}-{number}")),
        };
        assert_eq!(may_be, expected, "/{at}/ of {name}, which asks for {asked} and {share:?}: {}", clusters[0]);
    }
    let first = clusters(&mesh, "/0/").await?;
    assert_eq!((&first[0]["subset"], &chosen(&mesh, &first[0])[0]), (&json!("stage=canary"), &json!("another subset")));
    let nowhere = clusters(&mesh, "/6/").await?;
    assert_eq!(chosen(&mesh, &nowhere[0])[0], json!("no endpoint is for stage=test"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_told_why_an_endpoint_is_no_candidate() -> Result<()> {
    let edit = |scenario: &mut Scenario| {
        let assignment = scenario.resource(Kind::Endpoints, REVIEWS_CHAIN)?;
        let groups = assignment["endpoints"].as_array().context("no endpoints")?;
        let all: Vec<_> = groups.iter().filter_map(|group| group["lb_endpoints"].as_array()).flatten().cloned().collect();
        let [first, mut second, third] = <[Value; 3]>::try_from(all).map_err(|all| anyhow::anyhow!("{} endpoints", all.len()))?;
        second["health_status"] = json!("DRAINING");
        assignment["endpoints"] = json!([{"lb_endpoints": [first, second]}, {"lb_endpoints": [third], "priority": 1}]);
        // Half of the first priority is enough.
        assignment["policy"] = json!({"overprovisioning_factor": 200});
        Ok(())
    };
    let mesh = Mesh::builder("01-plain")?.edit(edit)?.start().await?;
    let told = clusters(&mesh, "/").await?;
    let expected = [Value::Null, json!("unhealthy, or draining"), json!("priority 1 gets no share while priority 0 suffices")];
    assert_eq!((chosen(&mesh, &told[0]), &told[0]["endpoints"][0]["not_chosen"]), (expected, &Value::Null), "{told:?}");

    let admin = mesh.waypoint.port(ADMIN).to_string();
    let identity = "spiffe://cluster.local/ns/clients/sa/frontend";
    let text = mesh.waypoint.run_beside(&["explain", REVIEWS, "--identity", identity, "--admin", &admin]).await?;
    let text = String::from_utf8(text.stdout)?;
    assert!(text.contains("  weight 1  active 0  not chosen: unhealthy, or draining\n"), "{text}");
    assert!(text.contains("  healthy  weight 1  active 0\n"), "{text}");
    Ok(())
}
