//! A policy that cannot be read never lets more through: what was refused before stays refused, whatever came and by either setting.
//!
//! The bytes choose a good filter, another one of which something is spoilt, and who asks. Not for: which reasons are told.

use bytes::Bytes;
use model::chain::{Chain, OnRefusedPolicy};
use serde_json::{Value, json};
use xds_client::ads::{Resource, ResourceType, Update, Verdict};
use xds_client::apply::Applier;
use xds_client::observer::Change;

use super::Choices;
use super::rules::{asked, filter_chain, judged, policies};

/// Those who ask, of each pair of filters.
const ASKED: usize = 4;
/// An expression that is too large.
const LARGE: &str = "((a{200}){200}){20}";

fn bad_principal(choices: &mut Choices<'_>) -> Value {
    let caller = |key: &str, test: Value| json!({"filter_state": {"key": key, "string_match": test}});
    match choices.below(13) {
        0 => json!({}),
        1 => json!({"and_ids": {"ids": []}}),
        2 => json!({"or_ids": {"ids": []}}),
        3 => json!({"direct_remote_ip": {"address_prefix": "10.0.0", "prefix_len": 8}}),
        4 => json!({"remote_ip": {"address_prefix": "10.0.0.0", "prefix_len": 33}}),
        5 => json!({"direct_remote_ip": {"address_prefix": "", "prefix_len": 0}}),
        6 => caller("io.istio.peer_principal", json!({"safe_regex": {"regex": LARGE}})),
        7 => caller("io.istio.peer_principal", json!({})),
        8 => caller("another", json!({"exact": "a"})),
        9 => json!({"authenticated": {}}),
        10 => json!({"source_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}}),
        11 => json!({"metadata": {"filter": "another", "path": [{"key": "a"}], "value": {"present_match": true}, "invert": true}}),
        _ => json!({"url_path": {"path": {"prefix": ""}}}),
    }
}

fn bad_permission(choices: &mut Choices<'_>) -> Value {
    let template = |text: &str| {
        json!({"uri_template": {"name": "a", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig", "path_template": text,
        }}})
    };
    match choices.below(11) {
        0 => json!({}),
        1 => json!({"and_rules": {"rules": []}}),
        2 => json!({"or_rules": {"rules": []}}),
        3 => json!({"destination_ip": {"address_prefix": "10.0.0.0.0", "prefix_len": 8}}),
        4 => json!({"destination_port": 70_000}),
        5 => json!({"url_path": {"path": {"safe_regex": {"regex": LARGE}}}}),
        6 => json!({"url_path": {}}),
        7 => template("/**/**"),
        8 => template("no path"),
        9 => json!({"metadata": {"filter": "envoy.filters.http.jwt_authn", "path": [], "value": {"present_match": true}}}),
        _ => json!({"requested_server_name": {"suffix": ""}}),
    }
}

/// As deep within other rules as the bytes say.
fn nested(mut rule: Value, [and, or, not]: [&str; 3], list: &str, choices: &mut Choices<'_>) -> Value {
    for _ in 0..choices.below(3) {
        let others = json!({"any": true});
        rule = match choices.below(4) {
            0 => json!({and: {list: [rule, others]}}),
            1 => json!({or: {list: [others, rule]}}),
            2 => json!({not: rule}),
            _ => json!({or: {list: [rule]}}),
        };
    }
    rule
}

/// Spoils one policy, or adds one that is spoilt.
fn spoil(policies: &mut Value, choices: &mut Choices<'_>) {
    let name = format!("ns[a]-policy[p]-rule[{}]", choices.below(3));
    let mut policy = policies[&name].take();
    if policy.is_null() {
        policy = json!({"permissions": [{"any": true}], "principals": [{"any": true}]});
    }
    let kind = choices.below(8);
    let (list, bad) = match kind {
        0..3 => ("principals", nested(bad_principal(choices), ["and_ids", "or_ids", "not_id"], "ids", choices)),
        3..5 => ("permissions", nested(bad_permission(choices), ["and_rules", "or_rules", "not_rule"], "rules", choices)),
        5 => ("permissions", Value::Null),
        6 => ("principals", Value::Null),
        _ => ("condition", json!({})),
    };
    match (policy[list].as_array_mut(), bad) {
        (Some(all), Value::Null) => all.clear(),
        (Some(all), bad) => {
            let at = choices.below(all.len() + 1);
            all.insert(at, bad);
        }
        (None, bad) => policy[list] = bad,
    }
    policies[&name] = policy;
}

fn update(chain: &Value) -> Update {
    let listener = json!({"name": "main_internal", "internal_listener": {}, "filter_chains": [chain]});
    let body = xds_proto::message_from_json("envoy.config.listener.v3.Listener", &listener).expect("a message");
    let resource = Resource { name: "main_internal".to_owned(), version: String::new(), body: Bytes::from(body) };
    Update { of: ResourceType::Listener, resources: vec![resource], removed: Vec::new() }
}

/// The chain that is served then, and whether all was obeyed.
fn served(applier: &mut Applier, json: &Value) -> (std::sync::Arc<Chain>, bool) {
    let outcome = applier.apply(update(json));
    let is_obeyed = !matches!(&outcome.applied.verdict, Verdict::Nack(reason) if reason.contains("[a]"));
    let listeners = outcome.changes.into_iter().find_map(|change| match change {
        Change::Listeners(listeners) => Some(listeners),
        _ => None,
    });
    (listeners.expect("a chain changed").chains["a"].clone(), is_obeyed)
}

/// # Panics
/// What cannot be read is obeyed, or lets something through that was refused.
pub fn unreadable(data: &[u8]) {
    let mut choices = Choices::new(data);
    let is_tcp = choices.below(2) == 1;
    let asks: Vec<_> = (0..ASKED).map(|_| asked(&mut choices, is_tcp)).collect();
    let (before, action) = (choices.of(&["ALLOW", "DENY"]), choices.of(&["ALLOW", "DENY", "LOG"]));
    let is_dry_run = choices.below(3) == 2;
    let good = filter_chain((before, &policies(&mut choices, is_tcp)), None, is_tcp);
    let mut spoilt = policies(&mut choices, is_tcp);
    spoil(&mut spoilt, &mut choices);
    let none = json!({});
    let bad = if is_dry_run {
        filter_chain(("DENY", &none), Some((action, &spoilt)), is_tcp)
    } else {
        filter_chain((action, &spoilt), None, is_tcp)
    };
    for mode in [OnRefusedPolicy::KeepLastGood, OnRefusedPolicy::Deny] {
        let (alone, is_obeyed) = served(&mut Applier::new(mode), &bad);
        assert!(!is_obeyed, "it is obeyed: {bad:#}");
        let mut applier = Applier::new(mode);
        let (first, is_obeyed) = served(&mut applier, &good);
        assert!(is_obeyed, "it is not obeyed: {good:#}");
        let (then, _) = served(&mut applier, &bad);
        for ask in &asks {
            assert!(!judged(&alone, ask).0, "without a good one before: {bad:#}");
            let passed = judged(&first, ask).0;
            let passes = judged(&then, ask).0;
            match mode {
                OnRefusedPolicy::KeepLastGood => assert_eq!(passes, passed, "{bad:#}"),
                OnRefusedPolicy::Deny => assert!(!passes, "{bad:#}"),
            }
        }
    }
}
