//! The names in a certificate, and which of them a configuration accepts.
//!
//! Not for: whether the certificate is to be trusted, nor workload identities beyond their text (`verify`).

use std::net::IpAddr;

use model::transport::{NameKind, NameMatcher};
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A certificate or its names that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// What `read` makes of the subject alternative names, in their order.
///
/// # Errors
/// The certificate or its names cannot be read; without any there are none.
pub(super) fn alternative_names<T>(
    certificate: &CertificateDer<'_>,
    read: impl Fn(&GeneralName<'_>) -> Option<T>,
) -> Result<Vec<T>, Unreadable> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| Unreadable)?;
    let names = parsed.subject_alternative_name().map_err(|_| Unreadable)?;
    Ok(names.map_or_else(Vec::new, |names| names.value.general_names.iter().filter_map(read).collect()))
}

/// All names in a certificate that a configuration can accept, in order.
///
/// # Errors
/// As [`alternative_names`].
pub(super) fn names(certificate: &CertificateDer<'_>) -> Result<Vec<CertificateName>, Unreadable> {
    alternative_names(certificate, |name| {
        let (kind, text) = match name {
            GeneralName::DNSName(text) => (NameKind::Dns, (*text).to_owned()),
            GeneralName::URI(text) => (NameKind::Uri, (*text).to_owned()),
            GeneralName::RFC822Name(text) => (NameKind::Email, (*text).to_owned()),
            GeneralName::IPAddress(bytes) => (NameKind::Ip, address(bytes)?.to_string()),
            _ => return None,
        };
        Some(CertificateName { kind, text })
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// A name of a certificate, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CertificateName {
    pub(super) kind: NameKind,
    pub(super) text: String,
}

impl CertificateName {
    /// Whether a matcher accepts it. A wildcard stands for one label where the matcher is exact [Envoy].
    pub(super) fn matches(&self, matcher: &NameMatcher) -> bool {
        if matcher.kind != NameKind::Any && matcher.kind != self.kind {
            return false;
        }
        match &matcher.text {
            model::matcher::StringMatcher::Exact(wanted) if self.kind == NameKind::Dns => {
                std::str::from_utf8(wanted).is_ok_and(|wanted| dns_name_is(&self.text, wanted))
            }
            text => text.matches(self.text.as_bytes()),
        }
    }

    /// Whether it names this host.
    pub(super) fn is_of(&self, host: &str) -> bool {
        match self.kind {
            NameKind::Dns => dns_name_is(&self.text, host),
            _ => self.text == host,
        }
    }
}

/// Whether a DNS name of a certificate, perhaps with a wildcard as its whole first label [RFC 6125 §6.4.3], is this name.
fn dns_name_is(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        None => pattern.eq_ignore_ascii_case(name),
        Some(rest) => {
            name.split_once('.').is_some_and(|(first, others)| !first.is_empty() && rest.contains('.') && others.eq_ignore_ascii_case(rest))
        }
    }
}

#[cfg(test)]
mod tests {
    use model::matcher::StringMatcher;

    use super::*;

    fn name(kind: NameKind, text: &str) -> CertificateName {
        CertificateName { kind, text: text.to_owned() }
    }

    fn exact(kind: NameKind, text: &str) -> NameMatcher {
        NameMatcher { kind, text: StringMatcher::Exact(text.as_bytes().into()) }
    }

    #[test]
    fn a_wildcard_stands_for_one_whole_label() {
        // RFC 6125 §6.4.3.
        for (pattern, host, expected) in [
            ("api.example.com", "API.example.com", true),
            ("*.example.com", "api.example.com", true),
            ("*.example.com", "a.api.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.com", "example.com", false),
            ("a*.example.com", "api.example.com", false),
            ("*", "localhost", false),
        ] {
            assert_eq!(dns_name_is(pattern, host), expected, "{pattern} {host}");
        }
    }

    #[test]
    fn a_name_counts_only_as_what_it_is() {
        let dns = name(NameKind::Dns, "*.example.com");
        assert!(dns.matches(&exact(NameKind::Dns, "api.example.com")) && dns.matches(&exact(NameKind::Any, "api.example.com")));
        assert!(!dns.matches(&exact(NameKind::Uri, "api.example.com")));
        let prefix = NameMatcher { kind: NameKind::Dns, text: StringMatcher::Prefix((*b"api").into()) };
        assert!(!dns.matches(&prefix), "a wildcard stands for nothing but an exact name");
        let uri = name(NameKind::Uri, "spiffe://cluster.local/ns/a/sa/b");
        assert!(uri.matches(&exact(NameKind::Uri, "spiffe://cluster.local/ns/a/sa/b")));
        assert!(uri.matches(&exact(NameKind::Any, "spiffe://cluster.local/ns/a/sa/b")));
        let address = name(NameKind::Ip, "2001:db8::1");
        assert!(address.is_of("2001:db8::1") && address.matches(&exact(NameKind::Ip, "2001:db8::1")));
    }
}
