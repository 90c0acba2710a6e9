//! What load is put on a peer: as the command line or a scenario's file gives it, and completed with defaults.
//!
//! One name for one thing: a field is called alike as a flag, as a key of a file and in a result. Not here: reading files
//! (`scenario.rs`), running the load (`run.rs`).

use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use anyhow::bail;
use serde::{Deserialize, Serialize};

use crate::units::{HeaderLine, duration_text, optional_duration, parse_duration};

/// Largest request body or message; messages are built in memory.
const BODY_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Requests over and over
    Requests,
    /// Tunnels that have answered one request and then stay open unused
    Idle,
    /// Answers of which only the head is read
    Stalled,
}

/// What is spoken inside a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Http1,
    /// HTTP/2 with prior knowledge
    Http2,
    /// gRPC calls
    Grpc,
}

/// The load as it is given; shared by `run`, `compare` and the files of scenarios.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct LoadOptions {
    /// What is measured [default: requests]
    #[arg(long, value_enum)]
    pub kind: Option<Kind>,
    /// CONNECT streams [default: 64]
    #[arg(long)]
    pub streams: Option<usize>,
    /// HBONE connections that carry them [default: 4]
    #[arg(long)]
    pub connections: Option<usize>,
    /// Requests in flight on each stream (http2 and grpc) [default: 1]
    #[arg(long)]
    pub requests_per_stream: Option<usize>,
    /// Requests after which a stream ends its tunnel and opens another; the opening counts as part of the first of them
    #[arg(long)]
    pub requests_per_tunnel: Option<NonZeroU64>,
    /// Tunnels after which a stream ends its HBONE connection; each stream then has one of its own, and --connections is unused
    #[arg(long)]
    pub tunnels_per_connection: Option<NonZeroU64>,
    /// Messages each way of one gRPC call; above 1 each message and its answer is what is counted [default: 1]
    #[arg(long)]
    pub messages_per_call: Option<NonZeroU64>,
    /// Measured time of requests [default: 5s]
    #[arg(long, value_parser = parse_duration)]
    #[serde(deserialize_with = "optional_duration")]
    pub duration: Option<Duration>,
    /// Time before it that does not count [default: 1s]
    #[arg(long, value_parser = parse_duration)]
    #[serde(deserialize_with = "optional_duration")]
    pub warmup: Option<Duration>,
    /// How long idle tunnels and stalled answers are held [default: 10s]
    #[arg(long, value_parser = parse_duration)]
    #[serde(deserialize_with = "optional_duration")]
    pub hold: Option<Duration>,
    /// Requests per second, kept whatever the server does; without it each stream waits for its answer
    #[arg(long)]
    pub rate: Option<NonZeroU32>,
    /// What is spoken inside a tunnel [default: http1]
    #[arg(long, value_enum)]
    pub protocol: Option<Protocol>,
    /// Bytes of request body, or of each message with gRPC; 0 sends a GET [default: 0]
    #[arg(long)]
    pub body_bytes: Option<u64>,
    /// Path of the requests [default: /bytes/1024]
    #[arg(long)]
    pub path: Option<String>,
    /// Host of the requests [default: the target]
    #[arg(long)]
    pub host: Option<String>,
    /// Further request header, NAME:VALUE (repeatable)
    #[arg(long = "header")]
    pub header: Vec<HeaderLine>,
    /// Time for one answer [default: 10s]
    #[arg(long, value_parser = parse_duration)]
    #[serde(deserialize_with = "optional_duration")]
    pub timeout: Option<Duration>,
    /// Local address to dial from
    #[arg(long)]
    pub source: Option<IpAddr>,
}

impl LoadOptions {
    /// These, and where one is not given, that of `other`.
    pub fn or(self, other: Self) -> Self {
        Self {
            kind: self.kind.or(other.kind),
            streams: self.streams.or(other.streams),
            connections: self.connections.or(other.connections),
            requests_per_stream: self.requests_per_stream.or(other.requests_per_stream),
            requests_per_tunnel: self.requests_per_tunnel.or(other.requests_per_tunnel),
            tunnels_per_connection: self.tunnels_per_connection.or(other.tunnels_per_connection),
            messages_per_call: self.messages_per_call.or(other.messages_per_call),
            duration: self.duration.or(other.duration),
            warmup: self.warmup.or(other.warmup),
            hold: self.hold.or(other.hold),
            rate: self.rate.or(other.rate),
            protocol: self.protocol.or(other.protocol),
            body_bytes: self.body_bytes.or(other.body_bytes),
            path: self.path.or(other.path),
            host: self.host.or(other.host),
            header: if self.header.is_empty() { other.header } else { self.header },
            timeout: self.timeout.or(other.timeout),
            source: self.source.or(other.source),
        }
    }

    /// The load with defaults where nothing was given.
    ///
    /// # Errors
    /// Names the options that do not go together.
    pub fn complete(self) -> anyhow::Result<Load> {
        let load = Load {
            kind: self.kind.unwrap_or(Kind::Requests),
            streams: self.streams.unwrap_or(64),
            connections: self.connections.unwrap_or(4),
            requests_per_stream: self.requests_per_stream.unwrap_or(1),
            requests_per_tunnel: self.requests_per_tunnel,
            tunnels_per_connection: self.tunnels_per_connection,
            messages_per_call: self.messages_per_call.unwrap_or(NonZeroU64::MIN),
            duration: self.duration.unwrap_or(Duration::from_secs(5)),
            warmup: self.warmup.unwrap_or(Duration::from_secs(1)),
            hold: self.hold.unwrap_or(Duration::from_secs(10)),
            rate: self.rate,
            protocol: self.protocol.unwrap_or(Protocol::Http1),
            body_bytes: self.body_bytes.unwrap_or(0),
            path: self.path.unwrap_or_else(|| "/bytes/1024".to_owned()),
            host: self.host,
            header: self.header,
            timeout: self.timeout.unwrap_or(Duration::from_secs(10)),
            source: self.source,
        };
        load.check()?;
        Ok(load)
    }
}

/// The load as it is run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Load {
    pub kind: Kind,
    pub streams: usize,
    pub connections: usize,
    pub requests_per_stream: usize,
    pub requests_per_tunnel: Option<NonZeroU64>,
    pub tunnels_per_connection: Option<NonZeroU64>,
    pub messages_per_call: NonZeroU64,
    #[serde(serialize_with = "duration_text")]
    pub duration: Duration,
    #[serde(serialize_with = "duration_text")]
    pub warmup: Duration,
    #[serde(serialize_with = "duration_text")]
    pub hold: Duration,
    pub rate: Option<NonZeroU32>,
    pub protocol: Protocol,
    pub body_bytes: u64,
    pub path: String,
    pub host: Option<String>,
    pub header: Vec<HeaderLine>,
    #[serde(serialize_with = "duration_text")]
    pub timeout: Duration,
    pub source: Option<IpAddr>,
}

impl Load {
    fn check(&self) -> anyhow::Result<()> {
        if self.streams == 0 || self.connections == 0 || self.requests_per_stream == 0 || self.duration.is_zero() {
            bail!("--streams, --connections, --requests-per-stream and --duration must be above 0");
        }
        if self.protocol == Protocol::Http1 && self.requests_per_stream != 1 {
            bail!("--requests-per-stream above 1 needs --protocol http2 or grpc: HTTP/1.1 answers one request at a time");
        }
        if self.requests_per_stream != 1 && self.requests_per_tunnel.is_some() {
            bail!("--requests-per-tunnel needs --requests-per-stream 1: a tunnel ends after its requests, one after the other");
        }
        if self.tunnels_per_connection.is_some() && self.requests_per_tunnel.is_none() {
            bail!("--tunnels-per-connection needs --requests-per-tunnel: a connection ends when its tunnels have");
        }
        if self.is_streaming() && (self.protocol != Protocol::Grpc || self.requests_per_tunnel.is_some()) {
            bail!("--messages-per-call above 1 needs --protocol grpc, and tunnels that last");
        }
        if self.body_bytes > BODY_BYTES_MAX {
            bail!("--body-bytes is at most {BODY_BYTES_MAX}");
        }
        let has_rhythm = self.rate.is_some() || self.requests_per_tunnel.is_some() || self.is_streaming() || self.requests_per_stream != 1;
        if self.kind != Kind::Requests && has_rhythm {
            bail!("--rate, --requests-per-stream, --requests-per-tunnel and --messages-per-call are of the kind requests");
        }
        Ok(())
    }

    /// Whether a gRPC call carries several messages, each of which is counted.
    pub fn is_streaming(&self) -> bool {
        self.messages_per_call > NonZeroU64::MIN
    }

    /// Whether each stream sends when it has its answer: its rate is a capacity, its latency is not what a user sees.
    pub fn is_closed_loop(&self) -> bool {
        self.kind == Kind::Requests && self.rate.is_none()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn complete(toml: &str) -> anyhow::Result<Load> {
        toml::from_str::<LoadOptions>(toml).unwrap().complete()
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for bad in [
            "streams = 0",
            "requests-per-stream = 2",
            "requests-per-stream = 2\nprotocol = 'http2'\nrequests-per-tunnel = 1",
            "tunnels-per-connection = 1",
            "messages-per-call = 10",
            "kind = 'idle'\nrate = 5",
            "kind = 'stalled'\nrequests-per-tunnel = 1",
            "body-bytes = 2000000000",
        ] {
            assert!(complete(bad).is_err(), "{bad}");
        }
        assert!(complete("protocol = 'grpc'\nmessages-per-call = 10\nrequests-per-stream = 2").is_ok());
    }

    #[test]
    fn a_result_names_its_parameters_as_a_file_would() {
        let load = complete("streams = 3\nduration = '250ms'\nheader = ['x-a: 1']").unwrap();
        let mut shown = serde_json::to_value(&load).unwrap();
        shown.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        let again = serde_json::from_value::<LoadOptions>(shown.clone()).unwrap().complete().unwrap();
        assert_eq!(serde_json::to_value(again).unwrap().as_object().unwrap()["duration"], "250ms");
        assert_eq!(shown["header"], serde_json::json!(["x-a: 1"]));
    }

    #[test]
    fn what_is_given_first_wins() {
        let flags: LoadOptions = toml::from_str("streams = 1").unwrap();
        let file: LoadOptions = toml::from_str("streams = 2\nconnections = 3\nheader = ['a: b']").unwrap();
        let both = flags.or(file);
        assert_eq!((both.streams, both.connections, both.header.len()), (Some(1), Some(3), 1));
    }
}
