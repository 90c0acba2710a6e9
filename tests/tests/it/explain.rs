//! `waypoint explain` and `/explain`: what is said of a request is what becomes of it.

use anyhow::{Context, Result};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tests::fake_istiod::Kind;
use tests::peer::{empty, plain_get};
use tests::scenario::{DB, Mesh, REVIEWS, REVIEWS_CHAIN, Scenario, WEB, WEB_CHAIN};
use tests::tokens::{Issuer, seconds_from_now};
use tests::workload::App;

use crate::policy_oracle::with_keys;
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

/// Each token, as it is sent and as it is explained: how it ends, and which of the three recorded rules match.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_tokens_claims_decide_is_told_condition_by_condition() -> Result<()> {
    let issuer = Issuer::new("known")?;
    let mesh = Mesh::builder("06-jwt")?.edit(|scenario| with_keys(scenario, &issuer))?.start().await?;
    let _pod = mesh.pod("reviews-v1-1", App::Http).await?;
    let claims = json!({
        "iss": "https://issuer.example", "sub": "alice", "aud": "shop", "exp": seconds_from_now(600)?,
        "groups": ["dev", "admin"], "nested": {"team": "blue"}, "scope": "read write",
    });
    let with = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        issuer.token(&claims)
    };
    let rows = [
        (Method::GET, Some(issuer.token(&claims)?), 200, Some([true, true, false])),
        (Method::POST, Some(issuer.token(&claims)?), 200, Some([false, true, false])),
        (Method::POST, Some(with("scope", json!("read"))?), 403, Some([false, false, false])),
        (Method::POST, Some(with("groups", json!(["admins"]))?), 403, Some([false, false, false])),
        (Method::GET, Some(with("nested", json!({"team": "green"}))?), 418, Some([true, true, false])),
        (Method::GET, Some(with("exp", json!(seconds_from_now(-120)?))?), 401, None),
        (Method::GET, Some(with("aud", json!("bank"))?), 403, None),
        (Method::GET, None, 403, Some([false, false, false])),
    ];
    for (method, token, status, matches) in rows {
        let mut http = mesh.connect("frontend-0").await?.http1(REVIEWS).await?;
        let mut request = http.request(method.clone(), "/");
        let mut query =
            format!("/explain?output=json&service={REVIEWS}&identity=spiffe://cluster.local/ns/clients/sa/frontend&method={method}");
        if let Some(token) = &token {
            request = request.header("authorization", format!("Bearer {token}"));
            query.push_str(&format!("&header=authorization:Bearer%20{token}"));
        }
        let answer = http.send(request.body(empty())?).await?;
        assert_eq!(answer.status.as_u16(), status, "{method} {token:?}: {}", answer.text());
        let told = plain_get(mesh.waypoint.port(ADMIN), &query).await?.json();
        let refused = (status != 200 && status != 418).then_some(status);
        assert_eq!((&told["verdict"]["passes"], &told["verdict"]["status"]), (&json!(refused.is_none()), &json!(refused)), "{told:#}");
        let rules: Vec<_> =
            told["filters"].as_array().into_iter().flatten().flat_map(|filter| filter["policies"].as_array()).flatten().collect();
        assert_eq!(
            rules.iter().map(|rule| rule["matches"] == true).collect::<Vec<_>>(),
            matches.map_or_else(Vec::new, Vec::from),
            "{told:#}"
        );
        assert_eq!(told["route"]["does"] == "answers it with 418", status == 418, "{told:#}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn people_are_told_which_claim_was_missed_which_route_a_claim_chose_and_that_a_token_is_old() -> Result<()> {
    let issuer = Issuer::new("known")?;
    let mesh = Mesh::builder("06-jwt")?.edit(|scenario| with_keys(scenario, &issuer))?.start().await?;
    let admin = mesh.waypoint.port(ADMIN).to_string();
    let explain = async |claims: &Value| -> Result<String> {
        let token = format!("authorization: Bearer {}", issuer.token(claims)?);
        let identity = "spiffe://cluster.local/ns/clients/sa/frontend";
        let args = ["explain", REVIEWS, "--identity", identity, "--admin", &admin, "--method", "POST", "--header", &token];
        Ok(String::from_utf8(mesh.waypoint.run_beside(&args).await?.stdout)?)
    };
    let mut claims = json!({
        "iss": "https://issuer.example", "sub": "alice", "aud": "shop", "exp": seconds_from_now(600)?,
        "groups": ["dev", "admin"], "nested": {"team": "green"}, "scope": "read",
    });
    let text = explain(&claims).await?;
    for expected in [
        "REFUSED with 403: by=no_allow_policy, nearest_policy=shop/reviews-claims, nearest_rule=1, failed_condition=request.auth[scope]",
        "tokens  accepted\n",
        "  shop/reviews-claims rule 1: does not match\n",
        "    + request.auth[iss] is \"https://issuer.example\" and request.auth[sub] is \"alice\"\n",
        "    - request.auth[scope] has an item that is \"write\" or is \"write\"\n",
        "answers it with 418, were it not refused\n",
    ] {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
    claims["scope"] = json!("write");
    let text = explain(&claims).await?;
    assert!(text.starts_with("PASSES") && text.contains("    + request.auth[scope]") && text.contains("answers it with 418\n"), "{text}");
    claims["exp"] = json!(seconds_from_now(-120)?);
    let text = explain(&claims).await?;
    assert!(text.starts_with("REFUSED with 401: by=token, detail=Jwt is expired\n") && text.contains("tokens  Jwt is expired\n"), "{text}");
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
