//! Istio's ProxyConfig as the pod's `PROXY_CONFIG` carries it, JSON or YAML: the fields that steer this process.
//!
//! The whole of it goes to istiod as node metadata, whatever is read here.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

/// What is read of ProxyConfig.
#[derive(Clone, Debug, Default)]
pub(super) struct ProxyConfig {
    pub(super) raw: Value,
    pub(super) discovery_address: Option<String>,
    pub(super) control_plane_plaintext: bool,
    pub(super) concurrency: Option<usize>,
    pub(super) termination_drain_duration: Option<Duration>,
    pub(super) proxy_metadata: BTreeMap<String, String>,
}

impl ProxyConfig {
    /// Reads the text; the error is what was expected of it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let raw: Value = serde_yaml_ng::from_str(text).map_err(|error| format!("JSON or YAML ({error})"))?;
        let raw = if raw.is_null() { Value::Object(serde_json::Map::new()) } else { raw };
        let object = raw.as_object().ok_or("an object")?;
        let mut parsed = Self { discovery_address: string(object.get("discoveryAddress"), "discoveryAddress")?, ..Self::default() };
        parsed.control_plane_plaintext = object.get("controlPlaneAuthPolicy").and_then(Value::as_str) == Some("NONE");
        if let Some(value) = object.get("concurrency").filter(|value| !value.is_null()) {
            let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
            parsed.concurrency = Some(count.ok_or("a whole number in concurrency")?);
        }
        if let Some(text) = string(object.get("terminationDrainDuration"), "terminationDrainDuration")? {
            parsed.termination_drain_duration = Some(duration(&text).ok_or("a duration such as 5s in terminationDrainDuration")?);
        }
        if let Some(metadata) = object.get("proxyMetadata").filter(|value| !value.is_null()) {
            for (name, value) in metadata.as_object().ok_or("an object in proxyMetadata")? {
                let value = string(Some(value), "proxyMetadata")?.unwrap_or_default();
                parsed.proxy_metadata.insert(name.clone(), value);
            }
        }
        parsed.raw = raw;
        Ok(parsed)
    }
}

fn string(value: Option<&Value>, name: &str) -> Result<Option<String>, String> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("a text in {name}")),
    }
}

/// Reads a duration as Go and protobuf write them: `5s`, `1m30s`, `0.5s`, `24h`, `100ms`; a bare number is seconds.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut total = 0.0_f64;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" | "" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        rest = &rest[unit..];
        total += number * seconds;
    }
    Duration::try_from_secs_f64(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_and_protobuf_write_them() {
        for (text, millis) in [("5s", 5000), ("1m30s", 90_000), ("0.500s", 500), ("24h0m0s", 86_400_000), ("100ms", 100), ("7", 7000)] {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "5 s", "-1s", "5x", "1.2.3s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn yaml_and_json_are_both_read() {
        for text in ["{\"concurrency\": 2, \"proxyMetadata\": {\"A\": \"b\"}}", "concurrency: 2\nproxyMetadata:\n  A: b\n"] {
            let parsed = ProxyConfig::parse(text).expect("reads");
            assert_eq!((parsed.concurrency, parsed.proxy_metadata["A"].as_str()), (Some(2), "b"));
        }
    }

    #[test]
    fn a_field_of_another_type_is_named() {
        assert!(ProxyConfig::parse("{\"concurrency\": \"two\"}").is_err_and(|expected| expected.contains("concurrency")));
        assert!(ProxyConfig::parse("[]").is_err());
    }
}
