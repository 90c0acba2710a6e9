//! What istiod sends to this pod, taken once.
//!
//! Not for: keeping up with it. Invariant: ends, with all of it or with what is missing, after [`ANSWERS_TIMEOUT`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use xds_client::ads::{AdsObserver, AdsStatus, Applied, ResourceType, Update};
use xds_client::apply::Applier;
use xds_proto::message_to_json;

use super::{Kind, Snapshot, dump};
use crate::app::{ads_settings, node_of};
use crate::config::Settings;

/// How long istiod may take for all of it.
const ANSWERS_TIMEOUT: Duration = Duration::from_secs(30);

/// Asks istiod.
pub(super) fn ask(settings: &Settings) -> Result<Snapshot, String> {
    let node = node_of(settings).map_err(|error| error.to_string())?;
    let call = ads_settings(settings, node).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let heard = Arc::new(Heard::default());
    let observer = Listener { heard: Arc::clone(&heard), applier: Applier::default().skipping(settings.skipped_filters.clone()) };
    runtime.block_on(async {
        tokio::select! {
            never = xds_client::ads::stream::run(call, observer) => match never {},
            () = heard.complete.notified() => {}
            () = tokio::time::sleep(ANSWERS_TIMEOUT) => {}
        }
    });
    let mut held = std::mem::take(&mut *heard.held.lock());
    if held.missing.is_empty() {
        return Ok(held.snapshot);
    }
    let reason = held.trouble.take().unwrap_or_else(|| format!("it sent no {:?} in {ANSWERS_TIMEOUT:?}", held.missing));
    Err(format!("istiod at {}: {reason}", settings.discovery.host))
}

#[derive(Default)]
struct Heard {
    held: Mutex<Held>,
    complete: Notify,
}

struct Held {
    snapshot: Snapshot,
    missing: BTreeSet<ResourceType>,
    /// Extensions that were asked for and not answered; those that istiod does not have it never sends.
    extensions_left: usize,
    trouble: Option<String>,
}

impl Default for Held {
    fn default() -> Self {
        let missing = BTreeSet::from([ResourceType::Cluster, ResourceType::Endpoint, ResourceType::Listener]);
        Self { snapshot: Snapshot::default(), missing, extensions_left: 0, trouble: None }
    }
}

struct Listener {
    heard: Arc<Heard>,
    /// Says which endpoints to ask for.
    applier: Applier,
}

impl AdsObserver for Listener {
    fn apply(&mut self, update: Update) -> Applied {
        let mut held = self.heard.held.lock();
        for resource in &update.resources {
            // What has no JSON form has no origin to be found in it either.
            let Ok(json) = message_to_json(update.of.type_url(), &resource.body) else { continue };
            match update.of {
                ResourceType::Listener => dump::keep_chains(&json, &mut held.snapshot),
                ResourceType::Cluster => {
                    held.snapshot.parts.insert((Kind::Cluster, resource.name.clone()), json);
                }
                _ => {}
            }
        }
        held.snapshot.updates.push(update.clone());
        held.missing.remove(&update.of);
        let of = update.of;
        let applied = self.applier.apply(update).applied;
        match of {
            ResourceType::Listener => held.extensions_left = extensions_of(&applied).unwrap_or(held.extensions_left),
            ResourceType::Extension => held.extensions_left = 0,
            _ => {}
        }
        if of == ResourceType::Cluster && applied.wanted.iter().all(|wanted| wanted.names().is_empty()) {
            held.missing.remove(&ResourceType::Endpoint);
        }
        if held.missing.is_empty() && held.extensions_left == 0 {
            self.heard.complete.notify_one();
        }
        // Nothing is served, so that nothing is to be refused towards istiod either.
        Applied { wanted: applied.wanted, ..Applied::ack() }
    }

    fn status(&mut self, status: AdsStatus) {
        if let AdsStatus::Disconnected { reason, .. } = status {
            self.heard.held.lock().trouble = Some(reason.to_string());
        }
    }
}

/// How many extensions are to be asked for; none if that has not changed.
fn extensions_of(applied: &Applied) -> Option<usize> {
    applied.wanted.iter().find(|wanted| wanted.of() == ResourceType::Extension).map(|wanted| wanted.names().len())
}
