//! What a message means, as a number: the same for two encodings that differ only in the order of their map entries.
//!
//! istiod sends all chains of all services for any change, and released ones write maps in random order, so nearly all bytes differ
//! and nearly all chains are the same. Not for: finding out what differs. Everything but the order of map entries counts, fields that
//! are not known as well. Invariants: equal numbers mean equal messages, up to chance (128 bits under random seeds) and given that a
//! map has each key once, as those that Go writes have; unequal numbers may still mean the same, which costs a comparison.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher};

use foldhash::quality::RandomState;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_reflect::{Kind, MessageDescriptor};
use smallvec::SmallVec;
use xds_proto::{descriptors, message_name};

const ANY: &str = "google.protobuf.Any";
/// Fields of an `Any`.
const TYPE_URL: u32 = 1;
const ANY_VALUE: u32 = 2;
/// Messages inside of messages at most, as in prost.
const DEPTH_MAX: u32 = 100;

/// What is inside of a field, if there can be a map in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inside {
    /// Entries whose order means nothing, as messages of this plan.
    Map(usize),
    Message(usize),
    Any,
}

/// The fields of a message that can hold a map, however deep, by number.
type Plan = Vec<(u32, Inside)>;

/// Tells messages apart. Knows no descriptors: those may be let go meanwhile.
#[derive(Debug, Default)]
pub(super) struct Meanings {
    seeds: [RandomState; 2],
    plans: Vec<Plan>,
    /// By full name; none of a type that is not known.
    by_name: HashMap<String, Option<usize>>,
}

impl Meanings {
    /// The number of a message; none if it is none, or of no known type.
    pub(super) fn of(&mut self, type_name: &str, bytes: &[u8]) -> Option<u128> {
        let plan = self.plan(type_name)?;
        self.message(plan, bytes, 0)
    }

    fn message(&mut self, plan: usize, bytes: &[u8], depth: u32) -> Option<u128> {
        if depth > DEPTH_MAX {
            return None;
        }
        let mut ordered = Ordered::new(&self.seeds);
        let mut maps: SmallVec<[(u32, u128); 4]> = SmallVec::new();
        let mut rest = bytes;
        // Fields without a map inside count as they are, as many at once as there are.
        let mut plain = bytes;
        while !rest.is_empty() {
            let before = rest;
            let (field, wire) = decode_key(&mut rest).ok()?;
            let inside = self.plans[plan].iter().find(|(number, _)| *number == field).map(|(_, inside)| *inside);
            let Some(inside) = inside.filter(|_| wire == WireType::LengthDelimited) else {
                skip_field(wire, field, &mut rest, DecodeContext::default()).ok()?;
                continue;
            };
            ordered.add(&plain[..plain.len() - before.len()]);
            let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
            let (payload, after) = rest.split_at_checked(length)?;
            (rest, plain) = (after, after);
            match inside {
                Inside::Message(of) => ordered.add_message(field, self.message(of, payload, depth + 1)?),
                Inside::Any => ordered.add_message(field, self.any(payload, depth + 1)?),
                Inside::Map(of) => {
                    let entry = self.message(of, payload, depth + 1)?;
                    match maps.iter_mut().find(|(number, _)| *number == field) {
                        Some((_, all)) => *all = all.wrapping_add(entry),
                        None => maps.push((field, entry)),
                    }
                }
            }
        }
        ordered.add(plain);
        maps.sort_unstable();
        maps.into_iter().for_each(|(field, all)| ordered.add_message(field, all));
        Some(ordered.finish())
    }

    /// An `Any` is its type and, if that is known, the message; else its bytes.
    fn any(&mut self, bytes: &[u8], depth: u32) -> Option<u128> {
        let mut rest = bytes;
        let mut parts: SmallVec<[(u32, &[u8]); 2]> = SmallVec::new();
        while !rest.is_empty() {
            let (field, wire) = decode_key(&mut rest).ok()?;
            if wire != WireType::LengthDelimited {
                return Some(self.plain(bytes));
            }
            let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
            let (payload, after) = rest.split_at_checked(length)?;
            parts.push((field, payload));
            rest = after;
        }
        let [(TYPE_URL, type_url), (ANY_VALUE, value)] = parts.as_slice() else { return Some(self.plain(bytes)) };
        let plan = std::str::from_utf8(type_url).ok().and_then(|url| self.plan(message_name(url)));
        let Some(plan) = plan else { return Some(self.plain(bytes)) };
        let message = self.message(plan, value, depth)?;
        let mut ordered = Ordered::new(&self.seeds);
        ordered.add(type_url);
        ordered.add_message(ANY_VALUE, message);
        Some(ordered.finish())
    }

    fn plain(&self, bytes: &[u8]) -> u128 {
        let mut ordered = Ordered::new(&self.seeds);
        ordered.add(bytes);
        ordered.finish()
    }

    fn plan(&mut self, type_name: &str) -> Option<usize> {
        if let Some(known) = self.by_name.get(type_name) {
            return *known;
        }
        let Some(descriptor) = descriptors().get_message_by_name(type_name) else {
            self.by_name.insert(type_name.to_owned(), None);
            return None;
        };
        Some(self.plan_of(&descriptor))
    }

    fn plan_of(&mut self, descriptor: &MessageDescriptor) -> usize {
        if let Some(Some(known)) = self.by_name.get(descriptor.full_name()) {
            return *known;
        }
        // Known before its fields are: a message may hold its own kind.
        let at = self.plans.len();
        self.plans.push(Plan::new());
        self.by_name.insert(descriptor.full_name().to_owned(), Some(at));
        let mut plan = Plan::new();
        for field in descriptor.fields() {
            let Kind::Message(inner) = field.kind() else { continue };
            if field.is_map() {
                plan.push((field.number(), Inside::Map(self.plan_of(&inner))));
            } else if inner.full_name() == ANY {
                plan.push((field.number(), Inside::Any));
            } else if reaches_a_map(&inner, &mut HashSet::new()) {
                plan.push((field.number(), Inside::Message(self.plan_of(&inner))));
            }
        }
        self.plans[at] = plan;
        at
    }
}

/// Whether there can be a map inside, however deep.
fn reaches_a_map(descriptor: &MessageDescriptor, seen: &mut HashSet<String>) -> bool {
    descriptor.fields().any(|field| match field.kind() {
        _ if field.is_map() => true,
        Kind::Message(inner) => inner.full_name() == ANY || (seen.insert(inner.full_name().to_owned()) && reaches_a_map(&inner, seen)),
        _ => false,
    })
}

/// What counts in its order, under two seeds.
struct Ordered<H>([H; 2]);

impl<H: Hasher> Ordered<H> {
    fn new<S: BuildHasher<Hasher = H>>(seeds: &[S; 2]) -> Self {
        Self([seeds[0].build_hasher(), seeds[1].build_hasher()])
    }

    fn add(&mut self, bytes: &[u8]) {
        for hasher in &mut self.0 {
            hasher.write(bytes);
            // So that a boundary moved is a difference.
            hasher.write_usize(bytes.len());
        }
    }

    fn add_message(&mut self, field: u32, meaning: u128) {
        for hasher in &mut self.0 {
            hasher.write_u32(field);
            hasher.write_u128(meaning);
        }
    }

    fn finish(&self) -> u128 {
        u128::from(self.0[0].finish()) << 64 | u128::from(self.0[1].finish())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use prost_reflect::{DynamicMessage, Value};
    use serde_json::json;
    use xds_proto::{dynamic_from_json, message_from_json};

    use super::*;

    const CHAIN: &str = "envoy.config.listener.v3.FilterChain";

    fn chain(policies: &[&str], routes: &[&str]) -> serde_json::Value {
        let rule = json!({"permissions": [{"any": true}], "principals": [{"any": true}]});
        let policies: serde_json::Map<String, serde_json::Value> = policies.iter().map(|name| ((*name).to_owned(), rule.clone())).collect();
        let routes: Vec<_> = routes.iter().map(|path| json!({"match": {"path": path}, "route": {"cluster": "web"}})).collect();
        json!({"filters": [{"name": "http", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "web",
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
            "http_filters": [{"name": "rbac", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                "rules": {"action": "ALLOW", "policies": policies},
            }}],
        }}]})
    }

    fn encode(chain: &serde_json::Value) -> Vec<u8> {
        message_from_json(CHAIN, chain).unwrap()
    }

    /// Encodings of one chain: `prost-reflect` keeps maps in a hash map, so each decoded message writes them in an order of its own.
    fn encodings(chain: &serde_json::Value) -> HashSet<Vec<u8>> {
        (0..64).map(|_| encode(chain)).collect()
    }

    #[test]
    fn the_order_of_map_entries_means_nothing_inside_of_any_too() {
        let mut meanings = Meanings::default();
        let encodings = encodings(&chain(&["one", "two", "three", "four"], &["/a", "/b"]));
        assert!(encodings.len() > 1, "the orders differ, or nothing is shown");
        let found: HashSet<_> = encodings.iter().map(|bytes| meanings.of(CHAIN, bytes).unwrap()).collect();
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn every_other_difference_is_one() {
        let mut meanings = Meanings::default();
        let mut of = |chain: &serde_json::Value| meanings.of(CHAIN, &encode(chain)).unwrap();
        let one = of(&chain(&["one", "two"], &["/a", "/b"]));
        for other in [
            chain(&["one", "two"], &["/b", "/a"]),
            chain(&["one"], &["/a", "/b"]),
            chain(&["one", "twp"], &["/a", "/b"]),
            chain(&["one", "two"], &["/a", "/b", "/b"]),
            chain(&["one", "two"], &["/a", "/bc"]),
            json!({}),
        ] {
            assert_ne!(of(&other), one, "{other}");
        }
    }

    #[test]
    fn a_value_that_moves_to_another_key_is_a_difference() {
        let mut meanings = Meanings::default();
        let of = "google.protobuf.Struct";
        let encode = |value| message_from_json(of, &value).unwrap();
        let one = meanings.of(of, &encode(json!({"a": {"x": 1, "y": 2}, "b": {"x": 2, "y": 1}}))).unwrap();
        let other = meanings.of(of, &encode(json!({"a": {"x": 2, "y": 1}, "b": {"x": 1, "y": 2}}))).unwrap();
        assert_ne!(one, other);
    }

    #[test]
    fn a_field_that_is_not_known_is_a_difference() {
        let mut meanings = Meanings::default();
        let bytes = encode(&chain(&["one"], &["/a"]));
        let mut more = bytes.clone();
        prost::encoding::uint32::encode(9999, &1, &mut more);
        assert_ne!(meanings.of(CHAIN, &bytes), meanings.of(CHAIN, &more));
    }

    #[test]
    fn what_is_no_message_has_no_meaning_and_what_is_nested_too_deep_none_either() {
        let mut meanings = Meanings::default();
        assert_eq!(meanings.of(CHAIN, &[0x0a, 0xff]), None);
        assert_eq!(meanings.of("no.such.Type", &[]), None);
        let mut deep = Value::Bool(true);
        for _ in 0..200 {
            let descriptor = descriptors().get_message_by_name("google.protobuf.ListValue").unwrap();
            let mut list = DynamicMessage::new(descriptor);
            let value = descriptors().get_message_by_name("google.protobuf.Value").unwrap();
            let mut wrapped = DynamicMessage::new(value);
            match deep {
                Value::Bool(_) => wrapped.set_field_by_name("bool_value", deep),
                other => wrapped.set_field_by_name("list_value", other),
            }
            list.set_field_by_name("values", Value::List(vec![Value::Message(wrapped)]));
            deep = Value::Message(list);
        }
        let Value::Message(list) = deep else { panic!("built above") };
        assert_eq!(meanings.of("google.protobuf.ListValue", &prost::Message::encode_to_vec(&list)), None);
        assert!(dynamic_from_json("google.protobuf.ListValue", &json!([])).is_ok());
    }
}
