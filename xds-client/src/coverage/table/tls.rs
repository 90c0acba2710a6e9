//! TLS: HBONE on both sides, with our own certificate and the mesh's roots; and TLS to applications as they want it.
use super::super::check;
use super::super::rule::Kind::Security;
use super::super::rule::Rule::{Honoured, Refused, Unused, Whole};
use super::super::rule::{Entry, entry, when, whole_when};

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
        &[
            ("common_tls_context", Honoured),
            ("sni", whole_when("to applications", check::is_to_application, "a server name would be asked for")),
            ("auto_sni_san_validation", whole_when("to applications", check::is_to_application, "names would be verified otherwise")),
            ("allow_renegotiation", when("false", check::is_false, "TLS would be negotiated anew")),
            ("max_session_keys", Unused("sessions are not resumed")),
        ],
    ),
    entry(
        Security,
        "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext",
        &[
            ("tls_params", Honoured),
            ("alpn_protocols", when("h2; any to applications", check::is_known_alpn, "another protocol would be agreed on")),
            ("tls_certificate_sds_secret_configs", Honoured),
            ("combined_validation_context", Honoured),
            ("tls_certificates", when("to applications", check::is_to_application, "another certificate would be shown")),
            ("validation_context", when("to applications", check::is_to_application, "peers would be verified by other roots")),
            (
                "validation_context_sds_secret_config",
                when("to applications", check::is_to_application, "peers' names would not be verified"),
            ),
        ],
    ),
    entry(
        Security,
        "envoy.extensions.transport_sockets.tls.v3.TlsParameters",
        &[
            (
                "tls_minimum_protocol_version",
                when("TLSv1_3; 1.2 too to applications", check::is_known_version, "older versions of TLS would be spoken"),
            ),
            (
                "tls_maximum_protocol_version",
                when("TLSv1_3; 1.2 too to applications", check::is_known_version, "only older versions of TLS would be spoken"),
            ),
            ("cipher_suites", whole_when("to applications", check::is_to_application, "ciphers would be restricted")),
            ("ecdh_curves", whole_when("to applications", check::is_to_application, "key exchange would be restricted")),
            ("signature_algorithms", Refused("signatures would be restricted")),
            ("compliance_policies", Refused("TLS would be restricted by a compliance policy")),
        ],
    ),
    entry(
        Security,
        "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig",
        &[
            ("name", when("default, ROOTCA; any to applications", check::is_known_secret, "another secret would be used")),
            ("sds_config", Whole),
        ],
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
            (
                "match_subject_alt_names",
                when("to applications", check::is_to_application, "the form is deprecated; match_typed_subject_alt_names is its successor"),
            ),
            ("trusted_ca", when("to applications", check::is_to_application, "peers would be verified by other roots")),
            ("system_root_certs", when("to applications", check::is_to_application, "peers would be verified by other roots")),
            ("watched_directory", Unused("files are looked at anyway")),
            ("verify_certificate_spki", Refused("only certain keys would be accepted")),
            ("verify_certificate_hash", Refused("only certain certificates would be accepted")),
            ("crl", when("to applications", check::is_to_application, "revoked certificates would be rejected")),
            ("only_verify_leaf_cert_crl", when("to applications", check::is_to_application, "revoked authorities would be accepted")),
            ("custom_validator_config", Refused("an extension would verify certificates")),
        ],
    ),
    entry(
        Security,
        "envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher",
        &[
            (
                "san_type",
                when("URI; DNS, EMAIL, IP_ADDRESS too to applications", check::is_known_name, "names of another kind would be matched"),
            ),
            ("matcher", Honoured),
        ],
    ),
    entry(Security, "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext.SystemRootCerts", &[]),
    entry(
        Security,
        "envoy.extensions.transport_sockets.tls.v3.TlsCertificate",
        &[
            ("certificate_chain", Honoured),
            ("private_key", Honoured),
            ("watched_directory", Unused("files are looked at anyway")),
            ("password", Refused("the key would be decrypted")),
            ("private_key_provider", Refused("another would hold the key")),
        ],
    ),
    entry(
        Security,
        "envoy.extensions.transport_sockets.tls.v3.Secret",
        &[
            ("name", Whole),
            ("tls_certificate", Honoured),
            ("validation_context", Honoured),
            ("session_ticket_keys", Refused("it is of no use to a waypoint")),
            ("generic_secret", Refused("it is of no use to a waypoint")),
        ],
    ),
];
