//! A push of listeners: istiod sends all chains of all services for any change, its maps in another order each time.
//!
//! The chains are the recorded one with three policies under a thousand names of equal length, so that one encoding can be renamed in place. Counted is all
//! that the process does with the response but its log and its gauges.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use model::chain::Chain;
use serde_json::{Value, json};
use tests::fake_istiod::Kind;
use tests::scale::three_policies;
use tests::scenario::{Scenario, WEB_CHAIN};
use waypoint::state::published::Published;
use waypoint::state::store::Store;
use xds_client::ads::{ResourceType, Verdict};
use xds_client::apply::Applier;

use crate::mesh;
use crate::sinks::Sinks;
use crate::window::Windows;

/// Chains in a push.
const CHAINS: usize = 1000;
/// What of the recorded names is renamed, and the first of the names it becomes.
const RECORDED_NAME: &str = "web.shop";
const FIRST_NAME: &str = "svc-0000.shop";
/// The chain that changes.
const CHANGED: usize = 500;
/// Orders of maps that are dealt out to the chains, so that no single one decides what a push costs.
const ORDERS: usize = 32;
/// Field `filter_chains` of `Listener`, length-delimited.
const FILTER_CHAINS_KEY: u8 = 3 << 3 | 2;

fn name(at: usize) -> String {
    format!("svc-{at:04}.shop")
}

/// Encodings of one chain.
struct Encoded {
    /// Its maps in one order or another: they are encoded in an order that is random for each message, as istiod's are.
    orders: Vec<Vec<u8>>,
    changed: Vec<u8>,
}

impl Encoded {
    fn new() -> Result<Self> {
        let mut scenario = mesh::recorded()?;
        scenario.add_http_filters(WEB_CHAIN, vec![three_policies()])?;
        let encode = |chain: &Value| -> Result<Vec<u8>> {
            let text = chain.to_string().replace(RECORDED_NAME, FIRST_NAME);
            Ok(xds_proto::message_from_json("envoy.config.listener.v3.FilterChain", &serde_json::from_str(&text)?)?)
        };
        let orders = (0..ORDERS).map(|_| encode(scenario.chain(WEB_CHAIN)?)).collect::<Result<Vec<_>>>()?;
        let differs = |at: usize| orders[at].len() == orders[0].len() && orders[at] != orders[(at + 1) % ORDERS];
        ensure!((0..ORDERS).all(differs), "two encodings have their maps in one order");
        scenario.http(WEB_CHAIN)?["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["timeout"] = json!("7s");
        let changed = encode(scenario.chain(WEB_CHAIN)?)?;
        Ok(Self { orders, changed })
    }

    /// The encoding of a chain in this push: never that of the push before.
    fn of(&self, chain: usize, push: usize) -> &[u8] {
        &self.orders[(chain + push) % ORDERS]
    }
}

/// The listener's message without chains, but with a thousand more destinations.
fn shell() -> Result<(Scenario, Vec<u8>)> {
    let mut scenario = mesh::recorded()?;
    let listener = scenario.resource(Kind::Listener, "main_internal")?;
    listener["filter_chains"] = json!([]);
    let destinations = listener["filter_chain_matcher"]["matcher_tree"]["custom_match"]["typed_config"]["range_matchers"]
        .as_array_mut()
        .context("a matcher of destinations")?;
    let web = destinations.iter().find(|one| one.to_string().contains(RECORDED_NAME)).context("no destination web")?.to_string();
    for at in 0..CHAINS {
        let mut one: Value = serde_json::from_str(&web.replace(RECORDED_NAME, &name(at)))?;
        one["ranges"][0]["address_prefix"] = format!("10.97.{}.{}", at / 250, at % 250 + 1).into();
        destinations.push(one);
    }
    let encoded = scenario.encoded(Kind::Listener, |name, _| name == "main_internal")?;
    let shell = encoded.into_iter().next().context("main_internal")?.1;
    Ok((scenario, shell))
}

fn varint(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f | 0x80).unwrap_or(u8::MAX));
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or(u8::MAX));
}

/// The listener with the chain that `encoding` chooses for each place, renamed.
fn listener<'a>(shell: &[u8], encoding: impl Fn(usize) -> &'a [u8]) -> Vec<u8> {
    let mut listener = shell.to_vec();
    for at in 0..CHAINS {
        let mut chain = encoding(at).to_vec();
        let name = name(at);
        let mut from = 0;
        while let Some(found) = chain[from..].windows(FIRST_NAME.len()).position(|window| window == FIRST_NAME.as_bytes()) {
            let end = from + found + FIRST_NAME.len();
            chain[from + found..end].copy_from_slice(name.as_bytes());
            from = end;
        }
        listener.push(FILTER_CHAINS_KEY);
        varint(chain.len(), &mut listener);
        listener.extend_from_slice(&chain);
    }
    listener
}

struct Control {
    sinks: Sinks,
    applier: Applier,
    published: Arc<Published>,
    store: Store,
}

impl Control {
    fn new() -> Result<Self> {
        let sinks = Sinks::new()?;
        let published = Arc::new(Published::default());
        let store = Store::new(Arc::clone(&published), Arc::clone(&sinks.telemetry));
        Ok(Self { sinks, applier: Applier::default(), published, store })
    }

    /// As `app::discovery` does with a response.
    fn apply(&mut self, listeners: Vec<(String, Vec<u8>)>) -> Verdict {
        let outcome = self.applier.apply(mesh::update(ResourceType::Listener, listeners));
        outcome.changes.into_iter().for_each(|change| mesh::take(&mut self.store, change));
        self.store.publish();
        self.store.free_retired();
        drop(self.applier.report());
        outcome.applied.verdict
    }

    fn chain(&self, at: usize) -> Result<Arc<Chain>> {
        let generation = self.published.generation().context("no listeners")?;
        let name = WEB_CHAIN.replace(RECORDED_NAME, &name(at));
        generation.chains.get(&*name).map(|served| Arc::clone(&served.chain)).with_context(|| format!("no chain {name}"))
    }
}

fn push(windows: &mut Windows, new_order: bool) -> Result<()> {
    let encoded = Encoded::new()?;
    let (scenario, shell) = shell()?;
    let mut control = Control::new()?;
    let others = scenario.encoded(Kind::Listener, |name, _| name != "main_internal")?;
    let all = |main: Vec<u8>| {
        let mut all = others.clone();
        all.push(("main_internal".to_owned(), main));
        all
    };
    control.apply(all(listener(&shell, |at| encoded.of(at, 0))));
    let (same, before) = (control.chain(CHANGED + 1)?, control.chain(CHANGED)?);
    mesh::http(&before)?;
    let order = usize::from(new_order);
    let mut pushed = Some(all(listener(&shell, |at| if at == CHANGED { &encoded.changed } else { encoded.of(at, order) })));
    windows.count(1, || {
        control.apply(pushed.take().unwrap_or_default());
    });
    ensure!(Arc::ptr_eq(&same, &control.chain(CHANGED + 1)?), "a chain that did not change was replaced");
    ensure!(!Arc::ptr_eq(&before, &control.chain(CHANGED)?), "the chain that changed was not replaced");
    drop(control.sinks);
    Ok(())
}

/// One chain of a thousand changed, and all maps have another order.
pub fn other_order(windows: &mut Windows) -> Result<()> {
    push(windows, true)
}

/// One chain of a thousand changed, and the bytes of all others are the same.
pub fn same_bytes(windows: &mut Windows) -> Result<()> {
    push(windows, false)
}
