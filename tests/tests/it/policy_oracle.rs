//! Policies and tokens, judged by the waypoint and by a stock Envoy with the recorded filters: the same decisions on generated requests.
//!
//! `POLICY_REQUESTS` says how many per scenario (100 unless set); `POLICY_SEED` where the generator begins. Many are one edit away from what a
//! clause wants, and every clause is met and missed, which is checked from [`COVERING_REQUESTS`] on. Known differences (`docs/differences.md`: `caller-address`, `repeated-header-lines`, `token-headers`) are not generated.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fastrand::Rng;
use filters::jwt::{Fetched, Known, TokenCache, authenticate};
use filters::rbac::{RbacInput, matching};
use http::{HeaderMap, Method, Request};
use model::chain::{Chain, ChainKind, HttpFilter};
use model::rbac::{Permission, Policy, Principal, Rbac, RbacAction};
use model::stream_view::{RequestHead, forwarded_for};
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::peer::{Connection, empty};
use tests::pki::spiffe;
use tests::scenario::{Mesh, REVIEWS, REVIEWS_CHAIN, Scenario};
use tests::tokens::{Issuer, seconds_from_now};
use tests::workload::App;
use waypoint::http::normalize::normalize_path;
use waypoint::request::head_options;

const CALLERS: [&str; 4] = ["frontend-0", "batch-0", "web-v1-1", "legacy-v1-1"];
const ISSUER: &str = "https://issuer.example";

fn number(variable: &str, otherwise: u64) -> Result<u64> {
    std::env::var(variable).map_or(Ok(otherwise), |text| text.parse().with_context(|| format!("{variable}={text}")))
}

/// Requests among which every clause has to be met and missed; fewer are a smoke test.
const COVERING_REQUESTS: usize = 1000;
/// Of all requests, in percent, those that are one edit away from what some clause wants, at least.
const NEAR_MIN: usize = 30;

/// One request, and by whom.
#[derive(Clone, Debug)]
struct Ask {
    caller: usize,
    method: Method,
    path: String,
    lines: Vec<(&'static str, String)>,
    /// Changes of what some clause wants that were made.
    edits: usize,
}

/// What is compared: status, the body of a refusal, `www-authenticate`, and what the pod was told by tokens.
type Answered = (u16, String, String, Vec<String>);

/// Headers that tokens set or take away.
const TOKEN_HEADERS: [&str; 5] = ["authorization", "x-jwt", "x-jwt-payload", "x-jwt-sub", "x-jwt-team"];

/// In a tunnel of its own: a malformed request ends the one before.
async fn answer(connection: &Connection, ask: &Ask) -> Result<Answered> {
    let mut http = connection.http1(REVIEWS).await?;
    let mut request = Request::builder().method(ask.method.clone()).uri(&ask.path);
    for (name, value) in &ask.lines {
        request = request.header(*name, value);
    }
    let answer = http.send(request.body(empty())?).await.with_context(|| format!("{ask:?}"))?;
    let told = answer.json()["headers"].as_array().cloned().unwrap_or_default();
    let is_of_token = |pair: &&Value| pair[0].as_str().is_some_and(|name| TOKEN_HEADERS.contains(&name));
    // Envoy sends the lines of some headers as one.
    let mut lines = BTreeMap::<String, Vec<String>>::new();
    for pair in told.iter().filter(is_of_token) {
        lines.entry(pair[0].to_string()).or_default().push(pair[1].as_str().unwrap_or_default().to_owned());
    }
    let told = lines.into_iter().map(|(name, values)| format!("{name}: {}", values.join(","))).collect();
    let is_refusal = [401, 403].contains(&answer.status.as_u16());
    let body = if is_refusal { answer.text() } else { String::new() };
    Ok((answer.status.as_u16(), body, answer.header("www-authenticate").to_owned(), told))
}

/// Changes one character of a text, or takes it away, or adds one.
fn edited(text: &str, rng: &mut Rng) -> String {
    let mut letters: Vec<char> = text.chars().collect();
    let letter = *rng.choice(&['a', 'x', '/', '.', '-', '1', 'R']).unwrap_or(&'a');
    let at = rng.usize(1..=letters.len().max(1)).min(letters.len());
    match rng.u8(0..3) {
        0 if at < letters.len() => letters[at] = letter,
        1 if at < letters.len() => {
            letters.remove(at);
        }
        _ => letters.insert(at, letter),
    }
    letters.into_iter().collect()
}

/// Both proxies of one mesh, and what all requests were answered.
async fn compare(mesh: &Mesh, asks: &[Ask]) -> Result<Vec<u16>> {
    let envoy = Envoy::beside(mesh).start().await?;
    let mut callers = Vec::new();
    for name in CALLERS {
        let peer = mesh.peer(name)?;
        let ours = peer.connect(mesh.hbone()).await?;
        callers.push((ours, peer.connect(envoy.hbone()).await?));
    }
    let mut statuses = Vec::new();
    for ask in asks {
        let (ours, theirs) = &callers[ask.caller];
        let (ours, theirs) = (answer(ours, ask).await?, answer(theirs, ask).await?);
        ensure!(ours == theirs, "{} as {ask:?}: ours {ours:?}, Envoy's {theirs:?}", CALLERS[ask.caller]);
        statuses.push(ours.0);
    }
    Ok(statuses)
}

/// The conditions of a chain's policies, each as a filter that passes what meets it.
fn clauses(chain: &Chain) -> Result<Vec<Rbac>> {
    let ChainKind::Http(http) = &chain.kind else { bail!("{:?}", chain.kind) };
    let mut all = Vec::new();
    for HttpFilter::Rbac(rbac) in &http.filters {
        for policy in rbac.policies() {
            policy.permissions.iter().for_each(|one| of_permission(one, &policy.name, &mut all));
            policy.principals.iter().for_each(|one| of_principal(one, &policy.name, &mut all));
        }
    }
    ensure!(!all.is_empty(), "no policies");
    Ok(all)
}

fn clause(name: &Arc<str>, permission: Permission, principal: Principal) -> Rbac {
    Rbac::new(RbacAction::Allow, vec![Policy::new(name, vec![permission], vec![principal])])
}

fn of_permission(permission: &Permission, name: &Arc<str>, all: &mut Vec<Rbac>) {
    match permission {
        // The tests ask for one port of one address.
        Permission::Any | Permission::DestinationPort(_) | Permission::DestinationIp(_) | Permission::ServerName(_) => {}
        Permission::And(inner) | Permission::Or(inner) => inner.iter().for_each(|one| of_permission(one, name, all)),
        Permission::Not(inner) => of_permission(inner, name, all),
        leaf => all.push(clause(name, leaf.clone(), Principal::Any)),
    }
}

fn of_principal(principal: &Principal, name: &Arc<str>, all: &mut Vec<Rbac>) {
    match principal {
        // Taken out, or never met in Envoy.
        Principal::Any | Principal::DirectRemoteIp(_) => {}
        Principal::And(inner) | Principal::Or(inner) => inner.iter().for_each(|one| of_principal(one, name, all)),
        Principal::Not(inner) => of_principal(inner, name, all),
        leaf => all.push(clause(name, Permission::Any, leaf.clone())),
    }
}

/// Which clauses a request meets.
fn met(chain: &Chain, clauses: &[Rbac], ask: &Ask) -> Result<Vec<bool>> {
    let ChainKind::Http(http) = &chain.kind else { bail!("not HTTP") };
    let mut headers = HeaderMap::new();
    for (name, value) in &ask.lines {
        headers.append(*name, value.parse()?);
    }
    let normal = normalize_path(&ask.path, &head_options(&http.options)).ok().flatten();
    let head = RequestHead {
        method: ask.method.as_str(),
        path: normal.as_deref().unwrap_or(&ask.path),
        authority: ask.lines.iter().find(|(name, _)| *name == "host").map(|(_, host)| host.as_str()),
        scheme: "http",
        headers: &headers,
    };
    let known = Known { cache: &mut TokenCache::default(), fetched: &|_| Fetched::Failed, now: u64::try_from(seconds_from_now(0)?)? };
    let said = http.jwt.as_ref().and_then(|authn| authenticate(authn, &head, known).ok()).and_then(|passed| passed.metadata);
    let account = CALLERS[ask.caller].split('-').next().unwrap_or_default();
    let namespace = if ["frontend", "batch"].contains(&account) { "clients" } else { "shop" };
    let principal = spiffe(namespace, account);
    let input = RbacInput {
        head: Some(head),
        peer_principal: Some(&principal),
        peer_address: Ipv4Addr::new(10, 244, 9, 1).into(),
        forwarded_for: forwarded_for(head.headers),
        destination: REVIEWS.parse().ok(),
        destination_port: 9080,
        server_name: "",
        claims: said.as_ref(),
    };
    Ok(clauses.iter().map(|clause| matching(clause, &input).is_some()).collect())
}

/// Enough requests are near what clauses want; if there are many, every clause is met by one and missed by another.
fn covers(mesh: &Mesh, asks: &[Ask]) -> Result<()> {
    let near = asks.iter().filter(|ask| ask.edits == 1).count() * 100 / asks.len().max(1);
    ensure!(near >= NEAR_MIN, "{near} % of the requests are one edit away from what a clause wants");
    if asks.len() < COVERING_REQUESTS {
        return Ok(());
    }
    let chain = mesh.scenario().compiled(REVIEWS_CHAIN)?;
    let clauses = clauses(&chain)?;
    let (mut is_met, mut is_missed) = (vec![false; clauses.len()], vec![false; clauses.len()]);
    for ask in asks {
        for (at, meets) in met(&chain, &clauses, ask)?.into_iter().enumerate() {
            is_met[at] |= meets;
            is_missed[at] |= !meets;
        }
    }
    let gaps: Vec<_> = clauses.iter().zip(is_met.iter().zip(&is_missed)).filter(|(_, (met, missed))| !(**met && **missed)).collect();
    ensure!(gaps.is_empty(), "met, missed: {gaps:#?}");
    Ok(())
}

fn share(statuses: &[u16], wanted: impl Fn(u16) -> bool) -> usize {
    statuses.iter().filter(|status| wanted(**status)).count() * 100 / statuses.len().max(1)
}

/// Takes out what Envoy cannot see behind an internal listener: the caller's address.
fn without_addresses(scenario: &mut Scenario) -> Result<()> {
    let filters = scenario.http(REVIEWS_CHAIN)?["http_filters"].as_array_mut().context("no filters")?;
    for filter in filters {
        let policies = filter["typed_config"].get_mut("rules").and_then(|rules| rules.get_mut("policies")).and_then(Value::as_object_mut);
        for policy in policies.into_iter().flat_map(serde_json::Map::values_mut) {
            if let Some(ids) = policy["principals"][0]["and_ids"]["ids"].as_array_mut() {
                ids.retain(|id| !id.to_string().contains("direct_remote_ip"));
            }
        }
    }
    Ok(())
}

fn policy_ask(rng: &mut Rng) -> Ask {
    let mut edits = 0;
    let paths =
        ["/reviews/1", "/health", "/a/info", "/internal/x", "/forbidden", "/admin", "/public/a/info/b", "/public/a/info/", "/other"];
    let mut pick = |all: &[&str]| {
        let text = *rng.choice(all).unwrap_or(&"/");
        let is_edited = rng.u8(0..5) < 2;
        edits += usize::from(is_edited);
        if is_edited { edited(text, rng) } else { text.to_owned() }
    };
    let path = pick(&paths);
    // What is no host to us is one to Envoy: `http-edges`.
    let host = pick(&["reviews.shop.svc.cluster.local", "Reviews.Shop.svc.cluster.LOCAL", "reviews.shop", "web.shop"]).replace('/', "q");
    let host = if path.len() % 3 == 0 { format!("{host}:9080") } else { host };
    let token = pick(&["secret-a", "secret-old", "secret-", "other"]);
    let path = if rng.u8(0..4) == 0 { format!("{path}?q=/forbidden") } else { path };
    let mut lines = vec![("host", host)];
    if rng.bool() {
        lines.push(("x-token", token));
    }
    if rng.u8(0..4) == 0 {
        let forwarded =
            ["203.0.113.7", "203.0.113.0", "203.0.112.255", "203.0.114.0", "1.1.1.1, 203.0.113.9", "203.0.113.9, 1.1.1.1", "garbage"];
        lines.push(("x-forwarded-for", (*rng.choice(forwarded).unwrap_or("")).to_owned()));
    }
    let methods = [Method::GET, Method::GET, Method::HEAD, Method::POST, Method::DELETE, Method::PUT];
    let method = rng.choice(methods).unwrap_or(Method::GET);
    Ask { caller: rng.usize(0..CALLERS.len()), method, path, lines, edits }
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_policies_decide_alike_in_both_on_generated_requests() -> Result<()> {
    let mesh = Mesh::builder("05-authz")?
        .edit(|scenario| scenario.keep_endpoints(REVIEWS_CHAIN, 1).and_then(|()| without_addresses(scenario)))?
        .start()
        .await?;
    let _pod = mesh.pod("reviews-v1-1", App::Http).await?;
    let mut rng = Rng::with_seed(number("POLICY_SEED", 5)?);
    let asks: Vec<_> = (0..number("POLICY_REQUESTS", 100)?).map(|_| policy_ask(&mut rng)).collect();
    covers(&mesh, &asks)?;
    let statuses = compare(&mesh, &asks).await?;
    assert!(share(&statuses, |status| status == 200) > 15 && share(&statuses, |status| status == 403) > 15, "{statuses:?}");
    Ok(())
}

/// Gives the recorded providers keys that the test has, and routes one team by its claim.
fn with_keys(scenario: &mut Scenario, issuer: &Issuer) -> Result<()> {
    scenario.keep_endpoints(REVIEWS_CHAIN, 1)?;
    let filters = scenario.http(REVIEWS_CHAIN)?["http_filters"].as_array_mut().context("no filters")?;
    let authn = filters.iter_mut().find(|filter| filter["name"] == "envoy.filters.http.jwt_authn").context("no tokens")?;
    for provider in authn["typed_config"]["providers"].as_object_mut().context("no providers")?.values_mut() {
        provider["local_jwks"]["inline_string"] = issuer.jwks().into();
    }
    let claim = json!({
        "filter": "envoy.filters.http.jwt_authn",
        "path": [{"key": "payload"}, {"key": "nested"}, {"key": "team"}],
        "value": {"string_match": {"exact": "green"}},
    });
    let green = json!({"match": {"prefix": "/", "dynamic_metadata": [claim]}, "direct_response": {"status": 418, "body": {"inline_string": "green"}}});
    scenario.add_routes(REVIEWS_CHAIN, vec![green])
}

/// Claims that pass, and what is done to them, so many times.
fn claims(rng: &mut Rng) -> Result<(Value, usize)> {
    let mut claims = json!({
        "iss": ISSUER, "sub": "alice", "aud": ["shop", "other"], "exp": seconds_from_now(600)?,
        "groups": ["dev", "admin"], "nested": {"team": "blue"}, "scope": "read write",
    });
    let changes = [
        ("iss", json!("https://second.example")),
        ("iss", json!("https://issuer.example/")),
        ("iss", json!(1)),
        ("sub", json!("bob")),
        ("sub", json!("")),
        ("sub", Value::Null),
        ("aud", json!("https://shop/")),
        ("aud", json!("shopping")),
        ("aud", json!({"a": 1})),
        ("exp", json!(seconds_from_now(-30)?)),
        ("exp", json!(seconds_from_now(-120)?)),
        ("exp", json!("soon")),
        ("nbf", json!(seconds_from_now(30)?)),
        ("nbf", json!(seconds_from_now(300)?)),
        ("nbf", json!(-1)),
        ("groups", json!("admin")),
        ("groups", json!({"admin": true})),
        ("groups", json!([["admin"], 1, null])),
        ("nested", json!({"team": ["blue"]})),
        ("nested", json!({"team": "green"})),
        ("nested", json!("blue")),
        ("scope", json!(["write"])),
        ("scope", json!("rewrite")),
        ("scope", json!("")),
    ];
    let mut edits = rng.choice([0, 1, 1, 1, 2]).unwrap_or(1);
    for _ in 0..edits {
        let (name, value) = &changes[rng.usize(0..changes.len())];
        claims[*name] = value.clone();
    }
    if rng.u8(0..16) == 0 {
        claims.as_object_mut().context("an object")?.remove(*rng.choice(&["sub", "aud", "groups", "exp"]).unwrap_or(&"sub"));
        edits += 1;
    }
    Ok((claims, edits))
}

/// A token with one character changed: not at the end, where Envoy overlooks a byte too many of a signature, and so that there is no empty part,
/// which it skips, and no control character in a text, which it takes (`strict-tokens`).
fn mistyped(token: &str, rng: &mut Rng) -> String {
    let (begin, end) = token.split_at(token.len() - 4);
    let changed = format!("{}{end}", edited(begin, rng).replace('/', "_"));
    let has_control = |part: &str| URL_SAFE_NO_PAD.decode(part).is_ok_and(|bytes| bytes.iter().any(u8::is_ascii_control));
    // A signature is any bytes.
    let is_lax = changed.split('.').any(str::is_empty) || changed.split('.').take(2).any(has_control);
    if is_lax { token.to_owned() } else { changed }
}

/// A token, and how far it is from one that passes.
fn token(issuer: &Issuer, stranger: &Issuer, rng: &mut Rng) -> Result<(String, usize)> {
    let (claims, mut edits) = claims(rng)?;
    let header = |alg: &str, kid: &str| json!({"alg": alg, "kid": kid});
    let what = rng.u8(0..32);
    edits += usize::from(what < 6);
    let token = match what {
        0 => stranger.token(&claims)?,
        1 => issuer.token_with(&header("ES256", "nobody"), &claims)?,
        2 => issuer.token_with(&header(rng.choice(["none", "HS256", "RS256", "ES384"]).unwrap_or("none"), "known"), &claims)?,
        3 => issuer.token_with(&json!({"alg": "ES256"}), &claims)?,
        4 => mistyped(&issuer.token(&claims)?, rng),
        5 => rng.choice(["a.b.c", "a.b", "e30.e30.AA", "x", "e30.e30.AA.AA"]).unwrap_or("x").to_owned(),
        _ => issuer.token(&claims)?,
    };
    Ok((token, edits))
}

fn token_ask(issuer: &Issuer, stranger: &Issuer, rng: &mut Rng) -> Result<Ask> {
    let mut path = rng.choice(["/", "/health", "/healthy", "/a?b=c"]).unwrap_or("/").to_owned();
    let mut lines = vec![("host", "reviews.shop".to_owned())];
    let mut edits = 0;
    for _ in 0..rng.choice([0, 1, 1, 1, 1, 1, 2]).unwrap_or(1) {
        let (token, more) = token(issuer, stranger, rng)?;
        edits += more;
        match rng.u8(0..8) {
            0 => lines.push(("x-jwt", token)),
            1 => lines.push(("cookie", format!("a=b; session={token}"))),
            2 => path = format!("{path}{}access_token={token}", if path.contains('?') { '&' } else { '?' }),
            3 => lines.push(("authorization", format!("Basic {token}"))),
            _ => lines.push(("authorization", format!("Bearer {token}"))),
        }
    }
    if rng.u8(0..6) == 0 {
        lines.push(("x-jwt-sub", "admin".to_owned()));
    }
    if rng.u8(0..12) == 0 {
        lines.extend([("origin", "https://a.example".to_owned()), ("access-control-request-method", "GET".to_owned())]);
    }
    let method = rng.choice([Method::GET, Method::GET, Method::POST, Method::OPTIONS]).unwrap_or(Method::GET);
    Ok(Ask { caller: rng.usize(0..CALLERS.len()), method, path, lines, edits })
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_judged_alike_in_both_on_generated_requests() -> Result<()> {
    let (issuer, stranger) = (Issuer::new("known")?, Issuer::new("known")?);
    let mesh = Mesh::builder("06-jwt")?.edit(|scenario| with_keys(scenario, &issuer))?.start().await?;
    let _pod = mesh.pod("reviews-v1-1", App::Http).await?;
    let mut rng = Rng::with_seed(number("POLICY_SEED", 6)?);
    let asks = (0..number("POLICY_REQUESTS", 100)?).map(|_| token_ask(&issuer, &stranger, &mut rng));
    let asks = asks.collect::<Result<Vec<_>>>()?;
    covers(&mesh, &asks)?;
    let statuses = compare(&mesh, &asks).await?;
    for status in [200, 401, 403] {
        assert!(share(&statuses, |one| one == status) > 5, "{status}: {statuses:?}");
    }
    Ok(())
}
