//! Walks a message field by field and applies the table's rules.
//!
//! Not here: the rules. Invariants: every field that is set is met by exactly one rule or by the default of its message's kind; extensions
//! are opened only where a rule names their type.
use std::fmt::Write;

use prost_reflect::{DynamicMessage, FieldDescriptor, MapKey, MessageDescriptor, ReflectMessage, Value};
use xds_proto::{descriptors, dynamic_from_json, dynamic_to_json, message_name};

use super::demands::Demands;
use super::rule::{Check, Extension, Kind, Rule, Site};
use super::{DEPTH_MAX, DOUBLE_HBONE, FINDINGS_MAX, Finding, Findings, table};

const ANY: &str = "google.protobuf.Any";
/// Messages that hold another in JSON form.
const TYPED_STRUCTS: [&str; 2] = ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"];
/// Where a message holds an extension's configuration.
const CONFIGURATION: &str = "typed_config";
/// Where it says instead that the configuration is fetched by name.
const DISCOVERY: &str = "config_discovery";
/// Lists whose members are told apart by name in a path, since their order differs from push to push.
const NAMED: [&str; 3] = ["filter_chains", "virtual_hosts", "clusters"];

pub(super) fn walk(resource: &DynamicMessage, skip: &[&str]) -> Findings {
    let descriptor = resource.descriptor();
    let mut walker = Walker { skip, path: String::new(), findings: Findings::default() };
    if is_double_hbone(resource, &descriptor) {
        // Recognised by name, as the plumbing that it is; whether baggage is told there, connect_originate says for both.
    } else if table::entry(descriptor.full_name()).is_none() {
        walker.refuse(&descriptor, "", format!("{} is not a resource that a waypoint obeys", descriptor.full_name()));
    } else {
        walker.message(&Visit { message: resource, holder: None, kind: Kind::Routing, depth: 0, extensions: None });
    }
    walker.findings
}

fn is_double_hbone(resource: &DynamicMessage, descriptor: &MessageDescriptor) -> bool {
    matches!(descriptor.full_name(), "envoy.config.listener.v3.Listener" | "envoy.config.cluster.v3.Cluster")
        && resource.get_field_by_name("name").is_some_and(|name| name.as_str().is_some_and(|name| DOUBLE_HBONE.contains(&name)))
}

struct Walker<'w> {
    skip: &'w [&'w str],
    /// Of the field that is looked at.
    path: String,
    findings: Findings,
}

/// A message to walk.
#[derive(Clone, Copy)]
struct Visit<'a> {
    message: &'a DynamicMessage,
    holder: Option<&'a Site<'a>>,
    /// Of what holds it.
    kind: Kind,
    depth: usize,
    /// If it is the holder of an extension: the types its `typed_config` may have.
    extensions: Option<&'static [Extension]>,
}

/// A field to apply a rule to.
#[derive(Clone, Copy)]
struct Place<'a> {
    field: &'a FieldDescriptor,
    value: &'a Value,
    site: &'a Site<'a>,
    kind: Kind,
    depth: usize,
}

impl Walker<'_> {
    fn message(&mut self, visit: &Visit<'_>) {
        let descriptor = visit.message.descriptor();
        let entry = table::entry(descriptor.full_name());
        let kind = entry.map_or(Kind::Part, |entry| entry.kind).inside(visit.kind);
        if visit.depth >= DEPTH_MAX {
            self.refuse(&descriptor, "", format!("nested deeper than {DEPTH_MAX} messages"));
            return;
        }
        self.unreadable(visit.message, &descriptor, kind);
        let site = Site { message: visit.message, holder: visit.holder };
        let mut configured = false;
        for (field, value) in visit.message.fields().filter(|(field, _)| !self.skip.contains(&field.full_name())) {
            let place = Place { field: &field, value, site: &site, kind, depth: visit.depth };
            let start = self.enter(field.name());
            match visit.extensions {
                Some(allowed) if field.name() == CONFIGURATION => self.extensions(&place, allowed),
                _ => self.apply(entry.and_then(|entry| entry.rule(field.name())), &place),
            }
            self.path.truncate(start);
            configured |= matches!(field.name(), CONFIGURATION | DISCOVERY);
        }
        if visit.extensions.is_some() && !configured {
            let name = extension_name(&site);
            self.unobeyed(&descriptor, CONFIGURATION, kind, format!("{} {name} has no configuration", noun(&descriptor)));
        }
    }

    /// What the message has and nobody can read: fields of unknown numbers, oneofs with nothing known in them, and values that Envoy
    /// never lets its filters see.
    fn unreadable(&mut self, message: &DynamicMessage, descriptor: &MessageDescriptor, kind: Kind) {
        for unknown in message.unknown_fields() {
            let number = unknown.number().to_string();
            let reason = format!("field number {number} of {} is not known, nor what it changes", descriptor.full_name());
            self.unobeyed(descriptor, &number, kind, reason);
        }
        Demands::of(descriptor).breaches(message, self.skip, |breach| {
            let start = if breach.is_oneof { self.path.len() } else { self.enter(&breach.name) };
            self.unobeyed(descriptor, &breach.name, kind, breach.reason);
            self.path.truncate(start);
        });
    }

    fn apply(&mut self, rule: Option<&Rule>, place: &Place<'_>) {
        let Some(rule) = rule else { return self.unobeyed_field(place, "not obeyed") };
        let holds = |check: Check| check(place.value, place.site);
        match *rule {
            Rule::Honoured => self.inside(place),
            Rule::Whole | Rule::Unused(_) => {}
            Rule::When { check, .. } if holds(check) => self.inside(place),
            Rule::WholeWhen { check, .. } if holds(check) => {}
            Rule::When { otherwise, .. } | Rule::WholeWhen { otherwise, .. } => self.unobeyed_field(place, otherwise),
            Rule::Refused(effect) => self.refused_field(place, effect),
            Rule::Listed(missing) => self.listed_field(place, missing),
            Rule::Extension(allowed) => self.extensions(place, allowed),
        }
    }

    /// The value of an honoured field: messages in it are walked, enum values must be known.
    fn inside(&mut self, place: &Place<'_>) {
        self.each(place, &mut |walker, value| match value {
            Value::Message(message) => {
                let descriptor = message.descriptor();
                if descriptor.full_name() == ANY {
                    walker.open(message, place, &[]);
                } else if !is_plain(&descriptor) {
                    walker.nested(message, place, None);
                }
            }
            Value::EnumNumber(number) => {
                let kind = place.field.kind();
                if kind.as_enum().is_some_and(|values| values.get_value(*number).is_none()) {
                    walker.unobeyed_field(place, &format!("value {number} is not known"));
                }
            }
            _ => {}
        });
    }

    fn nested(&mut self, message: &DynamicMessage, place: &Place<'_>, extensions: Option<&'static [Extension]>) {
        self.message(&Visit { message, holder: Some(place.site), kind: place.kind, depth: place.depth + 1, extensions });
    }

    /// The value of a field that holds extensions: an `Any`, or a message with a `typed_config`; one, a list or a map.
    fn extensions(&mut self, place: &Place<'_>, allowed: &'static [Extension]) {
        self.each(place, &mut |walker, value| {
            let Value::Message(message) = value else { return };
            if message.descriptor().full_name() == ANY {
                walker.open(message, place, allowed);
            } else {
                walker.nested(message, place, Some(allowed));
            }
        });
    }

    /// Calls `visit` with the value, or with each of its members and the path of each.
    fn each(&mut self, place: &Place<'_>, visit: &mut dyn FnMut(&mut Self, &Value)) {
        match place.value {
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    let start = self.member(&member_name(place.field, item).unwrap_or_else(|| index.to_string()));
                    visit(self, item);
                    self.path.truncate(start);
                }
            }
            Value::Map(items) => {
                let mut items: Vec<_> = items.iter().map(|(key, item)| (key_text(key), item)).collect();
                items.sort_by(|one, other| one.0.cmp(&other.0));
                for (key, item) in items {
                    let start = self.member(&key);
                    visit(self, item);
                    self.path.truncate(start);
                }
            }
            value => visit(self, value),
        }
    }

    /// Opens an extension whose type is among `allowed`.
    fn open(&mut self, any: &DynamicMessage, place: &Place<'_>, allowed: &[Extension]) {
        let opened = match Opened::of(any) {
            Ok(opened) => opened,
            Err(Unopened { type_url, reason }) => {
                return self.extension_unobeyed(place, &type_url, place.kind, &format!("cannot be read: {reason}"));
            }
        };
        let (type_url, type_name) = (opened.type_url.as_str(), message_name(&opened.type_url));
        let Some(extension) = allowed.iter().find(|extension| extension.type_name == type_name) else {
            return self.extension_unobeyed(place, type_url, place.kind, "is not supported");
        };
        match extension.rule {
            Rule::Whole => {}
            Rule::Listed(missing) => self.extension_listed(place, type_url, missing),
            Rule::Refused(effect) => self.extension_unobeyed(place, type_url, Kind::Routing, &format!("is not supported: {effect}")),
            Rule::When { check, otherwise, .. } if !check(place.value, place.site) => {
                self.extension_unobeyed(place, type_url, Kind::Routing, &format!("is not supported here: {otherwise}"));
            }
            _ => match opened.message() {
                Ok(message) if is_plain(&message.descriptor()) => {}
                Ok(message) => self.nested(&message, place, None),
                Err(reason) => self.extension_unobeyed(place, type_url, place.kind, &format!("cannot be read: {reason}")),
            },
        }
    }

    fn extension_unobeyed(&mut self, place: &Place<'_>, type_url: &str, kind: Kind, what: &str) {
        let reason = format!("{} {what}", self.extension_title(place, type_url));
        self.finding(kind.is_strict(), message_name(type_url), place.field.name(), reason);
    }

    fn extension_listed(&mut self, place: &Place<'_>, type_url: &str, missing: &str) {
        let reason = format!("{}: {missing}", self.extension_title(place, type_url));
        self.finding(false, message_name(type_url), place.field.name(), reason);
    }

    /// What an operator calls it: `filter envoy.filters.http.lua (type.googleapis.com/…)`.
    fn extension_title(&self, place: &Place<'_>, type_url: &str) -> String {
        let holder = place.site.message.descriptor();
        match place.value {
            // The key of a map of extensions is the name of what they configure.
            Value::Map(_) => {
                let key = self.path.rsplit_once('[').map_or("", |(_, key)| key.trim_end_matches(']'));
                let noun = if place.field.name() == "typed_per_filter_config" { "configuration per route of filter" } else { "extension" };
                format!("{noun} {key} ({type_url})")
            }
            _ => format!("{} {} ({type_url})", noun(&holder), extension_name(place.site)),
        }
    }

    fn unobeyed_field(&mut self, place: &Place<'_>, reason: &str) {
        self.unobeyed(&place.site.message.descriptor(), place.field.name(), place.kind, reason.to_owned());
    }

    fn refused_field(&mut self, place: &Place<'_>, effect: &str) {
        let holder = place.site.message.descriptor();
        let reason = match place.field.name() {
            DISCOVERY => format!("{} {} (fetched by name) is not supported: {effect}", noun(&holder), extension_name(place.site)),
            _ => effect.to_owned(),
        };
        self.refuse(&holder, place.field.name(), reason);
    }

    fn listed_field(&mut self, place: &Place<'_>, missing: &str) {
        self.list(&place.site.message.descriptor(), place.field.name(), missing.to_owned());
    }

    fn unobeyed(&mut self, message: &MessageDescriptor, field: &str, kind: Kind, reason: String) {
        self.finding(kind.is_strict(), message.full_name(), field, reason);
    }

    fn refuse(&mut self, message: &MessageDescriptor, field: &str, reason: String) {
        self.finding(true, message.full_name(), field, reason);
    }

    fn list(&mut self, message: &MessageDescriptor, field: &str, reason: String) {
        self.finding(false, message.full_name(), field, reason);
    }

    fn finding(&mut self, refused: bool, type_name: &str, field: &str, reason: String) {
        let findings = if refused { &mut self.findings.refused } else { &mut self.findings.listed };
        if findings.len() >= FINDINGS_MAX {
            self.findings.omitted += 1;
            return;
        }
        findings.push(Finding { path: self.path.clone(), type_name: type_name.to_owned(), field: field.to_owned(), reason });
    }

    /// Adds a field to the path; what it returns is to truncate the path to.
    fn enter(&mut self, field: &str) -> usize {
        let start = self.path.len();
        if start > 0 {
            self.path.push('.');
        }
        self.path.push_str(field);
        start
    }

    /// Adds a member of a list or map to the path; what it returns is to truncate the path to.
    fn member(&mut self, name: &str) -> usize {
        let start = self.path.len();
        write!(self.path, "[{name}]").expect("a String takes everything");
        start
    }
}

/// A message whose value has no fields to misunderstand: durations, wrappers, JSON.
fn is_plain(descriptor: &MessageDescriptor) -> bool {
    descriptor.package_name() == "google.protobuf"
}

fn member_name(field: &FieldDescriptor, item: &Value) -> Option<String> {
    let message = item.as_message().filter(|_| NAMED.contains(&field.name()))?;
    let name = message.get_field_by_name("name")?;
    name.as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::String(text) => text.clone(),
        MapKey::Bool(value) => value.to_string(),
        MapKey::I32(value) => value.to_string(),
        MapKey::I64(value) => value.to_string(),
        MapKey::U32(value) => value.to_string(),
        MapKey::U64(value) => value.to_string(),
    }
}

/// What a message with a `typed_config` is called.
fn noun(holder: &MessageDescriptor) -> &'static str {
    match holder.name() {
        "Filter" | "HttpFilter" | "ListenerFilter" => "filter",
        "TransportSocket" => "transport socket",
        "AccessLog" => "access log",
        _ => "extension",
    }
}

/// The name of the extension that a message holds.
fn extension_name(holder: &Site<'_>) -> String {
    let name = holder.message.get_field_by_name("name");
    name.and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

/// An `Any`, and a `TypedStruct` in it, by its own type.
struct Opened {
    type_url: String,
    content: Content,
}

enum Content {
    Bytes(prost::bytes::Bytes),
    Json(serde_json::Value),
}

struct Unopened {
    type_url: String,
    reason: String,
}

impl Opened {
    fn of(any: &DynamicMessage) -> Result<Self, Unopened> {
        let type_url = text(any, "type_url");
        let bytes = any.get_field_by_name("value").and_then(|value| value.as_bytes().cloned()).unwrap_or_default();
        if !TYPED_STRUCTS.contains(&message_name(&type_url)) {
            return Ok(Self { type_url, content: Content::Bytes(bytes) });
        }
        let outer = Self { type_url: type_url.clone(), content: Content::Bytes(bytes) };
        let unopened = |reason: String| Unopened { type_url: type_url.clone(), reason };
        let typed_struct = outer.message().map_err(unopened)?;
        let value = typed_struct.get_field_by_name("value");
        let json = match value.as_ref().and_then(|value| value.as_message()) {
            Some(value) => dynamic_to_json(value).map_err(|error| Unopened { type_url: type_url.clone(), reason: error.to_string() })?,
            None => serde_json::Value::Object(serde_json::Map::new()),
        };
        Ok(Self { type_url: text(&typed_struct, "type_url"), content: Content::Json(json) })
    }

    fn message(&self) -> Result<DynamicMessage, String> {
        let name = message_name(&self.type_url);
        let descriptor = descriptors().get_message_by_name(name).ok_or_else(|| format!("{name} is not known"))?;
        match &self.content {
            Content::Bytes(bytes) => DynamicMessage::decode(descriptor, bytes.clone()).map_err(|error| error.to_string()),
            Content::Json(json) => dynamic_from_json(name, json).map_err(|error| match std::error::Error::source(&error) {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            }),
        }
    }
}

fn text(message: &DynamicMessage, field: &str) -> String {
    message.get_field_by_name(field).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
