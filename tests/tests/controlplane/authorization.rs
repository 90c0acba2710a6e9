//! AuthorizationPolicies and a RequestAuthentication as users write them, on `reviews`: who gets in, and who is told why not.

use anyhow::{Context, Result, ensure};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tests::authz::{AuthzServer, Says};
use tests::mesh_ca::Member;
use tests::peer::{Peer, empty};
use tests::tokens::{Issuer, seconds_from_now};
use tests::wait::{Look, until};
use tests::workload::{App, Workload};

use crate::stage::{EFFECT_DEADLINE, REVIEWS, Stage, WEB};

/// As recorded, whole.
const POLICIES: &str = include_str!("../../controlplane/policies.yaml");
const TOKENS: &str = include_str!("../../controlplane/tokens.yaml");

const RATINGS: &str = "10.96.1.3:9000";
const AUTO: &str = "10.96.1.4:7000";
const DB: &str = "10.96.1.5:5432";
/// Where the providers of the mesh lead: gRPC, HTTP.
const AUTHZ: [&str; 2] = ["10.244.8.2:9001", "10.244.8.2:8000"];

/// One request, who makes it, and how it ends: status, and the body of a refusal.
struct Row<'a> {
    peer: &'a Peer,
    service: &'a str,
    method: Method,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
    ends: (u16, &'a str),
}

/// As Envoy words it.
const DENIED: (u16, &str) = (403, "RBAC: access denied");
const PASSES: (u16, &str) = (200, "");

impl Row<'_> {
    async fn ask(&self, stage: &Stage) -> Result<Option<String>> {
        let mut http = self.peer.connect(stage.hbone_address()).await?.http1(self.service).await?;
        let mut request = http::Request::builder().method(&self.method).uri(self.path).header("host", "reviews.shop.svc.cluster.local");
        for (name, value) in self.headers {
            request = request.header(*name, *value);
        }
        let answer = http.send(request.body(empty())?).await?;
        let text = if answer.status == http::StatusCode::OK { String::new() } else { answer.text() };
        let ended = (answer.status.as_u16(), text.as_str());
        let differs = || format!("{}: {} {} {:?}: {ended:?}, not {:?}", self.service, self.method, self.path, self.headers, self.ends);
        Ok((ended != self.ends).then(differs))
    }
}

/// Until all end as they should: objects take effect one after the other.
async fn all_end(stage: &Stage, what: &str, rows: &[Row<'_>]) -> Result<()> {
    until(what, EFFECT_DEADLINE, async || {
        for row in rows {
            if let Some(difference) = row.ask(stage).await? {
                return Ok(Look::NotYet(difference));
            }
        }
        Ok(Look::Done(()))
    })
    .await
}

fn by(method: Method, row: Row<'_>) -> Row<'_> {
    Row { method, ..row }
}

fn of<'a>(service: &'a str, row: Row<'a>) -> Row<'a> {
    Row { service, ..row }
}

async fn member(stage: &Stage, account: &str, address: &str) -> Result<Peer> {
    let member = Member::of(&stage.plane, "shop", account).await?;
    Ok(Peer::with_config(member.client_config()?, Some(address.parse()?)))
}

/// Every attribute of the policies, met and missed.
pub async fn policies_decide(stage: &mut Stage) -> Result<()> {
    let stage = &*stage;
    let [grpc, http] = AUTHZ;
    let denied = json!({"status": {"code": 7}, "denied_response": {"status": {"code": "Unauthorized"}, "body": "not you"}});
    let authz = AuthzServer::start(grpc.parse()?, http.parse()?, Says::Check(denied)).await?;
    authz.says_by_http(Says::Http(200, vec![("x-allowed-by", "authz")], String::new()));
    let auto = Member::of(&stage.plane, "shop", "auto").await?.workload_config()?;
    let _auto = Workload::hbone("auto-v1-1", "10.244.4.1".parse()?, auto, App::Http).await?;
    let db = Member::of(&stage.plane, "shop", "db").await?.workload_config()?;
    let db = Workload::hbone("db-v1-1", "10.244.5.1".parse()?, db, App::Tcp { greets: true }).await?;
    let (web, legacy) = (member(stage, "web", "10.244.1.1").await?, member(stage, "legacy", "10.244.7.1").await?);
    stage.plane.apply(POLICIES).await?;
    let (frontend, batch) = (&stage.frontend, &stage.batch);
    let row = |peer, path, headers, ends| Row { peer, service: REVIEWS, method: Method::GET, path, headers, ends };
    let secret = &[("x-token", "secret-new")][..];
    let other_address =
        Peer::with_config(Member::of(&stage.plane, "clients", "batch").await?.client_config()?, Some("10.244.1.2".parse()?));
    let rows = [
        row(frontend, "/reviews/1", &[], PASSES),
        row(frontend, "/health", &[], PASSES),
        row(frontend, "/a/b/info", &[], PASSES),
        by(Method::HEAD, row(frontend, "/reviews/1", &[], PASSES)),
        by(Method::POST, row(frontend, "/reviews/1", &[], DENIED)),
        row(frontend, "/healthy", &[], DENIED),
        row(frontend, "/internal/x/info", &[], DENIED),
        row(frontend, "/a/../internal/x/info", &[], DENIED),
        row(frontend, "/reviews/1", &[("x-forwarded-for", "203.0.113.7")], DENIED),
        row(frontend, "/reviews/1", &[("x-forwarded-for", "203.0.114.7")], PASSES),
        row(frontend, "/forbidden", &[], DENIED),
        row(&web, "/internal/x", &[], PASSES),
        row(&web, "/admin", &[], DENIED),
        by(Method::DELETE, row(&web, "/any", &[], DENIED)),
        row(&legacy, "/any", &[], DENIED),
        row(batch, "/reviews/1", &[], DENIED),
        row(batch, "/any", secret, PASSES),
        row(&other_address, "/any", secret, DENIED),
        row(batch, "/any", &[("x-token", "secret-old")], DENIED),
        row(batch, "/any", &[("x-token", "other")], DENIED),
        row(batch, "/any", &[("x-token", "secret-new"), ("x-token", "secret-old")], DENIED),
        row(batch, "/public/a/info/b", &[], PASSES),
        row(batch, "/public/a/b/info/c", &[], DENIED),
        of(WEB, row(batch, "/any", &[], PASSES)),
        of(WEB, by(Method::POST, row(batch, "/any", &[], PASSES))),
        of(WEB, row(batch, "/forbidden", &[], DENIED)),
        of(WEB, row(batch, "/checked/x", &[], (401, "not you"))),
        of(AUTO, row(batch, "/any", &[], PASSES)),
        of(AUTO, row(batch, "/forbidden", &[], DENIED)),
        of(RATINGS, row(frontend, "/any", &[], DENIED)),
    ];
    all_end(stage, "the policies decide", &rows).await?;
    // The Gateway's policy is for paths; of connections nothing is left of it but that it denies.
    for peer in [&web, frontend] {
        let refused = peer.connect(stage.hbone_address()).await?.connect(DB).await?.err();
        ensure!(refused == Some(StatusCode::FORBIDDEN), "a connection to db: {refused:?}");
    }
    ensure!(db.record().connections() == 0, "db was reached");
    counts_what_is_only_told(stage).await?;
    names_the_policy(stage).await?;
    authz.says_by_http(Says::Http(403, Vec::new(), "nor you".to_owned()));
    all_end(stage, "the provider refuses", &[of(AUTO, row(batch, "/any", &[], (403, "nor you")))]).await?;
    stage.plane.delete_yaml(POLICIES).await?;
    let ends =
        [row(batch, "/reviews/1", &[], PASSES), of(WEB, row(batch, "/checked/x", &[], PASSES)), of(AUTO, row(batch, "/any", &[], PASSES))];
    all_end(stage, "nobody is refused any more", &ends).await
}

/// What a dry run would have refused, and what is audited, passed and was counted by the policy's name.
async fn counts_what_is_only_told(stage: &Stage) -> Result<()> {
    let metrics = stage.metrics(15020).await?;
    for series in [
        "waypoint_authz_shadow_decisions_total{policy=\"shop/reviews-dry-run\",rule=\"0\",action=\"DENY\",decision=\"denied\"}",
        "waypoint_authz_decisions_total{policy=\"shop/web-audit\",rule=\"0\",action=\"AUDIT\",decision=\"audited\"}",
    ] {
        ensure!(metrics.contains(series), "no {series}");
    }
    Ok(())
}

/// Lines of refused requests name the object as `kubectl` shows it, and its rule.
async fn names_the_policy(stage: &Stage) -> Result<()> {
    stage.turn_logging_on().await?;
    let row = |peer, path, headers| Row { peer, service: REVIEWS, method: Method::GET, path, headers, ends: DENIED };
    let rows = [
        row(&stage.frontend, "/internal/why/info", &[][..]),
        row(&stage.frontend, "/reviews/why-too", &[("x-forwarded-for", "203.0.113.7")]),
        row(&stage.frontend, "/forbidden", &[]),
        row(&stage.batch, "/reviews/why-not", &[]),
        Row { service: RATINGS, ..row(&stage.frontend, "/why/ratings", &[]) },
        Row { service: WEB, ends: (401, "not you"), ..row(&stage.frontend, "/checked/why", &[]) },
    ];
    all_end(stage, "requests are refused", &rows).await?;
    for (path, reason) in [
        ("/internal/why/info", json!({"by": "deny_policy", "policy": "shop/reviews-deny", "rule": "0"})),
        ("/reviews/why-too", json!({"by": "deny_policy", "policy": "shop/reviews-deny", "rule": "1"})),
        ("/forbidden", json!({"by": "deny_policy", "policy": "shop/gateway-wide-deny", "rule": "0"})),
    ] {
        let (_, line) = stage.access_line(path).await?;
        ensure!(line["waypoint_refusal"] == reason, "{path}: {line}");
    }
    for (path, policy) in [("/reviews/why-not", "shop/reviews-allow"), ("/why/ratings", "shop/ratings-allow-nothing")] {
        let (_, line) = stage.access_line(path).await?;
        let reason = &line["waypoint_refusal"];
        ensure!(reason["by"] == "no_allow_policy" && reason["nearest_policy"] == policy, "{line}");
    }
    let (_, line) = stage.access_line("/checked/why").await?;
    let reason = &line["waypoint_refusal"];
    ensure!(reason["by"] == "external" && reason["policy"] == "shop/web-custom", "{line}");
    let refused = stage.frontend.connect(stage.hbone_address()).await?.connect(DB).await?.err();
    ensure!(refused == Some(StatusCode::FORBIDDEN), "a connection to db: {refused:?}");
    until("a line of the refused connection", EFFECT_DEADLINE, async || {
        let lines = stage.access_log()?;
        let told = |line: &Value| line["path"].is_null() && line["waypoint_refusal"]["policy"] == "shop/gateway-wide-deny";
        Ok(if lines.iter().any(|(_, line)| told(line)) { Look::Done(()) } else { Look::NotYet("there is none".to_owned()) })
    })
    .await
}

fn token_objects(issuer: &Issuer, second: &Issuer) -> String {
    TOKENS.replace("KEYS_ONE", &issuer.jwks()).replace("KEYS_TWO", &second.jwks())
}

/// Tokens of two issuers, good and bad, and what policies make of their claims.
pub async fn tokens_decide(stage: &mut Stage) -> Result<()> {
    let stage = &*stage;
    let (issuer, second, stranger) = (Issuer::new("one")?, Issuer::new("two")?, Issuer::new("one")?);
    let objects = token_objects(&issuer, &second);
    stage.plane.apply(&objects).await?;
    let claims = json!({
        "iss": "https://issuer.example", "sub": "alice", "aud": ["shop"], "exp": seconds_from_now(600)?,
        "groups": ["dev", "admin"], "nested": {"team": "blue"}, "scope": "read write",
    });
    let with = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        claims
    };
    let alice = issuer.token(&claims)?;
    let bearer = |token: &str| format!("Bearer {token}");
    let (good, forged) = (bearer(&alice), bearer(&stranger.token(&claims)?));
    let expired = bearer(&issuer.token(&with("exp", json!(seconds_from_now(-120)?)))?);
    let other_audience = bearer(&issuer.token(&with("aud", json!("bank")))?);
    let other_team = bearer(&issuer.token(&with("nested", json!({"team": "red"})))?);
    let header = alice.split('.').next().context("a header")?;
    let unsigned = bearer(&format!("{header}.{}.", alice.split('.').nth(1).context("a payload")?));
    let session = format!("session={}", second.token(&json!({"iss": "https://second.example", "sub": "eve"}))?);
    let path = format!("/reviews/1?access_token={alice}");
    let post = |headers, ends| Row { peer: &stage.frontend, service: REVIEWS, method: Method::POST, path: "/reviews/1", headers, ends };
    let get = |path, headers, ends| Row { peer: &stage.frontend, service: REVIEWS, method: Method::GET, path, headers, ends };
    let form = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections";
    let (good, forged, expired) = ([("authorization", &*good)], [("authorization", &*forged)], [("authorization", &*expired)]);
    let (audience, team, unsigned) =
        ([("authorization", &*other_audience)], [("authorization", &*other_team)], [("authorization", &*unsigned)]);
    let (in_header, session) = ([("x-jwt", &*alice)], [("cookie", &*session)]);
    let rows = [
        get("/reviews/1", &good, PASSES),
        get("/reviews/1", &in_header, PASSES),
        get(&path, &[], PASSES),
        get("/reviews/1", &[], DENIED),
        get("/health", &[], PASSES),
        get("/health", &session, PASSES),
        get("/reviews/1", &session, DENIED),
        get("/health", &forged, (401, "Jwt verification fails")),
        get("/health", &expired, (401, "Jwt is expired")),
        get("/health", &unsigned, (401, form)),
        get("/health", &audience, (403, "Audiences in Jwt are not allowed")),
        post(&good, PASSES),
        post(&team, DENIED),
    ];
    all_end(stage, "the tokens decide", &rows).await?;
    tells_the_pod(stage, &alice).await?;
    names_the_tokens_problem(stage, &expired).await?;
    stage.plane.delete_yaml(&objects).await?;
    all_end(stage, "nobody is refused any more", &[get("/reviews/1", &[], PASSES)]).await
}

/// Claims that the objects put into headers, in place of what a client writes there.
async fn tells_the_pod(stage: &Stage, token: &str) -> Result<()> {
    let mut http = stage.frontend.connect(stage.hbone_address()).await?.http1(REVIEWS).await?;
    let request = http::Request::get("/reviews/1").header("host", "reviews").header("authorization", format!("Bearer {token}"));
    let answer = http.send(request.header("x-jwt-sub", "admin").body(empty())?).await?;
    let told = answer.json()["headers"].as_array().cloned().unwrap_or_default();
    let of = |name: &str| told.iter().filter(|pair| pair[0] == name).map(|pair| pair[1].clone()).collect::<Vec<_>>();
    ensure!((of("x-jwt-sub"), of("x-jwt-team")) == (vec![json!("alice")], vec![json!("blue")]), "{}", answer.text());
    let payload = of("x-jwt-payload").first().and_then(Value::as_str).map(str::to_owned);
    ensure!(payload.as_deref() == token.split('.').nth(1), "{payload:?}");
    Ok(())
}

/// Of a token that is refused, and of one whose claims no policy permits.
async fn names_the_tokens_problem(stage: &Stage, expired: &[(&str, &str)]) -> Result<()> {
    stage.turn_logging_on().await?;
    let row = |path, headers, ends| Row { peer: &stage.frontend, service: REVIEWS, method: Method::GET, path, headers, ends };
    let rows = [row("/why/expired", expired, (401, "Jwt is expired")), row("/why/nobody", &[], DENIED)];
    all_end(stage, "tokens are refused", &rows).await?;
    let (_, line) = stage.access_line("/why/expired").await?;
    ensure!(line["waypoint_refusal"]["by"] == "token", "{line}");
    let (_, line) = stage.access_line("/why/nobody").await?;
    let reason = &line["waypoint_refusal"];
    ensure!(reason["by"] == "no_allow_policy" && reason["nearest_policy"] == "shop/reviews-claims", "{line}");
    Ok(())
}
