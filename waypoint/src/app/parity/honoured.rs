//! What is served, and what is not used because something beside it is refused, by the objects that `kubectl` names.
//!
//! Not for: judging; which chains and clusters are served has been found out before. Invariant: an object that istiod's configuration does
//! not name is not guessed; what it made is then told by what can be known of it, or of the service alone.

use std::collections::{BTreeMap, BTreeSet};

use model::chain::ChainKind;
use model::refusal::PolicyRule;
use serde_json::Value;
use xds_client::observer::Change;
use xds_client::translate::cluster::PLUMBING;

use super::origin::{Object, config_object, field, owner};
use super::{Kind, Parts};

/// Which chains and clusters are served, by name.
#[derive(Debug, Default)]
pub(super) struct Served {
    chains: BTreeSet<String>,
    clusters: BTreeSet<String>,
}

impl Served {
    /// Notes a change as the proxy would make it.
    pub(super) fn note(&mut self, change: &Change) {
        match change {
            Change::Listeners(listeners) => {
                let served = listeners.chains.iter().filter(|(_, chain)| !matches!(chain.kind, ChainKind::Refused { .. }));
                self.chains = served.map(|(name, _)| name.to_string()).collect();
            }
            Change::ClusterUpserted(cluster) => {
                self.clusters.insert(cluster.name.to_string());
            }
            Change::ClusterRemoved(name) => {
                self.clusters.remove(name);
            }
            // One that was refused serves its last good version, if there was one.
            _ => {}
        }
    }

    fn holds(&self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Chain => self.chains.contains(name),
            Kind::Cluster => self.clusters.contains(name),
        }
    }
}

/// What an object has become: the parts of the configuration that came from it.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub(super) chains: BTreeSet<String>,
    pub(super) clusters: BTreeSet<String>,
    /// Chain, virtual host, and the route's name or place.
    pub(super) routes: Vec<String>,
    /// Rules of a policy, in all chains together.
    pub(super) rules: usize,
}

impl Made {
    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.clusters.is_empty()
    }
}

/// What of an object is used, and what is not.
#[derive(Debug, Default)]
pub(super) struct Use {
    pub(super) used: Made,
    pub(super) unused: Made,
}

/// Every object that the configuration names.
#[derive(Debug, Default)]
pub(super) struct Objects(pub(super) BTreeMap<Object, Use>);

impl Objects {
    pub(super) fn of(parts: &Parts, served: &Served) -> Self {
        let mut all = Self::default();
        // What carries tunnels is no cluster here.
        for ((kind, name), json) in parts.iter().filter(|((kind, name), _)| *kind == Kind::Chain || !PLUMBING.contains(&name.as_str())) {
            let is_served = served.holds(*kind, name);
            let mut visit = Visit { all: &mut all, name, is_served };
            match kind {
                Kind::Chain => visit.chain(json),
                Kind::Cluster => visit.cluster(json),
            }
        }
        all
    }

    /// The chains, clusters and routes of all, each once: by the services that have them.
    pub(super) fn count(&self, of: impl Fn(&Use) -> &Made) -> (usize, usize, usize) {
        let made = || self.0.values().map(&of);
        let chains: BTreeSet<_> = made().flat_map(|made| &made.chains).collect();
        let clusters: BTreeSet<_> = made().flat_map(|made| &made.clusters).collect();
        (chains.len(), clusters.len(), made().map(|made| made.routes.len()).sum())
    }
}

/// One chain or cluster, whose parts go to the objects they came from.
struct Visit<'a> {
    all: &'a mut Objects,
    name: &'a str,
    is_served: bool,
}

impl Visit<'_> {
    fn made(&mut self, by: Object) -> &mut Made {
        let of = self.all.0.entry(by).or_default();
        if self.is_served { &mut of.used } else { &mut of.unused }
    }

    fn in_chain(&mut self, by: Object) -> &mut Made {
        let name = self.name.to_owned();
        let made = self.made(by);
        made.chains.insert(name);
        made
    }

    fn cluster(&mut self, json: &Value) {
        let name = self.name.to_owned();
        self.made(owner(&name)).clusters.insert(name.clone());
        if let Some(rule) = config_object(json) {
            self.made(rule).clusters.insert(name);
        }
    }

    fn chain(&mut self, json: &Value) {
        self.in_chain(owner(self.name));
        for config in list(json, "filters").filter_map(|filter| field(filter, "typed_config")) {
            self.policies(config);
            self.telemetry(config);
            for inner in list(config, "http_filters").filter_map(|filter| field(filter, "typed_config")) {
                self.policies(inner);
                self.telemetry(inner);
            }
            if let Some(table) = field(config, "route_config") {
                self.routes(table);
            }
        }
    }

    fn routes(&mut self, table: &Value) {
        for host in list(table, "virtual_hosts") {
            for (at, route) in list(host, "routes").enumerate() {
                let by = config_object(route).unwrap_or_else(|| owner(self.name));
                let name = text(route, "name").filter(|name| !name.is_empty()).map_or_else(|| at.to_string(), str::to_owned);
                let route = format!("{} {} {name}", self.name, text(host, "name").unwrap_or_default());
                self.in_chain(by).routes.push(route);
            }
        }
    }

    fn policies(&mut self, config: &Value) {
        for rules in ["rules", "shadow_rules"].into_iter().filter_map(|name| field(config, name)) {
            for name in field(rules, "policies").and_then(Value::as_object).into_iter().flat_map(|policies| policies.keys()) {
                let PolicyRule { policy, rule: Some(_) } = PolicyRule::of(name) else { continue };
                self.in_chain(Object::new("AuthorizationPolicy", &policy)).rules += 1;
            }
        }
        // istiod does not say which RequestAuthentication it is.
        for provider in field(config, "providers").and_then(Value::as_object).into_iter().flat_map(|providers| providers.values()) {
            if let Some(issuer) = text(provider, "issuer") {
                self.in_chain(Object::new("RequestAuthentication", &format!("of issuer {issuer}")));
            }
        }
    }

    /// Neither does it of Telemetry, which the mesh's configuration has the same effect as.
    fn telemetry(&mut self, config: &Value) {
        let is_stats = field(config, "@type").and_then(Value::as_str).is_some_and(|url| url.ends_with("/stats.PluginConfig"));
        let known = [
            ("access logs", list(config, "access_log").next().is_some()),
            ("spans", field(config, "tracing").is_some()),
            ("metrics", is_stats || text(config, "type_url").is_some_and(|url| url.ends_with("/stats.PluginConfig"))),
        ];
        for (name, _) in known.into_iter().filter(|(_, is_there)| *is_there) {
            self.in_chain(Object::new("Telemetry or mesh configuration", name));
        }
    }
}

fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    field(value, name).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    field(value, name).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parts() -> Parts {
        let istio =
            |kind: &str| json!({"filter_metadata": {"istio": {"config": format!("/apis/networking.istio.io/v1/namespaces/shop/{kind}")}}});
        let rules = |names: [&str; 2]| json!({"rules": {"policies": {names[0]: {}, names[1]: {}}}});
        let chain = json!({"filters": [{"typed_config": {
            "http_filters": [
                {"typed_config": rules(["ns[shop]-policy[readers]-rule[0]", "ns[shop]-policy[readers]-rule[1]"])},
                {"typedConfig": {"providers": {"origins-0": {"issuer": "https://issuer.example"}}}},
                {"typed_config": {"@type": "type.googleapis.com/stats.PluginConfig"}},
            ],
            "routeConfig": {"virtualHosts": [{"name": "host", "routes": [
                {"name": "first", "metadata": istio("virtual-service/reviews")},
                {"name": "shop.rule.v1.0", "metadata": istio("virtual-service/shop~web.shop.svc.cluster.local")},
                {},
            ]}]},
        }}]});
        let tcp = json!({"filters": [{"typed_config": rules(["ns[shop]-policy[readers]-rule[0]", "not-of-istiod"])}]});
        Parts::from([
            ((Kind::Chain, "inbound-vip|80|http|web.shop.svc.cluster.local".to_owned()), chain),
            ((Kind::Chain, "inbound-vip|90|tcp|web.shop.svc.cluster.local".to_owned()), tcp),
            (
                (Kind::Cluster, "inbound-vip|80|http|web.shop.svc.cluster.local".to_owned()),
                json!({"metadata": istio("destination-rule/web")}),
            ),
            ((Kind::Cluster, "agent".to_owned()), json!({})),
            ((Kind::Cluster, "main_internal".to_owned()), json!({})),
        ])
    }

    #[test]
    fn parts_go_to_the_objects_that_they_came_from() {
        let mut served = Served::default();
        served.chains.insert("inbound-vip|80|http|web.shop.svc.cluster.local".to_owned());
        served.clusters.extend(parts().into_keys().filter(|(kind, _)| *kind == Kind::Cluster).map(|(_, name)| name));
        let objects = Objects::of(&parts(), &served);
        let of = |object: &str| {
            let found = objects.0.iter().find(|(one, _)| one.to_string() == object).unwrap_or_else(|| panic!("no {object} in {objects:?}"));
            let counts = |made: &Made| (made.chains.len(), made.clusters.len(), made.routes.len(), made.rules);
            (counts(&found.1.used), counts(&found.1.unused))
        };
        let none = (0, 0, 0, 0);
        assert_eq!(of("Service shop/web"), ((1, 1, 1, 0), (1, 0, 0, 0)));
        assert_eq!(of("VirtualService shop/reviews"), ((1, 0, 1, 0), none));
        assert_eq!(of("HTTPRoute or GRPCRoute shop/rule.v1"), ((1, 0, 1, 0), none));
        assert_eq!(of("AuthorizationPolicy shop/readers"), ((1, 0, 0, 2), (1, 0, 0, 1)));
        assert_eq!(of("RequestAuthentication of issuer https://issuer.example"), ((1, 0, 0, 0), none));
        assert_eq!(of("DestinationRule shop/web"), ((0, 1, 0, 0), none));
        assert_eq!(of("Telemetry or mesh configuration metrics"), ((1, 0, 0, 0), none));
        assert_eq!(of("Gateway of this waypoint"), ((0, 1, 0, 0), none));
        assert_eq!(objects.0.len(), 8);
        assert_eq!((objects.count(|of| &of.used), objects.count(|of| &of.unused)), ((1, 2, 3), (1, 0, 0)));
    }
}
