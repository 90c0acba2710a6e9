//! What Envoy's own files demand of values, by their option `validate.rules`: lists that must not be empty, texts with something in them,
//! numbers within bounds. Envoy refuses a resource that does not meet it, so that its filters never see one; here it would be read as
//! something else than was meant: a list of conditions without any holds for everybody.
//!
//! Not here: oneofs and enum values (`walk`). What is kept holds no descriptor, since those are let go at rest.
//!
//! Invariant: everything that a message of the table is asked for is compiled; what would not be, a test finds.
use std::collections::HashMap;
use std::ops::Bound;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use envoy_types::pb::google::protobuf::Duration;
use envoy_types::pb::validate::field_rules::Type;
use envoy_types::pb::validate::string_rules::WellKnown;
use envoy_types::pb::validate::{FieldRules, KnownRegex, MapRules, RepeatedRules, StringRules};
use prost_reflect::{DynamicMessage, MessageDescriptor, ReflectMessage, Value};
use regex::Regex;
use xds_proto::descriptors;

const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// One thing that is asked of a value.
#[derive(Debug, Clone)]
enum Demand {
    Items(usize, Option<usize>),
    Characters(usize, Option<usize>),
    Bytes(usize, Option<usize>),
    Prefix(String),
    Suffix(String),
    OneOf(Vec<String>),
    Pattern(Regex),
    HeaderName,
    HeaderValue,
    /// A header's name or value that may have anything but what ends it.
    HeaderText,
    /// Durations by their nanoseconds.
    Whole(Bound<i128>, Bound<i128>),
    Fraction(Bound<f64>, Bound<f64>),
    NoneOf(Vec<i32>),
    True,
    /// Of each item.
    Each(Vec<Demand>),
    /// Of each key of a map.
    Keys(Vec<Demand>),
    Values(Vec<Demand>),
}

/// What is asked of a field.
#[derive(Debug, Default)]
struct OfField {
    number: u32,
    is_required: bool,
    ignores_empty: bool,
    demands: Vec<Demand>,
}

/// What is asked of a message.
#[derive(Debug, Default)]
pub(super) struct Demands {
    fields: Vec<OfField>,
    /// Of the oneofs that have to be set, by their names.
    oneofs: Vec<String>,
}

/// Something that is asked for and not there.
pub(super) struct Breach {
    /// The field, or the oneof.
    pub(super) name: String,
    pub(super) is_oneof: bool,
    pub(super) reason: String,
}

impl Demands {
    /// What Envoy asks of such a message.
    pub(super) fn of(descriptor: &MessageDescriptor) -> Arc<Self> {
        static KNOWN: OnceLock<RwLock<HashMap<String, Arc<Demands>>>> = OnceLock::new();
        let known = KNOWN.get_or_init(RwLock::default);
        if let Some(demands) = known.read().unwrap_or_else(PoisonError::into_inner).get(descriptor.full_name()) {
            return Arc::clone(demands);
        }
        // Bounded by the messages of the table.
        let demands = Arc::new(Self::read(descriptor, &mut Vec::new()));
        known.write().unwrap_or_else(PoisonError::into_inner).insert(descriptor.full_name().to_owned(), Arc::clone(&demands));
        demands
    }

    fn read(descriptor: &MessageDescriptor, unknown: &mut Vec<String>) -> Self {
        let pool = descriptors();
        let required = pool.get_extension_by_name("validate.required").expect("Envoy's files import validate.proto");
        let rules = pool.get_extension_by_name("validate.rules").expect("Envoy's files import validate.proto");
        let oneofs = descriptor.oneofs().filter(|oneof| oneof.options().get_extension(&required).as_bool() == Some(true));
        let oneofs = oneofs.map(|oneof| oneof.name().to_owned()).collect();
        let mut fields = Vec::new();
        for field in descriptor.fields() {
            let options = field.options();
            if !options.has_extension(&rules) {
                continue;
            }
            let value = options.get_extension(&rules).into_owned();
            let value = value.as_message().and_then(|value| value.transcode_to::<FieldRules>().ok());
            let mut found = OfField { number: field.number(), ..OfField::default() };
            let mut note = |what: &str| unknown.push(format!("{}: {what}", field.full_name()));
            match value {
                Some(value) => found.read(&value, &mut note),
                None => note("rules that cannot be read"),
            }
            if found.is_required || !found.demands.is_empty() {
                fields.push(found);
            }
        }
        Self { fields, oneofs }
    }

    /// Tells what is asked for and not met. Fields whose full names are among `skip` are passed over.
    pub(super) fn breaches(&self, message: &DynamicMessage, skip: &[&str], mut tell: impl FnMut(Breach)) {
        let descriptor = message.descriptor();
        for name in &self.oneofs {
            let oneof = descriptor.oneofs().find(|oneof| oneof.name() == name);
            if oneof.is_some_and(|oneof| !oneof.fields().any(|field| message.has_field(&field))) {
                let reason = format!("nothing that is known is set in {name} of {}", descriptor.full_name());
                tell(Breach { name: name.clone(), is_oneof: true, reason });
            }
        }
        for of_field in &self.fields {
            let Some(field) = descriptor.get_field(of_field.number).filter(|field| !skip.contains(&field.full_name())) else { continue };
            let is_set = message.has_field(&field);
            let reason = match is_set {
                // Of a oneof it is asked where it was chosen.
                false if of_field.is_required && field.containing_oneof().is_none() => Some("is not set, and has to be".to_owned()),
                // What has a presence of its own and is not there is asked nothing; anything else has its default value.
                false if of_field.ignores_empty || field.supports_presence() => None,
                _ => of_field.demands.iter().find_map(|demand| demand.breach(&message.get_field(&field))),
            };
            if let Some(reason) = reason {
                tell(Breach { name: field.name().to_owned(), is_oneof: false, reason });
            }
        }
    }
}

impl OfField {
    fn read(&mut self, rules: &FieldRules, unknown: &mut dyn FnMut(&str)) {
        self.is_required |= rules.message.as_ref().is_some_and(|message| message.required());
        match &rules.r#type {
            Some(Type::Any(any)) => self.is_required |= any.required(),
            Some(Type::Duration(duration)) => self.is_required |= duration.required(),
            Some(Type::String(text)) => self.ignores_empty = text.ignore_empty(),
            Some(Type::Uint32(number)) => self.ignores_empty = number.ignore_empty(),
            Some(Type::Repeated(list)) => self.ignores_empty = list.ignore_empty(),
            _ => {}
        }
        self.demands = of_value(rules, unknown);
    }
}

/// Bounds of a kind of number, as they are written for each.
macro_rules! bounds {
    ($rules:expr, $number:ty) => {{
        let rules = $rules;
        let low = rules.gt.map(|bound| Bound::Excluded(<$number>::from(bound)));
        let low = low.or(rules.gte.map(|bound| Bound::Included(<$number>::from(bound)))).unwrap_or(Bound::Unbounded);
        let high = rules.lt.map(|bound| Bound::Excluded(<$number>::from(bound)));
        let high = high.or(rules.lte.map(|bound| Bound::Included(<$number>::from(bound)))).unwrap_or(Bound::Unbounded);
        (low, high)
    }};
}

/// As [`bounds`], of something that nothing is asked for if it has none.
macro_rules! whole {
    ($rules:expr) => {{
        let (low, high) = bounds!($rules, i128);
        vec![Demand::Whole(low, high)]
    }};
}

fn of_value(rules: &FieldRules, unknown: &mut dyn FnMut(&str)) -> Vec<Demand> {
    match &rules.r#type {
        None | Some(Type::Any(_)) => Vec::new(),
        Some(Type::Uint32(rules)) => whole!(rules),
        Some(Type::Uint64(rules)) => whole!(rules),
        Some(Type::Int32(rules)) => whole!(rules),
        Some(Type::Int64(rules)) => whole!(rules),
        Some(Type::Double(rules)) => {
            let (low, high) = bounds!(rules, f64);
            vec![Demand::Fraction(low, high)]
        }
        Some(Type::Float(rules)) => {
            let (low, high) = bounds!(rules, f64);
            vec![Demand::Fraction(low, high)]
        }
        Some(Type::Bool(rules)) => rules.r#const.unwrap_or(false).then_some(Demand::True).into_iter().collect(),
        Some(Type::Enum(rules)) => {
            // Whether a value is known at all is asked of every enum.
            if rules.r#const.is_some() || !rules.r#in.is_empty() {
                unknown("values of an enum");
            }
            (!rules.not_in.is_empty()).then(|| Demand::NoneOf(rules.not_in.clone())).into_iter().collect()
        }
        Some(Type::Duration(rules)) => {
            let nanos = |duration: &Duration| i128::from(duration.seconds) * NANOS_PER_SECOND + i128::from(duration.nanos);
            let low = rules.gt.as_ref().map(|bound| Bound::Excluded(nanos(bound)));
            let low = low.or(rules.gte.as_ref().map(|bound| Bound::Included(nanos(bound)))).unwrap_or(Bound::Unbounded);
            let high = rules.lt.as_ref().map(|bound| Bound::Excluded(nanos(bound)));
            let high = high.or(rules.lte.as_ref().map(|bound| Bound::Included(nanos(bound)))).unwrap_or(Bound::Unbounded);
            vec![Demand::Whole(low, high)]
        }
        Some(Type::String(rules)) => of_text(rules, unknown),
        Some(Type::Bytes(rules)) => vec![Demand::Bytes(size(rules.min_len).unwrap_or(0), size(rules.max_len))],
        Some(Type::Repeated(rules)) => of_list(rules, unknown),
        Some(Type::Map(rules)) => of_map(rules, unknown),
        Some(_) => {
            unknown("a kind of rule");
            Vec::new()
        }
    }
}

fn size(number: Option<u64>) -> Option<usize> {
    number.map(|number| usize::try_from(number).unwrap_or(usize::MAX))
}

fn of_text(rules: &StringRules, unknown: &mut dyn FnMut(&str)) -> Vec<Demand> {
    let mut demands = Vec::new();
    if rules.min_len.is_some() || rules.max_len.is_some() {
        demands.push(Demand::Characters(size(rules.min_len).unwrap_or(0), size(rules.max_len)));
    }
    if rules.min_bytes.is_some() || rules.max_bytes.is_some() {
        demands.push(Demand::Bytes(size(rules.min_bytes).unwrap_or(0), size(rules.max_bytes)));
    }
    demands.extend(rules.prefix.clone().map(Demand::Prefix));
    demands.extend(rules.suffix.clone().map(Demand::Suffix));
    demands.extend((!rules.r#in.is_empty()).then(|| Demand::OneOf(rules.r#in.clone())));
    match rules.well_known {
        Some(WellKnown::WellKnownRegex(kind)) if kind == i32::from(KnownRegex::HttpHeaderName) => {
            demands.push(if rules.strict() { Demand::HeaderName } else { Demand::HeaderText });
        }
        Some(WellKnown::WellKnownRegex(kind)) if kind == i32::from(KnownRegex::HttpHeaderValue) => {
            demands.push(if rules.strict() { Demand::HeaderValue } else { Demand::HeaderText });
        }
        Some(_) => unknown("a kind of text"),
        None => {}
    }
    match rules.pattern.as_deref().map(Regex::new) {
        Some(Ok(pattern)) => demands.push(Demand::Pattern(pattern)),
        Some(Err(_)) => unknown("a pattern"),
        None => {}
    }
    if rules.contains.is_some() || !rules.not_in.is_empty() || rules.r#const.is_some() {
        unknown("a rule of texts");
    }
    demands
}

fn of_list(rules: &RepeatedRules, unknown: &mut dyn FnMut(&str)) -> Vec<Demand> {
    let mut demands = vec![Demand::Items(size(rules.min_items).unwrap_or(0), size(rules.max_items))];
    demands.extend(rules.items.as_deref().map(|items| Demand::Each(of_value(items, unknown))));
    if rules.unique() {
        unknown("unique items");
    }
    demands
}

fn of_map(rules: &MapRules, unknown: &mut dyn FnMut(&str)) -> Vec<Demand> {
    let mut demands = vec![Demand::Items(size(rules.min_pairs).unwrap_or(0), size(rules.max_pairs))];
    demands.extend(rules.keys.as_deref().map(|keys| Demand::Keys(of_value(keys, unknown))));
    demands.extend(rules.values.as_deref().map(|values| Demand::Values(of_value(values, unknown))));
    demands
}

impl Demand {
    /// Why the value does not meet it.
    fn breach(&self, value: &Value) -> Option<String> {
        match self {
            Self::Items(least, most) => {
                let n_items = value.as_list().map(<[Value]>::len).or_else(|| value.as_map().map(HashMap::len))?;
                outside(n_items, (*least, *most), "items")
            }
            Self::Characters(least, most) => outside(value.as_str()?.chars().count(), (*least, *most), "characters"),
            Self::Bytes(least, most) => {
                outside(value.as_str().map(str::len).or_else(|| value.as_bytes().map(|bytes| bytes.len()))?, (*least, *most), "bytes")
            }
            Self::Prefix(prefix) => (!value.as_str()?.starts_with(prefix)).then(|| format!("does not begin with {prefix:?}")),
            Self::Suffix(suffix) => (!value.as_str()?.ends_with(suffix)).then(|| format!("does not end with {suffix:?}")),
            Self::OneOf(texts) => {
                let text = value.as_str()?;
                (!texts.iter().any(|one| one == text)).then(|| format!("is {text:?}, which is none of {texts:?}"))
            }
            Self::Pattern(pattern) => {
                let text = value.as_str()?;
                (!pattern.is_match(text)).then(|| format!("is {text:?}, which {:?} does not match", pattern.as_str()))
            }
            Self::HeaderName => (!is_header_name(value.as_str()?)).then(|| "is no name of a header".to_owned()),
            Self::HeaderValue => {
                let is_control = |character: char| character.is_ascii_control() && character != '\t';
                value.as_str()?.contains(is_control).then(|| "has control characters".to_owned())
            }
            Self::HeaderText => value.as_str()?.contains(['\0', '\r', '\n']).then(|| "has the end of a line in it".to_owned()),
            Self::Whole(low, high) => {
                let number = whole(value)?;
                (!is_within(number, (*low, *high))).then(|| "is outside of its bounds".to_owned())
            }
            Self::Fraction(low, high) => {
                let number = fraction(value)?;
                (!is_within(number, (*low, *high))).then(|| format!("is {number}, which is outside of its bounds"))
            }
            Self::NoneOf(values) => {
                let number = value.as_enum_number()?;
                values.contains(&number).then(|| format!("is {number}, which it must not be"))
            }
            Self::True => (!value.as_bool()?).then(|| "is false, which it must not be".to_owned()),
            Self::Each(demands) => value.as_list()?.iter().find_map(|item| breach_of_any(demands, item)),
            Self::Keys(demands) => value.as_map()?.keys().find_map(|key| breach_of_any(demands, &Value::from(key.clone()))),
            Self::Values(demands) => value.as_map()?.values().find_map(|item| breach_of_any(demands, item)),
        }
    }
}

fn breach_of_any(demands: &[Demand], value: &Value) -> Option<String> {
    demands.iter().find_map(|demand| demand.breach(value))
}

fn outside(number: usize, (least, most): (usize, Option<usize>), unit: &str) -> Option<String> {
    if number < least {
        return Some(if number == 0 {
            "is empty, and must not be".to_owned()
        } else {
            format!("has {number} {unit}, at least {least} are needed")
        });
    }
    most.filter(|most| number > *most).map(|most| format!("has {number} {unit}, at most {most} are allowed"))
}

fn is_within<N: PartialOrd>(number: N, bounds: (Bound<N>, Bound<N>)) -> bool {
    std::ops::RangeBounds::contains(&bounds, &number)
}

/// A whole number, one in a wrapper, or the nanoseconds of a duration.
fn whole(value: &Value) -> Option<i128> {
    match value {
        Value::U32(number) => Some((*number).into()),
        Value::U64(number) => Some((*number).into()),
        Value::I32(number) => Some((*number).into()),
        Value::I64(number) => Some((*number).into()),
        Value::Message(message) if message.descriptor().full_name() == "google.protobuf.Duration" => {
            let part = |name: &str| whole(&*message.get_field_by_name(name)?);
            Some(part("seconds")? * NANOS_PER_SECOND + part("nanos")?)
        }
        Value::Message(wrapper) => whole(&*wrapper.get_field_by_name("value")?),
        _ => None,
    }
}

fn fraction(value: &Value) -> Option<f64> {
    match value {
        Value::F64(number) => Some(*number),
        Value::F32(number) => Some((*number).into()),
        Value::Message(wrapper) => fraction(&*wrapper.get_field_by_name("value")?),
        _ => None,
    }
}

/// By protoc-gen-validate, which lets pseudo-headers pass.
fn is_header_name(text: &str) -> bool {
    let name = text.strip_prefix(':').unwrap_or(text);
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+,-.^_|~`".contains(&byte))
}

#[cfg(test)]
mod tests;
