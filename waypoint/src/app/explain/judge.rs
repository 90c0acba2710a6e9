//! What would become of a request, by what is published now.
//!
//! Invariant: the verdict is that of `filters::chain` and `filters::rbac`; the steps before it are those of `request` and `tcp`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use filters::chain::{Outcome, judge};
use filters::explain::{Values, policies, refusal, words};
use filters::ext_authz::{Progress, Step};
use filters::jwt::{Fetched, Known, TokenCache, TokenProblem, Unmet, authenticate};
use filters::rbac::{Decisions, Denial, RbacInput, RbacVerdict, decide, decide_chain};
use filters::route::select;
use http::header::HOST;
use http::{HeaderValue, Request, request};
use model::authority::Authority;
use model::chain::{ChainKind, EarlyFilter, HttpChain, HttpFilter};
use model::claims::TokenMetadata;
use model::dispatch::{Lookup, SniffedProtocol};
use model::jwt::RemoteKeys;
use model::rbac::{Mode, Rbac, RbacAction};
use model::refusal::PolicyRule;
use model::route::{Route, RouteAction, RouteFilter};
use model::stream_view::forwarded_for;
use serde::Serialize;
use telemetry::record::RequestRecord;

use super::endpoints::{Cluster, cluster, clusters};
use super::question::{Question, Spoken};
use crate::http::normalize::{SlashFound, request_in};
use crate::http::session::Protocol;
use crate::request::{NoPath, apply_edits, change_request, head_of, head_options, made_safe};
use crate::state::published::{Generation, Published, ServedChain};

/// Policies of one action that are shown; of more, the number.
const POLICIES_SHOWN_MAX: usize = 200;
/// Bytes of the text of one condition.
const CONDITION_BYTES_MAX: usize = 1024;

/// The answer.
#[derive(Debug, Serialize)]
pub(super) struct Explanation {
    pub(super) verdict: Verdict,
    /// The chain that the address leads to.
    pub(super) chain: String,
    /// What the client asks its tunnel for; none if the service has no address here.
    pub(super) destination: Option<SocketAddr>,
    /// The path as rules see it.
    pub(super) path: Option<String>,
    /// What came of its tokens; none where none are asked for.
    pub(super) tokens: Option<String>,
    /// Services that would be asked, by cluster and policy. Here they are not, and are taken to let it pass.
    pub(super) asked: Vec<String>,
    /// Filters of policies, in their order.
    pub(super) filters: Vec<Filter>,
    /// The route that it takes, or would have taken.
    pub(super) route: Option<Taken>,
    pub(super) clusters: Vec<Cluster>,
}

/// What becomes of it.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    pub(super) passes: bool,
    /// The status of a refusal, of TCP that of the CONNECT; none of what passes.
    pub(super) status: Option<u16>,
    /// In words.
    pub(super) because: String,
}

/// What one filter says.
#[derive(Debug, Serialize)]
pub(super) struct Filter {
    pub(super) action: &'static str,
    /// Whether it only says what it would do.
    pub(super) dry_run: bool,
    /// `refuses`, `allows`, `says nothing`.
    pub(super) says: &'static str,
    pub(super) policies: Vec<Shown>,
    pub(super) not_shown: usize,
}

/// One rule of a policy.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    pub(super) policy: String,
    pub(super) rule: Option<u32>,
    pub(super) matches: bool,
    pub(super) conditions: Vec<Condition>,
}

/// One condition.
#[derive(Debug, Serialize)]
pub(super) struct Condition {
    pub(super) met: bool,
    pub(super) text: String,
}

/// A route.
#[derive(Debug, Serialize)]
pub(super) struct Taken {
    pub(super) name: Option<String>,
    pub(super) does: String,
}

/// Finds the answer.
///
/// # Errors
/// The service is not known here.
pub(super) fn explain(published: &Published, question: &Question) -> Result<Explanation, String> {
    let generation = published.generation().ok_or("istiod has sent no listeners yet")?;
    let (name, destination) = find(&generation, question)?;
    let served = generation.chains.get(&name).ok_or_else(|| format!("there is no chain {name}"))?;
    let explanation = Explanation {
        verdict: refused(503, "config_rejected"),
        chain: name.to_string(),
        destination,
        path: None,
        tokens: None,
        asked: Vec::new(),
        filters: Vec::new(),
        route: None,
        clusters: Vec::new(),
    };
    Ok(match &served.chain.kind {
        ChainKind::Http(http) => of_http(published, question, (served, http), explanation),
        ChainKind::Tcp(tcp) => {
            let input = input(question, destination, None);
            let Early { mut filters, asked, refused } = early(&tcp.early, None, &input);
            let verdict = refused.unwrap_or_else(|| match decide_chain(&served.chain, &input, &mut Decisions::new()) {
                RbacVerdict::Pass => passed("all policies let it pass"),
                RbacVerdict::Deny(denial) => denied(&denial, &input),
            });
            filters.extend(tcp.rbac.iter().map(|rbac| filter(rbac, &input)));
            let clusters =
                tcp.clusters.iter().zip(tcp.turns.weights()).map(|(name, weight)| cluster(published, name, *weight, &[])).collect();
            Explanation { verdict, filters, asked, clusters, ..explanation }
        }
        ChainKind::Refused { reasons, .. } => {
            let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
            Explanation { verdict: refused(503, &format!("config_rejected: {}", reasons.join("; "))), ..explanation }
        }
    })
}

/// The chain that a service's address leads to, as a CONNECT is led.
fn find(generation: &Generation, question: &Question) -> Result<(Arc<str>, Option<SocketAddr>), String> {
    let dispatch = &generation.listeners.dispatch;
    let target = match &question.service {
        Authority::Address(_) => question.service.clone(),
        Authority::Host { host, port } => match address_of(dispatch.destinations(), host, *port)? {
            Some(address) => Authority::Address(address),
            None => question.service.clone(),
        },
    };
    let spoken = match question.spoken {
        Spoken::Http => SniffedProtocol::Http1,
        Spoken::Tcp => SniffedProtocol::Other,
    };
    let found = match dispatch.lookup(&target) {
        Lookup::Sniff(by) => by.lookup(spoken, &target),
        found => found,
    };
    match found {
        Lookup::Chain(name) => Ok((Arc::clone(name), target.address())),
        Lookup::Sniff(_) | Lookup::NotFound => Err(format!("nothing here serves {}: a CONNECT for it gets 404", question.service)),
    }
}

/// The lowest address of a service that has this name, or one that begins with it: of `inbound-vip|80|http|web.shop.svc.cluster.local` that is
/// `web.shop` too.
///
/// # Errors
/// Several services have names that begin with it, and none has it as a whole.
fn address_of<'a>(
    destinations: impl Iterator<Item = (SocketAddr, &'a Arc<str>)>,
    wanted: &str,
    port: u16,
) -> Result<Option<SocketAddr>, String> {
    let mut found: BTreeMap<&str, SocketAddr> = BTreeMap::new();
    for (address, chain) in destinations.filter(|(address, _)| address.port() == port) {
        let host = chain.splitn(4, '|').nth(3).unwrap_or_default();
        if host.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
            let lowest = found.entry(host).or_insert(address);
            *lowest = address.min(*lowest);
        }
    }
    match (found.get(wanted), found.len()) {
        (None, 2..) => Err(format!("{wanted}:{port} may be {}: which?", found.keys().copied().collect::<Vec<_>>().join(", "))),
        (whole, _) => Ok(whole.or(found.values().next()).copied()),
    }
}

fn input<'a>(
    question: &'a Question,
    destination: Option<SocketAddr>,
    request: Option<(&'a request::Parts, Option<&'a TokenMetadata>)>,
) -> RbacInput<'a> {
    RbacInput {
        head: request.map(|(parts, _)| head_of(parts)),
        peer_principal: Some(question.identity.as_str()),
        peer_address: question.address,
        forwarded_for: request.and_then(|_| forwarded_for(&question.headers)),
        destination,
        destination_port: question.service.port(),
        server_name: &question.server_name,
        claims: request.and_then(|(_, claims)| claims),
    }
}

fn of_http(
    published: &Published,
    question: &Question,
    (served, http): (&ServedChain, &HttpChain),
    explanation: Explanation,
) -> Explanation {
    let mut parts = match uniform(question, http) {
        Ok(parts) => parts,
        Err(verdict) => return Explanation { verdict, ..explanation },
    };
    let mut record = record(question, served, explanation.destination);
    let mut behind = Behind { filters: Vec::new(), verdict: None };
    let at_first = select(&http.routes, &head_of(&parts));
    let chosen = http.has_first_filters.then(|| {
        let met = at_first.map_or(&http.routeless[0], |(_, route)| &route.first_filters);
        behind.pass(met, (question, explanation.destination, None), (&mut record, &mut parts));
        at_first
    });
    if let Some(verdict) = behind.verdict {
        return Explanation { verdict, filters: behind.filters, ..explanation };
    }
    let Early { mut filters, asked, refused: refused_early } =
        early(&http.early, at_first.map(|(_, route)| &**route), &input(question, explanation.destination, Some((&parts, None))));
    if let Some(verdict) = refused_early {
        return Explanation { verdict, filters, asked, ..explanation };
    }
    let (tokens, claims) = match authenticated(published, http, &mut parts) {
        Ok(passed) => passed,
        Err(problem) => {
            let verdict = refused(problem.status(), &format!("by=token, detail={problem}"));
            return Explanation { verdict, tokens: Some(problem.to_string()), filters, asked, ..explanation };
        }
    };
    let (mut verdict, taken, is_over) = {
        let input = input(question, explanation.destination, Some((&parts, claims.as_ref())));
        filters.extend(http.filters.iter().map(|HttpFilter::Rbac(rbac)| filter(rbac, &input)));
        match judge(&served.chain, &input, chosen, &mut Decisions::new()) {
            Outcome::Route(_, route) => (passed("all policies let it pass"), Some(route), false),
            Outcome::NoRoute => (refused(404, "no route matches"), None, false),
            Outcome::Denied { by, route } => (denied(&by, &input), route, true),
            Outcome::Rejected => (refused(503, "config_rejected"), None, true),
        }
    };
    if !is_over {
        let met = taken.map_or(&http.routeless[1], |route| &route.filters);
        behind.pass(met, (question, explanation.destination, claims.as_ref()), (&mut record, &mut parts));
        filters.extend(behind.filters);
        verdict = behind.verdict.unwrap_or(verdict);
    }
    let path = parts.uri.path_and_query().map(ToString::to_string);
    let clusters = taken.map_or_else(Vec::new, |route| clusters(published, route));
    Explanation { verdict, path, tokens, filters, asked, route: taken.map(|route| route_of(route)), clusters, ..explanation }
}

/// Policies that stand behind other filters, and what those change before.
struct Behind {
    filters: Vec<Filter>,
    verdict: Option<Verdict>,
}

impl Behind {
    /// Passes filters as a request does; faults, limits and CORS are taken to let it pass.
    fn pass(
        &mut self,
        met: &[RouteFilter],
        (question, destination, claims): (&Question, Option<SocketAddr>, Option<&TokenMetadata>),
        (record, parts): (&mut RequestRecord, &mut request::Parts),
    ) {
        for one in met {
            match one {
                RouteFilter::Mutate(mutations) if change_request(record, mutations, parts).is_err() => {
                    self.verdict = Some(refused(503, "a change of its parameters gives the request no valid path"));
                }
                RouteFilter::Rbac(rbac) => {
                    let input = input(question, destination, Some((parts, claims)));
                    self.filters.push(filter(rbac, &input));
                    if let RbacVerdict::Deny(by) = decide(rbac, &input, &mut Decisions::new()) {
                        self.verdict = Some(denied(&by, &input));
                    }
                }
                RouteFilter::GrpcWeb => drop(filters::grpc_web::begin(&mut parts.headers)),
                RouteFilter::Closed(name) => {
                    self.verdict = Some(refused(503, &format!("the extension {name} is not run, and lets nothing pass then")));
                }
                RouteFilter::Mutate(_) | RouteFilter::Fault(_) | RouteFilter::Cors(_) | RouteFilter::RateLimit(..) => {}
            }
            if self.verdict.is_some() {
                return;
            }
        }
    }
}

/// What is judged before tokens.
struct Early {
    filters: Vec<Filter>,
    asked: Vec<String>,
    refused: Option<Verdict>,
}

/// Goes through it as a request does; a service that would be asked is taken to let it pass. `route`: where the request would go, which may turn
/// the question off.
fn early(all: &[EarlyFilter], route: Option<&Route>, input: &RbacInput<'_>) -> Early {
    let filters = all.iter().filter_map(|one| if let EarlyFilter::Rbac(rbac) = one { Some(filter(rbac, input)) } else { None }).collect();
    let mut told = Early { filters, asked: Vec::new(), refused: None };
    let mut progress = Progress::new(all);
    loop {
        match progress.next(input, || 0) {
            Step::Passed => return told,
            Step::Denied(by) => {
                told.refused = Some(denied(&by, input));
                return told;
            }
            Step::Unasked(service) | Step::Ask(service, _)
                if route.and_then(|route| route.external_of(service)).is_some_and(|route| route.is_off) => {}
            Step::Unasked(service) => {
                told.refused =
                    Some(refused(service.on_failure.status, "by=external, detail=it is not asked about this, and so refuses it"));
                return told;
            }
            Step::Ask(service, policy) => {
                let rule = policy.as_deref().map_or("the configuration".to_owned(), |policy| PolicyRule::of(policy).policy.to_string());
                told.asked.push(format!("{} because of {rule}; taken to let it pass", service.service.cluster()));
            }
        }
    }
}

/// What the chain's own changes to a request can ask of it.
fn record(question: &Question, served: &ServedChain, destination: Option<SocketAddr>) -> RequestRecord {
    let mut record = RequestRecord::new(Arc::clone(&served.telemetry), "HTTP/1.1");
    record.stream.source_identity = Some(question.identity.clone());
    record.stream.downstream_local = destination;
    record.stream.downstream_remote = Some(SocketAddr::new(question.address, 0));
    record
}

/// What tokens say, the request changed as they change it; in words, where any are looked for. Nobody waits for keys here: those that are not
/// there yet cannot be had.
fn authenticated(
    published: &Published,
    http: &HttpChain,
    parts: &mut request::Parts,
) -> Result<(Option<String>, Option<TokenMetadata>), TokenProblem> {
    let Some(authn) = &http.jwt else { return Ok((None, None)) };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |since| since.as_secs());
    let fetched = |remote: &Arc<RemoteKeys>| published.key_sets.get(remote).map_or(Fetched::Failed, |set| set.now());
    let known = Known { cache: &mut TokenCache::default(), fetched: &fetched, now };
    let passed = authenticate(authn, &head_of(parts), known).map_err(|unmet| match unmet {
        Unmet::Refused(problem) => problem,
        Unmet::Needs(_) => TokenProblem::FetchFailed,
    })?;
    // No path is made of a path by taking a parameter out; if one were, the request would be refused.
    apply_edits(passed.edits, parts).map_err(|NoPath| TokenProblem::Verification)?;
    let words = if passed.metadata.is_some() { "accepted" } else { "none, and none is required" };
    Ok((Some(words.to_owned()), passed.metadata))
}

/// The request as filters see it.
fn uniform(question: &Question, http: &HttpChain) -> Result<request::Parts, Verdict> {
    let mut request = Request::new(());
    *request.method_mut() = question.method.clone();
    *request.uri_mut() = question.path.clone();
    *request.headers_mut() = question.headers.clone();
    let (mut parts, ()) = request.into_parts();
    if !parts.headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::try_from(question.service.to_string())
    {
        parts.headers.insert(HOST, host);
    }
    request_in(&mut parts, Protocol::Http1, &head_options(&http.options))
        .map_err(|problem| refused(problem.status().as_u16(), &problem.to_string()))?;
    match parts.extensions.get::<SlashFound>() {
        Some(found) if found.redirects_to(parts.uri.path()) && !filters::route::is_grpc_content(&parts.headers) => {
            return Err(refused(307, &format!("its path has an escaped slash: it is told to ask for {}", parts.uri)));
        }
        Some(_) => return Err(refused(400, "its path has an escaped slash")),
        None => {}
    }
    made_safe(&mut parts.headers, &http.options);
    Ok(parts)
}

fn filter(rbac: &Rbac, input: &RbacInput<'_>) -> Filter {
    let decided = |decisions: Decisions<'_>| decisions.iter().find(|decision| decision.counts()).map(|decision| decision.refuses());
    let mut decisions = Decisions::new();
    // What it says is in the decisions, also of a dry run.
    let _ = decide(rbac, input, &mut decisions);
    let says = match (rbac.action, decided(decisions)) {
        (_, Some(true)) => "refuses",
        (RbacAction::Allow, _) => "allows",
        (RbacAction::Log, Some(false)) => "audits",
        (RbacAction::Log | RbacAction::Deny, _) => "says nothing",
    };
    let text = |clause| words(clause, Values::Shown, CONDITION_BYTES_MAX);
    let shown = policies(rbac, input).take(POLICIES_SHOWN_MAX).map(|one| Shown {
        policy: one.policy.rule.policy.to_string(),
        rule: one.policy.rule.rule,
        matches: one.matches,
        conditions: one.conditions.iter().map(|condition| Condition { met: condition.is_met, text: text(condition.clause) }).collect(),
    });
    Filter {
        action: rbac.action.as_str(),
        dry_run: rbac.mode == Mode::DryRun,
        says,
        policies: shown.collect(),
        not_shown: rbac.policies().len().saturating_sub(POLICIES_SHOWN_MAX),
    }
}

fn passed(because: &str) -> Verdict {
    Verdict { passes: true, status: None, because: because.to_owned() }
}

fn refused(status: u16, because: &str) -> Verdict {
    Verdict { passes: false, status: Some(status), because: because.to_owned() }
}

/// In the words of logs and spans.
fn denied(denial: &Denial<'_>, input: &RbacInput<'_>) -> Verdict {
    let refusal = refusal(denial, input, || true);
    let fields: Vec<_> = refusal.fields().map(|(field, text)| format!("{}={text}", field.key())).collect();
    refused(403, &fields.join(", "))
}

fn route_of(route: &Route) -> Taken {
    let does = match &route.action {
        RouteAction::Forward(_) => "forwards it".to_owned(),
        RouteAction::Redirect(redirect) => format!("redirects it with {}", redirect.status),
        RouteAction::Direct(direct) => format!("answers it with {}", direct.status),
    };
    Taken { name: route.name.as_deref().map(str::to_owned), does }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_whole_of_one_service_or_the_beginning_of_only_one() {
        let chains: Vec<(SocketAddr, Arc<str>)> =
            [("[fd00::1]:80", "web.a"), ("10.0.0.9:80", "web.a"), ("10.0.0.10:80", "web.b"), ("10.0.0.2:80", "db.a")]
                .map(|(address, service)| {
                    let chain = format!("inbound-vip|80|http|{service}.svc.cluster.local");
                    (address.parse().expect("an address"), chain.into())
                })
                .into();
        let find = |name| address_of(chains.iter().map(|(address, chain)| (*address, chain)), name, 80);
        let address = |text: &str| Ok(Some(text.parse().expect("an address")));
        assert_eq!(find("web.a"), address("10.0.0.9:80"));
        assert_eq!(find("web.b.svc.cluster.local"), address("10.0.0.10:80"));
        assert_eq!(find("db"), address("10.0.0.2:80"));
        assert_eq!(find("web.a.svc.cluster.loc"), Ok(None));
        assert_eq!(find("web"), Err("web:80 may be web.a.svc.cluster.local, web.b.svc.cluster.local: which?".to_owned()));
        assert_eq!(address_of(chains.iter().map(|(address, chain)| (*address, chain)), "web", 81), Ok(None));
    }
}
