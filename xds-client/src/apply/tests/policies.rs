//! An unreadable policy never lets more through.

use super::*;

const DB: &str = "inbound-vip|5432|tcp|db.shop.svc.cluster.local";

/// A filter with one policy, HTTP or TCP.
fn rbac(place: &str, rules: &str, action: &str, principal: &Value) -> Value {
    filter_of(place, rules, action, &json!({"permissions": [{"any": true}], "principals": [principal]}))
}

fn filter_of(place: &str, rules: &str, action: &str, policy: &Value) -> Value {
    let mut filter = json!({
        "name": format!("envoy.filters.{place}.rbac"),
        "typed_config": {
            "@type": format!("type.googleapis.com/envoy.extensions.filters.{place}.rbac.v3.RBAC"),
            rules: {"action": action, "policies": {"ns[shop]-policy[new]-rule[0]": policy}},
        },
    });
    if place == "network" {
        filter["typed_config"]["stat_prefix"] = json!("tcp.");
    }
    filter
}

/// The recorded mesh, a chain of it changed.
fn with(chain: &str, change: impl FnOnce(&mut Value)) -> Update {
    let mut file = fixture("istiod-1.31/01-plain", "Listener");
    let listeners = file["resources"].as_array_mut().unwrap();
    let chains = listeners.iter_mut().filter_map(|listener| listener["resource"]["filter_chains"].as_array_mut()).flatten();
    change(chains.into_iter().find(|one| one["name"] == chain).unwrap());
    update(ResourceType::Listener, &file)
}

fn with_filter(chain: &str, filter: &Value) -> Update {
    with(chain, |chain| {
        let filters = chain["filters"].as_array_mut().unwrap();
        let place = filters.last_mut().unwrap();
        match place["typed_config"].get_mut("http_filters").and_then(Value::as_array_mut) {
            Some(http) => http.insert(0, filter.clone()),
            None => filters.insert(0, filter.clone()),
        }
    })
}

fn served(applier: &mut Applier, update: Update, chain: &str) -> Arc<model::chain::Chain> {
    Arc::clone(&listeners_of(applier.apply(update)).chains[chain])
}

/// The one policy that refuses everything, if a chain has nothing else.
fn denying(chain: &model::chain::Chain) -> Option<&str> {
    let rbac = match &chain.kind {
        ChainKind::Http(http) => match http.filters.as_slice() {
            [HttpFilter::Rbac(rbac)] => rbac,
            _ => return None,
        },
        ChainKind::Tcp(tcp) => match tcp.rbac.as_slice() {
            [rbac] => rbac,
            _ => return None,
        },
        ChainKind::Refused { .. } => return None,
    };
    let [policy] = rbac.policies() else { return None };
    let all = matches!(policy.permissions.as_slice(), [model::rbac::Permission::Any])
        && matches!(policy.principals.as_slice(), [model::rbac::Principal::Any]);
    (rbac.action == RbacAction::Deny && all).then_some(&*policy.name)
}

fn unreadable() -> [Value; 12] {
    [
        json!({"authenticated": {"principal_name": {"exact": "spiffe://td/ns/a/sa/b"}}}),
        json!({"direct_remote_ip": {"address_prefix": "10.0.0", "prefix_len": 8}}),
        json!({"remote_ip": {"address_prefix": "10.0.0.0", "prefix_len": 33}}),
        json!({"filter_state": {"key": "io.istio.peer_principal", "string_match": {"safe_regex": {"regex": "((a{200}){200}){20}"}}}}),
        json!({"filter_state": {"key": "another", "string_match": {"exact": "a"}}}),
        json!({"not_id": {"and_ids": {"ids": [{"any": true}, {}]}}}),
        // What Envoy does not take: read as it stands, the first would hold for everybody, and the second for nobody.
        json!({"and_ids": {"ids": []}}),
        json!({"or_ids": {"ids": []}}),
        json!({"not_id": {"or_ids": {"ids": []}}}),
        json!({"url_path": {"path": {"prefix": ""}}}),
        json!({"metadata": {"filter": "envoy.filters.http.jwt_authn", "path": [], "value": {"present_match": true}, "invert": true}}),
        json!({"header": {"name": "", "present_match": true}}),
    ]
}

/// Policies without any condition of one kind: a DENY would never match again, and what was good before has to stay.
#[test]
fn a_policy_without_permissions_or_principals_leaves_what_was_or_refuses_everything() {
    let any = json!([{"any": true}]);
    for (permissions, principals) in [(json!([]), any.clone()), (any.clone(), json!([])), (json!([]), json!([]))] {
        let policy = json!({"permissions": permissions, "principals": principals});
        for (chain, place) in [(web(), "http"), (DB.to_owned(), "network")] {
            for mode in [OnRefusedPolicy::KeepLastGood, OnRefusedPolicy::Deny] {
                let mut applier = Applier::new(mode);
                let good = served(&mut applier, with_filter(&chain, &rbac(place, "rules", "DENY", &json!({"any": true}))), &chain);
                let after = served(&mut applier, with_filter(&chain, &filter_of(place, "rules", "DENY", &policy)), &chain);
                match mode {
                    OnRefusedPolicy::KeepLastGood => assert!(Arc::ptr_eq(&good, &after), "{policy}"),
                    OnRefusedPolicy::Deny => assert!(denying(&after).is_some(), "{policy}"),
                }
            }
        }
    }
}

#[test]
fn an_unreadable_policy_leaves_what_was_or_refuses_everything() {
    for (at, principal) in unreadable().iter().enumerate() {
        let (chain, place) = if at % 2 == 0 { (web(), "http") } else { (DB.to_owned(), "network") };
        for (rules, action) in [("rules", "ALLOW"), ("rules", "DENY"), ("shadow_rules", "DENY")] {
            let bad = rbac(place, rules, action, principal);
            let readable = rbac(place, "rules", "ALLOW", &json!({"any": true}));
            for mode in [OnRefusedPolicy::KeepLastGood, OnRefusedPolicy::Deny] {
                let mut applier = Applier::new(mode);
                let first = served(&mut applier, with_filter(&chain, &bad), &chain);
                assert!(matches!(first.kind, ChainKind::Refused { .. }), "{bad}");
                let good = served(&mut applier, with_filter(&chain, &readable), &chain);
                assert!(denying(&good).is_none() && !matches!(good.kind, ChainKind::Refused { .. }));
                let after = served(&mut applier, with_filter(&chain, &bad), &chain);
                match mode {
                    OnRefusedPolicy::KeepLastGood => assert!(Arc::ptr_eq(&good, &after), "{bad}"),
                    OnRefusedPolicy::Deny => assert_eq!(denying(&after), Some("ns[shop]-policy[new]-rule[0]"), "{bad}"),
                }
                assert_eq!(applier.report().stale_chains, [chain.as_str()]);
            }
        }
    }
}

/// Envoy takes none there; read as it stands, an ALLOW of what is not a header would let every connection in.
#[test]
fn a_condition_on_headers_in_a_policy_of_connections_is_unreadable() {
    let header = json!({"header": {"name": "x-a", "present_match": true}});
    let not = json!({"not_id": {"or_ids": {"ids": [header]}}});
    let of_permission = json!({"permissions": [{"not_rule": header}], "principals": [{"any": true}]});
    for rules in ["rules", "shadow_rules"] {
        for bad in [rbac("network", rules, "ALLOW", &not), filter_of("network", rules, "DENY", &of_permission)] {
            let mut applier = Applier::new(OnRefusedPolicy::Deny);
            let good = served(&mut applier, with_filter(DB, &rbac("network", "rules", "ALLOW", &json!({"any": true}))), DB);
            assert!(denying(&good).is_none());
            assert_eq!(denying(&served(&mut applier, with_filter(DB, &bad), DB)), Some("ns[shop]-policy[new]-rule[0]"), "{bad}");
        }
    }
}

#[test]
fn what_is_no_policy_leaves_what_was_unless_everything_is_refused_already() {
    let unreadable_route = |chain: &mut Value| {
        let manager = chain["filters"].as_array_mut().unwrap().last_mut().unwrap();
        let route = &mut manager["typed_config"]["route_config"]["virtual_hosts"][0]["routes"][0];
        route["match"] = json!({"connect_matcher": {}});
    };
    let mut applier = Applier::new(OnRefusedPolicy::Deny);
    let good = served(&mut applier, update(ResourceType::Listener, &fixture("istiod-1.31/01-plain", "Listener")), &web());
    let other = served(&mut applier, with(&web(), unreadable_route), &web());
    assert!(Arc::ptr_eq(&good, &other), "a route is no policy");
    let bad = rbac("http", "rules", "DENY", &json!({"authenticated": {}}));
    assert!(denying(&served(&mut applier, with_filter(&web(), &bad), &web())).is_some());
    let still = served(&mut applier, with(&web(), unreadable_route), &web());
    assert_eq!(denying(&still), Some("unreadable-policy"), "what was meant since may be stronger than the last good version");
}

#[test]
fn a_filter_of_policies_that_is_not_known_counts_as_one() {
    let filter = json!({"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"}});
    let mut applier = Applier::new(OnRefusedPolicy::Deny);
    served(&mut applier, update(ResourceType::Listener, &fixture("istiod-1.31/01-plain", "Listener")), &web());
    assert_eq!(denying(&served(&mut applier, with_filter(&web(), &filter), &web())), Some("unreadable-policy"));
}

const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const HEADER_MUTATION: &str = "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";

/// A filter whose configuration comes by discovery.
fn discovered(name: &str) -> Value {
    json!({"name": name, "config_discovery": {"config_source": {"ads": {}}, "type_urls": [RBAC, HEADER_MUTATION]}})
}

/// What comes of it.
fn extension(name: &str, config: &Value) -> Update {
    let resource = json!({"name": name, "typed_config": config});
    let type_url = ResourceType::Extension.type_url();
    update(ResourceType::Extension, &json!({"type_url": type_url, "resources": [{"name": name, "resource": resource}]}))
}

/// A chain that was obeyed and waits for an extension now; the chain as it was obeyed.
fn waiting(name: &str) -> (Applier, Arc<model::chain::Chain>) {
    let mut applier = Applier::new(OnRefusedPolicy::Deny);
    let good = served(&mut applier, update(ResourceType::Listener, &fixture("istiod-1.31/01-plain", "Listener")), &web());
    let waits = served(&mut applier, with_filter(&web(), &discovered(name)), &web());
    assert!(Arc::ptr_eq(&good, &waits), "nothing was refused");
    assert_eq!(applier.report().stale_chains, [web()]);
    (applier, good)
}

#[test]
fn a_chain_that_waits_serves_what_was_until_what_it_waits_for_is_refused_and_may_be_a_policy() {
    let readable = rbac("http", "rules", "ALLOW", &json!({"any": true}));
    let (mut applier, _) = waiting("late");
    let came = served(&mut applier, extension("late", &readable["typed_config"]), &web());
    assert!(denying(&came).is_none() && applier.report().stale_chains.is_empty());

    let unknown = json!({"@type": "type.googleapis.com/envoy.config.rbac.v3.Policy"});
    let deprecated = json!({"header": {"key": "a", "value": "b"}, "append": true});
    let conditional = json!({"permissions": [{"any": true}], "principals": [{"any": true}], "condition": {}});
    for (config, expected) in [
        (
            json!({"@type": RBAC, "rules": {"policies": {"ns[shop]-policy[late]-rule[0]": conditional}}}),
            Some("ns[shop]-policy[late]-rule[0]"),
        ),
        (Value::Null, Some("unreadable-policy")),
        (json!({"@type": HEADER_MUTATION, "mutations": {"request_mutations": [{"append": deprecated}]}}), None),
        (unknown, None),
    ] {
        let (mut applier, good) = waiting("late");
        let outcome = applier.apply(extension("late", &config));
        assert!(matches!(outcome.applied.verdict, Verdict::Nack(_)), "{config}");
        let after = Arc::clone(&listeners_of(outcome).chains[&*web()]);
        assert_eq!(denying(&after), expected, "{config}");
        assert!(expected.is_some() || Arc::ptr_eq(&good, &after), "{config}");
        let came = served(&mut applier, extension("late", &readable["typed_config"]), &web());
        assert!(denying(&came).is_none() && applier.report().stale_chains.is_empty(), "{config}");
    }
}

#[test]
fn a_chain_that_waits_refuses_everything_for_a_policy_of_its_own_that_cannot_be_read_and_not_for_a_route() {
    let with_waiting = |filter: Option<&Value>, change: fn(&mut Value)| {
        with(&web(), |chain| {
            let manager = &mut chain["filters"].as_array_mut().unwrap().last_mut().unwrap()["typed_config"];
            let filters = manager["http_filters"].as_array_mut().unwrap();
            filters.splice(0..0, std::iter::once(discovered("late")).chain(filter.cloned()));
            change(manager);
        })
    };
    let (mut applier, good) = waiting("late");
    let route = |manager: &mut Value| manager["route_config"]["virtual_hosts"][0]["routes"][0]["match"] = json!({"connect_matcher": {}});
    assert!(Arc::ptr_eq(&good, &served(&mut applier, with_waiting(None, route), &web())));
    let bad = rbac("http", "rules", "DENY", &json!({"direct_remote_ip": {"address_prefix": "10.0.0", "prefix_len": 8}}));
    let denied = served(&mut applier, with_waiting(Some(&bad), |_| {}), &web());
    assert_eq!(denying(&denied), Some("ns[shop]-policy[new]-rule[0]"));
}

#[test]
fn what_a_route_says_of_a_filter_of_policies_counts_as_one_and_of_others_not() {
    let with_route = |name: &str, of: &str| {
        with(&web(), |chain| {
            let manager = &mut chain["filters"].as_array_mut().unwrap().last_mut().unwrap()["typed_config"];
            let rbac = rbac("http", "rules", "ALLOW", &json!({"any": true}));
            manager["http_filters"].as_array_mut().unwrap().insert(0, rbac);
            let config = json!({"@type": format!("type.googleapis.com/envoy.extensions.filters.http.{of}")});
            manager["route_config"]["virtual_hosts"][0]["routes"][0]["typed_per_filter_config"] = json!({name: config});
        })
    };
    let denies = |name, of| {
        let mut applier = Applier::new(OnRefusedPolicy::Deny);
        served(&mut applier, update(ResourceType::Listener, &fixture("istiod-1.31/01-plain", "Listener")), &web());
        denying(&served(&mut applier, with_route(name, of), &web())).map(str::to_owned)
    };
    assert_eq!(denies("envoy.filters.http.rbac", "rbac.v3.RBACPerRoute").as_deref(), Some("unreadable-policy"));
    assert_eq!(denies("not.in.the.chain", "rbac.v3.RBACPerRoute").as_deref(), Some("unreadable-policy"), "it may be one");
    assert_eq!(denies("envoy.filters.http.cors", "lua.v3.LuaPerRoute"), None);
}

const JWT: &str = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication";
const KEYS: &str = r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "alg": "HS256"}]}"#;

fn http_filter(name: &str, type_url: &str, config: &Value) -> Value {
    let mut filter = json!({"name": name, "typed_config": config});
    filter["typed_config"]["@type"] = type_url.into();
    filter
}

/// A filter of tokens with one provider, of which `more` is said.
fn tokens(provider: &Value, requires: &Value) -> Value {
    let mut said = json!({"issuer": "https://issuer.example", "local_jwks": {"inline_string": KEYS}});
    for (name, value) in provider.as_object().unwrap() {
        match value {
            Value::Null => drop(said.as_object_mut().unwrap().remove(name)),
            value => said[name] = value.clone(),
        }
    }
    let rules = json!([{"match": {"prefix": "/"}, "requires": requires}]);
    http_filter("envoy.filters.http.jwt_authn", JWT, &json!({"providers": {"origins-0": said}, "rules": rules}))
}

/// Configurations of tokens that cannot be obeyed: each would let more through if a part of it were passed over.
fn unreadable_tokens() -> Vec<Value> {
    let by_name = json!({"provider_name": "origins-0"});
    let no_keys = json!({"local_jwks": null});
    let remote = |uri: &Value| json!({"local_jwks": null, "remote_jwks": {"http_uri": uri}});
    vec![
        tokens(&no_keys, &by_name),
        tokens(&json!({"local_jwks": {"filename": "/keys"}}), &by_name),
        tokens(&remote(&json!({"uri": "https://a.example/keys", "timeout": "1s"})), &by_name),
        tokens(&remote(&json!({"uri": "no uri", "cluster": "a", "timeout": "1s"})), &by_name),
        tokens(&json!({"subjects": {"exact": "alice"}}), &by_name),
        tokens(&json!({"require_expiration": true}), &by_name),
        tokens(&json!({"from_headers": [{"name": ""}]}), &by_name),
        tokens(&json!({"from_headers": [{"name": "a b"}]}), &by_name),
        tokens(&json!({"claim_to_headers": [{"header_name": "a b", "claim_name": "sub"}]}), &by_name),
        tokens(&json!({}), &json!({"provider_name": "another"})),
        tokens(&json!({}), &json!({})),
        tokens(&json!({}), &json!({"requires_any": {}})),
        tokens(&json!({}), &json!({"allow_missing_or_failed": {}})),
        tokens(&json!({}), &json!({"requires_any": {"requirements": [by_name, {"allow_missing_or_failed": {}}]}})),
        json!({"name": "envoy.filters.http.jwt_authn", "typed_config": {"@type": JWT, "filter_state_rules": {"name": "a"}}}),
        json!({"name": "envoy.filters.http.jwt_authn", "typed_config": {"@type": JWT, "requirement_map": {"a": {}}}}),
    ]
}

/// Configurations of external services that cannot be obeyed.
fn unreadable_services(place: &str) -> Vec<Value> {
    let name = format!("envoy.filters.{place}.ext_authz");
    let type_url = format!("type.googleapis.com/envoy.extensions.filters.{place}.ext_authz.v3.ExtAuthz");
    let grpc = json!({"envoy_grpc": {"cluster_name": "authz"}});
    let filter = |more: &Value| {
        let mut config = json!({"grpc_service": grpc, "transport_api_version": "V3"});
        if place == "network" {
            config["stat_prefix"] = json!("tcp.");
        }
        for (name, value) in more.as_object().unwrap() {
            config[name] = value.clone();
        }
        http_filter(&name, &type_url, &config)
    };
    let key = |key: &str| json!([{"key": key}]);
    let enabled =
        |filter: &str, path: Value, value: Value| json!({"filter_enabled_metadata": {"filter": filter, "path": path, "value": value}});
    let prefix = json!({"string_match": {"prefix": "istio-ext-authz"}});
    let mut all = vec![
        filter(&json!({"grpc_service": {"envoy_grpc": {}}})),
        filter(&json!({"grpc_service": {"google_grpc": {"target_uri": "a", "stat_prefix": "a"}}})),
        filter(&json!({"transport_api_version": "V2"})),
        filter(&enabled("another", key("istio_ext_authz_shadow_effective_policy_id"), prefix.clone())),
        filter(&enabled("envoy.filters.http.rbac", key("another"), prefix)),
        filter(&enabled("envoy.filters.http.rbac", key("istio_ext_authz_shadow_effective_policy_id"), json!({"present_match": true}))),
    ];
    if place == "http" {
        all.extend([
            filter(&json!({"status_on_error": {"code": "Continue"}})),
            filter(&json!({"with_request_body": {"max_request_bytes": 0}})),
            filter(&json!({"shadow_mode": true})),
            filter(&json!({"decoder_header_mutation_rules": {}})),
            filter(&json!({"metadata_context_namespaces": ["a"]})),
        ]);
    }
    all
}

/// What stays served when `bad` comes after a good version; both settings.
fn after(chain: &str, good: Update, bad: &impl Fn() -> Update) -> [(bool, Option<String>); 2] {
    let resources = good.resources;
    [OnRefusedPolicy::KeepLastGood, OnRefusedPolicy::Deny].map(|mode| {
        let mut applier = Applier::new(mode);
        let good = served(&mut applier, Update { of: ResourceType::Listener, resources: resources.clone(), removed: Vec::new() }, chain);
        assert!(denying(&good).is_none() && !matches!(good.kind, ChainKind::Refused { .. }));
        let outcome = applier.apply(bad());
        assert!(matches!(outcome.applied.verdict, Verdict::Nack(_)), "it is not refused");
        assert_eq!(applier.report().stale_chains, [chain]);
        let after = Arc::clone(&listeners_of(outcome).chains[chain]);
        (Arc::ptr_eq(&good, &after), denying(&after).map(str::to_owned))
    })
}

#[test]
fn tokens_and_services_that_cannot_be_read_leave_what_was_or_refuse_everything() {
    let good_tokens = tokens(&json!({}), &json!({"provider_name": "origins-0"}));
    let services = |place, chain: &str| unreadable_services(place).into_iter().map(|bad| (chain.to_owned(), bad)).collect::<Vec<_>>();
    let tokens = unreadable_tokens().into_iter().map(|bad| (web(), bad));
    for (chain, bad) in tokens.chain(services("http", &web())).chain(services("network", DB)) {
        // Once before, and once without any policy at all.
        let readable = if chain == DB { rbac("network", "rules", "ALLOW", &json!({"any": true})) } else { good_tokens.clone() };
        for good in [with_filter(&chain, &readable), with(&chain, |_| {})] {
            let [kept, denied] = after(&chain, good, &|| with_filter(&chain, &bad));
            assert_eq!(kept, (true, None), "{bad}");
            assert!(denied.1.is_some(), "{bad}: {denied:?}");
        }
    }
}

/// Who a caller is comes by filter state: what would set it otherwise is not obeyed, and nothing is let in by it.
#[test]
fn filter_state_that_would_name_callers_otherwise_leaves_what_was() {
    const STATE: &str = "type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config";
    let state = |key: &str, text: &str| {
        let format = json!({"text_format_source": {"inline_string": text}});
        json!({"object_key": key, "factory_key": "istio.hashable_string", "format_string": format, "shared_with_upstream": "ONCE"})
    };
    let rows = [
        state("io.istio.peer_principal", "%REQ(X-WHO)%"),
        state("io.istio.peer_principal", "spiffe://cluster.local/ns/clients/sa/frontend"),
        state("io.istio.peer_principal", "%DOWNSTREAM_PEER_URI_SAN%, more"),
        json!({"object_key": "io.istio.peer_principal"}),
        state("another", "%DOWNSTREAM_PEER_URI_SAN%"),
    ];
    for row in rows {
        let filter = http_filter("connect_authority", STATE, &json!({"on_request_headers": [row]}));
        let in_chain = after(&web(), with(&web(), |_| {}), &|| with_filter(&web(), &filter));
        assert!(in_chain.iter().all(|(is_kept, denying)| *is_kept || denying.is_some()), "{row}: {in_chain:?}");
        for mode in [OnRefusedPolicy::KeepLastGood, OnRefusedPolicy::Deny] {
            let mut applier = Applier::new(mode);
            let good = listeners_of(applier.apply(with(&web(), |_| {})));
            let mut file = fixture("istiod-1.31/01-plain", "Listener");
            let terminate = file["resources"].as_array_mut().unwrap().iter_mut().find(|one| one["name"] == "connect_terminate").unwrap();
            let manager = &mut terminate["resource"]["filter_chains"][0]["filters"][0]["typed_config"];
            manager["http_filters"].as_array_mut().unwrap().insert(0, filter.clone());
            let outcome = applier.apply(update(ResourceType::Listener, &file));
            assert!(matches!(outcome.applied.verdict, Verdict::Nack(_)), "{row}");
            let kept = listeners_of(outcome);
            assert_eq!(format!("{:?}", good.terminate), format!("{:?}", kept.terminate), "{row}");
            assert!(good.chains.iter().all(|(name, chain)| Arc::ptr_eq(chain, &kept.chains[name])), "{row}");
        }
    }
}
