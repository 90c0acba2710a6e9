//! Transport sockets: what a stream to an application wears, and the secrets that istiod sends for it.
//!
//! Not for: our own HBONE, whose plumbing is recognised by name. Invariant: what would be verified less, or encrypted otherwise, than
//! it says is a [`Problem`]; ciphers and groups that are not spoken are left out of a list, never put in.

use std::path::Path;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::internal_upstream::v3::InternalUpstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::google::protobuf::{Struct, value::Kind};
use model::transport::{
    CertificateSource, CipherSuite, CrlSource, Group, NameKind, NameMatcher, Pem, ProxyProtocol, RootsSource, Secret, SocketLabels,
    Sockets, TlsOrigination, TlsVersions, Transport,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};

use super::{Problem, Translated, matcher, open, required, type_name};

const TLS: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const RAW: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const PROXY_PROTOCOL: &str = "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";
const INTERNAL: &str = "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport";
/// A protocol of sidecars that is not spoken: what it would tell is known from workload discovery.
const PEER_EXCHANGE: &[u8] = b"istio-peer-exchange";

/// What the streams of a cluster wear.
pub(super) fn sockets(value: &proto::Cluster, http: Option<&HttpProtocolOptions>) -> Translated<Sockets> {
    let by_host = ByHost::of(http);
    let otherwise = match &value.transport_socket {
        None => Transport::default(),
        Some(socket) => transport(socket, &by_host, "transport_socket")?,
    };
    let matched = value.transport_socket_matches.iter().enumerate().map(|(at, one)| {
        let path = format!("transport_socket_matches[{at}]");
        let wanted = one.r#match.as_ref().map_or_else(|| Ok(SocketLabels::default()), |fields| labels(fields, &path))?;
        let transport = one.transport_socket.as_ref().map_or_else(|| Ok(Transport::default()), |one| transport(one, &by_host, &path))?;
        Ok((wanted, transport))
    });
    Ok(Sockets { otherwise, matched: matched.collect::<Translated<_>>()? })
}

/// What an endpoint is matched by.
pub(super) fn labels(fields: &Struct, path: &str) -> Translated<SocketLabels> {
    let mut labels = Vec::with_capacity(fields.fields.len());
    for (key, value) in &fields.fields {
        let Some(Kind::StringValue(text)) = &value.kind else {
            return Err(Problem::new(path, format!("what is matched by {key:?} is no text")));
        };
        labels.push((key.as_str().into(), text.as_str().into()));
    }
    labels.sort_unstable();
    Ok(labels.into())
}

/// A secret of istiod's.
///
/// # Errors
/// It holds nothing that is used, or not what it should.
pub fn secret(value: &tls::Secret) -> Translated<Secret> {
    use tls::secret::Type;
    match required(value.r#type.as_ref(), "type")? {
        Type::TlsCertificate(certificate) => match given_certificate(certificate, "tls_certificate")? {
            CertificateSource::Given { chain, key } => Ok(Secret::Certificate { chain, key }),
            _ => Err(Problem::new("tls_certificate", "names a file")),
        },
        Type::ValidationContext(context) => {
            if has_names(context) {
                return Err(Problem::new("validation_context", "names in a secret are not supported"));
            }
            let crl = match crl(context, "validation_context")? {
                None => None,
                Some(CrlSource::Given(crl)) => Some(crl),
                Some(CrlSource::File(_)) => return Err(Problem::new("validation_context.crl", "names a file")),
            };
            match roots(context, "validation_context")? {
                Some(RootsSource::Given(roots)) => Ok(Secret::Roots { roots, crl, crl_of_leaf_only: context.only_verify_leaf_cert_crl }),
                _ => Err(Problem::new("validation_context.trusted_ca", "has no certificates")),
            }
        }
        Type::SessionTicketKeys(_) | Type::GenericSecret(_) => Err(Problem::new("type", "is of no use to a waypoint")),
    }
}

/// What follows from the host of a request.
struct ByHost {
    server_name: bool,
    verify: bool,
}

impl ByHost {
    fn of(http: Option<&HttpProtocolOptions>) -> Self {
        let options = http.and_then(|http| http.upstream_http_protocol_options.as_ref());
        Self {
            server_name: options.is_some_and(|options| options.auto_sni),
            verify: options.is_some_and(|options| options.auto_san_validation),
        }
    }
}

fn transport(socket: &core::TransportSocket, by_host: &ByHost, path: &str) -> Translated<Transport> {
    let Some(core::transport_socket::ConfigType::TypedConfig(config)) = &socket.config_type else {
        return Err(Problem::new(path, "has no configuration"));
    };
    match type_name(config) {
        RAW => Ok(Transport::default()),
        INTERNAL => {
            let outer = open::<InternalUpstreamTransport>(config, path)?;
            let path = format!("{path}.typed_config.transport_socket");
            transport(required(outer.transport_socket.as_ref(), &path)?, by_host, &path)
        }
        TLS => {
            let tls = Arc::new(origination(&open(config, path)?, by_host, &format!("{path}.typed_config"))?);
            Ok(Transport { tls: Some(tls), ..Transport::default() })
        }
        PROXY_PROTOCOL => {
            let outer = open::<ProxyProtocolUpstreamTransport>(config, path)?;
            let version = proxy_protocol(outer.config.as_ref(), path)?;
            let path = format!("{path}.typed_config.transport_socket");
            match transport(required(outer.transport_socket.as_ref(), &path)?, by_host, &path)? {
                Transport { proxy_protocol: Some(_), .. } => Err(Problem::new(path, "the PROXY protocol is spoken once")),
                inner => Ok(Transport { proxy_protocol: Some(version), ..inner }),
            }
        }
        other => Err(Problem::new(path, format!("{other} is not supported"))),
    }
}

/// The version; Envoy's default is the first.
fn proxy_protocol(value: Option<&core::ProxyProtocolConfig>, path: &str) -> Translated<ProxyProtocol> {
    use core::proxy_protocol_config::Version;
    match Version::try_from(value.map_or(0, |config| config.version)) {
        Ok(Version::V1) => Ok(ProxyProtocol::V1),
        Ok(Version::V2) => Ok(ProxyProtocol::V2),
        Err(_) => Err(Problem::new(format!("{path}.typed_config.config.version"), "is not known")),
    }
}

fn origination(value: &tls::UpstreamTlsContext, by_host: &ByHost, path: &str) -> Translated<TlsOrigination> {
    let path = format!("{path}.common_tls_context");
    let common = value.common_tls_context.clone().unwrap_or_default();
    let Validation { roots, crl, crl_of_leaf_only, names } = validation(&common, &path)?;
    if roots.is_none() && crl.is_some() {
        return Err(Problem::new(path, "has a list of revoked certificates without roots, which proves nothing"));
    }
    let verifies_by_name = by_host.verify || value.auto_sni_san_validation || !names.is_empty();
    if roots.is_none() && verifies_by_name {
        return Err(Problem::new(path, "a name would be verified without roots, which proves nothing"));
    }
    if by_host.verify && !by_host.server_name {
        return Err(Problem::new(path, "auto_san_validation without auto_sni is not supported"));
    }
    if !value.sni.is_empty() && ServerName::try_from(value.sni.as_str()).is_err() {
        return Err(Problem::new("sni", format!("{:?} is no server name", value.sni)));
    }
    let params = common.tls_params.clone().unwrap_or_default();
    Ok(TlsOrigination {
        server_name: Some(value.sni.as_str()).filter(|name| !name.is_empty()).map(Into::into),
        server_name_from_host: by_host.server_name,
        verify_host: by_host.verify,
        verify_server_name: value.auto_sni_san_validation,
        roots,
        crl,
        crl_of_leaf_only,
        names,
        certificate: certificate(&common, &path)?,
        alpn: common.alpn_protocols.iter().map(String::as_bytes).filter(|one| *one != PEER_EXCHANGE).map(Into::into).collect(),
        versions: versions(&params, &path)?,
        cipher_suites: known(&params.cipher_suites, cipher_suite, &format!("{path}.tls_params.cipher_suites"))?,
        groups: known(&params.ecdh_curves, group, &format!("{path}.tls_params.ecdh_curves"))?,
    })
}

fn certificate(common: &tls::CommonTlsContext, path: &str) -> Translated<Option<CertificateSource>> {
    match (&common.tls_certificates[..], &common.tls_certificate_sds_secret_configs[..]) {
        ([], []) => Ok(None),
        ([one], []) => given_certificate(one, &format!("{path}.tls_certificates[0]")).map(Some),
        ([], [one]) => {
            let path = format!("{path}.tls_certificate_sds_secret_configs[0]");
            match one.name.as_str() {
                "default" => Ok(Some(CertificateSource::Workload)),
                name => match name.strip_prefix("file-cert:").map(|files| files.split_once('~')) {
                    Some(Some((chain, key))) => Ok(Some(CertificateSource::Files { chain: file(chain), key: file(key) })),
                    Some(None) => Err(Problem::new(path, format!("{name:?} does not name two files"))),
                    None => discovered(one, &path).map(|name| Some(CertificateSource::Discovered(name))),
                },
            }
        }
        _ => Err(Problem::new(path, "shows more than one certificate")),
    }
}

fn given_certificate(value: &tls::TlsCertificate, path: &str) -> Translated<CertificateSource> {
    let (at_chain, at_key) = (format!("{path}.certificate_chain"), format!("{path}.private_key"));
    let chain = data(required(value.certificate_chain.as_ref(), &at_chain)?, &at_chain)?;
    let key = data(required(value.private_key.as_ref(), &at_key)?, &at_key)?;
    match (chain, key) {
        (Data::File(chain), Data::File(key)) => Ok(CertificateSource::Files { chain, key }),
        (Data::Given(chain), Data::Given(key)) => {
            check_certificates(&chain, &at_chain)?;
            PrivateKeyDer::from_pem_slice(&key.0).map_err(|error| Problem::new(at_key, format!("is no key in PEM form: {error}")))?;
            Ok(CertificateSource::Given { chain, key })
        }
        _ => Err(Problem::new(path, "one is a file and the other is not")),
    }
}

/// How the application's certificate is verified.
#[derive(Default)]
struct Validation {
    roots: Option<RootsSource>,
    crl: Option<CrlSource>,
    crl_of_leaf_only: bool,
    names: Box<[NameMatcher]>,
}

impl Validation {
    fn of(context: &tls::CertificateValidationContext, path: &str) -> Translated<Self> {
        let crl_of_leaf_only = context.only_verify_leaf_cert_crl;
        Ok(Self { roots: roots(context, path)?, crl: crl(context, path)?, crl_of_leaf_only, names: names(context, path)? })
    }
}

fn validation(common: &tls::CommonTlsContext, path: &str) -> Translated<Validation> {
    use tls::common_tls_context::ValidationContextType;
    match common.validation_context_type.as_ref() {
        None => Ok(Validation::default()),
        Some(ValidationContextType::ValidationContext(context)) => Validation::of(context, &format!("{path}.validation_context")),
        Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) => {
            let roots = Some(secret_roots(secret, &format!("{path}.validation_context_sds_secret_config"))?);
            Ok(Validation { roots, ..Validation::default() })
        }
        Some(ValidationContextType::CombinedValidationContext(both)) => {
            let path = format!("{path}.combined_validation_context");
            let given = Validation::of(&both.default_validation_context.clone().unwrap_or_default(), &path)?;
            let discovered = both.validation_context_sds_secret_config.as_ref().map(|secret| secret_roots(secret, &path)).transpose()?;
            // Merged by Envoy: what the secret says replaces what is given.
            Ok(Validation { roots: discovered.or(given.roots), ..given })
        }
        Some(_) => Err(Problem::new(path, "certificates are verified by a provider that is not supported")),
    }
}

fn secret_roots(secret: &tls::SdsSecretConfig, path: &str) -> Translated<RootsSource> {
    match secret.name.as_str() {
        "ROOTCA" => Ok(RootsSource::Mesh),
        "file-root:system" => Ok(RootsSource::System),
        name => match name.strip_prefix("file-root:") {
            Some("") => Err(Problem::new(path, "names no file")),
            Some(path) => Ok(RootsSource::File(file(path))),
            None => discovered(secret, path).map(RootsSource::Discovered),
        },
    }
}

/// The name of a secret that istiod is asked for.
fn discovered(secret: &tls::SdsSecretConfig, path: &str) -> Translated<Arc<str>> {
    let source = secret.sds_config.as_ref().and_then(|config| config.config_source_specifier.as_ref());
    let from_istiod = matches!(source, Some(core::config_source::ConfigSourceSpecifier::Ads(_)));
    if !from_istiod || matches!(secret.name.as_str(), "" | "*") {
        return Err(Problem::new(path, format!("the secret {:?} comes from nowhere that is known", secret.name)));
    }
    Ok(secret.name.as_str().into())
}

fn roots(context: &tls::CertificateValidationContext, path: &str) -> Translated<Option<RootsSource>> {
    match (&context.trusted_ca, &context.system_root_certs) {
        (Some(_), Some(_)) => Err(Problem::new(path, "has two kinds of roots")),
        (None, Some(_)) => Ok(Some(RootsSource::System)),
        (None, None) => Ok(None),
        (Some(source), None) => match data(source, &format!("{path}.trusted_ca"))? {
            Data::File(file) => Ok(Some(RootsSource::File(file))),
            Data::Given(roots) => {
                let path = format!("{path}.trusted_ca");
                check_certificates(&roots, &path)?;
                lists_in(&roots, &path)?;
                Ok(Some(RootsSource::Given(roots)))
            }
        },
    }
}

/// Lists of revoked certificates. An empty one, by which nothing could be verified, is refused.
fn crl(context: &tls::CertificateValidationContext, path: &str) -> Translated<Option<CrlSource>> {
    let path = format!("{path}.crl");
    match context.crl.as_ref().map(|source| data(source, &path)).transpose()? {
        None => Ok(None),
        Some(Data::File(file)) => Ok(Some(CrlSource::File(file))),
        Some(Data::Given(crl)) => {
            check_crl(&crl, &path)?;
            Ok(Some(CrlSource::Given(crl)))
        }
    }
}

/// At least one list, and none that cannot be used.
fn check_crl(pem: &Pem, path: &str) -> Translated<()> {
    if lists_in(pem, path)? > 0 { Ok(()) } else { Err(Problem::new(path, "has no list of revoked certificates")) }
}

/// How many lists there are; each is read as it will be when it is used, or an update would be accepted and never count.
fn lists_in(pem: &Pem, path: &str) -> Translated<usize> {
    let mut n_lists = 0;
    for one in CertificateRevocationListDer::pem_slice_iter(&pem.0) {
        let one =
            one.map_err(|error| Problem::new(path, format!("has a list of revoked certificates that is not in PEM form: {error}")))?;
        webpki::BorrowedCertRevocationList::from_der(&one)
            .map_err(|error| Problem::new(path, format!("has a list of revoked certificates that cannot be used: {error}")))?;
        n_lists += 1;
    }
    Ok(n_lists)
}

#[expect(deprecated, reason = "istiod uses the form for DestinationRules")]
fn has_names(context: &tls::CertificateValidationContext) -> bool {
    !context.match_typed_subject_alt_names.is_empty() || !context.match_subject_alt_names.is_empty()
}

#[expect(deprecated, reason = "istiod uses the form for DestinationRules")]
fn names(context: &tls::CertificateValidationContext, path: &str) -> Translated<Box<[NameMatcher]>> {
    use tls::subject_alt_name_matcher::SanType;
    let mut names = Vec::new();
    for (at, one) in context.match_typed_subject_alt_names.iter().enumerate() {
        let path = format!("{path}.match_typed_subject_alt_names[{at}]");
        let kind = match SanType::try_from(one.san_type) {
            Ok(SanType::Dns) => NameKind::Dns,
            Ok(SanType::Uri) => NameKind::Uri,
            Ok(SanType::Email) => NameKind::Email,
            Ok(SanType::IpAddress) => NameKind::Ip,
            _ => return Err(Problem::new(path, "names of this kind are not matched")),
        };
        names.push(NameMatcher { kind, text: matcher::string(required(one.matcher.as_ref(), &path)?, &path)? });
    }
    for (at, one) in context.match_subject_alt_names.iter().enumerate() {
        let path = format!("{path}.match_subject_alt_names[{at}]");
        names.push(NameMatcher { kind: NameKind::Any, text: matcher::string(one, &path)? });
    }
    Ok(names.into())
}

enum Data {
    File(Arc<Path>),
    Given(Pem),
}

fn data(value: &core::DataSource, path: &str) -> Translated<Data> {
    use core::data_source::Specifier;
    match required(value.specifier.as_ref(), path)? {
        Specifier::Filename(name) => Ok(Data::File(file(name))),
        Specifier::InlineBytes(bytes) => Ok(Data::Given(Pem(bytes.as_slice().into()))),
        Specifier::InlineString(text) => Ok(Data::Given(Pem(text.as_bytes().into()))),
        Specifier::EnvironmentVariable(_) => Err(Problem::new(path, "the environment is not read for configuration")),
    }
}

fn file(path: &str) -> Arc<Path> {
    Path::new(path).into()
}

fn check_certificates(pem: &Pem, path: &str) -> Translated<()> {
    let mut any = false;
    for one in CertificateDer::pem_slice_iter(&pem.0) {
        one.map_err(|error| Problem::new(path, format!("has a certificate that is not in PEM form: {error}")))?;
        any = true;
    }
    if any { Ok(()) } else { Err(Problem::new(path, "has no certificates")) }
}

fn versions(params: &tls::TlsParameters, path: &str) -> Translated<TlsVersions> {
    use tls::tls_parameters::TlsProtocol::{TlSv12, TlSv13, TlsAuto};
    let read = |number: i32, name: &str| {
        tls::tls_parameters::TlsProtocol::try_from(number)
            .map_err(|_| Problem::new(format!("{path}.tls_params.{name}"), format!("{number} is not known")))
    };
    let minimum = read(params.tls_minimum_protocol_version, "tls_minimum_protocol_version")?;
    let maximum = read(params.tls_maximum_protocol_version, "tls_maximum_protocol_version")?;
    match (minimum, maximum) {
        (TlSv13, TlSv13 | TlsAuto) => Ok(TlsVersions::Tls13),
        (TlSv13, _) => Err(Problem::new(format!("{path}.tls_params"), "no version is left")),
        // Older versions that may be spoken are not.
        (_, TlSv13 | TlsAuto) => Ok(TlsVersions::Both),
        (_, TlSv12) => Ok(TlsVersions::Tls12),
        _ => Err(Problem::new(format!("{path}.tls_params"), "only versions before TLS 1.2 would be spoken")),
    }
}

/// Of a list, what is spoken; a list of nothing that is spoken is refused. `[A|B]` are of equal preference.
fn known<T>(names: &[String], read: fn(&str) -> Option<T>, path: &str) -> Translated<Box<[T]>> {
    let each = names.iter().flat_map(|name| name.trim_start_matches('[').trim_end_matches(']').split('|'));
    let known: Box<[T]> = each.filter_map(read).collect();
    if known.is_empty() && !names.is_empty() { Err(Problem::new(path, format!("none of {names:?} is supported"))) } else { Ok(known) }
}

fn cipher_suite(name: &str) -> Option<CipherSuite> {
    Some(match name {
        "ECDHE-ECDSA-AES128-GCM-SHA256" => CipherSuite::EcdsaAes128,
        "ECDHE-ECDSA-AES256-GCM-SHA384" => CipherSuite::EcdsaAes256,
        "ECDHE-ECDSA-CHACHA20-POLY1305" => CipherSuite::EcdsaChacha20,
        "ECDHE-RSA-AES128-GCM-SHA256" => CipherSuite::RsaAes128,
        "ECDHE-RSA-AES256-GCM-SHA384" => CipherSuite::RsaAes256,
        "ECDHE-RSA-CHACHA20-POLY1305" => CipherSuite::RsaChacha20,
        _ => return None,
    })
}

fn group(name: &str) -> Option<Group> {
    Some(match name {
        "X25519" => Group::X25519,
        "P-256" => Group::P256,
        "P-384" => Group::P384,
        "X25519MLKEM768" => Group::X25519MlKem768,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
