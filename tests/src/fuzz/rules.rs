//! Policies: translated from the messages that istiod sends, compiled and judged, they say what a plain reading of the same JSON says.
//!
//! The bytes choose a filter's action, its policies, those of a dry run, and a request or a connection.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3::FilterChain;
use filters::rbac::{Decisions, RbacInput, RbacVerdict, decide_chain};
use http::{HeaderMap, HeaderValue};
use model::chain::Chain;
use model::claims::{Claim, TokenMetadata};
use model::rbac::Mode;
use model::stream_view::{RequestHead, forwarded_for};
use prost::Message;
use regex::Regex;
use serde_json::{Value, json};
use xds_client::translate::chain::chain;
use xds_client::translate::extension::{Extensions, Lookup};

use super::Choices;

const PATHS: [&str; 9] = ["/", "/a", "/A", "/a/b", "/admin", "/admin/", "/ab", "/b/a", "/a/b/a"];
const TEMPLATES: [&str; 7] = ["/*", "/**", "/a/*", "/a/**", "/*/b", "/**/a", "/*/"];
const METHODS: [&str; 3] = ["GET", "POST", "get"];
const ROLES: [&str; 5] = ["evil", "good", "", "evil,good", "Evil"];
const CALLERS: [&str; 5] = [
    "spiffe://cluster.local/ns/a/sa/x",
    "spiffe://cluster.local/ns/a/sa/y",
    "spiffe://cluster.local/ns/ab/sa/x",
    "spiffe://other/ns/a/sa/x",
    "spiffe://cluster.local/ns/a/b/sa/x/y",
];
const PORTS: [u16; 3] = [80, 8080, 9080];
const NAMES: [&str; 4] = ["a.example", "b.a.example", "a.examples", ""];
/// `x-forwarded-for`, and the address that counts.
const FORWARDED: [(&str, Option<[u8; 4]>); 5] = [
    ("", None),
    ("10.0.0.7", Some([10, 0, 0, 7])),
    ("10.0.0.7, 10.0.1.200", Some([10, 0, 1, 200])),
    ("10.0.1.200,10.0.0.128", Some([10, 0, 0, 128])),
    ("10.0.0.7, garbage", None),
];
const CLAIMS: [&str; 5] = [
    "null",
    r#"{"sub": "x", "groups": ["a", "b"], "n": {"t": "x"}}"#,
    r#"{"sub": ["x"], "groups": "a", "n": "x"}"#,
    r#"{"sub": "", "groups": [["a"], null, 1], "n": {"t": ["x", "y"]}}"#,
    r#"{"groups": [], "n": {"t": {"x": "y"}}}"#,
];
const CLAIM_TEXTS: [&str; 4] = ["x", "a", "", "xa"];

/// A request, or a connection, and who asks.
pub(super) struct Asked {
    /// A connection has no more than a name, a caller and where it goes.
    pub is_tcp: bool,
    path: &'static str,
    method: &'static str,
    roles: Vec<&'static str>,
    caller: &'static str,
    address: [u8; 4],
    forwarded: (&'static str, Option<[u8; 4]>),
    port: u16,
    server_name: &'static str,
    claims: Value,
}

pub(super) fn asked(choices: &mut Choices<'_>, is_tcp: bool) -> Asked {
    Asked {
        is_tcp,
        path: choices.of(&PATHS),
        method: choices.of(&METHODS),
        roles: (0..choices.below(3)).map(|_| choices.of(&ROLES)).collect(),
        caller: choices.of(&CALLERS),
        address: [10, 0, choices.of(&[0, 1]), choices.byte()],
        forwarded: if is_tcp { FORWARDED[0] } else { choices.of(&FORWARDED) },
        port: choices.of(&PORTS),
        server_name: if is_tcp { choices.of(&NAMES) } else { "" },
        claims: if is_tcp { Value::Null } else { serde_json::from_str(choices.of(&CLAIMS)).expect("JSON") },
    }
}

fn text(choices: &mut Choices<'_>, all: &[&str]) -> Value {
    let kind = choices.of(&["exact", "prefix", "suffix", "contains"]);
    let text = choices.of(all);
    // Envoy takes none of the others empty.
    let kind = if text.is_empty() { "exact" } else { kind };
    json!({kind: text, "ignore_case": choices.below(4) == 3})
}

fn header(choices: &mut Choices<'_>) -> Value {
    let (name, test) = match choices.below(3) {
        0 => (":method", text(choices, &METHODS)),
        1 => ("x-role", text(choices, &ROLES)),
        _ => return json!({"header": {"name": "x-role", "present_match": choices.below(2) == 0, "invert_match": choices.below(2) == 1}}),
    };
    json!({"header": {"name": name, "string_match": test, "invert_match": choices.below(3) == 2}})
}

fn range(choices: &mut Choices<'_>) -> Value {
    json!({"address_prefix": "10.0.0.0", "prefix_len": choices.of(&[0, 8, 23, 24, 25, 32])})
}

fn claim(choices: &mut Choices<'_>) -> Value {
    let path: &[&str] = choices.of(&[&["sub"][..], &["groups"], &["n", "t"], &["n", "t", "x"], &["missing"]]);
    let path: Vec<_> = ["payload"].iter().chain(path).map(|name| json!({"key": name})).collect();
    let plain = |choices: &mut Choices<'_>| json!({"string_match": text(choices, &CLAIM_TEXTS)});
    let listed = |choices: &mut Choices<'_>| json!({"list_match": {"one_of": plain(choices)}});
    let value = match choices.below(4) {
        0 => plain(choices),
        1 => listed(choices),
        2 => json!({"or_match": {"value_matchers": [listed(choices), plain(choices)]}}),
        _ => json!({"present_match": true}),
    };
    json!({"metadata": {"filter": "envoy.filters.http.jwt_authn", "path": path, "value": value, "invert": choices.below(4) == 3}})
}

fn template(choices: &mut Choices<'_>) -> Value {
    json!({"uri_template": {"name": "uri-template", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
        "path_template": choices.of(&TEMPLATES),
    }}})
}

/// How deep a rule may be.
const DEPTH_MAX: usize = 3;

fn permission(choices: &mut Choices<'_>, depth: usize, is_tcp: bool) -> Value {
    let several = |choices: &mut Choices<'_>| (0..=choices.below(2)).map(|_| permission(choices, depth + 1, is_tcp)).collect::<Vec<_>>();
    match choices.below(if depth < DEPTH_MAX { 12 } else { 9 }) {
        0 => json!({"any": true}),
        1 => json!({"url_path": {"path": text(choices, &PATHS)}}),
        // A policy of connections has none.
        2 if is_tcp => json!({"requested_server_name": text(choices, &NAMES)}),
        2 => header(choices),
        3 => json!({"destination_port": choices.of(&PORTS)}),
        4 => json!({"destination_ip": range(choices)}),
        5 => json!({"destination_port_range": {"start": choices.of(&PORTS), "end": choices.of(&[81, 8080, 9081, 80])}}),
        6 => template(choices),
        7 => claim(choices),
        8 => json!({"requested_server_name": text(choices, &NAMES)}),
        9 => json!({"and_rules": {"rules": several(choices)}}),
        10 => json!({"or_rules": {"rules": several(choices)}}),
        _ => json!({"not_rule": permission(choices, depth + 1, is_tcp)}),
    }
}

fn principal(choices: &mut Choices<'_>, depth: usize, is_tcp: bool) -> Value {
    let several = |choices: &mut Choices<'_>| (0..=choices.below(2)).map(|_| principal(choices, depth + 1, is_tcp)).collect::<Vec<_>>();
    let caller = |test: Value| json!({"filter_state": {"key": "io.istio.peer_principal", "string_match": test}});
    let regex = |expression: String| caller(json!({"safe_regex": {"regex": expression}}));
    match choices.below(if depth < DEPTH_MAX { 12 } else { 9 }) {
        0 => json!({"any": true}),
        1 => caller(text(choices, &CALLERS)),
        2 => regex(format!(".*/ns/{}/.*", choices.of(&["a", "ab", "b", "a.*"]))),
        3 => json!({"direct_remote_ip": range(choices)}),
        4 if is_tcp => json!({"direct_remote_ip": range(choices)}),
        4 => header(choices),
        5 => json!({"remote_ip": range(choices)}),
        6 => regex(format!("spiffe://.+/ns/{}/(.+/|)sa/{}(/.+)?", choices.of(&["a", "ab"]), choices.of(&["x", "y"]))),
        7 => claim(choices),
        8 => regex(choices.of(&[".+", "spiffe://other/.*", ".*/sa/x"]).to_owned()),
        9 => json!({"and_ids": {"ids": several(choices)}}),
        10 => json!({"or_ids": {"ids": several(choices)}}),
        _ => json!({"not_id": principal(choices, depth + 1, is_tcp)}),
    }
}

pub(super) fn policies(choices: &mut Choices<'_>, is_tcp: bool) -> Value {
    let rules = |count: usize| (0..count).map(|at| (format!("ns[a]-policy[p]-rule[{at}]"), at));
    let mut all = serde_json::Map::new();
    // Many are looked up, and not tried one after the other.
    for (name, _) in rules(choices.of(&[0, 1, 2, 12])) {
        let permissions: Vec<_> = (0..=choices.below(2)).map(|_| permission(choices, 0, is_tcp)).collect();
        let principals: Vec<_> = (0..=choices.below(2)).map(|_| principal(choices, 0, is_tcp)).collect();
        all.insert(name, json!({"permissions": permissions, "principals": principals}));
    }
    Value::Object(all)
}

thread_local! {
    static COMPILED: RefCell<HashMap<String, Regex>> = RefCell::default();
}

/// Whether an expression matches a whole text.
fn whole(expression: &str, text: &str) -> bool {
    COMPILED.with_borrow_mut(|known| {
        let compiled = known.entry(expression.to_owned());
        compiled.or_insert_with(|| Regex::new(&format!("^(?:{expression})$")).expect("an expression")).is_match(text)
    })
}

/// A plain reading of one string matcher.
fn text_matches(test: &Value, value: &str) -> bool {
    let is_folded = test["ignore_case"] == true;
    let fold = |text: &str| if is_folded { text.to_ascii_lowercase() } else { text.to_owned() };
    let wanted = |kind: &str| test[kind].as_str().map(fold);
    let value = fold(value);
    wanted("exact").is_some_and(|wanted| value == wanted)
        || wanted("prefix").is_some_and(|wanted| value.starts_with(&wanted))
        || wanted("suffix").is_some_and(|wanted| value.ends_with(&wanted))
        || wanted("contains").is_some_and(|wanted| value.contains(&wanted))
        || test["safe_regex"]["regex"].as_str().is_some_and(|regex| whole(regex, &value))
}

/// A header whose lines all have to match where a match permits, and of which one is enough where it refuses.
fn header_matches(header: &Value, asked: &Asked, permits: bool) -> bool {
    let is_inverted = header["invert_match"] == true;
    let lines = if header["name"] == ":method" { vec![asked.method] } else { asked.roles.clone() };
    if let Some(wanted) = header["present_match"].as_bool() {
        return (lines.is_empty() != wanted) != is_inverted;
    }
    if lines.is_empty() {
        return false;
    }
    let line_matches = |line: &str| text_matches(&header["string_match"], line) != is_inverted;
    let whole = line_matches(&lines.join(","));
    if permits { whole && lines.iter().all(|line| line_matches(line)) } else { whole || lines.iter().any(|line| line_matches(line)) }
}

fn in_range(range: &Value, address: [u8; 4]) -> bool {
    let bits = |address: [u8; 4]| u64::from(u32::from_be_bytes(address));
    let length = range["prefix_len"].as_u64().unwrap_or(0);
    (bits(address) ^ bits([10, 0, 0, 0])) >> (32 - length) == 0
}

fn value_matches(test: &Value, value: &Value) -> bool {
    if let Some(several) = test["or_match"]["value_matchers"].as_array() {
        return several.iter().any(|one| value_matches(one, value));
    }
    if let Some(one) = test["list_match"].get("one_of") {
        return value.as_array().is_some_and(|items| items.iter().any(|item| value_matches(one, item)));
    }
    test["present_match"] == true || value.as_str().is_some_and(|text| text_matches(&test["string_match"], text))
}

fn claim_matches(rule: &Value, asked: &Asked) -> bool {
    let names = rule["path"].as_array().into_iter().flatten().skip(1);
    let found = names.map(|name| name["key"].as_str().unwrap_or_default()).try_fold(&asked.claims, |value, name| value.get(name));
    (!asked.claims.is_null() && found.is_some_and(|value| value_matches(&rule["value"], value))) != (rule["invert"] == true)
}

fn template_matches(template: &str, path: &str) -> bool {
    let parts = template.split('/').map(|part| if part == "**" { ".*".to_owned() } else { part.replace('*', "[^/]+") });
    whole(&parts.collect::<Vec<_>>().join("/"), path)
}

fn holds(rule: &Value, asked: &Asked, permits: bool) -> bool {
    let list = |one: &str, inner: &str| rule[one][inner].as_array();
    if rule["any"] == true {
        return true;
    }
    if let Some(all) = list("and_rules", "rules").or_else(|| list("and_ids", "ids")) {
        return all.iter().all(|one| holds(one, asked, permits));
    }
    if let Some(some) = list("or_rules", "rules").or_else(|| list("or_ids", "ids")) {
        return some.iter().any(|one| holds(one, asked, permits));
    }
    let (kind, inner) = rule.as_object().and_then(|rule| rule.iter().next()).expect("a rule");
    match kind.as_str() {
        "not_rule" | "not_id" => !holds(inner, asked, !permits),
        "header" => header_matches(inner, asked, permits),
        "direct_remote_ip" => in_range(inner, asked.address),
        "remote_ip" => in_range(inner, asked.forwarded.1.unwrap_or(asked.address)),
        "destination_ip" => in_range(inner, [10, 0, 0, 1]),
        "destination_port" => *inner == asked.port,
        "destination_port_range" => (inner["start"].as_u64()..inner["end"].as_u64()).contains(&Some(u64::from(asked.port))),
        "requested_server_name" => text_matches(inner, asked.server_name),
        "metadata" => claim_matches(inner, asked),
        "filter_state" => text_matches(&inner["string_match"], asked.caller),
        "url_path" => !asked.is_tcp && text_matches(&inner["path"], asked.path),
        "uri_template" => {
            let template = inner["typed_config"]["path_template"].as_str().unwrap_or_default();
            !asked.is_tcp && template_matches(template, asked.path)
        }
        other => panic!("{other}"),
    }
}

/// Whether some policy matches.
fn matched(action: &str, policies: &Value, asked: &Asked) -> bool {
    let any = |rules: &Value| rules.as_array().is_some_and(|rules| rules.iter().any(|rule| holds(rule, asked, action == "ALLOW")));
    let mut policies = policies.as_object().into_iter().flatten();
    policies.any(|(_, policy)| any(&policy["permissions"]) && any(&policy["principals"]))
}

/// The reading of the whole filter.
fn passes(action: &str, policies: &Value, asked: &Asked) -> bool {
    action == "LOG" || matched(action, policies, asked) == (action == "ALLOW")
}

/// An RBAC filter, and what ends its chain.
pub(super) fn filter_chain(enforced: (&str, &Value), dry_run: Option<(&str, &Value)>, is_tcp: bool) -> Value {
    let place = if is_tcp { "network" } else { "http" };
    let mut rbac = json!({
        "name": format!("envoy.filters.{place}.rbac"),
        "typed_config": {
            "@type": format!("type.googleapis.com/envoy.extensions.filters.{place}.rbac.v3.RBAC"),
            "rules": {"action": enforced.0, "policies": enforced.1},
            "shadow_rules_stat_prefix": "istio_dry_run_allow_",
        },
    });
    if let Some((action, policies)) = dry_run {
        rbac["typed_config"]["shadow_rules"] = json!({"action": action, "policies": policies});
    }
    if is_tcp {
        rbac["typed_config"]["stat_prefix"] = json!("tcp.");
        let proxy = json!({
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "a", "cluster": "a",
            },
        });
        return json!({"name": "a", "filters": [rbac, proxy]});
    }
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "a", "http_filters": [rbac, router], "route_config": {"name": "a"},
    });
    json!({"name": "a", "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]})
}

fn claim_of(value: &Value) -> Claim {
    match value {
        Value::Null => Claim::Null,
        Value::Bool(value) => Claim::Bool(*value),
        Value::Number(number) => Claim::Number(number.as_f64().unwrap_or_default()),
        Value::String(text) => Claim::Text(text.as_str().into()),
        Value::Array(items) => Claim::List(items.iter().map(claim_of).collect()),
        // Sorted by name, as the parser's own map is.
        Value::Object(members) => Claim::Object(members.iter().map(|(name, value)| (name.as_str().into(), claim_of(value))).collect()),
    }
}

/// Whether a chain lets it pass, and of each dry run, whether it would have refused.
pub(super) fn judged(chain: &Chain, asked: &Asked) -> (bool, Vec<bool>) {
    let mut headers = HeaderMap::new();
    for role in &asked.roles {
        headers.append("x-role", HeaderValue::from_static(role));
    }
    if !asked.forwarded.0.is_empty() {
        headers.append("x-forwarded-for", HeaderValue::from_static(asked.forwarded.0));
    }
    let mut claims = TokenMetadata::default();
    if !asked.claims.is_null() {
        claims.insert(&"payload".into(), Arc::new(claim_of(&asked.claims)));
    }
    let head = RequestHead { method: asked.method, path: asked.path, authority: Some("a"), scheme: "http", headers: &headers };
    let input = RbacInput {
        head: (!asked.is_tcp).then_some(head),
        peer_principal: Some(asked.caller),
        peer_address: asked.address.into(),
        forwarded_for: if asked.is_tcp { None } else { forwarded_for(&headers) },
        destination: Some(([10, 0, 0, 1], asked.port).into()),
        destination_port: asked.port,
        server_name: asked.server_name,
        claims: (!asked.claims.is_null()).then_some(&claims),
    };
    let mut decisions = Decisions::new();
    let is_passed = matches!(decide_chain(chain, &input, &mut decisions), RbacVerdict::Pass);
    let dry_runs = decisions.iter().filter(|decision| decision.rbac.mode == Mode::DryRun);
    (is_passed, dry_runs.map(model::rbac::Decision::refuses).collect())
}

/// What the bytes choose: the chain, with its parts, and who asks.
fn chosen(data: &[u8]) -> (&'static str, Value, Option<(&'static str, Value)>, Asked) {
    let mut choices = Choices::new(data);
    let is_tcp = choices.below(3) == 2;
    let asked = asked(&mut choices, is_tcp);
    let action = choices.of(&["ALLOW", "DENY", "LOG"]);
    let dry_action = choices.of(&["ALLOW", "DENY"]);
    let has_dry_run = choices.below(3) == 2;
    let enforced = policies(&mut choices, is_tcp);
    let dry_run = has_dry_run.then(|| (dry_action, policies(&mut choices, is_tcp)));
    (action, enforced, dry_run, asked)
}

fn compiled(json: &Value) -> Chain {
    let bytes = xds_proto::message_from_json("envoy.config.listener.v3.FilterChain", json).expect("a message");
    let value = FilterChain::decode(&bytes[..]).expect("it was just encoded");
    chain(&value, &"a".into(), &Lookup::new(&Extensions::default())).unwrap_or_else(|refusal| panic!("{refusal:?} of {json:#}"))
}

/// # Panics
/// The two differ, a filter of this form is not taken, or without one of its policies a DENY would let less through, or an ALLOW more.
pub fn rules(data: &[u8]) {
    let (action, policies, dry_run, asked) = chosen(data);
    let dry_run = dry_run.as_ref().map(|(action, policies)| (*action, policies));
    let json = filter_chain((action, &policies), dry_run, asked.is_tcp);
    let expected = passes(action, &policies, &asked);
    let would_refuse: Vec<_> = dry_run.iter().map(|(action, policies)| !passes(action, policies, &asked)).collect();
    let Asked { method, path, roles, caller, forwarded, server_name, claims, .. } = &asked;
    assert_eq!(
        judged(&compiled(&json), &asked),
        (expected, would_refuse),
        "{method} {path} {roles:?} {caller} {forwarded:?} {server_name:?} {claims}: {json:#}"
    );
    let mut fewer = policies.clone();
    let Some(name) = policies.as_object().and_then(|policies| policies.keys().next()) else { return };
    drop(fewer.as_object_mut().map(|policies| policies.remove(name)));
    let (without, _) = judged(&compiled(&filter_chain((action, &fewer), dry_run, asked.is_tcp)), &asked);
    match action {
        "DENY" => assert!(without || !expected, "one more DENY lets more through: {json:#}"),
        "ALLOW" => assert!(!without || expected, "one more ALLOW lets less through: {json:#}"),
        _ => assert!(without && expected, "AUDIT refuses: {json:#}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each form of rule is in some seed, of requests and of connections.
    #[test]
    fn seeds_have_every_form_of_rule() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/rules");
        let mut seen = [String::new(), String::new()];
        for entry in std::fs::read_dir(folder).expect("seeds") {
            let (action, policies, dry_run, asked) = chosen(&std::fs::read(entry.expect("a seed").path()).expect("bytes"));
            seen[usize::from(asked.is_tcp)] += &format!("{action} {policies} {dry_run:?} {}", asked.claims);
        }
        let both = [
            "and_rules",
            "or_rules",
            "not_rule",
            "and_ids",
            "or_ids",
            "not_id",
            "url_path",
            "uri_template",
            "destination_port\"",
            "destination_port_range",
            "destination_ip",
            "requested_server_name",
            "metadata",
            "filter_state",
            "direct_remote_ip",
            "remote_ip",
            "(.+/|)sa/",
            ".*/ns/",
            "ALLOW {\"ns",
            "DENY {\"ns",
            "LOG {\"ns",
            "Some((\"ALLOW",
            "Some((\"DENY",
        ];
        for (is_tcp, seen) in seen.iter().enumerate() {
            let missing: Vec<_> = both.iter().filter(|form| !seen.contains(**form)).collect();
            assert!(missing.is_empty(), "{is_tcp}: {missing:?}");
        }
        for form in ["\"header\"", "or_match", "list_match", "present_match", "\"sub\":\"x\""] {
            assert!(seen[0].contains(form), "{form}");
        }
    }
}
