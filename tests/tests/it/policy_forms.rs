//! Each form of condition that istiod generates, met and missed, plain and within a `not`, as a reason to refuse and as one to permit: over HTTP
//! and, where the form is for that too, over TCP. The waypoint and a stock Envoy both have to do what the row says.
//!
//! Of conditions on the caller's address only the waypoint is asked: Envoy does not see it behind an internal listener (`caller-address`).
//! Not for: conditions on metadata of other filters than tokens (`filter-metadata`).

use std::net::SocketAddr;

use anyhow::{Context, Result};
use http::{Method, Request};
use serde_json::{Value, json};
use tests::authz::{AuthzServer, Says};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::{Connection, Peer, client_hello, empty};
use tests::scenario::{DB, DB_CHAIN, Mesh, RATINGS, RATINGS_CHAIN, REVIEWS, REVIEWS_CHAIN, Scenario, WEB, WEB_CHAIN};
use tests::tokens::{Issuer, seconds_from_now};
use tests::workload::App;

use super::policy_oracle::heard;

const FRONTEND: &str = "spiffe://cluster.local/ns/clients/sa/frontend";
const BATCH: &str = "spiffe://cluster.local/ns/clients/sa/batch";
const WEB_ACCOUNT: &str = "spiffe://cluster.local/ns/shop/sa/web";
/// Of another trust domain, which the listener lets in here.
const FOREIGN: &str = "spiffe://other.example/ns/clients/sa/frontend";
const CALLERS: [&str; 4] = [FRONTEND, BATCH, WEB_ACCOUNT, FOREIGN];
/// Where the address and the port that are asked for are to be put in.
const ADDRESS: &str = "ADDRESS";
const PORT: &str = "PORT";

/// Who asks for what.
#[derive(Clone, Copy, Debug)]
struct Ask {
    caller: &'static str,
    method: &'static str,
    path: &'static str,
    host: &'static str,
    line: (&'static str, &'static str),
    /// `sub`, and other claims, of its token; none if empty.
    claims: &'static str,
    /// In a ClientHello, over TCP.
    server_name: &'static str,
}

const ASK: Ask = Ask { caller: FRONTEND, method: "GET", path: "/a", host: "web.shop", line: ("x-a", "b"), claims: "", server_name: "" };

/// A condition of a permission or a principal; what meets it, and what misses it.
struct Row {
    rule: Value,
    meets: Vec<Ask>,
    misses: Vec<Ask>,
}

fn row(rule: Value, meets: &[Ask], misses: &[Ask]) -> Row {
    Row { rule, meets: meets.to_vec(), misses: misses.to_vec() }
}

fn is_principal(rule: &Value) -> bool {
    ["filter_state", "remote_ip", "metadata", "and_ids", "or_ids", "not_id"].iter().any(|kind| rule.get(*kind).is_some())
}

fn caller(test: Value) -> Value {
    json!({"filter_state": {"key": "io.istio.peer_principal", "string_match": test}})
}

fn regex(expression: &str) -> Value {
    json!({"safe_regex": {"regex": expression}})
}

/// By who asks: `principals`, `namespaces`, `serviceAccounts`, `trustDomains`, each exactly and with its wildcards.
fn by_caller() -> Vec<Row> {
    let [frontend, batch, web, foreign] = CALLERS.map(|caller| Ask { caller, ..ASK });
    let who = |test: Value, meets: &[Ask], misses: &[Ask]| row(caller(test), meets, misses);
    vec![
        who(json!({"exact": FRONTEND}), &[frontend], &[batch, web, foreign]),
        who(json!({"prefix": "spiffe://cluster.local/ns/clients/"}), &[frontend, batch], &[web, foreign]),
        who(json!({"suffix": "/sa/frontend"}), &[frontend, foreign], &[batch, web]),
        who(regex(".+"), &[frontend, foreign], &[]),
        who(regex(".*/ns/clients/.*"), &[frontend, batch, foreign], &[web]),
        who(regex(".*/ns/cli.*/.*"), &[frontend, batch, foreign], &[web]),
        who(regex(".*/ns/.*op/.*"), &[web], &[frontend, foreign]),
        who(regex("spiffe://.+/ns/clients/(.+/|)sa/frontend(/.+)?"), &[frontend, foreign], &[batch, web]),
        who(regex("spiffe://.+/ns/client/(.+/|)sa/frontend(/.+)?"), &[], &[frontend, batch]),
        who(json!({"prefix": "spiffe://cluster.local/"}), &[frontend, batch, web], &[foreign]),
        who(json!({"prefix": "spiffe://other.example/"}), &[foreign], &[frontend, web]),
        who(json!({"prefix": "spiffe://cluster.loca/"}), &[], &[frontend, foreign]),
        who(regex("spiffe://cluster.*/.*"), &[frontend, web], &[foreign]),
        who(regex("spiffe://.*example/.*"), &[foreign], &[frontend, web]),
    ]
}

/// By where a connection or request wants to go.
fn by_destination() -> Vec<Row> {
    let range = |prefix: &str, length: u32| json!({"destination_ip": {"address_prefix": prefix, "prefix_len": length}});
    vec![
        row(json!({"destination_port": PORT}), &[ASK], &[]),
        row(json!({"destination_port": 1}), &[], &[ASK]),
        row(range(ADDRESS, 32), &[ASK], &[]),
        row(range("10.96.1.0", 24), &[ASK], &[]),
        row(range("10.96.2.0", 24), &[], &[ASK]),
        row(range("0.0.0.0", 0), &[ASK], &[]),
        row(range("::", 0), &[], &[ASK]),
        row(json!({"any": true}), &[ASK], &[]),
        // An empty list in a policy.
        row(json!({"not_rule": {"any": true}}), &[], &[ASK]),
        row(json!({"not_id": {"any": true}}), &[], &[ASK]),
    ]
}

fn by_server_name() -> Vec<Row> {
    let [named, shorter, other, none] = ["a.example", "example", "b.example.org", ""].map(|server_name| Ask { server_name, ..ASK });
    let name = |test: Value| json!({"requested_server_name": test});
    vec![
        row(name(json!({"exact": "a.example"})), &[named], &[shorter, other, none]),
        row(name(json!({"prefix": "a."})), &[named], &[shorter, other, none]),
        row(name(json!({"suffix": ".example"})), &[named], &[shorter, other, none]),
        row(name(regex(".+")), &[named, other], &[none]),
    ]
}

fn by_request() -> Vec<Row> {
    let path = |path| Ask { path, ..ASK };
    let host = |host| Ask { host, ..ASK };
    let method = |method| Ask { method, ..ASK };
    let line = |value| Ask { line: ("x-a", value), ..ASK };
    let without = Ask { line: ("x-other", "b"), ..ASK };
    let forwarded = |value| Ask { line: ("x-forwarded-for", value), ..ASK };
    let url_path = |test: Value| json!({"url_path": {"path": test}});
    let template = |template: &str| {
        json!({"uri_template": {"name": "uri-template", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig", "path_template": template,
        }}})
    };
    let header = |name: &str, test: Value| json!({"header": {"name": name, "string_match": test}});
    let present = |name: &str| json!({"header": {"name": name, "present_match": true}});
    let authority = |kind: &str, text: &str| header(":authority", json!({kind: text, "ignore_case": true}));
    let remote = |prefix: &str, length: u32| json!({"remote_ip": {"address_prefix": prefix, "prefix_len": length}});
    vec![
        row(header(":method", json!({"exact": "GET"})), &[method("GET")], &[method("HEAD"), method("POST")]),
        row(authority("exact", "web.shop"), &[host("web.shop"), host("WEB.Shop")], &[host("web.shops"), host("web.shop:80")]),
        row(authority("prefix", "web."), &[host("web.shop"), host("Web.x")], &[host("we.shop"), host("xweb.shop")]),
        row(authority("suffix", ".shop"), &[host("web.shop"), host("x.SHOP")], &[host("web.shops"), host("shop"), host("web.shop:80")]),
        row(present(":authority"), &[host("web.shop")], &[]),
        row(url_path(json!({"exact": "/a"})), &[path("/a"), path("/a?b=c"), path("/./a")], &[path("/a/"), path("/A"), path("/?/a")]),
        row(url_path(json!({"prefix": "/a/"})), &[path("/a/"), path("/a/b")], &[path("/a"), path("/b/a/")]),
        row(url_path(json!({"suffix": "/a"})), &[path("/a"), path("/b/a?c")], &[path("/a/b"), path("/b?/a")]),
        row(url_path(regex(".+")), &[path("/"), path("/a")], &[]),
        row(template("/a/*/c"), &[path("/a/b/c"), path("/a/b/c?d")], &[path("/a/c"), path("/a//c"), path("/a/b/b/c"), path("/a/b/c/")]),
        row(template("/a/**"), &[path("/a/b"), path("/a/b/c")], &[path("/a"), path("/b/a/")]),
        row(template("/*/b"), &[path("/a/b")], &[path("/b"), path("/a/b/b")]),
        row(template("/**/c"), &[path("/a/b/c")], &[path("/a/b")]),
        row(header("x-a", json!({"exact": "b"})), &[line("b")], &[line("B"), line("bb"), without]),
        row(header("x-a", json!({"prefix": "b"})), &[line("b"), line("bc")], &[line("ab"), without]),
        row(header("x-a", json!({"suffix": "b"})), &[line("b"), line("ab")], &[line("ba"), without]),
        row(present("x-a"), &[line("b")], &[without]),
        row(remote("203.0.113.0", 24), &[forwarded("203.0.113.255"), forwarded("1.1.1.1,203.0.113.0")], &[forwarded("203.0.114.0")]),
        row(remote("203.0.113.7", 32), &[forwarded("203.0.113.7")], &[forwarded("203.0.113.6"), forwarded("203.0.113.7, 1.1.1.1")]),
        row(remote("2001:db8::", 32), &[forwarded("2001:db8::1")], &[forwarded("2001:db9::1"), forwarded("203.0.113.7")]),
    ]
}

const TOKEN: &str = r#"{"sub": "alice", "aud": ["shop", "bank"], "groups": ["dev", "admin"], "nested": {"team": "blue"}}"#;
const OTHER_TOKEN: &str = r#"{"sub": "bob", "aud": "shops", "groups": "admins", "nested": {"team": ["red"]}}"#;

fn by_token() -> Vec<Row> {
    let [token, other, none] = [TOKEN, OTHER_TOKEN, ""].map(|claims| Ask { claims, ..ASK });
    let claim = |path: &[&str], value: Value| {
        let path: Vec<_> = ["payload"].iter().chain(path).map(|name| json!({"key": name})).collect();
        json!({"metadata": {"filter": "envoy.filters.http.jwt_authn", "path": path, "value": value}})
    };
    let text = |test: Value| json!({"string_match": test});
    let listed = |test: Value| json!({"list_match": {"one_of": {"string_match": test}}});
    let either = |test: &Value| json!({"or_match": {"value_matchers": [listed(test.clone()), text(test.clone())]}});
    let exact = |text: &str| json!({"exact": text});
    let principal = |subject: Value| json!({"and_ids": {"ids": [claim(&["iss"], text(exact("https://issuer.example"))), claim(&["sub"], text(subject))]}});
    vec![
        row(principal(regex(".+")), &[token, other], &[none]),
        row(principal(exact("alice")), &[token], &[other, none]),
        row(principal(json!({"prefix": "ali"})), &[token], &[other, none]),
        row(principal(json!({"suffix": "ice"})), &[token], &[other, none]),
        row(claim(&["aud"], either(&exact("shop"))), &[token], &[other, none]),
        row(claim(&["aud"], either(&exact("shops"))), &[other], &[token, none]),
        row(claim(&["groups"], listed(exact("admin"))), &[token], &[other, none]),
        row(claim(&["groups"], either(&json!({"prefix": "admin"}))), &[token, other], &[none]),
        row(claim(&["groups"], either(&json!({"suffix": "min"}))), &[token], &[other, none]),
        row(claim(&["nested", "team"], text(exact("blue"))), &[token], &[other, none]),
        row(claim(&["nested", "team"], listed(exact("red"))), &[other], &[token, none]),
        row(claim(&["nested", "team", "more"], text(exact("blue"))), &[], &[token, none]),
    ]
}

/// What only a request has, in a policy of connections: nothing meets it.
fn of_requests_only() -> Vec<Row> {
    let mut rows = by_request();
    // Of headers neither takes any there, and no address is forwarded.
    rows.retain(|row| row.rule.get("url_path").is_some() || row.rule.get("uri_template").is_some());
    rows.extend(by_token());
    for row in &mut rows {
        (row.meets, row.misses) = (Vec::new(), vec![ASK]);
    }
    rows
}

/// The policy of a rule, met where all of `permissions` are.
fn policy(rule: &Value, is_negated: bool, mut permissions: Vec<Value>) -> Value {
    let mut principals = vec![json!({"any": true})];
    let kept = |rule: &Value, kind: &str| if is_negated { json!({kind: rule}) } else { rule.clone() };
    if is_principal(rule) {
        principals.push(kept(rule, "not_id"));
    } else {
        permissions.push(kept(rule, "not_rule"));
    }
    json!({"permissions": [{"and_rules": {"rules": permissions}}], "principals": [{"and_ids": {"ids": principals}}]})
}

/// With the address and the port that are asked for.
fn filled(policy: &Value, address: &str, port: u16) -> Result<Value> {
    Ok(serde_json::from_str(&policy.to_string().replace(&format!("\"{PORT}\""), &port.to_string()).replace(ADDRESS, address))?)
}

fn name_of(row: usize, is_negated: bool) -> String {
    format!("ns[shop]-policy[forms]-rule[{row}]{}", if is_negated { "-not" } else { "" })
}

fn let_in_another_trust_domain(scenario: &mut Scenario) -> Result<()> {
    let terminate = scenario.resource(Kind::Listener, "connect_terminate")?;
    let context =
        &mut terminate["filter_chains"][0]["transport_socket"]["typed_config"]["common_tls_context"]["combined_validation_context"];
    let names = context["default_validation_context"]["match_typed_subject_alt_names"].as_array_mut().context("no names")?;
    names.push(json!({"san_type": "URI", "matcher": {"prefix": "spiffe://other.example/"}}));
    Ok(())
}

/// The connections of all callers to both proxies.
async fn connections(mesh: &Mesh, envoy: &Envoy) -> Result<Vec<(&'static str, Connection, Connection)>> {
    let mut all = Vec::new();
    for caller in CALLERS {
        let peer = Peer::new(&mesh.pki, Some(&mesh.pki.member(caller)?), Some(mesh.net.pod(9, 1).into()))?;
        all.push((caller, peer.connect(mesh.hbone()).await?, peer.connect(envoy.hbone()).await?));
    }
    Ok(all)
}

/// What is wrong with what both proxies did.
fn judged(what: &str, refused: bool, [ours, theirs]: [u16; 2]) -> Option<String> {
    let wanted = if refused { 403 } else { 200 };
    ([ours, theirs] != [wanted; 2]).then(|| format!("{what}: {ours} here, {theirs} in Envoy, not {wanted}"))
}

async fn ask_http(connection: &Connection, authority: &str, name: &str, ask: &Ask, token: Option<&str>) -> Result<u16> {
    let mut request = Request::builder().method(ask.method.parse::<Method>()?).uri(ask.path).header("host", ask.host).header("x-row", name);
    request = request.header(ask.line.0, ask.line.1);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    Ok(connection.http1(authority).await?.send(request.body(empty())?).await?.status.as_u16())
}

/// The rows in one filter, each for requests that name it.
fn http_filters(rows: &[Row], action: &str, (address, port): (&str, u16)) -> Result<Value> {
    let mut policies = serde_json::Map::new();
    for (at, row) in rows.iter().enumerate() {
        for is_negated in [false, true] {
            let name = name_of(at, is_negated);
            let asked = json!({"header": {"name": "x-row", "string_match": {"exact": name}}});
            policies.insert(name, filled(&policy(&row.rule, is_negated, vec![asked]), address, port)?);
        }
    }
    Ok(json!({
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", "rules": {"action": action, "policies": policies},
        },
    }))
}

/// Tokens of the recording with keys of the test, and the rows: as reasons to refuse for `web`, and to permit for `reviews`.
fn for_requests(scenario: &mut Scenario, rows: &[Row], issuer: &Issuer) -> Result<()> {
    let_in_another_trust_domain(scenario)?;
    let filters = scenario.http(REVIEWS_CHAIN)?["http_filters"].as_array_mut().context("no filters")?;
    filters.retain(|filter| filter["name"] != "envoy.filters.http.rbac");
    let at = filters.iter().position(|filter| filter["name"] == "envoy.filters.http.jwt_authn").context("no tokens")?;
    let mut authn = filters.remove(at);
    for provider in authn["typed_config"]["providers"].as_object_mut().context("no providers")?.values_mut() {
        provider["local_jwks"]["inline_string"] = issuer.jwks().into();
        // Each token here is for its own audience.
        drop(provider.as_object_mut().map(|provider| provider.remove("audiences")));
    }
    let empty = http_filters(&[], "ALLOW", ("", 0))?;
    scenario.add_http_filters(RATINGS_CHAIN, vec![empty])?;
    for (chain, action, place) in [(WEB_CHAIN, "DENY", ("10.96.1.1", 80)), (REVIEWS_CHAIN, "ALLOW", ("10.96.1.2", 9080))] {
        scenario.keep_endpoints(chain, 1)?;
        let rbac = http_filters(rows, action, place)?;
        scenario.add_http_filters(chain, vec![authn.clone(), rbac])?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_meet_and_miss_every_form_of_condition_alike() -> Result<()> {
    let mut rows = [by_caller(), by_destination(), by_request(), by_token()];
    // Inside HTTP nobody asks by a name.
    let unnamed = by_server_name().into_iter().map(|row| Row { meets: Vec::new(), misses: vec![ASK], ..row });
    rows[1].extend(unnamed);
    let rows: Vec<Row> = rows.into_iter().flatten().collect();
    let issuer = Issuer::new("known")?;
    let mesh = Mesh::builder("06-jwt")?.edit(|scenario| for_requests(scenario, &rows, &issuer))?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _pods = [mesh.pod("web-v1-1", App::Http).await?, mesh.pod("reviews-v1-1", App::Http).await?];
    let callers = connections(&mesh, &envoy).await?;
    let mut wrong = Vec::new();
    for (at, row) in rows.iter().enumerate() {
        let asks = row.meets.iter().map(|ask| (ask, true)).chain(row.misses.iter().map(|ask| (ask, false)));
        for (ask, meets) in asks {
            let token = if ask.claims.is_empty() { None } else { Some(token_of(ask.claims, &issuer)?) };
            let (_, ours, theirs) = callers.iter().find(|(caller, ..)| *caller == ask.caller).context("nobody")?;
            for (authority, denies, is_negated) in [(WEB, true, false), (WEB, true, true), (REVIEWS, false, false), (REVIEWS, false, true)]
            {
                let name = name_of(at, is_negated);
                let mut statuses = [0; 2];
                for (status, connection) in statuses.iter_mut().zip([ours, theirs]) {
                    *status = ask_http(connection, authority, &name, ask, token.as_deref()).await?;
                }
                let what = format!("{authority} {}{} of {ask:?}", if is_negated { "not " } else { "" }, row.rule);
                wrong.extend(judged(&what, (meets != is_negated) == denies, statuses));
            }
        }
    }
    let (_, ours, theirs) = &callers[0];
    let none = [ask_http(ours, RATINGS, "", &ASK, None).await?, ask_http(theirs, RATINGS, "", &ASK, None).await?];
    wrong.extend(judged("an ALLOW without rules", true, none));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn token_of(claims: &str, issuer: &Issuer) -> Result<String> {
    let mut claims: Value = serde_json::from_str(claims)?;
    claims["iss"] = json!("https://issuer.example");
    claims["exp"] = json!(seconds_from_now(600)?);
    issuer.token(&claims)
}

/// The first port of the rows' chains.
const FIRST_PORT: u16 = 20_000;

/// The chain of a row: how it is used, and its port.
struct Use {
    row: usize,
    is_negated: bool,
    denies: bool,
    port: u16,
}

fn uses(rows: &[Row]) -> Vec<Use> {
    let ways = [(false, true), (true, true), (false, false), (true, false)];
    let all = (0..rows.len()).flat_map(|row| ways.map(|(is_negated, denies)| (row, is_negated, denies)));
    (FIRST_PORT..).zip(all).map(|(port, (row, is_negated, denies))| Use { row, is_negated, denies, port }).collect()
}

fn connection_filter(action: &str, policies: &Value) -> Value {
    json!({
        "name": "envoy.filters.network.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC",
            "stat_prefix": "tcp.",
            "rules": {"action": action, "policies": policies},
        },
    })
}

/// A chain of its own for each use of each row, by the port of `db` that leads to it; and one for an ALLOW without rules.
fn for_connections(scenario: &mut Scenario, rows: &[Row]) -> Result<u16> {
    let_in_another_trust_domain(scenario)?;
    scenario.keep_endpoints(DB_CHAIN, 1)?;
    let mut plain = scenario.chain(DB_CHAIN)?.clone();
    let filters = plain["filters"].as_array_mut().context("no filters")?;
    filters.retain(|filter| filter["name"] != "envoy.filters.network.rbac");
    let mut chains = Vec::new();
    let mut add = |port: u16, filter: Value| -> Result<()> {
        let mut chain = plain.clone();
        chain["name"] = format!("row {port}").into();
        chain["filters"].as_array_mut().context("no filters")?.insert(0, filter);
        chains.push((port, chain));
        Ok(())
    };
    let uses = uses(rows);
    for one in &uses {
        let rule = policy(&rows[one.row].rule, one.is_negated, vec![json!({"any": true})]);
        let policies = json!({name_of(one.row, one.is_negated): filled(&rule, "10.96.1.5", one.port)?});
        add(one.port, connection_filter(if one.denies { "DENY" } else { "ALLOW" }, &policies))?;
    }
    let vanished = FIRST_PORT + u16::try_from(uses.len())?;
    add(vanished, connection_filter("ALLOW", &json!({})))?;
    let listener = scenario.resource(Kind::Listener, "main_internal")?;
    let ranges = &mut listener["filter_chain_matcher"]["matcher_tree"]["custom_match"]["typed_config"]["range_matchers"];
    let ranges = ranges.as_array_mut().context("no ranges")?;
    let db = ranges.iter_mut().find(|range| range["ranges"][0]["address_prefix"] == "10.96.1.5").context("no db")?;
    let ports = db["on_match"]["matcher"]["matcher_tree"]["exact_match_map"]["map"].as_object_mut().context("no ports")?;
    for (port, chain) in &chains {
        let value = &chain["name"];
        let action = json!({"name": value, "typed_config": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": value}});
        ports.insert(port.to_string(), json!({ "action": action }));
    }
    let known = listener["filter_chains"].as_array_mut().context("no chains")?;
    known.extend(chains.into_iter().map(|(_, chain)| chain));
    Ok(vanished)
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_meet_and_miss_every_form_of_condition_alike() -> Result<()> {
    let rows: Vec<Row> = [by_caller(), by_destination(), by_server_name(), of_requests_only()].into_iter().flatten().collect();
    let mut vanished = 0;
    let edit = |scenario: &mut Scenario| {
        vanished = for_connections(scenario, &rows)?;
        Ok(())
    };
    let mesh = Mesh::builder("01-plain")?.edit(edit)?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _db = mesh.pod("db-v1-1", App::Tcp { greets: true }).await?;
    let callers = connections(&mesh, &envoy).await?;
    let mut wrong = Vec::new();
    for one in uses(&rows) {
        let row = &rows[one.row];
        let asks = row.meets.iter().map(|ask| (ask, true)).chain(row.misses.iter().map(|ask| (ask, false)));
        for (ask, meets) in asks {
            let (_, ours, theirs) = callers.iter().find(|(caller, ..)| *caller == ask.caller).context("nobody")?;
            let hello = if ask.server_name.is_empty() { None } else { Some(client_hello(ask.server_name)?) };
            let mut statuses = [0; 2];
            for (status, connection) in statuses.iter_mut().zip([ours, theirs]) {
                *status = heard(connection, &format!("10.96.1.5:{}", one.port), hello.as_deref()).await?;
            }
            let what = format!(
                "{} by {}{} of {ask:?}",
                if one.denies { "DENY" } else { "ALLOW" },
                if one.is_negated { "not " } else { "" },
                row.rule
            );
            wrong.extend(judged(&what, (meets != one.is_negated) == one.denies, statuses));
        }
    }
    // An ALLOW of which every rule is for requests only.
    let (_, ours, theirs) = &callers[0];
    let authority = format!("10.96.1.5:{vanished}");
    let none = [heard(ours, &authority, None).await?, heard(theirs, &authority, None).await?];
    wrong.extend(judged("an ALLOW whose rules have vanished", true, none));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callers_address_meets_and_misses_ranges_of_requests_and_connections() -> Result<()> {
    let builder = Mesh::builder("01-plain")?;
    let [first, second, other] = [(9, 1), (9, 2), (1, 1)].map(|(c, d)| builder.net().pod(c, d));
    let range = |prefix: String, length: u32| json!({"direct_remote_ip": {"address_prefix": prefix, "prefix_len": length}});
    // The ranges, and whom of the three they have.
    let rows = [
        (range(first.to_string(), 32), [true, false, false]),
        (range(builder.net().pod(9, 0).to_string(), 24), [true, true, false]),
        (range(builder.net().pod(9, 2).to_string(), 31), [false, true, false]),
        (range("0.0.0.0".to_owned(), 0), [true; 3]),
        (range("2001:db8::".to_owned(), 32), [false; 3]),
    ];
    let mut mesh = builder.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let _pods = [mesh.pod("web-v1-1", App::Http).await?, mesh.pod("db-v1-1", App::Tcp { greets: true }).await?];
    let identity = mesh.pki.member(FRONTEND)?;
    let mut callers = Vec::new();
    for address in [first, second, other] {
        callers.push(Peer::new(&mesh.pki, Some(&identity), Some(address.into()))?.connect(mesh.hbone()).await?);
    }
    for (rule, meets) in rows {
        for (is_negated, denies) in [(false, true), (true, true), (false, false), (true, false)] {
            let principal = if is_negated { json!({"not_id": rule}) } else { rule.clone() };
            let policies = json!({"ns[shop]-policy[a]-rule[0]": {"permissions": [{"any": true}], "principals": [principal]}});
            let action = if denies { "DENY" } else { "ALLOW" };
            let mut of_requests = http_filters(&[], action, ("", 0))?;
            of_requests["typed_config"]["rules"]["policies"] = policies.clone();
            mesh.push_accepted(|scenario| {
                let filters = scenario.http(WEB_CHAIN)?["http_filters"].as_array_mut().context("no filters")?;
                filters.retain(|filter| filter["name"] != of_requests["name"]);
                filters.insert(0, of_requests);
                let filters = scenario.chain(DB_CHAIN)?["filters"].as_array_mut().context("no filters")?;
                filters.retain(|filter| filter["name"] != "envoy.filters.network.rbac");
                filters.insert(0, connection_filter(action, &policies));
                Ok(())
            })
            .await?;
            for (caller, meets) in callers.iter().zip(meets) {
                let wanted = if (meets != is_negated) == denies { 403 } else { 200 };
                let told = [ask_http(caller, WEB, "", &ASK, None).await?, heard(caller, DB, None).await?];
                assert_eq!(told, [wanted; 2], "{action} {principal}");
            }
        }
    }
    Ok(())
}

/// The recorded CUSTOM, AUDIT and DENY of `web`, the last for all that ends so, and an ALLOW behind them.
fn all_actions(scenario: &mut Scenario) -> Result<()> {
    scenario.keep_endpoints(WEB_CHAIN, 1)?;
    let filters = scenario.http(WEB_CHAIN)?["http_filters"].as_array_mut().context("no filters")?;
    let last = filters.iter().rposition(|filter| filter["name"] == "envoy.filters.http.rbac").context("no policies")?;
    let path = |suffix: &str| json!({"url_path": {"path": {"suffix": suffix}}});
    let policies = &mut filters[last]["typed_config"]["rules"]["policies"];
    policies["ns[shop]-policy[gateway-wide-deny]-rule[0]"]["permissions"] = json!([path("/forbidden")]);
    let mut allow = http_filters(&[], "ALLOW", ("", 0))?;
    let policy = json!({"permissions": [path("/allowed"), path("/forbidden")], "principals": [{"any": true}]});
    allow["typed_config"]["rules"]["policies"] = json!({"ns[shop]-policy[web-allow]-rule[0]": policy});
    filters.insert(last + 1, allow);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_comes_before_audit_and_that_before_deny_and_that_before_allow_alike() -> Result<()> {
    let mesh = Mesh::builder("05-authz")?.edit(all_actions)?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let at = |port| SocketAddr::new(mesh.net.pod(8, 2).into(), port);
    let refuses = Says::Check(json!({"status": {"code": 7}, "denied_response": {"status": {"code": "Unauthorized"}}}));
    let authz = AuthzServer::start(at(9001), at(8000), refuses.clone()).await?;
    let peer = mesh.peer("frontend-0")?;
    let (ours, theirs) = (peer.connect(mesh.hbone()).await?, peer.connect(envoy.hbone()).await?);
    let rows = [
        (&refuses, "/checked/forbidden", 401, "not even audited"),
        (&refuses, "/forbidden", 403, "not asked about"),
        (&refuses, "/allowed", 200, "not asked about"),
        (&Says::Check(json!({})), "/checked/forbidden", 403, "granted, and denied although an ALLOW matches"),
        (&Says::Check(json!({})), "/checked/other", 403, "granted, and no ALLOW matches"),
        (&Says::Check(json!({})), "/checked/allowed", 200, "granted and allowed"),
    ];
    for (says, path, status, what) in rows {
        authz.says(says.clone());
        let ask = Ask { method: "POST", path, ..ASK };
        let told = [ask_http(&ours, WEB, "", &ask, None).await?, ask_http(&theirs, WEB, "", &ask, None).await?];
        assert_eq!(told, [status; 2], "{path}: {what}");
    }
    // One series each: the AUDIT has seen what CUSTOM let pass, the DENY that, and the ALLOW what was left.
    for series in [
        "policy=\"shop/web-custom\",rule=\"0\",action=\"CUSTOM\",decision=\"denied\"} 1",
        "policy=\"shop/web-audit\",rule=\"0\",action=\"AUDIT\",decision=\"audited\"} 5",
        "policy=\"shop/gateway-wide-deny\",rule=\"0\",action=\"DENY\",decision=\"denied\"} 2",
        "policy=\"none\",rule=\"none\",action=\"ALLOW\",decision=\"denied\"} 1",
        "policy=\"shop/web-allow\",rule=\"0\",action=\"ALLOW\",decision=\"allowed\"} 2",
    ] {
        mesh.waypoint.metric(series, |line| line == format!("waypoint_authz_decisions_total{{{series}")).await?;
    }
    Ok(())
}
