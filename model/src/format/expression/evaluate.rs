//! From a tree to what is evaluated: names resolved, expressions of rules compiled, constants worked out.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use regex::bytes::Regex;

use super::attribute::{Attribute, FIRST, OTHER};
use super::datum::Datum;
use super::parse::{Operation, Tree};
use crate::matcher::part_regex;
use crate::refusal::Refusal;
use crate::stream_view::{Field, RequestHead, Side, StreamView, Value};
use crate::workload::Workload;

#[derive(Debug)]
pub(super) enum Node {
    Constant(Datum<'static>),
    Attribute(Attribute),
    /// Whether there is such a thing.
    Has(Attribute),
    Not(Box<Node>),
    Negative(Box<Node>),
    Binary(Operation, Box<Node>, Box<Node>),
    Choice(Box<[Node; 3]>),
    List(Vec<Node>),
    Matches(Box<Node>, Regex),
    Call(Function, Vec<Node>),
}

/// What can be called, and with how many values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    StartsWith,
    EndsWith,
    Contains,
    Size,
    ToText,
    ToInt,
    ToUint,
    ToDouble,
    ToDuration,
    ToTime,
    /// The value as it is: types are found out as one goes here anyway.
    Dynamic,
}

/// What is known of no request: for what does not depend on one.
struct Nothing;

impl StreamView for Nothing {
    fn request(&self) -> Option<RequestHead<'_>> {
        None
    }
    fn response_headers(&self) -> Option<&http::HeaderMap> {
        None
    }
    fn response_trailers(&self) -> Option<&http::HeaderMap> {
        None
    }
    fn field(&self, _: Field) -> Value<'_> {
        Value::Missing
    }
    fn peer(&self, _: Side) -> Option<&Workload> {
        None
    }
    fn refusal(&self) -> Option<&Refusal> {
        None
    }
}

/// The names of a chain of members, `request.headers['x']`; none if it is something else.
fn path(tree: &Tree) -> Option<Vec<&str>> {
    match tree {
        Tree::Name(name) => Some(vec![name]),
        Tree::Member(of, name) => {
            let mut names = path(of)?;
            names.push(name);
            Some(names)
        }
        Tree::Index(of, index) => {
            let name = match &**index {
                Tree::Literal(Datum::Text(name)) => name,
                Tree::Literal(Datum::Int(0)) => FIRST,
                Tree::Literal(Datum::Int(_)) => OTHER,
                _ => return None,
            };
            let mut names = path(of)?;
            names.push(name);
            Some(names)
        }
        _ => None,
    }
}

impl Node {
    /// Compiles a tree.
    pub(super) fn compile(tree: Tree) -> Result<Self, String> {
        let node = Self::of(tree)?;
        let mut depends = false;
        node.attributes(&mut |_| depends = true);
        if depends {
            return Ok(node);
        }
        // Without a value it stays, and says so of every request.
        let value = node.evaluate(&Nothing).map(Datum::into_owned);
        Ok(value.map_or(node, Self::Constant))
    }

    fn of(tree: Tree) -> Result<Self, String> {
        if let Some(path) = path(&tree) {
            return Ok(Self::Attribute(Attribute::resolve(&path)));
        }
        let boxed = |tree: Tree| Self::of(tree).map(Box::new);
        Ok(match tree {
            Tree::Literal(value) => Self::Constant(value),
            Tree::Not(of) => Self::Not(boxed(*of)?),
            Tree::Negative(of) => Self::Negative(boxed(*of)?),
            Tree::Binary(Operation::In, left, right) => contained(*left, *right)?,
            Tree::Binary(operation, left, right) => Self::Binary(operation, boxed(*left)?, boxed(*right)?),
            Tree::Choice(parts) => {
                let [condition, yes, no] = *parts;
                Self::Choice(Box::new([Self::of(condition)?, Self::of(yes)?, Self::of(no)?]))
            }
            Tree::List(items) => Self::List(items.into_iter().map(Self::of).collect::<Result<_, _>>()?),
            Tree::Call { name, has_target, arguments } => call(&name, has_target, arguments)?,
            Tree::Name(_) | Tree::Member(..) | Tree::Index(..) => {
                return Err("a member of something else than an attribute, or by something else than a constant text".to_owned());
            }
        })
    }

    /// Shows every attribute that is read.
    pub(super) fn attributes(&self, show: &mut dyn FnMut(&Attribute)) {
        match self {
            Self::Constant(_) => {}
            Self::Attribute(attribute) | Self::Has(attribute) => show(attribute),
            Self::Not(of) | Self::Negative(of) | Self::Matches(of, _) => of.attributes(show),
            Self::Binary(_, left, right) => {
                left.attributes(show);
                right.attributes(show);
            }
            Self::Choice(parts) => parts.iter().for_each(|part| part.attributes(show)),
            Self::List(parts) | Self::Call(_, parts) => parts.iter().for_each(|part| part.attributes(show)),
        }
    }

    pub(super) fn evaluate<'a>(&'a self, view: &'a dyn StreamView) -> Option<Datum<'a>> {
        match self {
            Self::Constant(value) => Some(borrowed(value)),
            Self::Attribute(attribute) => attribute.value(view),
            Self::Has(attribute) => Some(Datum::Bool(attribute.value(view).is_some())),
            Self::Not(of) => Some(Datum::Bool(!truth(of.evaluate(view))?)),
            Self::Negative(of) => match of.evaluate(view)? {
                Datum::Int(number) => number.checked_neg().map(Datum::Int),
                Datum::Double(number) => Some(Datum::Double(-number)),
                _ => None,
            },
            Self::Binary(operation, left, right) => binary(*operation, left, right, view),
            Self::Choice(parts) => {
                let [condition, yes, no] = &**parts;
                if truth(condition.evaluate(view))? { yes.evaluate(view) } else { no.evaluate(view) }
            }
            Self::List(parts) => parts.iter().map(|part| part.evaluate(view)).collect::<Option<Vec<_>>>().map(Datum::List),
            Self::Matches(of, pattern) => match of.evaluate(view)? {
                Datum::Text(text) => Some(Datum::Bool(pattern.is_match(text.as_bytes()))),
                _ => None,
            },
            Self::Call(function, arguments) => {
                let first = arguments.first()?.evaluate(view)?;
                let second = match arguments.get(1) {
                    Some(argument) => Some(argument.evaluate(view)?),
                    None => None,
                };
                apply(*function, first, second)
            }
        }
    }
}

/// A copy that holds no text of its own.
fn borrowed<'a>(value: &'a Datum<'static>) -> Datum<'a> {
    match value {
        Datum::Text(text) => Datum::Text(Cow::Borrowed(text)),
        other => other.clone(),
    }
}

/// `'x' in request.headers`, or whether a list has it.
fn contained(item: Tree, of: Tree) -> Result<Node, String> {
    if let (Tree::Literal(Datum::Text(name)), Some(mut names)) = (&item, path(&of)) {
        names.push(name);
        return Ok(Node::Has(Attribute::resolve(&names)));
    }
    Ok(Node::Binary(Operation::In, Box::new(Node::of(item)?), Box::new(Node::of(of)?)))
}

fn call(name: &str, has_target: bool, arguments: Vec<Tree>) -> Result<Node, String> {
    let is_wrong = || Err(format!("{name}() with {} values is not known", arguments.len()));
    if name == "has" {
        return match arguments.as_slice() {
            [one] if !has_target => match path(one) {
                Some(names) => Ok(Node::Has(Attribute::resolve(&names))),
                None => Err("has() of something else than an attribute".to_owned()),
            },
            _ => is_wrong(),
        };
    }
    let (function, count) = match name {
        "matches" => return matches(arguments),
        "startsWith" => (Function::StartsWith, 2),
        "endsWith" => (Function::EndsWith, 2),
        "contains" => (Function::Contains, 2),
        "size" => (Function::Size, 1),
        "string" if !has_target => (Function::ToText, 1),
        "int" if !has_target => (Function::ToInt, 1),
        "uint" if !has_target => (Function::ToUint, 1),
        "double" if !has_target => (Function::ToDouble, 1),
        "duration" if !has_target => (Function::ToDuration, 1),
        "timestamp" if !has_target => (Function::ToTime, 1),
        "dyn" if !has_target => (Function::Dynamic, 1),
        _ => return is_wrong(),
    };
    if arguments.len() != count || (count == 2 && !has_target) {
        return is_wrong();
    }
    Ok(Node::Call(function, arguments.into_iter().map(Node::of).collect::<Result<_, _>>()?))
}

fn matches(arguments: Vec<Tree>) -> Result<Node, String> {
    let Ok([of, pattern]) = <[Tree; 2]>::try_from(arguments) else { return Err("matches() takes a text and a pattern".to_owned()) };
    let Tree::Literal(Datum::Text(pattern)) = pattern else { return Err("matches() takes a constant pattern".to_owned()) };
    Ok(Node::Matches(Box::new(Node::of(of)?), part_regex(&pattern)?))
}

fn truth(value: Option<Datum<'_>>) -> Option<bool> {
    match value {
        Some(Datum::Bool(yes)) => Some(yes),
        _ => None,
    }
}

fn binary<'a>(operation: Operation, left: &'a Node, right: &'a Node, view: &'a dyn StreamView) -> Option<Datum<'a>> {
    // One side can decide alone, whatever is wrong with the other.
    let decisive = match operation {
        Operation::And => Some(false),
        Operation::Or => Some(true),
        _ => None,
    };
    if let Some(decisive) = decisive {
        let first = truth(left.evaluate(view));
        if first == Some(decisive) {
            return Some(Datum::Bool(decisive));
        }
        let second = truth(right.evaluate(view));
        let is_decided = second == Some(decisive);
        return (is_decided || (first.is_some() && second.is_some())).then_some(Datum::Bool(is_decided == decisive));
    }
    let (left, right) = (left.evaluate(view)?, right.evaluate(view)?);
    let order = |is: fn(std::cmp::Ordering) -> bool| left.compare(&right).map(|order| Datum::Bool(is(order)));
    match operation {
        Operation::Equal => Some(Datum::Bool(left == right)),
        Operation::Different => Some(Datum::Bool(left != right)),
        Operation::Less => order(std::cmp::Ordering::is_lt),
        Operation::LessOrEqual => order(std::cmp::Ordering::is_le),
        Operation::Greater => order(std::cmp::Ordering::is_gt),
        Operation::GreaterOrEqual => order(std::cmp::Ordering::is_ge),
        Operation::In => match right {
            Datum::List(list) => Some(Datum::Bool(list.contains(&left))),
            _ => None,
        },
        _ => arithmetic(operation, left, right),
    }
}

fn arithmetic<'a>(operation: Operation, left: Datum<'a>, right: Datum<'a>) -> Option<Datum<'a>> {
    match (left, right) {
        (Datum::Int(left), Datum::Int(right)) => Some(Datum::Int(match operation {
            Operation::Add => left.checked_add(right),
            Operation::Subtract => left.checked_sub(right),
            Operation::Multiply => left.checked_mul(right),
            Operation::Divide => left.checked_div(right),
            Operation::Remainder => left.checked_rem(right),
            _ => None,
        }?)),
        (Datum::Uint(left), Datum::Uint(right)) => Some(Datum::Uint(match operation {
            Operation::Add => left.checked_add(right),
            Operation::Subtract => left.checked_sub(right),
            Operation::Multiply => left.checked_mul(right),
            Operation::Divide => left.checked_div(right),
            Operation::Remainder => left.checked_rem(right),
            _ => None,
        }?)),
        (Datum::Double(left), Datum::Double(right)) => Some(Datum::Double(match operation {
            Operation::Add => left + right,
            Operation::Subtract => left - right,
            Operation::Multiply => left * right,
            Operation::Divide => left / right,
            _ => return None,
        })),
        (Datum::Text(left), Datum::Text(right)) if operation == Operation::Add => Some(Datum::Text(Cow::Owned(format!("{left}{right}")))),
        (Datum::Time(time), Datum::Duration(by)) => match operation {
            Operation::Add => moved(time, by).map(Datum::Time),
            Operation::Subtract => moved(time, by.checked_neg()?).map(Datum::Time),
            _ => None,
        },
        (Datum::Duration(by), Datum::Time(time)) if operation == Operation::Add => moved(time, by).map(Datum::Time),
        (Datum::Time(left), Datum::Time(right)) if operation == Operation::Subtract => match left.duration_since(right) {
            Ok(duration) => Datum::lasting(duration),
            Err(earlier) => i64::try_from(earlier.duration().as_nanos()).ok().map(|nanoseconds| Datum::Duration(-nanoseconds)),
        },
        (Datum::Duration(left), Datum::Duration(right)) => match operation {
            Operation::Add => left.checked_add(right).map(Datum::Duration),
            Operation::Subtract => left.checked_sub(right).map(Datum::Duration),
            _ => None,
        },
        _ => None,
    }
}

/// A time so many nanoseconds later.
fn moved(time: SystemTime, by: i64) -> Option<SystemTime> {
    let length = Duration::from_nanos(by.unsigned_abs());
    if by < 0 { time.checked_sub(length) } else { time.checked_add(length) }
}

fn apply<'a>(function: Function, first: Datum<'a>, second: Option<Datum<'a>>) -> Option<Datum<'a>> {
    match (function, first, second) {
        (Function::StartsWith, Datum::Text(text), Some(Datum::Text(part))) => Some(Datum::Bool(text.starts_with(&*part))),
        (Function::EndsWith, Datum::Text(text), Some(Datum::Text(part))) => Some(Datum::Bool(text.ends_with(&*part))),
        (Function::Contains, Datum::Text(text), Some(Datum::Text(part))) => Some(Datum::Bool(text.contains(&*part))),
        (Function::Size, Datum::Text(text), None) => i64::try_from(text.chars().count()).ok().map(Datum::Int),
        (Function::Size, Datum::List(list), None) => i64::try_from(list.len()).ok().map(Datum::Int),
        (Function::Dynamic, value, None) => Some(value),
        (Function::ToText, value, None) => value.to_converted().map(|text| Datum::Text(text.into_owned().into())),
        (Function::ToInt, Datum::Text(text), None) => text.parse().ok().map(Datum::Int),
        (Function::ToInt, Datum::Double(number), None) => number.trunc().to_string().parse().ok().map(Datum::Int),
        (Function::ToInt, Datum::Time(time), None) => {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
            i64::try_from(since.as_secs()).ok().map(Datum::Int)
        }
        (Function::ToInt, value, None) => i64::try_from(value.whole()?).ok().map(Datum::Int),
        (Function::ToUint, Datum::Text(text), None) => text.parse().ok().map(Datum::Uint),
        (Function::ToUint, Datum::Double(number), None) => number.trunc().to_string().parse().ok().map(Datum::Uint),
        (Function::ToUint, value, None) => u64::try_from(value.whole()?).ok().map(Datum::Uint),
        (Function::ToDouble, Datum::Text(text), None) => text.parse().ok().map(Datum::Double),
        (Function::ToDouble, value, None) => value.number().map(Datum::Double),
        (Function::ToDuration, Datum::Text(text), None) => duration(&text).map(Datum::Duration),
        (Function::ToTime, Datum::Text(text), None) => {
            let time: jiff::Timestamp = text.parse().ok()?;
            Some(Datum::Time(time.into()))
        }
        _ => None,
    }
}

/// `1h2m3.5s`, `-200ms` and their like, in nanoseconds: numbers and their units, or `0`.
fn duration(text: &str) -> Option<i64> {
    let (is_negative, mut rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let letters = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let number: f64 = rest[..digits].parse().ok()?;
        let seconds = match &rest[digits..digits + letters] {
            "h" => number * 3600.0,
            "m" => number * 60.0,
            "s" => number,
            "ms" => number / 1e3,
            "us" => number / 1e6,
            "ns" => number / 1e9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(seconds).ok()?)?;
        rest = &rest[digits + letters..];
    }
    let nanoseconds = i64::try_from(total.as_nanos()).ok()?;
    Some(if is_negative { -nanoseconds } else { nanoseconds })
}
