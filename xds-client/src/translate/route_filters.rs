//! What routes say of filters of their chain: faults, CORS, rate limits, changes of headers, external authorization.
//!
//! Filters before all policies and tokens are met first; those behind any of them are met last, and so are the policies behind those.
//! Invariant: a filter that is not in the chain does nothing, whatever routes say of it (Envoy).

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3 as cors;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as fault;
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use envoy_types::pb::google::protobuf::{Any, BoolValue};
use http::HeaderValue;
use model::cors::{CorsList, CorsPolicy};
use model::ext_authz::RouteExternal;
use model::fraction::Fraction;
use model::headers::Mutations;
use model::rbac::Rbac;
use model::route::{Abort, Fault, RouteFilter};

use super::mutation::{HEADER_MUTATION_PER_ROUTE, Mutating, Parts};
use super::rate_limit::{Limit, Said};
use super::{Problem, Translated, ext_authz, matcher, open, positive_duration, rate_limit, type_name};

pub(super) const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
pub(super) const CORS: &str = "envoy.extensions.filters.http.cors.v3.Cors";
pub(super) const RATE_LIMIT: &str = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
const EXT_AUTHZ_PER_ROUTE: &str = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute";
const CORS_POLICY: &str = "envoy.extensions.filters.http.cors.v3.CorsPolicy";

type Filters = Box<[RouteFilter]>;

/// Per-route configuration, by the name of the filter.
pub(super) type Configs = HashMap<String, Any>;

#[derive(Debug)]
enum Kind {
    /// With the faults of routes that say nothing.
    Fault(Option<Fault>),
    Cors,
    /// With the limit of routes that say nothing.
    RateLimit(Option<Limit>),
    /// With the changes on routes that say nothing.
    Mutate(Mutating, Arc<Mutations>),
    Rbac(Arc<Rbac>),
    GrpcWeb,
    Closed(Arc<str>),
}

#[derive(Debug)]
struct Slot {
    name: String,
    kind: Kind,
    /// It comes before policies and tokens.
    is_first: bool,
}

/// A chain's filters that routes configure, in the chain's order.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    /// Limits that several routes have from what holds them, by where that is: each is one bucket.
    shared: RefCell<HashMap<*const Any, Limit>>,
    external: Vec<Arc<str>>,
    /// A policy or token was met.
    is_judged: bool,
}

impl Slots {
    /// The chain has a fault filter of this name, with this configuration.
    pub(super) fn add_fault(&mut self, name: &str, config: &Any, path: &str) -> Translated<()> {
        let own = fault(&open(config, path)?, path)?;
        self.add(name, Kind::Fault(Some(own).filter(|own| own.delay.is_some() || own.abort.is_some())));
        Ok(())
    }

    /// The chain has a CORS filter of this name.
    pub(super) fn add_cors(&mut self, name: &str) {
        self.add(name, Kind::Cors);
    }

    /// The chain has an external authorization of this name.
    pub(super) fn add_external(&mut self, name: &str) {
        if !self.external.iter().any(|known| **known == *name) {
            self.external.push(name.into());
        }
    }

    /// What a route, whose levels come most specific first, says of external authorization.
    pub(super) fn external(&self, levels: &[&Configs], path: &str) -> Translated<Box<[RouteExternal]>> {
        let said = self.external.iter().filter_map(|name| {
            let configs: Vec<_> = levels.iter().filter_map(|level| level.get(&**name)).collect();
            let path = format!("{path}.typed_per_filter_config[{name}]");
            (!configs.is_empty()).then(|| {
                let values = configs.into_iter().map(|config| typed(config, EXT_AUTHZ_PER_ROUTE, &path)).collect::<Translated<Vec<_>>>()?;
                ext_authz::of_route(&values, name, &path)
            })
        });
        said.collect()
    }

    /// The chain has a rate limit of this name, with this configuration.
    pub(super) fn add_rate_limit(&mut self, name: &str, config: &Any, path: &str) -> Translated<()> {
        let own = rate_limit::limit(&open(config, path)?, path)?;
        self.add(name, Kind::RateLimit(own));
        Ok(())
    }

    /// The chain has a filter of this name that changes headers.
    pub(super) fn add_mutation(&mut self, name: &str, config: &Any, path: &str) -> Translated<()> {
        let tells = self.slots.iter().any(|slot| matches!(slot.kind, Kind::Cors | Kind::RateLimit(_)));
        let mutating = Mutating::of(&open(config, path)?, !tells, path)?;
        let own = Arc::new(mutating.on(Vec::new()));
        self.add(name, Kind::Mutate(mutating, own));
        Ok(())
    }

    /// The chain makes gRPC of gRPC-Web.
    pub(super) fn add_grpc_web(&mut self, name: &str) {
        self.add(name, Kind::GrpcWeb);
    }

    /// The chain has an extension of this name that does not run, and lets nothing pass then.
    pub(super) fn add_closed(&mut self, name: &str) {
        self.add(name, Kind::Closed(name.into()));
    }

    /// The chain has policies behind one of these filters.
    pub(super) fn add_rbac(&mut self, name: &str, rbac: Rbac) {
        self.add(name, Kind::Rbac(Arc::new(rbac)));
    }

    fn add(&mut self, name: &str, kind: Kind) {
        self.slots.push(Slot { name: name.to_owned(), kind, is_first: false });
    }

    /// A policy, or tokens, come next. False: filters of this kind stand between it and others like it, so that it is to be met as one of
    /// them.
    pub(super) fn judge(&mut self) -> bool {
        if !std::mem::replace(&mut self.is_judged, true) {
            self.slots.iter_mut().for_each(|slot| slot.is_first = true);
        }
        self.slots.iter().all(|slot| slot.is_first)
    }

    /// What requests without a route meet: before policies and tokens, and behind them.
    pub(super) fn routeless(&self, path: &str) -> Translated<[Filters; 2]> {
        let (first, late) = self.filters(&[], None, path)?;
        Ok([first, late])
    }

    /// Whether filters change answers, on any route.
    pub(super) fn changes_answers(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot.kind, Kind::Mutate(..)))
    }

    /// Whether there are filters before policies and tokens.
    pub(super) fn has_first(&self) -> bool {
        self.slots.iter().any(|slot| slot.is_first)
    }

    /// The filters of a route, whose levels come most specific first: those before policies, and those behind.
    /// `said`: what it says of limits if it forwards.
    pub(super) fn filters(&self, levels: &[&Configs], said: Option<Said<'_>>, path: &str) -> Translated<(Filters, Filters)> {
        let (mut first, mut late) = (Vec::new(), Vec::new());
        for slot in &self.slots {
            let path = format!("{path}.typed_per_filter_config[{}]", slot.name);
            let mut configs = levels.iter().filter_map(|level| level.get(&slot.name));
            let filter = match &slot.kind {
                Kind::Fault(own) => {
                    let told = configs.next().map(|config| fault(&typed(config, FAULT, &path)?, &path)).transpose()?;
                    told.or_else(|| own.clone()).map(|fault| RouteFilter::Fault(Box::new(fault)))
                }
                Kind::Cors if said.is_some() => {
                    let policies = configs.map(|config| typed(config, CORS_POLICY, &path)).collect::<Translated<Vec<_>>>()?;
                    cors(&policies, &path)?.map(|policy| RouteFilter::Cors(Box::new(policy)))
                }
                // Envoy answers no CORS for routes that do not forward.
                Kind::Cors => None,
                Kind::RateLimit(own) => {
                    let told = configs.next().map(|config| self.shared_limit(config, &path)).transpose()?;
                    let limit = told.or_else(|| own.clone());
                    limit.map(|one| Ok(RouteFilter::RateLimit(one.limit(), one.rules(said, &path)?))).transpose()?
                }
                Kind::Mutate(mutating, own) => {
                    let levels = configs.map(|config| Parts::of_level(&typed(config, HEADER_MUTATION_PER_ROUTE, &path)?, &path));
                    let levels = levels.collect::<Translated<Vec<_>>>()?;
                    Some(RouteFilter::Mutate(if levels.is_empty() { Arc::clone(own) } else { Arc::new(mutating.on(levels)) }))
                }
                Kind::Rbac(rbac) => Some(RouteFilter::Rbac(Arc::clone(rbac))),
                Kind::GrpcWeb => Some(RouteFilter::GrpcWeb),
                Kind::Closed(name) => Some(RouteFilter::Closed(Arc::clone(name))),
            };
            if slot.is_first { &mut first } else { &mut late }.extend(filter);
        }
        Ok((first.into(), late.into()))
    }

    /// The limit of a level, the same for all routes below it.
    fn shared_limit(&self, config: &Any, path: &str) -> Translated<Limit> {
        if let Some(known) = self.shared.borrow().get(&std::ptr::from_ref(config)) {
            return Ok(known.clone());
        }
        let limit = rate_limit::limit(&typed(config, RATE_LIMIT, path)?, path)?;
        let limit = limit.ok_or_else(|| Problem::new(format!("{path}.token_bucket"), "is not set"))?;
        self.shared.borrow_mut().insert(std::ptr::from_ref(config), limit.clone());
        Ok(limit)
    }
}

fn typed<M: prost::Message + Default>(config: &Any, expected: &str, path: &str) -> Translated<M> {
    if type_name(config) != expected {
        return Err(Problem::new(path, format!("{} is not {expected}", type_name(config))));
    }
    open(config, path)
}

fn fault(value: &fault::HttpFault, path: &str) -> Translated<Fault> {
    use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
    use fault::fault_abort::ErrorType;
    if !value.upstream_cluster.is_empty() || !value.downstream_nodes.is_empty() {
        return Err(Problem::new(path, "faults by cluster or node are not supported"));
    }
    if value.max_active_faults.is_some() || value.response_rate_limit.is_some() {
        return Err(Problem::new(path, "max_active_faults and response_rate_limit are not supported"));
    }
    let delay = match value.delay.as_ref() {
        None => None,
        Some(delay) => match &delay.fault_delay_secifier {
            Some(FaultDelaySecifier::FixedDelay(fixed)) => {
                positive_duration(Some(fixed), &format!("{path}.delay"))?.map(|fixed| (fixed, percent(delay.percentage.as_ref())))
            }
            _ => return Err(Problem::new(format!("{path}.delay"), "only a fixed_delay is supported")),
        },
    };
    let abort = match value.abort.as_ref() {
        None => None,
        Some(abort) => {
            let at = format!("{path}.abort");
            let how = match &abort.error_type {
                Some(ErrorType::HttpStatus(status)) => {
                    let status = u16::try_from(*status).ok().filter(|status| (200..600).contains(status));
                    Abort::Http(status.ok_or_else(|| Problem::new(&at, "the http_status is none"))?)
                }
                Some(ErrorType::GrpcStatus(status)) => Abort::Grpc(*status),
                _ => return Err(Problem::new(at, "only a http_status or grpc_status is supported")),
            };
            if !abort.response_body.is_empty() {
                return Err(Problem::new(at, "a response_body is not supported"));
            }
            Some((how, percent(abort.percentage.as_ref())))
        }
    };
    let headers = value.headers.iter().enumerate().map(|(at, one)| matcher::header(one, &format!("{path}.headers[{at}]")));
    Ok(Fault { delay, abort, headers: headers.collect::<Translated<_>>()? })
}

/// One policy of several levels, most specific first: each field is that of the first level which sets it (Envoy).
fn cors(levels: &[cors::CorsPolicy], path: &str) -> Translated<Option<CorsPolicy>> {
    let Some(first) = levels.first() else { return Ok(None) };
    let text = |of: fn(&cors::CorsPolicy) -> &str| levels.iter().map(of).find(|text| !text.is_empty());
    let value = |of: fn(&cors::CorsPolicy) -> &str| {
        let value = |text| HeaderValue::from_str(text).map_err(|_| Problem::new(path, format!("{text:?} cannot be a header's value")));
        text(of).map(value).transpose()
    };
    let list = |of| value(of).map(|list| list.map(|list| if list == "*" { CorsList::Asked } else { CorsList::These(list) }));
    let flag = |of: fn(&cors::CorsPolicy) -> &Option<BoolValue>| levels.iter().find_map(|level| of(level).as_ref()).map(|flag| flag.value);
    let origins = levels.iter().map(|level| &level.allow_origin_string_match).find(|origins| !origins.is_empty());
    let origins = origins.into_iter().flatten().map(|origin| matcher::string(origin, &format!("{path}.allow_origin_string_match")));
    Ok(Some(CorsPolicy {
        enabled: first.filter_enabled.as_ref().map_or(Fraction::ALL, runtime_fraction),
        origins: origins.collect::<Translated<_>>()?,
        methods: list(|level| &level.allow_methods)?,
        headers: list(|level| &level.allow_headers)?,
        exposed: value(|level| &level.expose_headers)?,
        max_age: value(|level| &level.max_age)?,
        credentials: flag(|level| &level.allow_credentials).unwrap_or(false),
        private_network: flag(|level| &level.allow_private_network_access).unwrap_or(false),
        forwards_others: flag(|level| &level.forward_not_matching_preflights).unwrap_or(true),
    }))
}

/// A share that a runtime could change, which there is none of.
pub(super) fn runtime_fraction(value: &RuntimeFractionalPercent) -> Fraction {
    percent(value.default_value.as_ref())
}

fn percent(value: Option<&FractionalPercent>) -> Fraction {
    let Some(value) = value else { return Fraction::NONE };
    let denominator = match DenominatorType::try_from(value.denominator) {
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Ok(DenominatorType::Hundred) | Err(_) => 100,
    };
    Fraction { numerator: value.numerator, denominator }
}
