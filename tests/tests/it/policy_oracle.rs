//! Policies and tokens, judged by the waypoint and by a stock Envoy with the recorded filters: the same decisions on generated requests.
//!
//! `POLICY_REQUESTS` says how many per scenario (100 unless set), over all chains of it; `POLICY_SEED` where the generator begins. Every
//! condition is met and missed, which is checked from [`COVERING_REQUESTS`] on, and many requests miss one by a single edit; both are read off
//! what was sent. Each service has a second port that leads to the same chain. Known differences (`docs/differences.md`: `caller-address`,
//! `repeated-header-lines`, `token-headers`) are not generated, and the chains for addresses of pods (`direct-http`, `direct-tcp`) are not
//! asked: the recorded dispatch leads nobody to them.

mod clauses;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fastrand::Rng;
use filters::jwt::{Fetched, Known, TokenCache, authenticate};
use http::{HeaderMap, Method, Request};
use model::chain::{Chain, ChainKind};
use model::claims::Claim;
use model::stream_view::{RequestHead, forwarded_for};
use serde_json::{Value, json};
use tests::authz::{AuthzServer, Says};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::{Connection, Peer, empty};
use tests::pki::spiffe;
use tests::scenario::{DB_CHAIN, Mesh, PRIVILEGED_PORT_SHIFT, REVIEWS_CHAIN, Scenario};
use tests::tokens::{Issuer, seconds_from_now};
use tests::workload::{App, Workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use waypoint::http::normalize::normalize_path;
use waypoint::request::head_options;

use self::clauses::{Clause, LEFT_OUT, Sent, Token};

/// Who asks: namespace and account. Some are one edit from what a policy names.
const CALLERS: [(&str, &str); 12] = [
    ("clients", "frontend"),
    ("clients", "batch"),
    ("shop", "web"),
    ("shop", "legacy"),
    ("clients", "frontend2"),
    ("clients", "batches"),
    ("clients", "batc"),
    ("client", "batch"),
    ("shops", "web"),
    ("sho", "web"),
    ("shop", "legac"),
    ("shop", "we"),
];
const AUTO_TCP: &str = "inbound-vip|7000|tcp|auto.shop.svc.cluster.local";
const ISSUER: &str = "https://issuer.example";

/// A service: its address, its port (the next one leads to it as well), its chain, and how many of a hundred requests are for it.
struct Service {
    address: &'static str,
    port: u16,
    chain: &'static str,
    weight: usize,
    paths: &'static [&'static str],
}

const fn service(address: &'static str, port: u16, chain: &'static str, weight: usize, paths: &'static [&'static str]) -> Service {
    Service { address, port, chain, weight, paths }
}

const REVIEWS_PATHS: &[&str] = &[
    "/reviews/1",
    "/reviews/",
    "/health",
    "/a/info",
    "/info",
    "/internal/x",
    "/internal/",
    "/forbidden",
    "/admin",
    "/administration",
    "/public/a/info/b",
    "/public/a/info/b/c",
    "/public/a/info/",
    "/other",
];
const CHECKED_PATHS: &[&str] = &["/checked/", "/checked/x", "/checked", "/forbidden", "/other"];
const OTHER_PATHS: &[&str] = &["/forbidden", "/other"];

/// In the order of their weights; all that the dispatch leads to, which is checked.
const SERVICES: [Service; 9] = [
    service("10.96.1.2", 9080, REVIEWS_CHAIN, 60, REVIEWS_PATHS),
    service("10.96.1.1", 80, "inbound-vip|80|http|web.shop.svc.cluster.local", 10, CHECKED_PATHS),
    service("10.96.1.5", 5432, DB_CHAIN, 6, &[]),
    service("10.96.1.4", 7000, "inbound-vip|7000|http|auto.shop.svc.cluster.local", 6, OTHER_PATHS),
    service("10.96.1.3", 9000, "inbound-vip|9000|http|ratings.shop.svc.cluster.local", 6, OTHER_PATHS),
    service("10.96.1.7", 80, "inbound-vip|80|http|legacy.shop.svc.cluster.local", 5, OTHER_PATHS),
    service("10.96.1.8", 80, "inbound-vip|80|http|empty.shop.svc.cluster.local", 3, OTHER_PATHS),
    service("10.96.1.6", 8443, "inbound-vip|8443|tcp|secure.shop.svc.cluster.local", 2, &[]),
    service("10.96.1.4", 7000, AUTO_TCP, 2, &[]),
];

fn number(variable: &str, otherwise: u64) -> Result<u64> {
    std::env::var(variable).map_or(Ok(otherwise), |text| text.parse().with_context(|| format!("{variable}={text}")))
}

/// Requests among which every condition has to be met and missed; fewer are a smoke test.
const COVERING_REQUESTS: usize = 1000;
/// Of all requests, in percent, those that miss some condition by one edit, at least.
const NEAR_MIN: usize = 30;
/// How long a TCP connection may wait for its server.
const TCP_DEADLINE: Duration = Duration::from_secs(10);

/// One request, and by whom.
#[derive(Clone, Debug)]
struct Ask {
    service: usize,
    port: u16,
    caller: usize,
    method: Method,
    path: String,
    lines: Vec<(&'static str, String)>,
    /// Tokens that the issuer made.
    signed: Vec<String>,
}

/// What is compared: status, the body of a refusal, `www-authenticate`, and what the pod was told by tokens.
type Answered = (u16, String, String, Vec<String>);

/// Headers that tokens set or take away.
const TOKEN_HEADERS: [&str; 5] = ["authorization", "x-jwt", "x-jwt-payload", "x-jwt-sub", "x-jwt-team"];

/// In a tunnel of its own: a malformed request ends the one before.
async fn answer(connection: &Connection, ask: &Ask) -> Result<Answered> {
    let service = &SERVICES[ask.service];
    let authority = format!("{}:{}", service.address, ask.port);
    if service.paths.is_empty() {
        return Ok((heard(connection, &authority, None).await?, String::new(), String::new(), Vec::new()));
    }
    let mut http = connection.http1(&authority).await?;
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

/// What connections say: no HTTP, where that is sniffed, and enough to see it.
const HELLO: &[u8] = b"\x01\x02 is how no request begins, and no handshake\n";

/// 200 where the server answers, 403 where the connection ends before: of a refusal one proxy opens no tunnel, the other one closes it.
/// It says `bytes`, or [`HELLO`].
pub(super) async fn heard(connection: &Connection, authority: &str, bytes: Option<&[u8]>) -> Result<u16> {
    let bytes = bytes.unwrap_or(HELLO);
    let Ok(mut tunnel) = connection.connect(authority).await? else { return Ok(403) };
    let exchange = async {
        // What a server says first passes by Envoy's policies, which judge the client's first byte (`external-first-byte`).
        tunnel.write_all(bytes).await?;
        tunnel.flush().await?;
        let mut greeting = [0; "ready\n".len()];
        tunnel.read_exact(&mut greeting).await?;
        tunnel.shutdown().await?;
        let mut heard = Vec::new();
        tunnel.read_to_end(&mut heard).await?;
        std::io::Result::Ok(heard)
    };
    let heard = tokio::time::timeout(TCP_DEADLINE, exchange).await.with_context(|| format!("{authority}: neither an echo nor an end"))?;
    Ok(if heard.is_ok_and(|heard| heard == [b"echo:", bytes].concat()) { 200 } else { 403 })
}

/// Both proxies of one mesh, and what all requests were answered.
async fn compare(mesh: &Mesh, asks: &[Ask]) -> Result<Vec<u16>> {
    let envoy = Envoy::beside(mesh).start().await?;
    let address = mesh.net.pod(9, 1);
    let mut callers = Vec::new();
    for (namespace, account) in CALLERS {
        let peer = Peer::new(&mesh.pki, Some(&mesh.pki.member(&spiffe(namespace, account))?), Some(address.into()))?;
        let ours = peer.connect(mesh.hbone()).await?;
        callers.push((ours, peer.connect(envoy.hbone()).await?));
    }
    let mut statuses = Vec::new();
    for ask in asks {
        let (ours, theirs) = &callers[ask.caller];
        let ours = answer(ours, ask).await.context("here")?;
        let theirs = answer(theirs, ask).await.context("in Envoy")?;
        ensure!(ours == theirs, "{:?} as {ask:?}: ours {ours:?}, Envoy's {theirs:?}", CALLERS[ask.caller]);
        statuses.push(ours.0);
    }
    Ok(statuses)
}

/// As JSON.
fn plain(claim: &Claim) -> Value {
    match claim {
        Claim::Null => Value::Null,
        Claim::Bool(value) => json!(value),
        Claim::Number(number) => json!(number),
        Claim::Text(text) => json!(text),
        Claim::List(items) => items.iter().map(plain).collect(),
        Claim::Object(members) => Value::Object(members.iter().map(|(name, value)| (name.to_string(), plain(value))).collect()),
    }
}

/// What a request is to the conditions of its chain.
fn sent(ask: &Ask, compiled: &Chain, chain: &Value) -> Result<Sent> {
    let (namespace, account) = CALLERS[ask.caller];
    let mut sent = Sent { principal: spiffe(namespace, account), port: ask.port, ..Sent::default() };
    let ChainKind::Http(http) = &compiled.kind else { return Ok(sent) };
    let mut headers = HeaderMap::new();
    for (name, value) in &ask.lines {
        headers.append(*name, value.parse()?);
    }
    let normal = normalize_path(&ask.path, &head_options(&http.options)).ok().flatten();
    let path = normal.as_deref().unwrap_or(&ask.path);
    let authority = ask.lines.iter().find(|(name, _)| *name == "host").map(|(_, host)| host.as_str());
    let head = RequestHead { method: ask.method.as_str(), path, authority, scheme: "http", headers: &headers };
    let known = Known { cache: &mut TokenCache::default(), fetched: &|_| Fetched::Failed, now: u64::try_from(seconds_from_now(0)?)? };
    let said = http.jwt.as_ref().and_then(|authn| authenticate(authn, &head, known).ok()).and_then(|passed| passed.metadata);
    sent.claims = said.as_ref().and_then(|said| said.at(&["payload".into()])).map(plain).unwrap_or_default();
    sent.method = ask.method.to_string();
    sent.path = path.split('?').next().unwrap_or_default().to_owned();
    sent.authority = authority.unwrap_or_default().to_owned();
    sent.lines = ask.lines.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    if let Some(std::net::IpAddr::V4(address)) = forwarded_for(&headers) {
        sent.remote_address = address.octets();
    }
    sent.is_preflight = ask.method == Method::OPTIONS && headers.contains_key("access-control-request-method");
    let filters = chain["filters"].as_array().into_iter().flatten();
    let inner = filters.filter_map(|filter| filter["typed_config"]["http_filters"].as_array()).flatten();
    for providers in inner.filter_map(|filter| filter["typed_config"]["providers"].as_object()) {
        for (name, provider) in providers {
            for (place, text) in clauses::shown(provider, path, &ask.lines) {
                let is_signed = ask.signed.contains(&text);
                sent.tokens.push((name.clone(), place, Token::read(&text, is_signed)));
            }
        }
    }
    Ok(sent)
}

/// The chains that the dispatch leads to are asked; enough requests miss a condition by one edit; and if there are many, every condition is
/// met by one and missed by another.
fn covers(mesh: &Mesh, asks: &[Ask], excepted: &[(&str, &str)]) -> Result<()> {
    let mut scenario = mesh.scenario().clone();
    let mut near = 0;
    let mut gaps = Vec::new();
    for (at, service) in SERVICES.iter().enumerate() {
        let chain = scenario.chain(service.chain)?.clone();
        let compiled = scenario.compiled(service.chain)?;
        let clauses = clauses::of_chain(&chain)?;
        let mut seen = vec![[false; 2]; clauses.len()];
        for ask in asks.iter().filter(|ask| ask.service == at) {
            let sent = sent(ask, &compiled, &chain)?;
            let mut is_near = false;
            for (clause, seen) in clauses.iter().zip(&mut seen) {
                seen[usize::from(clause.is_met(&sent)?)] = true;
                is_near = is_near || clause.is_missed_narrowly(&sent)?;
            }
            near += usize::from(is_near);
        }
        let gap = |clause: &Clause, seen: &[bool; 2]| format!("{}: {}: missed, met: {seen:?}", service.chain, clause.name());
        gaps.extend(clauses.iter().zip(&seen).filter(|(_, seen)| **seen != [true; 2]).map(|(clause, seen)| gap(clause, seen)));
    }
    let share = near * 100 / asks.len().max(1);
    println!("{share} % of {} requests miss a condition by one edit", asks.len());
    ensure!(share >= NEAR_MIN, "only {share} % of the requests miss a condition by one edit");
    if asks.len() >= COVERING_REQUESTS {
        gaps.retain(|gap| !excepted.iter().any(|(name, _)| gap.contains(name)));
        ensure!(gaps.is_empty(), "not counted: {LEFT_OUT:?}; {gaps:#?}");
    }
    Ok(())
}

fn share(statuses: &[u16], wanted: impl Fn(u16) -> bool) -> usize {
    statuses.iter().filter(|status| wanted(**status)).count() * 100 / statuses.len().max(1)
}

/// One endpoint for each service, and a second port that leads to the same chain, so that conditions on ports can be missed.
fn prepare(scenario: &mut Scenario) -> Result<()> {
    for service in SERVICES.iter().filter(|service| !service.chain.contains("empty")) {
        scenario.keep_endpoints(service.chain, 1)?;
    }
    // A pod has one application here: the TCP side of `auto` leads to another one.
    let mut db = scenario.resource(Kind::Endpoints, DB_CHAIN)?.clone();
    db["cluster_name"] = AUTO_TCP.into();
    scenario.insert(Kind::Endpoints, AUTO_TCP, db);
    let dispatch = &mut scenario.resource(Kind::Listener, "main_internal")?["filter_chain_matcher"]["matcher_tree"];
    let ranges = dispatch["custom_match"]["typed_config"]["range_matchers"].as_array_mut().context("no ranges")?;
    for range in ranges {
        let address = range["ranges"][0]["address_prefix"].as_str().unwrap_or_default();
        let asked: Vec<_> = SERVICES.iter().filter(|service| service.address == address).map(|service| service.chain).collect();
        ensure!(!asked.is_empty(), "nobody asks for {address}");
        let ports = range["on_match"]["matcher"]["matcher_tree"]["exact_match_map"]["map"].as_object_mut().context("no ports")?;
        let leads: Vec<_> = ports.iter().map(|(port, leads)| (port.clone(), leads.clone())).collect();
        for (port, leads) in leads {
            for named in leads.to_string().split('"').filter(|text| text.starts_with("inbound-vip|")) {
                ensure!(asked.contains(&named), "nobody asks for {named}");
            }
            ports.insert((port.parse::<u16>()? + 1).to_string(), leads);
        }
    }
    Ok(())
}

/// A pod for each service but `empty`.
async fn pods(mesh: &Mesh) -> Result<Vec<Workload>> {
    let mut pods = vec![mesh.plain_pod("legacy-v1-1", PRIVILEGED_PORT_SHIFT + 80, App::Http).await?];
    for name in ["reviews-v1-1", "web-v1-1", "ratings-v1-1", "auto-v1-1"] {
        pods.push(mesh.pod(name, App::Http).await?);
    }
    for name in ["db-v1-1", "secure-v1-1"] {
        pods.push(mesh.pod(name, App::Tcp { greets: true }).await?);
    }
    Ok(pods)
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

/// Which service is asked, on which port, by whom; and no more of the request.
fn bare_ask(rng: &mut Rng) -> Ask {
    let mut left = rng.usize(0..100);
    let mut service = 0;
    while left >= SERVICES[service].weight && service + 1 < SERVICES.len() {
        left -= SERVICES[service].weight;
        service += 1;
    }
    let port = SERVICES[service].port + u16::from(rng.u8(0..4) == 0);
    Ask {
        service,
        port,
        caller: rng.usize(0..CALLERS.len()),
        method: Method::GET,
        path: String::new(),
        lines: Vec::new(),
        signed: Vec::new(),
    }
}

fn policy_ask(rng: &mut Rng) -> Result<Ask> {
    let mut ask = bare_ask(rng);
    let paths = SERVICES[ask.service].paths;
    if paths.is_empty() {
        return Ok(ask);
    }
    let mut pick = |all: &[&str]| {
        let text = *rng.choice(all).unwrap_or(&"/");
        if rng.u8(0..5) < 2 { edited(text, rng) } else { text.to_owned() }
    };
    ask.path = pick(paths);
    // What is no host to us is one to Envoy: `http-edges`.
    let host = pick(&["reviews.shop.svc.cluster.local", "Reviews.Shop.svc.cluster.LOCAL", "reviews.shop", "web.shop"]).replace('/', "q");
    let token = pick(&["secret-a", "secret-old", "secret-", "other"]);
    if rng.u8(0..4) == 0 {
        ask.path.push_str("?q=/forbidden");
    }
    ask.lines.push(("host", if rng.u8(0..3) == 0 { format!("{host}:9080") } else { host }));
    if rng.bool() {
        ask.lines.push(("x-token", token));
    }
    if rng.u8(0..4) == 0 {
        let forwarded =
            ["203.0.113.7", "203.0.113.0", "203.0.112.255", "203.0.114.0", "1.1.1.1, 203.0.113.9", "203.0.113.9, 1.1.1.1", "garbage"];
        ask.lines.push(("x-forwarded-for", (*rng.choice(forwarded).unwrap_or("")).to_owned()));
    }
    let method = *rng.choice(&["GET", "GET", "HEAD", "POST", "DELETE", "PUT"]).unwrap_or(&"GET");
    ask.method = method.parse()?;
    Ok(ask)
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_policies_decide_alike_in_both_on_generated_requests() -> Result<()> {
    let mesh = Mesh::builder("05-authz")?.edit(|scenario| prepare(scenario).and_then(|()| without_addresses(scenario)))?.start().await?;
    let _pods = pods(&mesh).await?;
    // Of the two that are asked, one refuses and the other one lets policies decide.
    let at = |port| SocketAddr::new(mesh.net.pod(8, 2).into(), port);
    let refuses = Says::Check(json!({"status": {"code": 7}, "denied_response": {"status": {"code": "Unauthorized"}, "body": "not you"}}));
    let authz = AuthzServer::start(at(9001), at(8000), refuses).await?;
    authz.says_by_http(Says::Http(200, Vec::new(), String::new()));
    let mut rng = Rng::with_seed(number("POLICY_SEED", 5)?);
    let asks = (0..number("POLICY_REQUESTS", 100)?).map(|_| policy_ask(&mut rng)).collect::<Result<Vec<_>>>()?;
    covers(&mesh, &asks, &[])?;
    let statuses = compare(&mesh, &asks).await?;
    assert!(share(&statuses, |status| status == 200) > 15 && share(&statuses, |status| status == 403) > 15, "{statuses:?}");
    assert!(asks.len() < COVERING_REQUESTS || statuses.contains(&401), "nobody was asked");
    Ok(())
}

/// What no token can meet, and why.
const EXCEPTED: [(&str, &str); 1] =
    [("Claim([\"scope\"], false)", "a text of it is made a list before policies see it: `space_delimited_claims`")];

/// Gives the recorded providers keys that the test has, and routes one team by its claim.
pub(super) fn with_keys(scenario: &mut Scenario, issuer: &Issuer) -> Result<()> {
    prepare(scenario)?;
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

/// Claims that pass, and up to two changes of them.
fn claims(rng: &mut Rng) -> Result<Value> {
    let mut claims = json!({
        "iss": ISSUER, "sub": "alice", "aud": ["shop", "other"], "exp": seconds_from_now(600)?,
        "groups": ["dev", "admin"], "nested": {"team": "blue"}, "scope": "read write",
    });
    let changes = [
        ("iss", json!("https://second.example")),
        ("iss", json!("https://issuer.example/")),
        ("iss", json!("https://issuer.exampl")),
        ("iss", json!(1)),
        ("sub", json!("bob")),
        ("sub", json!("alic")),
        ("sub", json!("alices")),
        ("sub", json!("")),
        ("sub", Value::Null),
        ("aud", json!("https://shop/")),
        ("aud", json!("shop")),
        ("aud", json!("shops")),
        ("aud", json!(["sho", "Shop"])),
        ("aud", json!(["shop"])),
        ("aud", json!({"a": 1})),
        ("exp", json!(seconds_from_now(-30)?)),
        ("exp", json!(seconds_from_now(-120)?)),
        ("exp", json!("soon")),
        ("nbf", json!(seconds_from_now(30)?)),
        ("nbf", json!(seconds_from_now(300)?)),
        ("nbf", json!(-1)),
        ("groups", json!("admin")),
        ("groups", json!("admins")),
        ("groups", json!(["admi"])),
        ("groups", json!({"admin": true})),
        ("groups", json!([["admin"], 1, null])),
        ("nested", json!({"team": ["blue"]})),
        ("nested", json!({"team": ["gree", "green"]})),
        ("nested", json!({"team": "blu"})),
        ("nested", json!({"team": "green"})),
        ("nested", json!("blue")),
        ("scope", json!(["write"])),
        ("scope", json!("writes")),
        ("scope", json!("write")),
        ("scope", json!("")),
    ];
    for _ in 0..rng.choice([0, 1, 1, 1, 2]).unwrap_or(1) {
        let (name, value) = &changes[rng.usize(0..changes.len())];
        claims[*name] = value.clone();
    }
    if rng.u8(0..16) == 0 {
        claims.as_object_mut().context("an object")?.remove(*rng.choice(&["sub", "aud", "groups", "exp"]).unwrap_or(&"sub"));
    }
    Ok(claims)
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

/// A token, and whether its issuer made it.
fn token(issuer: &Issuer, stranger: &Issuer, rng: &mut Rng) -> Result<(String, bool)> {
    let claims = claims(rng)?;
    let header = |alg: &str, kid: &str| json!({"alg": alg, "kid": kid});
    Ok(match rng.u8(0..32) {
        0 => (stranger.token(&claims)?, false),
        1 => (issuer.token_with(&header("ES256", "nobody"), &claims)?, false),
        2 => {
            let other = rng.choice(["none", "HS256", "RS256", "ES384"]).unwrap_or("none");
            (issuer.token_with(&header(other, "known"), &claims)?, false)
        }
        3 => (issuer.token_with(&json!({"alg": "ES256"}), &claims)?, true),
        4 => (mistyped(&issuer.token(&claims)?, rng), false),
        5 => (rng.choice(["a.b.c", "a.b", "e30.e30.AA", "x", "e30.e30.AA.AA"]).unwrap_or("x").to_owned(), false),
        _ => (issuer.token(&claims)?, true),
    })
}

fn token_ask(issuer: &Issuer, stranger: &Issuer, rng: &mut Rng) -> Result<Ask> {
    let mut ask = bare_ask(rng);
    // The other chains have no conditions here.
    if rng.u8(0..4) > 0 {
        (ask.service, ask.port) = (0, SERVICES[0].port);
    }
    if SERVICES[ask.service].paths.is_empty() {
        return Ok(ask);
    }
    rng.choice(["/", "/health", "/health", "/healthy", "/healt", "/a?b=c"]).unwrap_or("/").clone_into(&mut ask.path);
    ask.lines.push(("host", "reviews.shop".to_owned()));
    for _ in 0..rng.choice([0, 1, 1, 1, 1, 1, 2]).unwrap_or(1) {
        let (token, is_signed) = token(issuer, stranger, rng)?;
        ask.signed.extend(is_signed.then(|| token.clone()));
        match rng.u8(0..8) {
            0 => ask.lines.push(("x-jwt", token)),
            1 => ask.lines.push(("cookie", format!("a=b; session={token}"))),
            2 => ask.path = format!("{}{}access_token={token}", ask.path, if ask.path.contains('?') { '&' } else { '?' }),
            3 => ask.lines.push(("authorization", format!("Basic {token}"))),
            _ => ask.lines.push(("authorization", format!("Bearer {token}"))),
        }
    }
    if rng.u8(0..6) == 0 {
        ask.lines.push(("x-jwt-sub", "admin".to_owned()));
    }
    if rng.u8(0..12) == 0 {
        ask.lines.extend([("origin", "https://a.example".to_owned()), ("access-control-request-method", "GET".to_owned())]);
    }
    ask.method = rng.choice(["GET", "GET", "POST", "OPTIONS"]).unwrap_or("GET").parse()?;
    Ok(ask)
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_judged_alike_in_both_on_generated_requests() -> Result<()> {
    let (issuer, stranger) = (Issuer::new("known")?, Issuer::new("known")?);
    let mesh = Mesh::builder("06-jwt")?.edit(|scenario| with_keys(scenario, &issuer))?.start().await?;
    let _pods = pods(&mesh).await?;
    let mut rng = Rng::with_seed(number("POLICY_SEED", 6)?);
    let asks = (0..number("POLICY_REQUESTS", 100)?).map(|_| token_ask(&issuer, &stranger, &mut rng));
    let asks = asks.collect::<Result<Vec<_>>>()?;
    covers(&mesh, &asks, &EXCEPTED)?;
    let statuses = compare(&mesh, &asks).await?;
    for status in [200, 401, 403] {
        assert!(share(&statuses, |one| one == status) > 5, "{status}: {statuses:?}");
    }
    Ok(())
}
