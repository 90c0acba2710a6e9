//! TLS: HBONE on both sides, with our own certificate and the mesh's roots.
use super::super::check;
use super::super::rule::Kind::Security;
use super::super::rule::Rule::{Honoured, Refused, Whole};
use super::super::rule::{Entry, entry, when};

pub(super) const ENTRIES: &[Entry] = &[
    entry(
        Security,
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        &[
            ("common_tls_context", Honoured),
            ("require_client_certificate", when("true", check::is_true, "clients without a certificate would be let in")),
        ],
    ),
    entry(
        Security,
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        &[("common_tls_context", Honoured), ("sni", Refused("a server name would be asked for"))],
    ),
    entry(
        Security,
        "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext",
        &[
            ("tls_params", Honoured),
            ("alpn_protocols", when("h2", check::is_h2_only, "another protocol would be agreed on")),
            ("tls_certificate_sds_secret_configs", Honoured),
            ("combined_validation_context", Honoured),
            ("tls_certificates", Refused("another certificate would be shown")),
            ("validation_context", Refused("peers would be verified by other roots")),
            ("validation_context_sds_secret_config", Refused("peers' names would not be verified")),
        ],
    ),
    entry(
        Security,
        "envoy.extensions.transport_sockets.tls.v3.TlsParameters",
        &[
            ("tls_minimum_protocol_version", when("TLSv1_3", check::is_tls_1_3, "older versions of TLS would be spoken")),
            ("tls_maximum_protocol_version", when("TLSv1_3", check::is_tls_1_3, "only older versions of TLS would be spoken")),
            ("cipher_suites", Refused("ciphers would be restricted")),
            ("ecdh_curves", Refused("key exchange would be restricted")),
            ("signature_algorithms", Refused("signatures would be restricted")),
            ("compliance_policies", Refused("TLS would be restricted by a compliance policy")),
        ],
    ),
    entry(
        Security,
        "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig",
        &[("name", when("default, ROOTCA", check::is_own_secret, "another secret would be used")), ("sds_config", Whole)],
    ),
    entry(
        Security,
        "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext",
        &[("default_validation_context", Honoured), ("validation_context_sds_secret_config", Honoured)],
    ),
    entry(
        Security,
        "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext",
        &[
            ("match_typed_subject_alt_names", Honoured),
            ("match_subject_alt_names", Refused("the form is deprecated; match_typed_subject_alt_names is its successor")),
            ("trusted_ca", Refused("peers would be verified by other roots")),
            ("verify_certificate_spki", Refused("only certain keys would be accepted")),
            ("verify_certificate_hash", Refused("only certain certificates would be accepted")),
            ("crl", Refused("revoked certificates would be rejected")),
            ("custom_validator_config", Refused("an extension would verify certificates")),
        ],
    ),
    entry(
        Security,
        "envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher",
        &[("san_type", when("URI", check::is_uri_name, "names of another kind would be matched")), ("matcher", Honoured)],
    ),
];
