//! What istiod sends for TLS to applications, and what is refused.
#![expect(clippy::unwrap_used, reason = "tests")]

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use prost::Message;
use serde_json::{Value, json};

use super::*;
use crate::translate::cluster::cluster;

const WEB: &str = "inbound-vip|80|http|web.shop.svc.cluster.local";
const ADS: &str = "ads";

fn upstream_tls(common: Value) -> Value {
    json!({"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": "api.example.com",
        "common_tls_context": common,
    }})
}

fn read(fields: Value) -> Translated<Sockets> {
    let mut json = json!({"name": WEB, "type": "EDS", "eds_cluster_config": {"service_name": WEB}});
    json.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let bytes = xds_proto::message_from_json("envoy.config.cluster.v3.Cluster", &json).unwrap();
    cluster(&Cluster::decode(&bytes[..]).unwrap()).map(|cluster| cluster.sockets)
}

fn read_tls(common: Value) -> Translated<TlsOrigination> {
    read(json!({"transport_socket": upstream_tls(common)})).map(|sockets| (*sockets.otherwise.tls.unwrap()).clone())
}

fn sds(name: &str, source: &str) -> Value {
    json!({"name": name, "sds_config": {source: {}, "resource_api_version": "V3"}})
}

#[test]
fn a_destination_rule_s_tls_is_read_as_istiod_sends_it() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/istiod-1.31/08-egress/Cluster.json");
    let recorded: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let of = |name: &str| {
        let found = recorded["resources"].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap();
        let mut cluster = json!({});
        for field in ["transport_socket", "transport_socket_matches"] {
            if let Some(value) = found["resource"].get(field) {
                cluster[field] = value.clone();
            }
        }
        read(cluster).unwrap()
    };
    let egress = of("inbound-vip|80|http|api.example.com");
    let tls = egress.otherwise.tls.unwrap();
    assert_eq!((tls.server_name.as_deref(), &tls.roots), (Some("api.example.com"), &Some(RootsSource::System)));
    let name = NameMatcher { kind: NameKind::Any, text: model::matcher::StringMatcher::Exact((*b"api.example.com").into()) };
    assert_eq!((&*tls.names, tls.versions, &tls.certificate), (&[name][..], TlsVersions::Both, &None));

    let collector = of("outbound|4317||tempo.tempo.svc.cluster.local");
    let label = |key: &str, value: &str| (Box::<str>::from(key), Box::<str>::from(value));
    assert_eq!(collector.of(&[]), &Transport::default());
    assert_eq!(collector.of(&[label("tunnel", "http"), label("tlsMode", "istio")]), &Transport::default());
    let mutual = collector.of(&[label("tlsMode", "istio")]).tls.clone().unwrap();
    assert_eq!((&mutual.roots, &mutual.certificate), (&Some(RootsSource::Mesh), &Some(CertificateSource::Workload)));
    assert_eq!(mutual.alpn.iter().map(|one| &**one).collect::<Vec<_>>(), [&b"istio"[..], b"h2"], "the exchange of peers is not spoken");
    assert_eq!(mutual.server_name.as_deref(), Some("outbound_.4317_._.tempo.tempo.svc.cluster.local"));
}

#[test]
fn secrets_are_found_by_their_names() {
    let roots = |name: &str, source| {
        let common = json!({"combined_validation_context": {"validation_context_sds_secret_config": sds(name, source)}});
        read_tls(common).map(|tls| tls.roots.unwrap())
    };
    assert_eq!(roots("ROOTCA", "api_config_source").unwrap(), RootsSource::Mesh);
    assert_eq!(roots("file-root:/etc/ca.pem", "api_config_source").unwrap(), RootsSource::File(Path::new("/etc/ca.pem").into()));
    assert_eq!(roots("kubernetes://api-cacert", ADS).unwrap(), RootsSource::Discovered("kubernetes://api-cacert".into()));
    assert!(roots("kubernetes://api-cacert", "api_config_source").is_err(), "nobody would be asked for it");
    assert!(roots("file-root:", "api_config_source").is_err());
    let shown = |name: &str, source| {
        read_tls(json!({"tls_certificate_sds_secret_configs": [sds(name, source)]})).map(|tls| tls.certificate.unwrap())
    };
    assert_eq!(shown("default", "api_config_source").unwrap(), CertificateSource::Workload);
    assert_eq!(shown("kubernetes://api", ADS).unwrap(), CertificateSource::Discovered("kubernetes://api".into()));
    let files = CertificateSource::Files { chain: Path::new("/c.pem").into(), key: Path::new("/k.pem").into() };
    assert_eq!(shown("file-cert:/c.pem~/k.pem", "api_config_source").unwrap(), files);
    assert!(shown("file-cert:/c.pem", "api_config_source").is_err());
}

#[test]
fn no_verification_is_only_what_says_so_and_names_need_roots() {
    assert_eq!(read_tls(json!({"validation_context": {}})).unwrap().roots, None, "insecureSkipVerify");
    assert_eq!(read_tls(json!({})).unwrap().roots, None);
    let named = json!({"match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "a"}}]});
    assert!(read_tls(json!({"validation_context": named})).is_err());
    let auto = |options: Value| {
        json!({
            "transport_socket": upstream_tls(json!({"validation_context": {"system_root_certs": {}}})),
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http_protocol_options": {}},
                "upstream_http_protocol_options": options,
            }},
        })
    };
    let tls = read(auto(json!({"auto_sni": true, "auto_san_validation": true}))).unwrap().otherwise.tls.unwrap();
    assert!(tls.server_name_from_host && tls.verify_host && tls.depends_on_host() && tls.roots == Some(RootsSource::System));
    assert!(read_tls(json!({"validation_context": {"trusted_ca": {"inline_string": "no certificate"}}})).is_err());
    assert!(read_tls(json!({"validation_context": {"trusted_ca": {"environment_variable": "CA"}}})).is_err());
}

#[test]
fn parameters_restrict_and_never_widen() {
    let params = |params: Value| read_tls(json!({"tls_params": params}));
    assert_eq!(params(json!({"tls_minimum_protocol_version": "TLSv1_3"})).unwrap().versions, TlsVersions::Tls13);
    let only_12 = json!({"tls_minimum_protocol_version": "TLSv1_0", "tls_maximum_protocol_version": "TLSv1_2"});
    assert_eq!(params(only_12).unwrap().versions, TlsVersions::Tls12);
    assert!(params(json!({"tls_maximum_protocol_version": "TLSv1_1"})).is_err());
    assert!(params(json!({"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_2"})).is_err());
    let suites = ["[ECDHE-RSA-AES256-GCM-SHA384|ECDHE-RSA-CHACHA20-POLY1305]", "AES128-SHA"];
    assert_eq!(*params(json!({"cipher_suites": suites})).unwrap().cipher_suites, [CipherSuite::RsaAes256, CipherSuite::RsaChacha20]);
    assert!(params(json!({"cipher_suites": ["AES128-SHA"]})).is_err());
    assert_eq!(*params(json!({"ecdh_curves": ["P-256", "P-521"]})).unwrap().groups, [Group::P256]);
}

#[test]
fn a_secret_is_a_certificate_with_its_key_or_roots() {
    let read = |json: Value| {
        let bytes = xds_proto::message_from_json("envoy.extensions.transport_sockets.tls.v3.Secret", &json).unwrap();
        secret(&tls::Secret::decode(&bytes[..]).unwrap())
    };
    let made = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
    let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let pem = |text: &str| Pem(text.as_bytes().into());
    let certificate = json!({"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}});
    assert_eq!(read(json!({"tls_certificate": certificate})).unwrap(), Secret::Certificate { chain: pem(&chain), key: pem(&key) });
    assert_eq!(
        read(json!({"validation_context": {"trusted_ca": {"inline_string": chain}}})).unwrap(),
        Secret::Roots { roots: pem(&chain), crl: None, crl_of_leaf_only: false }
    );
    for refused in [
        json!({}),
        json!({"generic_secret": {}}),
        json!({"validation_context": {}}),
        json!({"tls_certificate": {"certificate_chain": {"inline_string": key}, "private_key": {"inline_string": key}}}),
        json!({"tls_certificate": {"certificate_chain": {"filename": "/c"}, "private_key": {"filename": "/k"}}}),
    ] {
        assert!(read(refused.clone()).is_err(), "{refused}");
    }
}

/// A list in which nothing is revoked.
fn crl() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
    let list = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2036, 1, 1),
        crl_number: rcgen::SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    list.signed_by(&rcgen::Issuer::new(params, key)).unwrap().pem().unwrap()
}

#[test]
fn lists_of_revoked_certificates_are_read_and_one_that_says_nothing_is_refused_by_name() {
    let made = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
    let list = crl();
    let pem = |text: &str| Pem(text.as_bytes().into());
    let secret_of = |context: Value| {
        let json = json!({"validation_context": context});
        let bytes = xds_proto::message_from_json("envoy.extensions.transport_sockets.tls.v3.Secret", &json).unwrap();
        secret(&tls::Secret::decode(&bytes[..]).unwrap())
    };
    let context =
        |crl: &str| json!({"trusted_ca": {"inline_string": made}, "crl": {"inline_string": crl}, "only_verify_leaf_cert_crl": true});
    let with_list = Secret::Roots { roots: pem(&made), crl: Some(pem(&list)), crl_of_leaf_only: true };
    assert_eq!(secret_of(context(&list)).unwrap(), with_list);
    let given = read_tls(json!({"validation_context": context(&list)})).unwrap();
    assert_eq!((&given.crl, given.crl_of_leaf_only), (&Some(CrlSource::Given(pem(&list))), true));
    let both = json!({
        "default_validation_context": {"crl": {"filename": "/etc/crl.pem"}},
        "validation_context_sds_secret_config": {"name": "ROOTCA"},
    });
    let combined = read_tls(json!({"combined_validation_context": both})).unwrap();
    assert_eq!((&combined.roots, &combined.crl), (&Some(RootsSource::Mesh), &Some(CrlSource::File(Path::new("/etc/crl.pem").into()))));

    let broken = made.replace("CERTIFICATE", "X509 CRL");
    for unusable in ["", "nothing", made.as_str(), broken.as_str()] {
        let refused = secret_of(context(unusable)).unwrap_err();
        assert_eq!(refused.path, "validation_context.crl", "{unusable}: {refused:?}");
        let refused = read_tls(json!({"validation_context": context(unusable)})).unwrap_err();
        assert!(refused.path.ends_with("validation_context.crl"), "{unusable}: {refused:?}");
    }
    // One among the roots counts as well, and is read as well.
    let among = |list: &str| json!({"trusted_ca": {"inline_string": format!("{made}{list}")}});
    assert!(secret_of(among(&list)).is_ok());
    assert_eq!(secret_of(among(&broken)).unwrap_err().path, "validation_context.trusted_ca");
    let without_roots = json!({"crl": {"inline_string": list}});
    assert!(read_tls(json!({"validation_context": without_roots})).unwrap_err().reason.contains("without roots"));
}

#[test]
fn a_socket_that_is_not_spoken_is_refused_by_name() {
    let unknown = json!({"name": "x", "typed_config": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster"}});
    assert!(read(json!({"transport_socket": unknown})).unwrap_err().reason.contains("is not supported"));
    assert!(read(json!({"transport_socket": {"name": "x"}})).is_err());
    let labels = json!([{"name": "x", "match": {"tlsMode": 1}, "transport_socket": upstream_tls(json!({}))}]);
    assert!(read(json!({"transport_socket_matches": labels})).is_err());
}

#[test]
fn the_proxy_protocol_stands_before_what_is_inside_it() {
    const RAW: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
    const PROXY_PROTOCOL: &str = "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";
    const INTERNAL: &str = "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport";
    let socket = |name: &str, fields: serde_json::Value| {
        let mut config = fields;
        config["@type"] = format!("type.googleapis.com/{name}").into();
        json!({"name": "socket", "typed_config": config})
    };
    let read = |config: serde_json::Value, inner: serde_json::Value| {
        let proxied = socket(PROXY_PROTOCOL, json!({"config": config, "transport_socket": inner}));
        let json = json!({"name": "c", "type": "EDS", "transport_socket": socket(INTERNAL, json!({"transport_socket": proxied}))});
        let bytes = xds_proto::message_from_json("envoy.config.cluster.v3.Cluster", &json).unwrap();
        let decoded = envoy_types::pb::envoy::config::cluster::v3::Cluster::decode(&bytes[..]).unwrap();
        crate::translate::cluster::cluster(&decoded).map(|cluster| cluster.sockets.otherwise)
    };
    let raw = || socket(RAW, json!({}));
    assert_eq!(read(json!({}), raw()).unwrap().proxy_protocol, Some(ProxyProtocol::V1), "Envoy's default");
    assert_eq!(read(json!({"version": "V2"}), raw()).unwrap().proxy_protocol, Some(ProxyProtocol::V2));
    assert!(read(json!({}), socket(PROXY_PROTOCOL, json!({"transport_socket": raw()}))).is_err());
}
