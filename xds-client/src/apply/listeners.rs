//! Listeners as they are held: parts, chains by name, and the last good version of each.
//!
//! Invariants: a chain whose meaning did not change keeps its `Arc`, however its bytes were ordered; a refused chain serves its
//! last good version, or is a refused chain. `connect_terminate` refused without a last good version refuses everything inside.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::listener::v3 as proto;
use model::access_log::AccessLog;
use model::chain::{Chain, ChainKind, OnRefusedPolicy, SkippedFilters};
use model::dispatch::Dispatch;
use model::endpoint::HBONE_PORT;
use model::invalid::Invalid;
use model::listener::{BaggageUse, Listeners, Originate, Terminate};
use prost::Message;

use super::extensions::Held;
use super::meaning::Meanings;
use super::report::{Checked, check};
use super::shared::Shared;
use super::skipped::{Rest, without};
use super::{hash, policies};
use crate::ads::Resource;
use crate::observer::Report;
use crate::translate::Problem;
use crate::translate::chain::chain;
use crate::translate::extension::Lookup;
use crate::translate::listener::{
    CONNECT_ORIGINATE, CONNECT_TERMINATE, Cut, MAIN_INTERNAL, Parts, check_tunnel_filters, listener_logs, main_dispatch, originate_baggage,
    originate_logs, take_apart, terminate,
};

pub(super) const LISTENER: &str = "envoy.config.listener.v3.Listener";
pub(super) const FILTER_CHAIN: &str = "envoy.config.listener.v3.FilterChain";

/// One chain of `main_internal`.
struct HeldChain {
    bytes_hash: u64,
    meaning: Option<u128>,
    /// The last version that was obeyed.
    good: Option<Arc<Chain>>,
    /// What is served: the newest, or the last good one, or a refusal.
    served: Arc<Chain>,
    checked: Checked,
    /// What it waits for, if it does.
    waits: Option<Invalid>,
    /// Its extensions by name, and its bytes to read it again when one of them comes.
    discovered: Option<(BTreeSet<String>, Bytes)>,
    /// Everything is refused, because of a policy that could not be read.
    denies: bool,
}

/// All listeners.
#[derive(Default)]
pub(super) struct Listening {
    parts: BTreeMap<String, Parts>,
    shells: BTreeMap<String, Checked>,
    /// What `main_internal` says besides its chains.
    main_meaning: Option<u128>,
    /// Chains of `main_internal` that are not compiled yet: their bytes are not kept longer.
    cut: Option<Vec<(String, Bytes)>>,
    chains: HashMap<String, HeldChain>,
    terminate: Option<Terminate>,
    terminate_refused: Vec<Invalid>,
    dispatch: Option<Dispatch>,
    dispatch_refused: Vec<Invalid>,
    dispatch_is_new: bool,
    meanings: Meanings,
    extensions: Held,
    /// Names of extensions that were asked for.
    extensions_wanted: BTreeSet<String>,
    shared: Shared,
    on_refused_policy: OnRefusedPolicy,
    pub(super) skipped: SkippedFilters,
}

impl Listening {
    pub(super) fn new(on_refused_policy: OnRefusedPolicy) -> Self {
        Self { on_refused_policy, ..Self::default() }
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.parts.remove(name);
        self.shells.remove(name);
        if name == MAIN_INTERNAL {
            (self.main_meaning, self.cut) = (None, None);
        }
    }

    /// Takes a listener in. One that is no listener at all leaves the one before in place.
    pub(super) fn hold(&mut self, name: &str, body: &Bytes, refused: &mut Vec<Invalid>) {
        let held = if name == MAIN_INTERNAL { self.hold_main(body) } else { self.hold_other(name, body) };
        if let Err(problem) = held {
            refused.push(problem.of(name));
        }
    }

    /// The chains of `main_internal` are compiled one by one, what is around them only if it means something else than before.
    fn hold_main(&mut self, body: &Bytes) -> Result<(), Problem> {
        let Cut { shell, chains } = take_apart(body)?;
        let meaning = self.meanings.of(LISTENER, &shell);
        if meaning.is_none() || meaning != self.main_meaning {
            let parts = Cut { shell: shell.clone(), chains: Vec::new() }.decode()?;
            self.shells.insert(MAIN_INTERNAL.to_owned(), check(LISTENER, &shell, MAIN_INTERNAL, &[]));
            self.parts.insert(MAIN_INTERNAL.to_owned(), parts);
            (self.main_meaning, self.dispatch_is_new) = (meaning, true);
        }
        self.cut = Some(chains);
        Ok(())
    }

    fn hold_other(&mut self, name: &str, body: &Bytes) -> Result<(), Problem> {
        let rest = without(&self.skipped, LISTENER, body);
        let body = rest.as_ref().map_or(body, |rest| &rest.bytes);
        let parts = take_apart(body)?.decode()?;
        let mut checked = check(LISTENER, body, name, &[]);
        checked.listed.extend(rest.iter().flat_map(Rest::listed));
        self.shells.insert(name.to_owned(), checked);
        self.parts.insert(name.to_owned(), parts);
        Ok(())
    }

    /// Takes extensions in and forgets some; the chains that name them are read again.
    pub(super) fn extend(&mut self, resources: Vec<Resource>, removed: &[String], refused: &mut Vec<Invalid>) {
        let mut changed = BTreeSet::new();
        for resource in resources {
            let name = resource.name.clone();
            if self.extensions.hold(resource, refused) {
                changed.insert(name);
            }
        }
        changed.extend(removed.iter().filter(|name| self.extensions.forget(name)).cloned());
        let concerned = self.chains.iter().filter_map(|(name, held)| {
            let (names, bytes) = held.discovered.as_ref()?;
            (!names.is_disjoint(&changed)).then(|| (name.clone(), bytes.clone()))
        });
        for (name, bytes) in concerned.collect::<Vec<_>>() {
            let previous = self.chains.remove(&name);
            let held = self.read_chain(&name, &bytes, previous);
            refused.extend(held.checked.refused.iter().cloned());
            self.chains.insert(name, held);
        }
    }

    /// The names of the extensions to ask for, if they have changed; others are forgotten.
    pub(super) fn extensions_to_ask_for(&mut self) -> Option<BTreeSet<String>> {
        let named = self.chains.values().filter_map(|held| held.discovered.as_ref());
        let named: BTreeSet<String> = named.flat_map(|(names, _)| names.iter().cloned()).collect();
        if named == self.extensions_wanted {
            return None;
        }
        self.extensions.retain(&named);
        self.extensions_wanted.clone_from(&named);
        Some(named)
    }

    /// Puts together what the listeners say now.
    pub(super) fn compile(&mut self, refused: &mut Vec<Invalid>) -> Arc<Listeners> {
        self.compile_terminate();
        self.compile_dispatch();
        self.compile_chains();
        for checked in self.shells.values() {
            refused.extend(checked.refused.iter().cloned());
        }
        for chain in self.chains.values() {
            refused.extend(chain.checked.refused.iter().cloned());
        }
        refused.extend(self.terminate_refused.iter().chain(&self.dispatch_refused).cloned());
        let mut seen = std::collections::HashSet::new();
        refused.retain(|one| seen.insert(one.to_string()));
        let refuse_all = !self.terminate_refused.is_empty() && self.terminate.is_none();
        let terminate = self.terminate.clone().unwrap_or_else(|| self.fallback_terminate());
        let chains = self.chains.iter().map(|(name, held)| {
            let served = if refuse_all { self.refused_with_terminate(&held.served) } else { Arc::clone(&held.served) };
            (Arc::from(name.as_str()), served)
        });
        Arc::new(Listeners {
            terminate,
            terminate_refused: self.terminate_refused.clone(),
            dispatch: self.dispatch.clone().unwrap_or_default(),
            dispatch_refused: self.dispatch_refused.clone(),
            chains: chains.collect(),
            unmatched_access_logs: self.logs(MAIN_INTERNAL, |parts| listener_logs(&parts.shell)),
            originate: Originate {
                access_logs: self.logs(CONNECT_ORIGINATE, originate_logs),
                baggage: self.parts.get(CONNECT_ORIGINATE).map(originate_baggage).unwrap_or_default(),
            },
        })
    }

    pub(super) fn add_to(&self, report: &mut Report) {
        for (name, checked) in &self.shells {
            checked.add_to(report, name);
        }
        for (name, held) in &self.chains {
            held.checked.add_to(report, name);
            if let Some(waits) = &held.waits {
                report.refused.entry(name.clone()).or_default().push(waits.clone());
            }
            if (held.waits.is_some() || !held.checked.refused.is_empty()) && held.good.is_some() {
                report.stale_chains.push(name.clone());
            }
        }
        self.extensions.add_to(report);
        report.stale_chains.sort();
    }

    fn logs(&self, name: &str, read: impl Fn(&Parts) -> Result<Vec<AccessLog>, Problem>) -> Vec<AccessLog> {
        let read = self.parts.get(name).map(read);
        match read {
            Some(Ok(logs)) => logs,
            Some(Err(problem)) => {
                tracing::warn!(listener = name, path = problem.path, reason = problem.reason, "access log left out");
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    fn compile_terminate(&mut self) {
        let Some(parts) = self.parts.get(CONNECT_TERMINATE) else { return };
        let shell = self.shells.get(CONNECT_TERMINATE);
        let mut refused = shell.map(|checked| checked.refused.clone()).unwrap_or_default();
        if let Err(problem) = check_tunnel_filters(parts) {
            refused.push(problem.of(CONNECT_TERMINATE));
        }
        match terminate(parts) {
            Ok(terminate) if refused.is_empty() => self.terminate = Some(terminate),
            Ok(_) => {}
            Err(problem) => refused.push(problem.of(CONNECT_TERMINATE)),
        }
        self.terminate_refused = refused;
    }

    /// `connect_terminate` cannot be obeyed and never could: what can be read of it, with every client of the mesh let in to be
    /// told so.
    fn fallback_terminate(&self) -> Terminate {
        self.parts.get(CONNECT_TERMINATE).and_then(|parts| terminate(parts).ok()).unwrap_or_else(|| Terminate {
            addresses: vec![SocketAddr::from(([0, 0, 0, 0], HBONE_PORT))],
            client_id_prefixes: None,
            concurrent_streams_max: 100,
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(20),
            baggage: BaggageUse::default(),
            access_logs: Vec::new(),
        })
    }

    fn compile_dispatch(&mut self) {
        if !std::mem::take(&mut self.dispatch_is_new) {
            return;
        }
        let Some(parts) = self.parts.get(MAIN_INTERNAL) else { return };
        let mut refused = self.shells.get(MAIN_INTERNAL).map(|checked| checked.refused.clone()).unwrap_or_default();
        match main_dispatch(&parts.shell) {
            Ok(dispatch) if refused.is_empty() => self.dispatch = Some(dispatch),
            Ok(_) => {}
            Err(problem) => refused.push(problem.of(MAIN_INTERNAL)),
        }
        self.dispatch_refused = refused;
    }

    fn compile_chains(&mut self) {
        if !self.parts.contains_key(MAIN_INTERNAL) {
            self.chains.clear();
            return;
        }
        let Some(cut) = self.cut.take() else { return };
        let mut kept = HashMap::with_capacity(cut.len());
        for (name, bytes) in cut {
            let previous = self.chains.remove(&name);
            let held = self.compile_chain(&name, &bytes, previous);
            kept.insert(name, held);
        }
        self.chains = kept;
    }

    fn compile_chain(&mut self, name: &str, bytes: &Bytes, previous: Option<HeldChain>) -> HeldChain {
        let bytes_hash = hash(bytes);
        let previous = match previous {
            Some(held) if held.bytes_hash == bytes_hash => return held,
            other => other,
        };
        let meaning = self.meanings.of(FILTER_CHAIN, bytes);
        let previous = match previous {
            Some(held) if held.meaning == meaning && meaning.is_some() => return HeldChain { bytes_hash, ..held },
            other => other,
        };
        HeldChain { bytes_hash, meaning, ..self.read_chain(name, bytes, previous) }
    }

    /// Reads a chain. Its hashes are left to whoever knows them.
    fn read_chain(&mut self, name: &str, bytes: &Bytes, previous: Option<HeldChain>) -> HeldChain {
        let (bytes_hash, meaning) = previous.as_ref().map_or((0, None), |held| (held.bytes_hash, held.meaning));
        let denied_before = previous.as_ref().is_some_and(|held| held.denies);
        let previous = previous.and_then(|held| held.good);
        let rest = without(&self.skipped, FILTER_CHAIN, bytes);
        let obeyed = rest.as_ref().map_or(bytes, |rest| &rest.bytes);
        let mut checked = check(FILTER_CHAIN, obeyed, name, &[]);
        checked.listed.extend(rest.iter().flat_map(Rest::listed));
        let shared: Arc<str> = name.into();
        let decoded = proto::FilterChain::decode(&obeyed[..]);
        let lookup = Lookup::new(&self.extensions.configs);
        let translated = match &decoded {
            Ok(value) => chain(value, &shared, &lookup).map_err(|refusal| (refusal.is_http, refusal.problem.of(name))),
            Err(error) => Err((true, Invalid::new(name, "", format!("is not a chain: {error}")))),
        };
        let (missing, named) = lookup.finish();
        let missing = missing.map(|problem| problem.of(name));
        let awaited = missing.as_ref().and_then(|_| named.iter().find_map(|name| self.extensions.refused_policy(name)));
        // A copy: a slice would keep all of the listener.
        let discovered = (!named.is_empty()).then(|| (named, Bytes::copy_from_slice(bytes)));
        let mut waits = None;
        // What is wrong with the chain itself: to wait for an extension is not.
        let mut wrong = checked.refused.clone();
        let newest = match translated {
            Ok(mut newest) if checked.refused.is_empty() => {
                self.shared.share(&mut newest);
                let newest = Arc::new(newest);
                let good = Some(Arc::clone(&newest));
                return HeldChain { bytes_hash, meaning, good, served: newest, checked, waits, discovered, denies: false };
            }
            Ok(newest) => refused_chain(newest, &checked),
            Err((is_http, invalid)) => {
                wrong.extend((missing.as_ref() != Some(&invalid)).then(|| invalid.clone()));
                if missing.is_none() || !checked.refused.is_empty() {
                    checked.refuse(invalid);
                } else {
                    waits = Some(invalid);
                }
                let kind = ChainKind::Refused { http: is_http, reasons: reasons(&checked, waits.as_ref()) };
                Chain { name: shared, kind, stats: None, access_logs: Vec::new(), tracing: None }
            }
        };
        // Once it refuses everything it goes on until it can be obeyed: what came before may be weaker than what was meant since.
        let policy = || policies::unreadable(decoded.as_ref().ok(), &wrong).or(awaited);
        let denying = (self.on_refused_policy == OnRefusedPolicy::Deny)
            .then(|| policy().or_else(|| denied_before.then(|| policies::UNREADABLE.to_owned())))
            .flatten();
        let served = match (&previous, &denying) {
            (Some(good), Some(policy)) => Arc::new(good.denying(policy)),
            (Some(good), None) => Arc::clone(good),
            (None, _) => Arc::new(newest),
        };
        HeldChain { bytes_hash, meaning, good: previous, served, checked, waits, discovered, denies: denying.is_some() }
    }

    fn refused_with_terminate(&self, chain: &Chain) -> Arc<Chain> {
        let http = !matches!(chain.kind, ChainKind::Tcp(_) | ChainKind::Refused { http: false, .. });
        Arc::new(Chain { kind: ChainKind::Refused { http, reasons: self.terminate_refused.clone() }, ..chain.clone() })
    }
}

/// Why a chain is not used.
fn reasons(checked: &Checked, waits: Option<&Invalid>) -> Vec<Invalid> {
    checked.refused.iter().chain(waits).cloned().collect()
}

/// A chain that could be read and must not be obeyed; it still counts and logs what it refuses.
fn refused_chain(chain: Chain, checked: &Checked) -> Chain {
    let http = matches!(chain.kind, ChainKind::Http(_));
    Chain { kind: ChainKind::Refused { http, reasons: checked.refused.clone() }, ..chain }
}
