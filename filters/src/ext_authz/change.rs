//! What a service that lets a request pass changes in it, and in the response.
//!
//! Invariant: what cannot be set as it was asked for makes the answer unusable. Only what may not be taken away (the host, framing) just stays.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use model::ext_authz::is_reserved;

use crate::header_match::{path_only, query_only};

/// How a header is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// In place of all lines.
    Set,
    /// One more line.
    Add,
    /// Behind a comma in the first line, if there is one.
    Append,
    /// If there is none.
    AddIfAbsent,
    /// In place of all lines, if there are any.
    SetIfPresent,
}

/// A header to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: HeaderName,
    /// Its value.
    pub value: HeaderValue,
    /// How.
    pub how: How,
}

/// An answer asks for what is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unusable;

/// A request may pass, changed like this.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// In the request, in this order.
    pub request: Vec<Header>,
    /// Taken from the request then.
    pub removed: Vec<HeaderName>,
    /// Parameters of the path.
    pub parameters: Vec<(String, String)>,
    /// Parameters taken from it then.
    pub removed_parameters: Vec<String>,
    /// In the response, in this order.
    pub response: Vec<Header>,
}

impl Allowed {
    /// Whether it leaves the request as it is.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        self.request.is_empty() && self.removed.is_empty() && self.parameters.is_empty() && self.removed_parameters.is_empty()
    }

    /// The path with its parameters changed; none if it stays.
    ///
    /// # Errors
    /// A parameter that is not encoded as parameters are.
    pub fn path(&self, path: &str) -> Result<Option<String>, Unusable> {
        if self.parameters.is_empty() && self.removed_parameters.is_empty() {
            return Ok(None);
        }
        if !self.parameters.iter().all(|(name, value)| is_encoded(name) && is_encoded(value)) {
            return Err(Unusable);
        }
        // As Envoy writes them anew: by name, each with an equals sign.
        let mut all = BTreeMap::<&str, Vec<&str>>::new();
        for parameter in query_only(path).unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            all.entry(name).or_default().push(value);
        }
        for (name, value) in &self.parameters {
            all.insert(name, vec![value]);
        }
        for name in &self.removed_parameters {
            all.remove(name.as_str());
        }
        let mut out = path_only(path).to_owned();
        let mut separator = '?';
        for (name, value) in all.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value))) {
            out.push(separator);
            out.extend([name, "=", value]);
            separator = '&';
        }
        Ok(Some(out))
    }
}

/// Percent-encoded, or of characters that need not be.
fn is_encoded(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~%!$'()*+,;:@/?=".contains(&byte))
}

/// Makes changes in their order.
pub fn apply(changes: &[Header], headers: &mut HeaderMap) {
    for Header { name, value, how } in changes {
        match how {
            How::Add => drop(headers.append(name, value.clone())),
            How::Append => {
                let joined = headers.get(name).map(|known| [known.as_bytes(), b",", value.as_bytes()].concat());
                if let Some(joined) = joined.and_then(|joined| HeaderValue::from_bytes(&joined).ok())
                    && let Some(first) = headers.get_mut(name)
                {
                    *first = joined;
                }
            }
            How::AddIfAbsent if headers.contains_key(name) => {}
            How::SetIfPresent if !headers.contains_key(name) => {}
            How::Set | How::AddIfAbsent | How::SetIfPresent => drop(headers.insert(name, value.clone())),
        }
    }
}

/// A header of these texts.
///
/// # Errors
/// It is none, or one that no answer may set: a pseudo-header, the host, what frames a message, what is meant for one hop.
pub(super) fn header(name: &str, value: &[u8], how: How) -> Result<Header, Unusable> {
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Unusable)?;
    let value = HeaderValue::from_bytes(value).map_err(|_| Unusable)?;
    if is_reserved(&name) || name == http::header::HOST { Err(Unusable) } else { Ok(Header { name, value, how }) }
}
