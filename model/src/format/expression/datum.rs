//! Values of expressions, how they compare, and how they print.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::time::{Duration, SystemTime};

/// A value.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is CEL's type of that name")]
pub enum Datum<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Cow<'a, str>),
    Time(SystemTime),
    /// Nanoseconds, of either sign.
    Duration(i64),
    List(Vec<Datum<'a>>),
    /// Something with members, of which only these can be read.
    Object,
}

/// Nanoseconds in a second, and what is shorter and longer.
const SECOND: u64 = 1_000_000_000;
const UNITS: [(&str, u64); 3] = [("ms", 1_000_000), ("us", 1000), ("ns", 1)];
const MINUTE_SECONDS: u64 = 60;
const HOUR_MINUTES: u64 = 60;
/// Digits of a number that is not whole, as Envoy prints them.
const DIGITS: i32 = 6;
/// Exponents below which such a number prints with one.
const EXPONENT_MIN: i32 = -4;

impl Datum<'_> {
    /// How it prints, as in Envoy; an object has no text.
    #[must_use]
    pub fn to_text(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Object => return None,
            Self::Null => Cow::Borrowed("NULL"),
            Self::List(_) => Cow::Borrowed("CelList value"),
            Self::Bool(yes) => Cow::Borrowed(if *yes { "true" } else { "false" }),
            Self::Int(number) => number.to_string().into(),
            Self::Uint(number) => number.to_string().into(),
            Self::Double(number) => double_text(*number).into(),
            Self::Text(text) => Cow::Borrowed(text),
            Self::Time(time) => format!("{}+00:00", time_text(*time)?).into(),
            Self::Duration(nanoseconds) => duration_text(*nanoseconds).into(),
        })
    }

    /// What `string()` makes of it.
    pub(super) fn to_converted(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Null | Self::List(_) => None,
            Self::Time(time) => Some(format!("{}Z", time_text(*time)?).into()),
            Self::Duration(nanoseconds) => {
                let sign = if *nanoseconds < 0 { "-" } else { "" };
                Some(format!("{sign}{}s", decimal(nanoseconds.unsigned_abs(), SECOND)).into())
            }
            _ => self.to_text(),
        }
    }

    /// A duration; none if it is longer than can be said.
    pub(super) fn lasting(duration: Duration) -> Option<Self> {
        i64::try_from(duration.as_nanos()).ok().map(Self::Duration)
    }

    /// How they compare; none where CEL says that they do not.
    pub(super) fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(left), Self::Bool(right)) => Some(left.cmp(right)),
            (Self::Text(left), Self::Text(right)) => Some(left.cmp(right)),
            (Self::Time(left), Self::Time(right)) => Some(left.cmp(right)),
            (Self::Duration(left), Self::Duration(right)) => Some(left.cmp(right)),
            _ => match (self.whole(), other.whole()) {
                (Some(left), Some(right)) => Some(left.cmp(&right)),
                _ => self.number()?.partial_cmp(&other.number()?),
            },
        }
    }

    /// A whole number of either sign.
    pub(super) fn whole(&self) -> Option<i128> {
        match self {
            Self::Int(number) => Some((*number).into()),
            Self::Uint(number) => Some((*number).into()),
            _ => None,
        }
    }

    /// Any number.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Double(number) => Some(*number),
            // By way of text: exact as far as the type is.
            _ => self.whole()?.to_string().parse().ok(),
        }
    }

    /// The same, for as long as one likes.
    pub(super) fn into_owned(self) -> Datum<'static> {
        match self {
            Self::Null => Datum::Null,
            Self::Bool(yes) => Datum::Bool(yes),
            Self::Int(number) => Datum::Int(number),
            Self::Uint(number) => Datum::Uint(number),
            Self::Double(number) => Datum::Double(number),
            Self::Text(text) => Datum::Text(Cow::Owned(text.into_owned())),
            Self::Time(time) => Datum::Time(time),
            Self::Duration(duration) => Datum::Duration(duration),
            Self::List(list) => Datum::List(list.into_iter().map(Datum::into_owned).collect()),
            Self::Object => Datum::Object,
        }
    }
}

/// `2026-01-02T03:04:05.678`, in UTC.
fn time_text(time: SystemTime) -> Option<String> {
    let time = jiff::Timestamp::try_from(time).ok()?.to_zoned(jiff::tz::TimeZone::UTC).datetime();
    Some(time.to_string())
}

/// A number of units as such, without zeros at its end: `1.5`.
fn decimal(number: u64, unit: u64) -> String {
    let (whole, rest) = (number / unit, number % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let rest = format!("{:0width$}", rest, width = unit.to_string().len() - 1);
    format!("{whole}.{}", rest.trim_end_matches('0'))
}

/// `1h2m3.5s`, `1.5ms`, `0`.
fn duration_text(nanoseconds: i64) -> String {
    let (sign, length) = (if nanoseconds < 0 { "-" } else { "" }, nanoseconds.unsigned_abs());
    if length == 0 {
        return "0".to_owned();
    }
    if let Some((name, unit)) = UNITS.iter().find(|(_, unit)| length < SECOND && length >= *unit) {
        return format!("{sign}{}{name}", decimal(length, *unit));
    }
    let minutes = length / SECOND / MINUTE_SECONDS;
    let seconds = length - minutes * MINUTE_SECONDS * SECOND;
    let mut out = sign.to_owned();
    for (count, name) in [(minutes / HOUR_MINUTES, "h"), (minutes % HOUR_MINUTES, "m")] {
        if count > 0 {
            out.push_str(&format!("{count}{name}"));
        }
    }
    if seconds > 0 {
        out.push_str(&decimal(seconds, SECOND));
        out.push('s');
    }
    out
}

/// With six digits, as C's `%g`.
fn double_text(number: f64) -> String {
    if number == 0.0 || !number.is_finite() {
        return number.to_string().to_ascii_lowercase();
    }
    let scientific = format!("{number:.5e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("written so");
    let exponent: i32 = exponent.parse().expect("a whole number");
    let trimmed =
        |text: &str| if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text.to_owned() };
    if (EXPONENT_MIN..DIGITS).contains(&exponent) {
        let places = usize::try_from(DIGITS - 1 - exponent).expect("not below zero");
        return trimmed(&format!("{number:.places$}"));
    }
    format!("{}e{}{:02}", trimmed(mantissa), if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs())
}

/// Values of types that do not compare are different.
impl PartialEq for Datum<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::List(left), Self::List(right)) => left == right,
            _ => self.compare(other) == Some(Ordering::Equal),
        }
    }
}
