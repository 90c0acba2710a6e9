//! Filters that an operator has named to be left out, where they are not obeyed and would refuse what has them.
//!
//! Not for: filters that are obeyed where they stand, whatever they are called, nor for what comes by discovery. Invariants: nothing is left out that decides who
//! may do what; all else of a message stays as it was, unknown fields too, so that the walk finds what it would have found.

use bytes::Bytes;
use model::chain::SkippedFilters;
use prost::Message;
use prost_reflect::{DynamicMessage, MapKey, Value};
use xds_proto::message_name;

use super::listeners::LISTENER;
use super::report::dynamic;
use crate::coverage::{SKIPPED_FIELD, is_obeyed_filter};
use crate::translate::listener::is_obeyed_on_tunnels;

const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
/// Messages that hold another in JSON form.
const TYPED_STRUCTS: [&str; 2] = ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"];
/// Where routes say something of a filter, by its name.
const PER_ROUTE: &str = "typed_per_filter_config";

/// What is left of a chain or listener.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) bytes: Bytes,
    /// Path and type of each filter that was left out.
    pub(super) left_out: Vec<(String, String)>,
}

impl Rest {
    /// As the walk lists what has no effect.
    pub(super) fn listed(&self) -> impl Iterator<Item = (String, String)> {
        self.left_out.iter().map(|(_, type_name)| (type_name.clone(), SKIPPED_FIELD.to_owned()))
    }
}

/// A chain, or a listener with its chains, without such filters. None: there are none, or it cannot be read.
pub(super) fn without(names: &SkippedFilters, type_name: &str, bytes: &[u8]) -> Option<Rest> {
    // Most have none, and are not decoded for it.
    if !names.iter().any(|name| bytes.windows(name.len()).any(|part| part == name.as_bytes())) {
        return None;
    }
    let mut message = dynamic(type_name, bytes).ok()?;
    let is_tunnel = type_name == LISTENER;
    let mut leaving = Leaving { names, is_obeyed: if is_tunnel { is_obeyed_on_tunnels } else { is_obeyed_filter }, left_out: Vec::new() };
    if is_tunnel {
        for (at, chain) in messages_mut(&mut message, "filter_chains").enumerate() {
            leaving.chain(chain, &format!("filter_chains[{at}]."));
        }
        for chain in messages_mut(&mut message, "default_filter_chain") {
            leaving.chain(chain, "default_filter_chain.");
        }
    } else {
        leaving.chain(&mut message, "");
    }
    let left_out = leaving.left_out;
    (!left_out.is_empty()).then(|| Rest { bytes: message.encode_to_vec().into(), left_out })
}

struct Leaving<'a> {
    names: &'a SkippedFilters,
    /// Whether an HTTP filter of a type is obeyed there.
    is_obeyed: fn(&str) -> bool,
    left_out: Vec<(String, String)>,
}

impl Leaving<'_> {
    fn chain(&mut self, chain: &mut DynamicMessage, path: &str) {
        let path = format!("{path}filters");
        self.filters((chain, "filters", is_obeyed_filter), &path);
        for (at, filter) in messages_mut(chain, "filters").enumerate() {
            let Some(config) = messages_mut(filter, "typed_config").next().filter(|config| type_of(config).as_deref() == Some(HCM)) else {
                continue;
            };
            let Ok(mut manager) = dynamic(HCM, &bytes_of(config)) else { continue };
            let left_out = self.filters((&mut manager, "http_filters", self.is_obeyed), &format!("{path}[{at}].typed_config.http_filters"));
            if !left_out.is_empty() {
                forget(&mut manager, &left_out);
                config.set_field_by_name("value", Value::Bytes(manager.encode_to_vec().into()));
            }
        }
    }

    /// Leaves out of a list what is to be; returns the names.
    fn filters(&mut self, (holder, list, is_obeyed): (&mut DynamicMessage, &str, fn(&str) -> bool), path: &str) -> Vec<String> {
        if !holder.has_field_by_name(list) {
            return Vec::new();
        }
        let Some(Value::List(filters)) = holder.get_field_by_name_mut(list) else { return Vec::new() };
        let mut names = Vec::new();
        let mut at = 0;
        filters.retain(|filter| {
            let left_out = filter.as_message().and_then(|filter| self.is_left_out(filter, is_obeyed));
            if let Some((name, type_name)) = &left_out {
                self.left_out.push((format!("{path}[{at}].typed_config"), type_name.clone()));
                names.push(name.clone());
            }
            at += 1;
            left_out.is_none()
        });
        names
    }

    /// Name and type of a filter that is left out.
    fn is_left_out(&self, filter: &DynamicMessage, is_obeyed: fn(&str) -> bool) -> Option<(String, String)> {
        let name = text(filter, "name");
        // What comes by discovery may be anything.
        let config = filter.has_field_by_name("typed_config").then(|| filter.get_field_by_name("typed_config")).flatten()?;
        let config = config.as_message()?;
        let type_name = type_of(config)?;
        // What it holds may be a policy as well, however deep: the names of types are in its bytes.
        let is_policy = || SkippedFilters::is_policy(&type_name) || SkippedFilters::is_policy(&String::from_utf8_lossy(&bytes_of(config)));
        let may_be = self.names.contains(&name) && !is_obeyed(&type_name) && !is_policy();
        may_be.then_some((name, type_name))
    }
}

/// The type of a configuration, that of what a `TypedStruct` holds if it is one. None: it cannot be told.
fn type_of(config: &DynamicMessage) -> Option<String> {
    let is_told = |name: &&str| !name.is_empty();
    let url = text(config, "type_url");
    let name = Some(message_name(&url)).filter(is_told)?;
    if !TYPED_STRUCTS.contains(&name) {
        return Some(name.to_owned());
    }
    let inner = text(&dynamic(name, &bytes_of(config)).ok()?, "type_url");
    Some(message_name(&inner)).filter(is_told).filter(|name| !TYPED_STRUCTS.contains(name)).map(str::to_owned)
}

fn text(message: &DynamicMessage, field: &str) -> String {
    message.get_field_by_name(field).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn bytes_of(any: &DynamicMessage) -> Bytes {
    any.get_field_by_name("value").and_then(|value| value.as_bytes().cloned()).unwrap_or_default()
}

/// Takes out what routes say of these filters, unless it is a policy.
fn forget(message: &mut DynamicMessage, names: &[String]) {
    for (field, value) in message.fields_mut() {
        match value {
            Value::Map(entries) if field.name() == PER_ROUTE => entries.retain(|key, config| {
                let is_named = matches!(key, MapKey::String(key) if names.contains(key));
                let type_name = config.as_message().and_then(type_of);
                !is_named || type_name.is_none_or(|type_name| SkippedFilters::is_policy(&type_name))
            }),
            Value::Message(inner) => forget(inner, names),
            Value::List(items) => items.iter_mut().filter_map(Value::as_message_mut).for_each(|inner| forget(inner, names)),
            _ => {}
        }
    }
}

/// The messages of a field that is set, one or a list of them.
fn messages_mut<'a>(of: &'a mut DynamicMessage, field: &str) -> impl Iterator<Item = &'a mut DynamicMessage> {
    let value = if of.has_field_by_name(field) { of.get_field_by_name_mut(field) } else { None };
    let (one, list) = match value {
        Some(Value::Message(message)) => (Some(message), None),
        Some(Value::List(items)) => (None, Some(items)),
        _ => (None, None),
    };
    one.into_iter().chain(list.into_iter().flatten().filter_map(Value::as_message_mut))
}
