//! How quantities and header lines are written on the command line and in files.

use std::str::FromStr;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Reads `250ms`, `5s`, `2m` or `1h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let seconds_per_unit = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{text:?} needs a unit: ms, s, m or h")),
    };
    let number: f64 = number.parse().map_err(|error| format!("{text:?}: {error}"))?;
    Duration::try_from_secs_f64(number * seconds_per_unit).map_err(|error| format!("{text:?}: {error}"))
}

/// Reads an optional duration of a file.
pub fn optional_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

/// Writes a duration as it is read.
pub fn duration_text<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    if duration.subsec_nanos() == 0 {
        serializer.serialize_str(&format!("{}s", duration.as_secs()))
    } else {
        serializer.serialize_str(&format!("{}ms", duration.as_secs_f64() * 1000.0))
    }
}

/// A header line, written `name: value`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HeaderLine {
    pub name: HeaderName,
    pub value: HeaderValue,
}

impl FromStr for HeaderLine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(':').ok_or("expected NAME:VALUE")?;
        let name = name.trim().parse().map_err(|error| format!("{name:?}: {error}"))?;
        let value = value.trim().parse().map_err(|error| format!("{value:?}: {error}"))?;
        Ok(Self { name, value })
    }
}

impl TryFrom<String> for HeaderLine {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<HeaderLine> for String {
    fn from(line: HeaderLine) -> Self {
        format!("{}: {}", line.name, String::from_utf8_lossy(line.value.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit_and_a_number() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["5", "s", "", "-1s", "1e9h", "1 s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
