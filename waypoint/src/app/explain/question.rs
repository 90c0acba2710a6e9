//! What is asked: the query of `GET /explain`.

use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use model::authority::Authority;
use model::identity::SpiffeId;

use crate::admin::query::decoded;

/// How to ask.
pub(super) const USAGE: &str = "GET /explain?service=HOST:PORT&identity=SPIFFE-ID&…
  service    host or virtual address, and port: web.shop:80, 10.96.0.12:80
  identity   who asks: spiffe://cluster.local/ns/NAMESPACE/sa/ACCOUNT
  address    the asking pod's address, for policies and labels by it
  method     GET unless given
  path       / unless given, with its query
  header     NAME:VALUE, any number of times; without a host, the service's
  sni        of TLS: the name in the ClientHello
  protocol   http or tcp, for ports that declare none; http unless given
  output     text or json; text unless given
Values are percent-encoded.
";

/// For people or tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    Text,
    Json,
}

/// What is spoken where the port does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    Http,
    Tcp,
}

/// A request, and by whom.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) service: Authority,
    pub(super) identity: SpiffeId,
    pub(super) address: IpAddr,
    pub(super) method: Method,
    pub(super) path: Uri,
    pub(super) headers: HeaderMap,
    /// In lower case; empty without TLS.
    pub(super) server_name: String,
    pub(super) spoken: Spoken,
    pub(super) output: Output,
}

impl Question {
    /// Reads a query.
    ///
    /// # Errors
    /// What is missing or wrong, by name.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let (mut service, mut identity) = (None, None);
        let mut address = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let (mut method, mut path, mut headers) = (Method::GET, Uri::from_static("/"), HeaderMap::new());
        let (mut spoken, mut output, mut server_name) = (Spoken::Http, Output::Text, String::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value).ok_or_else(|| format!("{name}: {value:?} is not percent-encoded text"))?;
            let wrong = || format!("{name}: {value:?} is none");
            match name {
                "service" => service = Some(Authority::parse(&value.to_ascii_lowercase()).map_err(|error| format!("service: {error}"))?),
                "identity" => identity = Some(SpiffeId::parse(&value).map_err(|error| format!("identity: {error}"))?),
                "address" => address = value.parse().map_err(|_| wrong())?,
                "method" => method = value.parse().map_err(|_| wrong())?,
                "path" => path = value.parse().map_err(|_| wrong())?,
                "header" => {
                    let (name, value) = header(&value).ok_or_else(|| format!("header: {value:?} is no NAME:VALUE"))?;
                    headers.append(name, value);
                }
                "sni" => server_name = value.to_ascii_lowercase(),
                "protocol" if value == "http" => spoken = Spoken::Http,
                "protocol" if value == "tcp" => spoken = Spoken::Tcp,
                "output" if value == "text" => output = Output::Text,
                "output" if value == "json" => output = Output::Json,
                "protocol" | "output" => return Err(wrong()),
                _ => return Err(format!("{name} is not known")),
            }
        }
        let service = service.ok_or("service is missing")?;
        let identity = identity.ok_or("identity is missing")?;
        Ok(Self { service, identity, address, method, path, headers, server_name, spoken, output })
    }
}

fn header(text: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':')?;
    Some((name.trim().parse().ok()?, HeaderValue::from_bytes(value.trim().as_bytes()).ok()?))
}

/// The opposite of [`decoded`].
pub(super) fn encoded(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~/:".contains(byte);
    text.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const IDENTITY: &str = "identity=spiffe://td/ns/a/sa/b";

    #[test]
    fn a_question_is_read_with_its_defaults() {
        let asked = Question::parse(&format!("service=web.shop:80&{IDENTITY}")).unwrap();
        assert_eq!(
            (asked.service.to_string(), asked.method, asked.path.to_string()),
            ("web.shop:80".to_owned(), Method::GET, "/".to_owned())
        );
        let value = encoded("a b&c=%é");
        let query =
            format!("service=[fd00::1]:443&{IDENTITY}&method=POST&path=/x%3Fy&header=x-a:{value}&header=x-a:2&output=json&protocol=tcp");
        let asked = Question::parse(&query).unwrap();
        assert_eq!((asked.service.to_string(), asked.path.query()), ("[fd00::1]:443".to_owned(), Some("y")));
        assert_eq!(asked.headers.get_all("x-a").iter().map(HeaderValue::as_bytes).collect::<Vec<_>>(), ["a b&c=%é".as_bytes(), b"2"]);
        assert_eq!((asked.output, asked.spoken), (Output::Json, Spoken::Tcp));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (query, reason) in [
            ("", "service is missing"),
            ("service=web.shop:80", "identity is missing"),
            ("service=web.shop", "service: "),
            ("identity=frontend", "identity: "),
            ("header=x", "no NAME:VALUE"),
            ("path=%zz", "percent-encoded"),
            ("output=xml", "output: \"xml\""),
            ("who=me", "who is not known"),
        ] {
            let problem = Question::parse(query).unwrap_err();
            assert!(problem.contains(reason), "{query}: {problem}");
        }
    }
}
