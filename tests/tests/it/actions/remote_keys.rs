//! Keys of tokens that the proxy fetches itself, as istiod asks for with `PILOT_JWT_ENABLE_REMOTE_JWKS`.

use anyhow::Context;
use tests::fake_istiod::Kind;
use tests::key_server::{KeyAnswer, KeyServer};
use tests::peer::{Connection, plain_get};
use tests::tokens::{Issuer, seconds_from_now};

use super::*;

const KEYS: &str = "outbound|8080||keys.shop.svc.cluster.local";
const ISSUER: &str = "https://issuer.example";
const ADMIN_PORT: u16 = 15000;

/// The filter as istiod writes it for one issuer, whose keys are asked for at this cluster.
fn filter(cluster: &str, more: &Value) -> Value {
    let http_uri = json!({"uri": "http://keys.shop.svc.cluster.local:8080/keys?a=1", "cluster": cluster, "timeout": "0.5s"});
    let mut remote = json!({"http_uri": http_uri, "cache_duration": "300s"});
    remote.as_object_mut().into_iter().for_each(|remote| remote.extend(more.as_object().cloned().unwrap_or_default()));
    let provider =
        json!({"issuer": ISSUER, "forward": true, "payload_in_metadata": "payload", "clear_route_cache": true, "remote_jwks": remote});
    let requires = json!({"requires_any": {"requirements": [{"provider_name": "origins-0"}, {"allow_missing": {}}]}});
    json!({
        "name": "envoy.filters.http.jwt_authn",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            "providers": {"origins-0": provider},
            "rules": [{"match": {"prefix": "/"}, "requires": requires}],
            "bypass_cors_preflight": true,
        },
    })
}

fn with_filter(scenario: &mut Scenario, server: &KeyServer, filter: Value) -> Result<()> {
    with_routes(scenario, Vec::new())?;
    scenario.insert(Kind::Cluster, KEYS, server.cluster(KEYS));
    scenario.add_http_filters(WEB_CHAIN, vec![filter])
}

async fn mesh(server: &KeyServer, more: &Value) -> Result<Mesh> {
    Mesh::builder("07-telemetry")?.edit(|scenario| with_filter(scenario, server, filter(KEYS, more)))?.start().await
}

fn bearer(issuer: &Issuer) -> Result<String> {
    Ok(format!("Bearer {}", issuer.token(&json!({"iss": ISSUER, "sub": "bob", "exp": seconds_from_now(600)?}))?))
}

async fn status(mesh: &Mesh, authorization: &str) -> Result<(u16, String)> {
    status_on(&mesh.connect("frontend-0").await?, authorization).await
}

async fn status_on(connection: &Connection, authorization: &str) -> Result<(u16, String)> {
    let mut http = connection.http1(WEB).await?;
    let request = http.request(Method::GET, "/a").header("authorization", authorization).body(empty())?;
    let answer = http.send(request).await?;
    let text = if answer.status == StatusCode::OK { String::new() } else { answer.text() };
    Ok((answer.status.as_u16(), text))
}

async fn until_status(mesh: &Mesh, authorization: &str, wanted: u16) -> Result<()> {
    until(&format!("status {wanted}"), DEADLINE, async || {
        let got = status(mesh, authorization).await?;
        Ok(if got.0 == wanted { Look::Done(()) } else { Look::NotYet(format!("{got:?}")) })
    })
    .await
}

const FAILED: &str = "Jwks remote fetch is failed";

#[tokio::test(flavor = "multi_thread")]
async fn one_fetch_serves_all_who_wait_and_what_it_brought_outlives_a_push() -> Result<()> {
    let issuer = Issuer::new("known")?;
    let server = KeyServer::start(KeyAnswer::keys(issuer.jwks()).after(Duration::from_millis(400))).await?;
    let mut mesh = mesh(&server, &json!({})).await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let token = bearer(&issuer)?;
    let asked = futures_util::future::join_all((0..8).map(|_| status(&mesh, &token))).await;
    for answer in asked {
        assert_eq!(answer?, (200, String::new()));
    }
    assert_eq!((server.asked(), server.last().as_str()), (1, "GET keys.shop.svc.cluster.local:8080/keys?a=1"));
    let other = json!({"match": {"prefix": "/other"}, "direct_response": {"status": 204}});
    mesh.push_accepted(|scenario| scenario.add_routes(WEB_CHAIN, vec![other])).await?;
    assert_eq!(status(&mesh, &token).await?.0, 200);
    assert_eq!(status(&mesh, &bearer(&Issuer::new("known")?)?).await?, (401, "Jwt verification fails".to_owned()));
    assert_eq!(server.asked(), 1);
    let age = mesh.waypoint.metric("the age of the keys", |line| line.starts_with("waypoint_jwks_age_seconds{")).await?;
    assert!(age.contains("uri=\"http://keys.shop.svc.cluster.local:8080/keys\""), "{age}");
    let fetches = mesh.waypoint.metric("the fetches", |line| line.starts_with("waypoint_jwks_fetches_total{")).await?;
    assert!(fetches.contains("result=\"fetched\"") && fetches.ends_with(" 1"), "{fetches}");
    let page = plain_get(mesh.waypoint.port(ADMIN_PORT), "/jwks").await?.json();
    assert_eq!((&page[0]["keys"], &page[0]["failure"], &page[0]["cluster"]), (&json!(["known"]), &Value::Null, &json!(KEYS)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_fetched_again_before_they_are_old_and_kept_while_that_fails() -> Result<()> {
    let (old, new) = (Issuer::new("old")?, Issuer::new("new")?);
    let server = KeyServer::start(KeyAnswer::keys(old.jwks())).await?;
    let mesh = mesh(&server, &json!({"cache_duration": "1s"})).await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let (of_old, of_new) = (bearer(&old)?, bearer(&new)?);
    assert_eq!(status(&mesh, &of_old).await?.0, 200);
    assert_eq!(status(&mesh, &of_new).await?.1, "Jwks doesn't have key to match kid or alg from Jwt");
    server.set(KeyAnswer::keys(new.jwks()));
    until_status(&mesh, &of_new, 200).await?;
    // Known or not, a token of a key that is gone is none.
    assert_eq!(status(&mesh, &of_old).await?.0, 401);
    server.set(KeyAnswer { status: StatusCode::INTERNAL_SERVER_ERROR, ..KeyAnswer::keys(old.jwks()) });
    let failed = |line: &str| line.starts_with("waypoint_jwks_fetches_total{") && line.contains("failed");
    mesh.waypoint.metric("a fetch that failed", failed).await?;
    assert_eq!(status(&mesh, &of_new).await?.0, 200);
    let page = plain_get(mesh.waypoint.port(ADMIN_PORT), "/jwks").await?.json();
    assert_eq!(page[0]["failure"], "the answer is 500 Internal Server Error");
    server.set(KeyAnswer::keys(old.jwks()));
    until_status(&mesh, &of_old, 200).await?;
    // An issuer that takes all its keys back is believed.
    server.set(KeyAnswer::keys(r#"{"keys":[]}"#));
    until_status(&mesh, &of_old, 401).await
}

#[tokio::test(flavor = "multi_thread")]
async fn where_keys_cannot_be_had_the_answer_is_envoys() -> Result<()> {
    let issuer = Issuer::new("known")?;
    let keys = || KeyAnswer::keys(issuer.jwks());
    let bad = [
        ("hanging", keys().after(DEADLINE)),
        ("error", KeyAnswer { status: StatusCode::NOT_FOUND, ..keys() }),
        ("blank", KeyAnswer::keys("")),
        ("no-json", KeyAnswer::keys("<html>")),
        ("no-keys", KeyAnswer::keys(r#"{"keys":[]}"#)),
        ("useless", KeyAnswer::keys(r#"{"keys":[{"kty":"what"}]}"#)),
        ("nobody", keys()),
    ];
    let mut servers = Vec::new();
    for (name, answer) in &bad {
        servers.push((*name, KeyServer::start(answer.clone()).await?));
    }
    // A rule and a provider for each.
    let mut all = filter(KEYS, &json!({}));
    let config = &mut all["typed_config"];
    let (provider, rule) = (config["providers"]["origins-0"].take(), config["rules"][0].take());
    (config["providers"], config["rules"]) = (json!({}), json!([]));
    for (name, _) in &servers {
        let (mut provider, mut rule) = (provider.clone(), rule.clone());
        provider["remote_jwks"]["http_uri"]["cluster"] = (*name).into();
        rule["match"]["prefix"] = format!("/{name}").into();
        rule["requires"]["requires_any"]["requirements"][0]["provider_name"] = (*name).into();
        config["providers"][name] = provider;
        config["rules"].as_array_mut().context("rules")?.push(rule);
    }
    let mut both = Both::edited(|scenario| {
        for (name, server) in servers.iter().filter(|(name, _)| *name != "nobody") {
            scenario.insert(Kind::Cluster, name, server.cluster(name));
        }
        with_routes(scenario, Vec::new())?;
        scenario.add_http_filters(WEB_CHAIN, vec![all])
    })
    .await?;
    let token = bearer(&issuer)?;
    let expired = format!("Bearer {}", issuer.token(&json!({"iss": ISSUER, "exp": 1}))?);
    for (name, _) in &servers {
        let path = format!("/{name}?b=c");
        let seen = both.same(Ask::get(&path).with(&[("authorization", &token)])).await?;
        assert_eq!((seen.status.as_u16(), seen.body.as_str()), (401, Some(FAILED)), "{name}");
        assert_eq!(seen.line["details"], "jwt_authn_access_denied{Jwks_remote_fetch_is_failed}", "{name}");
        let realm = format!("Bearer realm=\"http://web.shop{path}\", error=\"invalid_token\"");
        assert_eq!(seen.header("www-authenticate"), realm, "{name}");
        // What needs no keys to be refused, or to pass, waits for none.
        let seen = both.same(Ask::get(&path).with(&[("authorization", &expired)])).await?;
        assert_eq!(seen.body.as_str(), Some("Jwt is expired"), "{name}");
        assert_eq!(both.same(Ask::get(&path)).await?.status, StatusCode::OK, "{name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_is_repeated_where_configuration_says_so_and_waits_for_its_cluster() -> Result<()> {
    let issuer = Issuer::new("known")?;
    let server = KeyServer::start(KeyAnswer { status: StatusCode::BAD_GATEWAY, ..KeyAnswer::keys("") }).await?;
    let retries = json!({"retry_policy": {"num_retries": 3, "retry_back_off": {"base_interval": "0.01s"}}});
    let mut mesh = mesh(&server, &retries).await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let token = bearer(&issuer)?;
    assert_eq!(status(&mesh, &token).await?, (401, FAILED.to_owned()));
    assert!(server.asked() >= 4, "{}", server.asked());
    // Another provider, whose cluster comes after it.
    server.set(KeyAnswer::keys(issuer.jwks()));
    let later = "outbound|8081||keys.shop.svc.cluster.local";
    let timeout = json!({"http_uri": {"uri": "http://keys/", "cluster": later, "timeout": "15s"}});
    mesh.push_accepted(|scenario| {
        let filters = scenario.http(WEB_CHAIN)?["http_filters"].as_array_mut().context("no filters")?;
        filters[0] = filter(later, &timeout);
        Ok(())
    })
    .await?;
    let connection = mesh.connect("frontend-0").await?;
    let waiting = tokio::spawn({
        let token = token.clone();
        async move { status_on(&connection, &token).await }
    });
    mesh.push_accepted(|scenario| {
        scenario.insert(Kind::Cluster, later, server.cluster(later));
        Ok(())
    })
    .await?;
    assert_eq!(waiting.await??.0, 200);
    Ok(())
}
