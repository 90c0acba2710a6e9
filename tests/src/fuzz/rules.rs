//! Policies: translated from the messages that istiod sends, compiled and judged, they say what a plain reading of the same JSON says.
//!
//! The bytes choose a filter's action, its policies, and a request.

use envoy_types::pb::envoy::config::listener::v3::FilterChain;
use filters::rbac::{Decisions, RbacInput, RbacVerdict, decide_chain};
use http::{HeaderMap, HeaderValue};
use model::stream_view::RequestHead;
use prost::Message;
use serde_json::{Value, json};
use xds_client::translate::chain::chain;
use xds_client::translate::extension::{Extensions, Lookup};

use super::Choices;

const PATHS: [&str; 8] = ["/", "/a", "/A", "/a/b", "/admin", "/admin/", "/ab", "/b/a"];
const METHODS: [&str; 3] = ["GET", "POST", "get"];
const ROLES: [&str; 5] = ["evil", "good", "", "evil,good", "Evil"];
const CALLERS: [&str; 4] = [
    "spiffe://cluster.local/ns/a/sa/x",
    "spiffe://cluster.local/ns/a/sa/y",
    "spiffe://cluster.local/ns/ab/sa/x",
    "spiffe://other/ns/a/sa/x",
];
const PORTS: [u16; 3] = [80, 8080, 9080];

/// A request, and who asks.
struct Asked {
    path: &'static str,
    method: &'static str,
    roles: Vec<&'static str>,
    caller: &'static str,
    address: [u8; 4],
    port: u16,
}

fn asked(choices: &mut Choices<'_>) -> Asked {
    Asked {
        path: choices.of(&PATHS),
        method: choices.of(&METHODS),
        roles: (0..choices.below(3)).map(|_| choices.of(&ROLES)).collect(),
        caller: choices.of(&CALLERS),
        address: [10, 0, choices.of(&[0, 1]), choices.byte()],
        port: choices.of(&PORTS),
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

/// How deep a rule may be.
const DEPTH_MAX: usize = 3;

fn permission(choices: &mut Choices<'_>, depth: usize) -> Value {
    let several = |choices: &mut Choices<'_>| (0..=choices.below(2)).map(|_| permission(choices, depth + 1)).collect::<Vec<_>>();
    match choices.below(if depth < DEPTH_MAX { 8 } else { 5 }) {
        0 => json!({"any": true}),
        1 => json!({"url_path": {"path": text(choices, &PATHS)}}),
        2 => header(choices),
        3 => json!({"destination_port": choices.of(&PORTS)}),
        4 => json!({"destination_ip": range(choices)}),
        5 => json!({"and_rules": {"rules": several(choices)}}),
        6 => json!({"or_rules": {"rules": several(choices)}}),
        _ => json!({"not_rule": permission(choices, depth + 1)}),
    }
}

fn principal(choices: &mut Choices<'_>, depth: usize) -> Value {
    let several = |choices: &mut Choices<'_>| (0..=choices.below(2)).map(|_| principal(choices, depth + 1)).collect::<Vec<_>>();
    let caller = |test: Value| json!({"filter_state": {"key": "io.istio.peer_principal", "string_match": test}});
    match choices.below(if depth < DEPTH_MAX { 8 } else { 5 }) {
        0 => json!({"any": true}),
        1 => caller(text(choices, &CALLERS)),
        2 => caller(json!({"safe_regex": {"regex": format!(".*/ns/{}/.*", choices.of(&["a", "ab", "b"]))}})),
        3 => json!({"direct_remote_ip": range(choices)}),
        4 => header(choices),
        5 => json!({"and_ids": {"ids": several(choices)}}),
        6 => json!({"or_ids": {"ids": several(choices)}}),
        _ => json!({"not_id": principal(choices, depth + 1)}),
    }
}

fn policies(choices: &mut Choices<'_>) -> Value {
    let rules = |count: usize| (0..count).map(|at| (format!("ns[a]-policy[p]-rule[{at}]"), at));
    let mut all = serde_json::Map::new();
    // Many are looked up, and not tried one after the other.
    for (name, _) in rules(choices.of(&[0, 1, 2, 12])) {
        let permissions: Vec<_> = (0..=choices.below(2)).map(|_| permission(choices, 0)).collect();
        let principals: Vec<_> = (0..=choices.below(2)).map(|_| principal(choices, 0)).collect();
        all.insert(name, json!({"permissions": permissions, "principals": principals}));
    }
    Value::Object(all)
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
        || test["safe_regex"]["regex"].as_str().is_some_and(|regex| value.contains(regex.trim_start_matches(".*").trim_end_matches(".*")))
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
    let field = |name: &str| rule.get(name);
    if let Some(not) = field("not_rule").or_else(|| field("not_id")) {
        return !holds(not, asked, !permits);
    }
    if let Some(header) = field("header") {
        return header_matches(header, asked, permits);
    }
    if let Some(range) = field("direct_remote_ip") {
        return in_range(range, asked.address);
    }
    if let Some(range) = field("destination_ip") {
        return in_range(range, [10, 0, 0, 1]);
    }
    field("url_path").is_some_and(|path| text_matches(&path["path"], asked.path))
        || field("destination_port").is_some_and(|port| *port == asked.port)
        || field("filter_state").is_some_and(|state| text_matches(&state["string_match"], asked.caller))
}

/// The reading of the whole filter.
fn passes(action: &str, policies: &Value, asked: &Asked) -> bool {
    let permits = action == "ALLOW";
    let any = |rules: &Value| rules.as_array().is_some_and(|rules| rules.iter().any(|rule| holds(rule, asked, permits)));
    let mut policies = policies.as_object().into_iter().flatten();
    let matched = policies.any(|(_, policy)| any(&policy["permissions"]) && any(&policy["principals"]));
    matched == permits
}

fn filter_chain(action: &str, policies: &Value) -> Value {
    let rbac = json!({
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": action, "policies": policies},
        },
    });
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

/// # Panics
/// The two differ, or a filter of this form is not taken.
pub fn rules(data: &[u8]) {
    let mut choices = Choices::new(data);
    let asked = asked(&mut choices);
    let action = choices.of(&["ALLOW", "DENY"]);
    let policies = policies(&mut choices);
    let bytes = xds_proto::message_from_json("envoy.config.listener.v3.FilterChain", &filter_chain(action, &policies)).expect("a message");
    let value = FilterChain::decode(&bytes[..]).expect("it was just encoded");
    let chain =
        chain(&value, &"a".into(), &Lookup::new(&Extensions::default())).unwrap_or_else(|refusal| panic!("{refusal:?} of {policies:#}"));
    let mut headers = HeaderMap::new();
    for role in &asked.roles {
        headers.append("x-role", HeaderValue::from_static(role));
    }
    let input = RbacInput {
        head: Some(RequestHead { method: asked.method, path: asked.path, authority: Some("a"), scheme: "http", headers: &headers }),
        peer_principal: Some(asked.caller),
        peer_address: asked.address.into(),
        forwarded_for: None,
        destination: Some(([10, 0, 0, 1], asked.port).into()),
        destination_port: asked.port,
        server_name: "",
        claims: None,
    };
    let is_passed = matches!(decide_chain(&chain, &input, &mut Decisions::new()), RbacVerdict::Pass);
    let roles = &asked.roles;
    assert_eq!(
        is_passed,
        passes(action, &policies, &asked),
        "{} {} {roles:?} {}: {action} {policies:#}",
        asked.method,
        asked.path,
        asked.caller
    );
}
