//! Points in time as access logs print them, in UTC.

use std::time::{Duration, SystemTime};

/// How a point in time is printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimeFormat {
    /// `2026-11-23T20:31:46.500Z`.
    Default,
    /// In parts.
    Custom(Box<[TimePart]>),
}

/// A part of a format of one's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimePart {
    /// What strftime prints.
    Calendar(Box<str>),
    /// This many digits of the second's fraction.
    Fraction(usize),
    /// The fraction without zeros at its end.
    FractionTrimmed,
    /// Since 1970, in units of a second divided by ten to this.
    Epoch(usize),
}

/// Digits of a nanosecond.
const NANOSECOND_DIGITS: usize = 9;

impl TimeFormat {
    /// Reads the argument of `START_TIME(…)`; none if it is not a text that we can print.
    ///
    /// Envoy's own beside strftime's: `%s`, `%3s`, `%6s`, `%9s` since 1970; `%f`, `%1f` to `%9f`, `%E3f`, `%E*f` of the second.
    pub(super) fn parse(argument: Option<&str>) -> Option<Self> {
        let Some(text) = argument.filter(|text| !text.is_empty()) else { return Some(Self::Default) };
        let (mut parts, mut calendar, mut rest) = (Vec::new(), String::new(), text);
        while let Some(first) = rest.chars().next() {
            if let Some((part, after)) = own(rest) {
                if !calendar.is_empty() {
                    parts.push(TimePart::Calendar(std::mem::take(&mut calendar).into()));
                }
                parts.push(part);
                rest = after;
                continue;
            }
            // A specifier's letter belongs to it: `%%s` prints `%s`.
            let length = first.len_utf8() + if first == '%' { rest[1..].chars().next()?.len_utf8() } else { 0 };
            calendar.push_str(&rest[..length]);
            rest = &rest[length..];
        }
        if !calendar.is_empty() {
            parts.push(TimePart::Calendar(calendar.into()));
        }
        let format = Self::Custom(parts.into());
        format.custom(SystemTime::UNIX_EPOCH).map(|_| format)
    }

    pub(super) fn render(&self, time: SystemTime) -> String {
        match self {
            Self::Default => {
                let mut out = Vec::with_capacity(24);
                write_default(time, &mut out);
                String::from_utf8(out).expect("digits and punctuation")
            }
            Self::Custom(_) => self.custom(time).unwrap_or_default(),
        }
    }

    fn custom(&self, time: SystemTime) -> Option<String> {
        let Self::Custom(parts) = self else { return None };
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let fraction = format!("{:09}", since.subsec_nanos());
        let mut out = String::new();
        for part in parts {
            match part {
                TimePart::Calendar(text) => {
                    let zoned = jiff::Timestamp::try_from(time).ok()?.to_zoned(jiff::tz::TimeZone::UTC);
                    out.push_str(&jiff::fmt::strtime::format(text.as_bytes(), &zoned).ok()?);
                }
                TimePart::Fraction(digits) => out.push_str(&fraction[..*digits]),
                TimePart::FractionTrimmed => out.push_str(match fraction.trim_end_matches('0') {
                    "" => "0",
                    trimmed => trimmed,
                }),
                TimePart::Epoch(digits) => {
                    out.push_str(&since.as_secs().to_string());
                    out.push_str(&fraction[..*digits]);
                }
            }
        }
        Some(out)
    }
}

/// One of Envoy's own specifiers at the front of a text.
fn own(text: &str) -> Option<(TimePart, &str)> {
    let rest = text.strip_prefix('%')?;
    if let Some(after) = rest.strip_prefix("E*f") {
        return Some((TimePart::FractionTrimmed, after));
    }
    let rest = rest.strip_prefix('E').filter(|rest| rest.get(1..).is_some_and(|rest| rest.starts_with('f'))).unwrap_or(rest);
    let digits = rest.chars().next().and_then(|first| first.to_digit(10)).and_then(|digit| usize::try_from(digit).ok());
    let rest = if digits.is_some() { &rest[1..] } else { rest };
    match (rest.chars().next()?, digits) {
        ('f', None) => Some((TimePart::Fraction(NANOSECOND_DIGITS), &rest[1..])),
        ('f', Some(digits @ 1..=NANOSECOND_DIGITS)) => Some((TimePart::Fraction(digits), &rest[1..])),
        ('s', None) => Some((TimePart::Epoch(0), &rest[1..])),
        ('s', Some(digits @ 1..=NANOSECOND_DIGITS)) => Some((TimePart::Epoch(digits), &rest[1..])),
        _ => None,
    }
}

/// Appends `2026-11-23T20:31:46.500Z`. Times before 1970 print as 1970.
pub(super) fn write_default(time: SystemTime, out: &mut Vec<u8>) {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let of_day = seconds % 86_400;
    let mut text = *b"0000-00-00T00:00:00.000Z";
    write_digits(&mut text[..4], year);
    write_digits(&mut text[5..7], month);
    write_digits(&mut text[8..10], day);
    write_digits(&mut text[11..13], of_day / 3600);
    write_digits(&mut text[14..16], of_day / 60 % 60);
    write_digits(&mut text[17..19], of_day % 60);
    write_digits(&mut text[20..23], u64::from(since.subsec_millis()));
    out.extend_from_slice(&text);
}

/// Writes a number into all of `out`, which is as long as it, or longer: then with zeros before it.
fn write_digits(out: &mut [u8], value: u64) {
    let mut left = value;
    for digit in out.iter_mut().rev() {
        *digit = b'0' + u8::try_from(left % 10).expect("a digit");
        left /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Years are counted from March, so that the day which comes and goes is the last one of the year.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // days from 0000-03-01 to 1970-01-01
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_format_agrees_with_a_calendar_library_over_a_century() {
        for day in (0..36_600_u64).step_by(13) {
            let time = SystemTime::UNIX_EPOCH + Duration::from_millis(day * 86_400_000 + 45_296_789);
            let mut ours = Vec::new();
            write_default(time, &mut ours);
            let zoned = jiff::Timestamp::try_from(time).expect("in range").to_zoned(jiff::tz::TimeZone::UTC);
            let theirs = jiff::fmt::strtime::format("%Y-%m-%dT%H:%M:%S.%3fZ", &zoned).expect("formats");
            assert_eq!(String::from_utf8_lossy(&ours), theirs);
        }
    }
}
