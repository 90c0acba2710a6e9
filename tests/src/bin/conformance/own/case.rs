//! A test as it stands in a file. Not what it means: see the heads of the files, and [`super::check`].

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::Value;

/// One value, or several of which any will do.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOf<T> {
    One(T),
    Any(Vec<T>),
}

impl<T: PartialEq> OneOf<T> {
    /// Whether a value is it, or among them.
    pub fn allows(&self, value: &T) -> bool {
        match self {
            Self::One(one) => one == value,
            Self::Any(any) => any.contains(value),
        }
    }
}

/// Headers by name; `None` for one that has to be absent.
pub type Headers = BTreeMap<String, Option<OneOf<String>>>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Test {
    pub name: String,
    /// Why it cannot be run.
    pub skip: Option<String>,
    /// The reason of a condition ResolvedRefs that is false.
    pub unresolved: Option<String>,
    /// The reason for which istiod refuses the routes, so that no waypoint hears of them.
    pub refused_by_istiod: Option<String>,
    #[serde(default)]
    pub routes: Vec<Value>,
    #[serde(default)]
    pub cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub send: Send,
    pub expect: Expect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Http1,
    Http2,
    Grpc,
    Websocket,
    Tcp,
    Tls,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Send {
    pub to: String,
    pub port: u16,
    pub pod: Option<String>,
    pub method: String,
    pub path: String,
    pub host: Option<String>,
    pub headers: BTreeMap<String, String>,
    /// Headers with which the back end answers, NAME=VALUE.
    pub answer: Vec<String>,
    pub protocol: Protocol,
}

impl Default for Send {
    fn default() -> Self {
        Self {
            to: "store".to_owned(),
            port: 80,
            pod: None,
            method: "GET".to_owned(),
            path: "/".to_owned(),
            host: None,
            headers: BTreeMap::new(),
            answer: Vec::new(),
            protocol: Protocol::Http1,
        }
    }
}

impl Send {
    /// The host that is asked for.
    pub fn host(&self) -> String {
        let default = || if self.port == 80 { self.to.clone() } else { format!("{}:{}", self.to, self.port) };
        self.host.clone().unwrap_or_else(default)
    }

    /// The method on the wire.
    pub fn method(&self) -> &str {
        if self.protocol == Protocol::Grpc { "POST" } else { &self.method }
    }
}

impl fmt::Display for Send {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}{}", self.method(), self.host(), self.path)?;
        self.headers.iter().try_for_each(|(name, value)| write!(formatter, " {name}: {value}"))
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Expect {
    pub status: OneOf<u16>,
    /// How the pod's name begins.
    pub backend: Option<String>,
    pub path: Option<String>,
    pub host: Option<String>,
    pub version: Option<String>,
    pub request: Headers,
    pub response: Headers,
    pub location: Option<OneOf<String>>,
    pub grpc_status: Option<u16>,
    /// Back ends with their part of many requests, in percent.
    pub split: BTreeMap<String, f64>,
    /// The request header that names the back end which got it.
    pub named_by: Option<String>,
    /// Pods with their part of copies, in percent.
    pub mirrored: BTreeMap<String, f64>,
    /// Requests that all back ends got of one.
    pub attempts: Option<u64>,
    pub at_most_ms: Option<u64>,
}

impl Default for Expect {
    fn default() -> Self {
        Self {
            status: OneOf::One(200),
            backend: None,
            path: None,
            host: None,
            version: None,
            request: Headers::new(),
            response: Headers::new(),
            location: None,
            grpc_status: None,
            split: BTreeMap::new(),
            named_by: None,
            mirrored: BTreeMap::new(),
            attempts: None,
            at_most_ms: None,
        }
    }
}

impl Expect {
    /// Whether it takes many requests to see.
    pub fn is_statistical(&self) -> bool {
        !self.split.is_empty() || self.mirrored.values().any(|percent| *percent < 100.0)
    }
}
