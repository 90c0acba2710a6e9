//! Where a part of Envoy's configuration came from, as `kubectl` names it.
//!
//! Not for: deciding anything. What cannot be traced back has no origin, which is said by leaving it out.

use std::fmt;

use model::refusal::PolicyRule;
use serde_json::Value;

/// An object as `kubectl` names it: `VirtualService shop/reviews`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Object {
    pub(super) kind: String,
    /// Namespace and name, or what else is known of it.
    pub(super) name: String,
}

impl Object {
    pub(super) fn new(kind: &str, name: &str) -> Self {
        Self { kind: kind.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.kind, self.name)
    }
}

/// What a chain's or cluster's name says: `inbound-vip|80|http/v1|web.shop.svc.cluster.local` is port 80 of Service `shop/web`, subset `v1`.
struct Name<'a> {
    owner: Object,
    port: &'a str,
    subset: Option<&'a str>,
}

fn parse(name: &str) -> Option<Name<'_>> {
    let mut parts = name.splitn(4, '|');
    let (_kind, port, protocol, host) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let subset = protocol.split_once('/').map(|(_, subset)| subset);
    let service = host.split_once(".svc.").and_then(|(service, _)| service.split_once('.'));
    let owner = match service {
        Some((service, namespace)) => Object::new("Service", &format!("{namespace}/{service}")),
        None => Object::new("ServiceEntry", &format!("of {host}")),
    };
    Some(Name { owner, port, subset })
}

/// The object that a chain or cluster is there for.
pub(super) fn owner(name: &str) -> Object {
    parse(name).map_or_else(|| Object::new("Gateway", "of this waypoint"), |name| name.owner)
}

/// The same with its port, `Service shop/web, port 80`; what is there for no object by its own name.
pub(super) fn short_name(name: &str) -> String {
    let Some(Name { owner, port, subset }) = parse(name) else { return name.to_owned() };
    let subset = subset.map(|subset| format!(", subset {subset}")).unwrap_or_default();
    format!("{owner}, port {port}{subset}")
}

/// The same with its name in Envoy's configuration.
pub(super) fn object_name(name: &str) -> String {
    if parse(name).is_some() { format!("{}  [{name}]", short_name(name)) } else { name.to_owned() }
}

/// The object that the nearest `metadata.filter_metadata.istio.config` on the way to `path` names: `VirtualService shop/reviews`. None as
/// well if the path does not lead into it at all.
pub(super) fn origin(object: &Value, path: &str) -> Option<String> {
    let mut found = config_object(object).map(|object| object.to_string());
    let mut at = object;
    for (place, step) in steps(path).into_iter().enumerate() {
        let inner = match step {
            // Paths of what could not be compiled leave it out.
            Step::Field(name) => field(at, name).or_else(|| field(field(at, "typed_config")?, name)),
            Step::Member(key) => member(at, key),
        };
        at = match inner {
            Some(inner) => inner,
            None if place == 0 => return None,
            None => break,
        };
        found = config_object(at).map(|object| object.to_string()).or(found);
    }
    policy(path).or(found)
}

/// `ns[shop]-policy[reviews]-rule[0]` anywhere in a path: `AuthorizationPolicy shop/reviews, rule 0`.
pub(super) fn policy(path: &str) -> Option<String> {
    let PolicyRule { policy, rule: Some(rule) } = PolicyRule::of(path) else { return None };
    Some(format!("AuthorizationPolicy {policy}, rule {rule}"))
}

/// The object that made a route or cluster, if it says so.
pub(super) fn config_object(at: &Value) -> Option<Object> {
    let metadata = field(at, "metadata").and_then(|metadata| field(metadata, "filter_metadata"))?;
    let config = metadata["istio"]["config"].as_str()?;
    Some(kubernetes_object(config, at["name"].as_str().unwrap_or_default()))
}

/// `/apis/networking.istio.io/v1/namespaces/shop/virtual-service/reviews`, with the name of what it made, as people say it.
fn kubernetes_object(config: &str, made: &str) -> Object {
    let parts: Vec<_> = config.split('/').collect();
    let ["", "apis", _, _, "namespaces", namespace, kind, name] = parts.as_slice() else { return Object::new("object", config) };
    let kind: String = kind
        .split('-')
        .map(|word| word.chars().next().map_or(String::new(), |first| first.to_ascii_uppercase().to_string() + &word[first.len_utf8()..]))
        .collect();
    if !name.contains('~') {
        return Object::new(&kind, &format!("{namespace}/{name}"));
    }
    // What istiod makes of HTTPRoutes is one VirtualService of this form per host; rules without a name of their own have that of the route.
    let of_route = made.strip_prefix(*namespace).and_then(|rest| rest.strip_prefix('.')).and_then(|rest| rest.rsplit_once('.'));
    let name = match of_route.filter(|(_, rule)| rule.parse::<u32>().is_ok()) {
        Some((route, _)) => format!("{namespace}/{route}"),
        None => format!("in {namespace} for {}", name.rsplit('~').next().unwrap_or(name)),
    };
    Object::new("HTTPRoute or GRPCRoute", &name)
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
            {"name": "shop.web.v1.0", "metadata": of("virtual-service/shop~web.shop.svc.cluster.local")},
            {"name": "named", "metadata": of("virtual-service/shop~9080~web.shop.svc.cluster.local")},
        ]);
        let chain = json!({"filters": [{"typedConfig": {"routeConfig": {"virtualHosts": [{"name": "a.b:80", "routes": routes}]}}}]});
        let compiled = origin(&chain, "filters[0].route_config.virtual_hosts[a.b:80].routes[first].match");
        assert_eq!(compiled.as_deref(), Some("VirtualService shop/reviews"));
        let at = |rest: &str| origin(&chain, &format!("filters[0].typed_config.route_config.virtual_hosts[a.b:80].{rest}"));
        assert_eq!(at("routes[first].route.cluster").as_deref(), Some("VirtualService shop/reviews"));
        assert_eq!(at("routes[1]").as_deref(), Some("HTTPRoute or GRPCRoute in shop for web.shop.svc.cluster.local"));
        assert_eq!(at("routes[3].match").as_deref(), Some("HTTPRoute or GRPCRoute shop/web.v1"));
        assert_eq!(at("routes[4]"), at("routes[1]"));
        assert_eq!(at("routes[first].route.of_the_future").as_deref(), Some("VirtualService shop/reviews"));
        assert_eq!((at("routes[plain].name"), at("nowhere")), (None, None));
        let cluster = json!({"metadata": of("destination-rule/web"), "lb_policy": "RANDOM"});
        assert_eq!(origin(&cluster, "lb_policy").as_deref(), Some("DestinationRule shop/web"));
        assert_eq!(origin(&cluster, "filters[0].typed_config"), None);
        let policy = "filters[0].typed_config.rules.policies[ns[shop]-policy[reviews-allow]-rule[3]].permissions[0]";
        assert_eq!(super::policy(policy).as_deref(), Some("AuthorizationPolicy shop/reviews-allow, rule 3"));
        let in_listener = format!("filter_chains[default].{policy}");
        assert_eq!(super::policy(&in_listener).as_deref(), Some("AuthorizationPolicy shop/reviews-allow, rule 3"));
    }
}
