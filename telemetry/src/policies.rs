//! What policies decided: counted by rule, and the latest refusals kept to be looked at.
//!
//! Not for: deciding, or saying why; a [`Refusal`] comes from who decided. Invariants: labels come from configuration only; counts are
//! exact, the list is of the latest kinds of refusal and may miss some while many workers refuse at once.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::SystemTime;

use http::Method;
use model::identity::SpiffeId;
use model::rbac::{Decision, Mode, RbacAction};
use model::refusal::{PolicyRule, Refusal};
use parking_lot::Mutex;

use crate::metrics::{Counter, Exposition, Series, push_pair, write_counters};
use crate::record::{Head, StreamRecord};

/// Series of decisions, enforced and dry runs each; what comes later is counted under the policy `overflow`.
pub const POLICY_SERIES_MAX: usize = 10_000;
/// Rules whose series a worker remembers; then it looks them up anew.
const POLICIES_REMEMBERED_MAX: usize = 4096;
/// Kinds of refusals that are kept; the one that was met longest ago goes.
pub const REFUSALS_KEPT_MAX: usize = 128;
/// Bytes of a path that are kept.
const PATH_BYTES_MAX: usize = 256;

/// A label's value where no policy is meant.
const NONE: &str = "none";
/// The same for what found no place.
const OVERFLOW: &str = "overflow";
/// The action of a policy that has an authorization service decide.
const CUSTOM: &str = "CUSTOM";

type SeriesByLabels = BTreeMap<Arc<str>, Arc<Series<Counter>>>;

/// The process's counts and list.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    enforced: Mutex<SeriesByLabels>,
    dry_run: Mutex<SeriesByLabels>,
    seen: Mutex<VecDeque<SeenRefusal>>,
}

/// A refusal, and how often one like it was met.
#[derive(Clone, Debug)]
pub struct SeenRefusal {
    /// Whether it would only have been one.
    pub is_dry_run: bool,
    /// When it was last met.
    pub last: SystemTime,
    /// How often, since it is in the list.
    pub count: u64,
    /// The chain.
    pub chain: Arc<str>,
    /// Who asked.
    pub source: Option<SpiffeId>,
    /// The method; none of TCP.
    pub method: Option<Method>,
    /// The path, without its query, cut; none of TCP.
    pub path: Option<Box<str>>,
    /// Why.
    pub refusal: Refusal,
}

impl SeenRefusal {
    fn new(stream: &StreamRecord, head: Option<&Head>, refusal: &Refusal, is_dry_run: bool) -> Self {
        Self {
            is_dry_run,
            last: stream.start_time,
            count: 1,
            chain: Arc::clone(&stream.chain.name),
            source: stream.source_identity.clone(),
            method: head.map(|head| head.method.clone()),
            path: head.and_then(|head| head.path.as_ref()).map(|path| cut(path.path()).into()),
            refusal: refusal.clone(),
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        self.is_dry_run == other.is_dry_run
            && self.path == other.path
            && self.method == other.method
            && self.source == other.source
            && self.chain == other.chain
            && self.refusal == other.refusal
    }
}

fn cut(path: &str) -> &str {
    let end = (0..=path.len().min(PATH_BYTES_MAX)).rev().find(|at| path.is_char_boundary(*at)).unwrap_or(0);
    &path[..end]
}

impl Policies {
    fn family(&self, mode: Mode) -> &Mutex<SeriesByLabels> {
        match mode {
            Mode::Enforced => &self.enforced,
            Mode::DryRun => &self.dry_run,
        }
    }

    fn cell(&self, (key, rule): (&Key, Option<&PolicyRule>), worker: usize) -> Arc<Counter> {
        let mut all = self.family(key.mode).lock();
        let mut labels: Arc<str> = labels(key, rule, None).into();
        if !all.contains_key(&labels) && all.len() >= POLICY_SERIES_MAX {
            labels = self::labels(key, rule, Some(OVERFLOW)).into();
        }
        all.entry(Arc::clone(&labels)).or_insert_with(|| Arc::new(Series::new(labels, true))).cell(worker, &())
    }

    /// Writes both counters.
    pub(crate) fn write(&self, exposition: Exposition, out: &mut dyn Write) -> io::Result<()> {
        let families = [
            ("waypoint_authz_decisions_total", "What policies decided, by the rule that matched.", &self.enforced),
            ("waypoint_authz_shadow_decisions_total", "What policies in dry run would have decided.", &self.dry_run),
        ];
        for (name, help, family) in families {
            let all: Vec<_> = family.lock().values().map(Arc::clone).collect();
            if exposition == Exposition::Protobuf {
                write_counters((name, help), &all, out)?;
                continue;
            }
            for (at, series) in all.iter().enumerate() {
                if at == 0 {
                    let family = exposition.family(name);
                    writeln!(out, "# HELP {family} {help}\n# TYPE {family} counter")?;
                }
                let value = series.fold(0_u64, |sum, cell| *sum = sum.wrapping_add(cell.value()));
                writeln!(out, "{name}{{{}}} {value}", series.labels)?;
            }
        }
        Ok(())
    }

    /// Keeps why a request or connection was refused, or would have been.
    pub(crate) fn note(&self, stream: &StreamRecord, head: Option<&Head>) {
        if stream.refusal.is_none() && stream.dry_runs.iter().all(|one| one.refusal.is_none()) {
            return;
        }
        // Nobody waits for a list.
        let Some(mut seen) = self.seen.try_lock() else { return };
        let dry_runs = stream.dry_runs.iter().filter_map(|one| Some((one.refusal.as_ref()?, true)));
        for (refusal, is_dry_run) in dry_runs.chain(stream.refusal.as_deref().map(|refusal| (refusal, false))) {
            let mut one = SeenRefusal::new(stream, head, refusal, is_dry_run);
            if let Some(known) = seen.iter().position(|known| known.is_like(&one)).and_then(|at| seen.remove(at)) {
                one.count += known.count;
            }
            seen.truncate(REFUSALS_KEPT_MAX - 1);
            seen.push_front(one);
        }
    }

    /// The latest kinds of refusals, the newest first.
    pub(crate) fn seen(&self) -> Vec<SeenRefusal> {
        self.seen.lock().iter().cloned().collect()
    }
}

/// What tells series apart: the address of a policy's name, and what came of it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    policy: usize,
    /// None is CUSTOM: an authorization service decided.
    action: Option<RbacAction>,
    mode: Mode,
    refuses: bool,
}

/// A worker's cell of a series.
#[derive(Debug)]
struct Remembered {
    cell: Arc<Counter>,
    /// Its address is not used anew as long as it is here.
    _name: Option<Arc<str>>,
}

/// One worker's way to its series.
#[derive(Debug)]
pub(crate) struct WorkerPolicies {
    policies: Arc<Policies>,
    worker: usize,
    cells: HashMap<Key, Remembered, foldhash::fast::RandomState>,
}

impl WorkerPolicies {
    pub(crate) fn new(policies: Arc<Policies>, worker: usize) -> Self {
        Self { policies, worker, cells: HashMap::default() }
    }

    /// Counts what filters decided.
    pub(crate) fn count(&mut self, decisions: &[Decision<'_>]) {
        for decision in decisions.iter().filter(|decision| decision.counts()) {
            let name = decision.matched.map(|policy| &policy.name);
            let rule = || decision.matched.map(|policy| policy.rule.clone());
            self.add((Some(decision.rbac.action), decision.rbac.mode, decision.refuses()), name, rule);
        }
    }

    /// Counts what an authorization service decided that was asked because of this policy.
    pub(crate) fn count_external(&mut self, policy: &Arc<str>, refuses: bool) {
        self.add((None, Mode::Enforced, refuses), Some(policy), || Some(PolicyRule::of(policy)));
    }

    fn add(
        &mut self,
        (action, mode, refuses): (Option<RbacAction>, Mode, bool),
        name: Option<&Arc<str>>,
        rule: impl FnOnce() -> Option<PolicyRule>,
    ) {
        let key = Key { policy: name.map_or(0, |name| name.as_ptr().addr()), action, mode, refuses };
        if let Some(known) = self.cells.get(&key) {
            return known.cell.add(1);
        }
        if self.cells.len() >= POLICIES_REMEMBERED_MAX {
            self.cells.clear();
        }
        let cell = self.policies.cell((&key, rule().as_ref()), self.worker);
        cell.add(1);
        self.cells.insert(key, Remembered { cell, _name: name.map(Arc::clone) });
    }

    pub(crate) fn note(&self, stream: &StreamRecord, head: Option<&Head>) {
        self.policies.note(stream, head);
    }
}

fn labels(key: &Key, rule: Option<&PolicyRule>, instead: Option<&str>) -> String {
    let number = rule.and_then(|rule| rule.rule).map(|rule| rule.to_string());
    let decided = match (key.action, key.refuses) {
        (_, true) => "denied",
        (Some(RbacAction::Log), false) => "audited",
        (_, false) => "allowed",
    };
    let mut out = String::new();
    push_pair(&mut out, "policy", instead.unwrap_or(rule.map_or(NONE, |rule| &rule.policy)));
    push_pair(&mut out, "rule", instead.unwrap_or(number.as_deref().unwrap_or(NONE)));
    push_pair(&mut out, "action", key.action.map_or(CUSTOM, RbacAction::as_str));
    push_pair(&mut out, "decision", decided);
    out
}

#[cfg(test)]
mod tests {
    use http::uri::PathAndQuery;
    use model::rbac::{Permission, Policy, Principal, Rbac};
    use model::refusal::{DryRun, RefusedBy};

    use super::*;
    use crate::record::ChainTelemetry;

    fn policy(name: &str) -> Policy {
        Policy::new(name, vec![Permission::Any], vec![Principal::Any])
    }

    fn exposition(policies: &Policies) -> String {
        let mut out = Vec::new();
        policies.write(Exposition::Text, &mut out).expect("a vector takes all");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn decisions_are_counted_by_rule_and_what_came_of_it() {
        let policies = Arc::new(Policies::default());
        let mut workers = [0, 1].map(|worker| WorkerPolicies::new(Arc::clone(&policies), worker));
        let allow = Rbac::new(RbacAction::Allow, vec![policy("ns[shop]-policy[web]-rule[1]")]);
        let deny = Rbac::new(RbacAction::Deny, vec![policy("odd\"name")]).as_dry_run();
        for worker in &mut workers {
            let matched = Some(&allow.policies()[0]);
            worker.count(&[Decision { rbac: &allow, matched }, Decision { rbac: &deny, matched: Some(&deny.policies()[0]) }]);
            worker.count(&[Decision { rbac: &allow, matched: None }]);
        }
        let expected = "# HELP waypoint_authz_decisions_total What policies decided, by the rule that matched.\n\
            # TYPE waypoint_authz_decisions_total counter\n\
            waypoint_authz_decisions_total{policy=\"none\",rule=\"none\",action=\"ALLOW\",decision=\"denied\"} 2\n\
            waypoint_authz_decisions_total{policy=\"shop/web\",rule=\"1\",action=\"ALLOW\",decision=\"allowed\"} 2\n\
            # HELP waypoint_authz_shadow_decisions_total What policies in dry run would have decided.\n\
            # TYPE waypoint_authz_shadow_decisions_total counter\n\
            waypoint_authz_shadow_decisions_total{policy=\"odd\\\"name\",rule=\"none\",action=\"DENY\",decision=\"denied\"} 2\n";
        assert_eq!(exposition(&policies), expected);
    }

    #[test]
    fn more_rules_than_there_is_room_for_are_counted_as_overflow() {
        let policies = Arc::new(Policies::default());
        let mut worker = WorkerPolicies::new(Arc::clone(&policies), 0);
        for at in 0..POLICY_SERIES_MAX + 5 {
            let rbac = Rbac::new(RbacAction::Allow, vec![policy(&format!("ns[shop]-policy[p{at}]-rule[0]"))]);
            worker.count(&[Decision { rbac: &rbac, matched: Some(&rbac.policies()[0]) }]);
        }
        let text = exposition(&policies);
        assert!(text.contains("{policy=\"overflow\",rule=\"overflow\",action=\"ALLOW\",decision=\"allowed\"} 5\n"));
        assert_eq!(text.lines().count(), 2 + POLICY_SERIES_MAX + 1);
    }

    fn refused(path: &str) -> (StreamRecord, Head) {
        let mut stream = StreamRecord::new(Arc::new(ChainTelemetry::new("chain".into(), None, Vec::new(), None)));
        stream.refusal = Some(Box::new(Refusal::new(RefusedBy::NoAllowPolicy)));
        let path = Some(path.parse::<PathAndQuery>().expect("a path"));
        (stream, Head { method: Method::GET, path, authority: None, scheme: http::uri::Scheme::HTTP })
    }

    #[test]
    fn refusals_of_a_kind_are_listed_once_and_the_oldest_go() {
        let policies = Policies::default();
        for path in ["/a?secret=1", "/b", "/a?secret=2"] {
            let (stream, head) = refused(path);
            policies.note(&stream, Some(&head));
        }
        let listed: Vec<_> = policies.seen().iter().map(|one| (one.path.clone().unwrap_or_default(), one.count)).collect();
        assert_eq!(listed, [("/a".into(), 2), ("/b".into(), 1)]);
        for at in 0..REFUSALS_KEPT_MAX {
            let (stream, head) = refused(&format!("/{}/{at}", "x".repeat(PATH_BYTES_MAX - 8)));
            policies.note(&stream, Some(&head));
        }
        let seen = policies.seen();
        assert!(seen.len() == REFUSALS_KEPT_MAX && seen.iter().all(|one| one.path.as_deref().is_some_and(|path| path.starts_with("/x"))));
    }

    #[test]
    fn what_passes_is_not_listed_and_dry_runs_are() {
        let policies = Policies::default();
        let (mut stream, head) = refused("/");
        stream.refusal = None;
        policies.note(&stream, Some(&head));
        assert!(policies.seen().is_empty());
        let refusal = Some(Refusal::new(RefusedBy::DenyPolicy));
        stream.dry_runs.push(DryRun { action: RbacAction::Deny, policy: None, refusal });
        policies.note(&stream, Some(&head));
        assert!(policies.seen().iter().all(|one| one.is_dry_run) && policies.seen().len() == 1);
    }
}
