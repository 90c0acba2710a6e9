//! Where a part of Envoy's configuration came from, as `kubectl` names it.
//!
//! Not for: deciding anything. What cannot be traced back has no origin, which is said by leaving it out.

use model::refusal::PolicyRule;
use serde_json::Value;

/// The Kubernetes object behind a chain or cluster: `inbound-vip|80|http|web.shop.svc.cluster.local` is port 80 of Service `shop/web`.
pub(super) fn object_name(name: &str) -> String {
    let mut parts = name.splitn(4, '|');
    let (Some(_kind), Some(port), Some(protocol), Some(host)) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return name.to_owned();
    };
    let subset = protocol.split_once('/').map(|(_, subset)| format!(", subset {subset}")).unwrap_or_default();
    let service = host.split_once(".svc.").and_then(|(service, _)| service.split_once('.'));
    match service {
        Some((service, namespace)) => format!("Service {namespace}/{service}, port {port}{subset}  [{name}]"),
        None => format!("ServiceEntry of {host}, port {port}{subset}  [{name}]"),
    }
}

/// The object that the nearest `metadata.filter_metadata.istio.config` on the way to `path` names: `VirtualService shop/reviews`.
pub(super) fn origin(object: &Value, path: &str) -> Option<String> {
    let mut found = policy(path);
    let mut at = object;
    note(at, &mut found);
    for step in steps(path) {
        at = match step {
            Step::Field(name) => field(at, name)?,
            Step::Member(key) => member(at, key)?,
        };
        note(at, &mut found);
    }
    found
}

/// `ns[shop]-policy[reviews]-rule[0]` anywhere in a path: `AuthorizationPolicy shop/reviews, rule 0`.
pub(super) fn policy(path: &str) -> Option<String> {
    let PolicyRule { policy, rule: Some(rule) } = PolicyRule::of(path) else { return None };
    Some(format!("AuthorizationPolicy {policy}, rule {rule}"))
}

fn note(at: &Value, found: &mut Option<String>) {
    let config =
        field(at, "metadata").and_then(|metadata| field(metadata, "filter_metadata")).and_then(|all| all["istio"]["config"].as_str());
    if let Some(config) = config {
        *found = Some(kubernetes_name(config));
    }
}

/// `/apis/networking.istio.io/v1/namespaces/shop/virtual-service/reviews` as people say it.
fn kubernetes_name(config: &str) -> String {
    let parts: Vec<_> = config.split('/').collect();
    let ["", "apis", _, _, "namespaces", namespace, kind, name] = parts.as_slice() else { return config.to_owned() };
    let kind: String = kind
        .split('-')
        .map(|word| word.chars().next().map_or(String::new(), |first| first.to_ascii_uppercase().to_string() + &word[first.len_utf8()..]))
        .collect();
    // What istiod makes of an HTTPRoute is a VirtualService of this form.
    if name.contains('~') {
        return format!("HTTPRoute or GRPCRoute in {namespace} for {}", name.rsplit('~').next().unwrap_or(name));
    }
    format!("{kind} {namespace}/{name}")
}

/// A field by its original name; Go writes camel case.
pub(super) fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let object = value.as_object()?;
    object.get(name).or_else(|| object.get(&camel_case(name)))
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |all, word| {
        let mut letters = word.chars();
        letters.next().map_or(all.clone(), |letter| all + &letter.to_ascii_uppercase().to_string() + letters.as_str())
    })
}

/// A member of a list by its name or place, or of a map by its key.
fn member<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Array(list) => {
            let named = list.iter().find(|one| one["name"] == key);
            named.or_else(|| key.parse::<usize>().ok().and_then(|at| list.get(at)))
        }
        other => other.get(key),
    }
}

enum Step<'a> {
    Field(&'a str),
    Member(&'a str),
}

/// `a.b[c.d[0]].e` in its steps; keys may hold brackets and dots.
fn steps(path: &str) -> Vec<Step<'_>> {
    let (mut steps, mut depth, mut start) = (Vec::new(), 0_usize, 0);
    for (at, letter) in path.char_indices() {
        match letter {
            '[' => {
                if depth == 0 {
                    steps.extend(Some(&path[start..at]).filter(|name| !name.is_empty()).map(Step::Field));
                    start = at + 1;
                }
                depth += 1;
            }
            ']' if depth > 0 => {
                depth -= 1;
                if depth == 0 {
                    steps.push(Step::Member(&path[start..at]));
                    start = at + 1;
                }
            }
            '.' if depth == 0 => {
                steps.extend(Some(&path[start..at]).filter(|name| !name.is_empty()).map(Step::Field));
                start = at + 1;
            }
            _ => {}
        }
    }
    steps.extend(Some(&path[start..]).filter(|name| !name.is_empty()).map(Step::Field));
    steps
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_named_as_kubectl_names_them() {
        assert_eq!(
            object_name("inbound-vip|80|http/v1|web.shop.svc.cluster.local"),
            "Service shop/web, port 80, subset v1  [inbound-vip|80|http/v1|web.shop.svc.cluster.local]"
        );
        assert_eq!(
            object_name("outbound|443||api.example.com"),
            "ServiceEntry of api.example.com, port 443  [outbound|443||api.example.com]"
        );
        assert_eq!(object_name("connect_terminate"), "connect_terminate");
    }

    #[test]
    fn a_part_is_traced_to_the_nearest_object_that_made_it() {
        let of =
            |name: &str| json!({"filter_metadata": {"istio": {"config": format!("/apis/networking.istio.io/v1/namespaces/shop/{name}")}}});
        let routes = json!([
            {"name": "first", "metadata": of("virtual-service/reviews"), "route": {"cluster": "c"}},
            {"metadata": of("virtual-service/shop~web.shop.svc.cluster.local")},
            {"name": "plain"},
        ]);
        let chain = json!({"filters": [{"typedConfig": {"routeConfig": {"virtualHosts": [{"name": "a.b:80", "routes": routes}]}}}]});
        let at = |rest: &str| origin(&chain, &format!("filters[0].typed_config.route_config.virtual_hosts[a.b:80].{rest}"));
        assert_eq!(at("routes[first].route.cluster").as_deref(), Some("VirtualService shop/reviews"));
        assert_eq!(at("routes[1]").as_deref(), Some("HTTPRoute or GRPCRoute in shop for web.shop.svc.cluster.local"));
        assert_eq!((at("routes[plain].name"), at("nowhere")), (None, None));
        let policy = "filters[0].typed_config.rules.policies[ns[shop]-policy[reviews-allow]-rule[3]].permissions[0]";
        assert_eq!(super::policy(policy).as_deref(), Some("AuthorizationPolicy shop/reviews-allow, rule 3"));
        let in_listener = format!("filter_chains[default].{policy}");
        assert_eq!(super::policy(&in_listener).as_deref(), Some("AuthorizationPolicy shop/reviews-allow, rule 3"));
    }
}
