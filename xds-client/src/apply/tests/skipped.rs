//! Filters that an operator has named are left out and listed, and nothing else is.

use model::chain::SkippedFilters;

use super::*;

const LUA: &str = "envoy.extensions.filters.http.lua.v3.Lua";

/// Applies a mesh whose `web` chain begins with a filter, the filters of these names being left out.
fn applied(names: &str, filter: &Value, change: impl FnOnce(&mut Value)) -> (Applier, Arc<Listeners>) {
    let mut file = fixture("istiod-1.31/01-plain", "Listener");
    let listeners = file["resources"].as_array_mut().unwrap();
    let chains = listeners.iter_mut().filter_map(|listener| listener["resource"]["filter_chains"].as_array_mut()).flatten();
    let chain = chains.into_iter().find(|chain| chain["name"] == web().as_str()).unwrap();
    let manager = &mut chain["filters"].as_array_mut().unwrap().last_mut().unwrap()["typed_config"];
    manager["http_filters"].as_array_mut().unwrap().insert(0, filter.clone());
    change(manager);
    let mut applier = Applier::default().skipping(SkippedFilters::parse(names).unwrap());
    let listeners = listeners_of(applier.apply(update(ResourceType::Listener, &file)));
    (applier, listeners)
}

fn named(name: &str, type_name: &str, fields: Value) -> Value {
    let mut config = fields;
    config["@type"] = format!("type.googleapis.com/{type_name}").into();
    json!({"name": name, "typed_config": config})
}

fn lua() -> Value {
    named("mine", LUA, json!({"inline_code": "function envoy_on_request(handle) end"}))
}

#[test]
fn a_named_filter_that_is_not_known_is_left_out_with_what_routes_say_of_it_and_listed() {
    let per_route = |manager: &mut Value| {
        let host = &mut manager["route_config"]["virtual_hosts"][0];
        let config = json!({"mine": {"@type": format!("type.googleapis.com/{LUA}PerRoute"), "disabled": true}});
        host["typed_per_filter_config"] = config.clone();
        host["routes"][0]["typed_per_filter_config"] = config;
    };
    for (names, is_served) in [("mine", true), ("other, mine", true), ("other", false), (LUA, false)] {
        let (applier, listeners) = applied(names, &lua(), per_route);
        let expected = if is_served { Vec::new() } else { vec![web()] };
        assert_eq!(refused_chains(&listeners), expected, "{names}");
        let report = applier.report();
        assert_eq!(report.listed.get(&(LUA.to_owned(), "skipped".to_owned())), is_served.then_some(&1), "{names}");
        assert_eq!(report.refused.keys().cloned().collect::<Vec<_>>(), expected, "{names}");
    }
    assert_eq!(crate::coverage::missing(LUA, "skipped"), Some("the filter is left out, as WAYPOINT_SKIP_FILTERS says"));
}

#[test]
fn the_place_of_a_filter_that_is_left_out_is_told() {
    let names = || SkippedFilters::parse("mine").unwrap();
    let mut file = fixture("istiod-1.31/01-plain", "Listener");
    let edit = |listener: &mut Value, name: &str| {
        if listener["name"] != name {
            return;
        }
        let chain = listener["resource"]["filter_chains"].as_array_mut().unwrap().iter_mut();
        let mut managers = chain.filter_map(|chain| {
            chain["filters"].as_array_mut().unwrap().last_mut().unwrap()["typed_config"]["http_filters"].as_array_mut()
        });
        managers.next().unwrap().insert(0, lua());
    };
    file["resources"].as_array_mut().unwrap().iter_mut().for_each(|listener| edit(listener, "connect_terminate"));
    let mut applier = Applier::default().skipping(names());
    let sent = update(ResourceType::Listener, &file);
    let listeners = listeners_of(applier.apply(sent.clone()));
    assert_eq!((refused_chains(&listeners), listeners.terminate_refused.len()), (Vec::new(), 0));
    let places = sent.resources.iter().flat_map(|resource| applier.places(ResourceType::Listener, resource));
    let place = places.into_iter().find(|place| place.type_name == LUA).unwrap();
    assert_eq!((place.object.as_str(), place.field.as_str()), ("connect_terminate", "skipped"));
    assert_eq!(place.path, "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config");
}

#[test]
fn a_policy_is_never_left_out_whatever_it_is_called() {
    // One that is known is obeyed, ...
    let rules = json!({"rules": {"action": "DENY", "policies": {"all": {"permissions": [{"any": true}], "principals": [{"any": true}]}}}});
    let (_, listeners) = applied("mine", &named("mine", "envoy.extensions.filters.http.rbac.v3.RBAC", rules.clone()), |_| {});
    let ChainKind::Http(http) = &listeners.chains[web().as_str()].kind else { panic!("it is served") };
    assert_eq!(http.filters.len(), 1);
    // ... and all others refuse the chain.
    let struct_of = |type_name: &str, value: &Value| {
        named("mine", "udpa.type.v1.TypedStruct", json!({"type_url": format!("type.googleapis.com/{type_name}"), "value": value}))
    };
    let nested = json!({"type_url": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", "value": rules});
    for filter in [
        struct_of("envoy.extensions.filters.http.oauth2.v3.OAuth2", &json!({})),
        struct_of("envoy.extensions.filters.http.rbac.v3.RBAC", &rules),
        struct_of("udpa.type.v1.TypedStruct", &nested),
        struct_of("", &json!({})),
        named(
            "mine",
            "envoy.extensions.common.matching.v3.ExtensionWithMatcher",
            json!({"extension_config": named("inner", "envoy.extensions.filters.http.rbac.v3.RBAC", rules.clone())}),
        ),
    ] {
        let (_, listeners) = applied("mine", &filter, |_| {});
        assert_eq!(refused_chains(&listeners), [web()], "{filter}");
    }
    // What routes say of a policy stays, too.
    let per_route = |manager: &mut Value| {
        let config = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"});
        manager["route_config"]["virtual_hosts"][0]["typed_per_filter_config"] = json!({"mine": config});
    };
    assert_eq!(refused_chains(&applied("mine", &lua(), per_route).1), [web()]);
    for names in ["envoy.filters.http.rbac", "mine, envoy.filters.http.jwt_authn", "envoy.filters.network.ext_authz", "", "a,,b"] {
        assert_eq!(SkippedFilters::parse(names), None, "{names}");
    }
}

#[test]
fn what_is_known_or_comes_by_discovery_is_not_left_out() {
    let fault = named("mine", "envoy.extensions.filters.http.fault.v3.HTTPFault", json!({"upstream_cluster": "c"}));
    assert_eq!(refused_chains(&applied("mine", &fault, |_| {}).1), [web()], "a known filter with a field that is not obeyed");
    let source = json!({"config_source": {"ads": {}, "resource_api_version": "V3"}, "type_urls": [format!("type.googleapis.com/{LUA}")]});
    let discovered = json!({"name": "mine", "config_discovery": source});
    let (_, listeners) = applied("mine", &discovered, |_| {});
    assert_eq!(refused_chains(&listeners), [web()], "it waits for the filter");
}

#[test]
fn fields_that_nobody_knows_are_still_found_beside_a_filter_that_is_left_out() {
    for (has_unknown, expected) in [(false, Vec::new()), (true, vec![web()])] {
        let mut sent = plain_listeners();
        edit_manager(&mut sent, "main_internal", &web(), |manager, extra| {
            put_first(manager, LUA, &json!({"inline_code": ""}));
            if has_unknown {
                prost::encoding::uint32::encode(9999, &1, extra);
            }
        });
        let mut applier = Applier::default().skipping(SkippedFilters::parse("policy").unwrap());
        assert_eq!(refused_chains(&listeners_of(applier.apply(sent))), expected);
    }
}
