//! Points in time as access logs print them, in UTC.

use std::time::{Duration, SystemTime};

/// How a `START_TIME` is printed.
#[derive(Clone, Debug)]
pub enum TimeFormat {
    /// `2026-11-23T20:31:46.500Z`.
    Default,
    /// A strftime text, with Envoy's fractions already translated.
    Custom(Box<str>),
}

impl TimeFormat {
    /// Reads the argument of `START_TIME(…)`; none if it is not a strftime text that we can print.
    pub(super) fn parse(argument: Option<&str>) -> Option<Self> {
        let Some(text) = argument.filter(|text| !text.is_empty()) else { return Some(Self::Default) };
        // Envoy writes %3f for milliseconds; jiff %3f too, and %f for all nine digits as %9f.
        let text = text.replace("%E3f", "%3f").replace("%E6f", "%6f").replace("%f", "%9f");
        let sample = jiff::Timestamp::UNIX_EPOCH.to_zoned(jiff::tz::TimeZone::UTC);
        jiff::fmt::strtime::format(text.as_bytes(), &sample).ok()?;
        Some(Self::Custom(text.into()))
    }

    pub(super) fn render(&self, time: SystemTime) -> String {
        match self {
            Self::Default => {
                let mut out = Vec::with_capacity(24);
                write_default(time, &mut out);
                String::from_utf8(out).expect("digits and punctuation")
            }
            Self::Custom(text) => jiff::Timestamp::try_from(time)
                .ok()
                .and_then(|at| jiff::fmt::strtime::format(text.as_bytes(), &at.to_zoned(jiff::tz::TimeZone::UTC)).ok())
                .unwrap_or_default(),
        }
    }
}

/// `2026-11-23T20:31:46.500Z`.
pub(super) fn default_text(time: SystemTime) -> String {
    TimeFormat::Default.render(time)
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
