//! Heads in, heads out.

#![expect(clippy::unwrap_used, reason = "tests")]

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Request, StatusCode, Version};
use model::chain::{EscapedSlashes, UnderscoreNames};
use proptest::prelude::*;

use super::{
    HeadOptions, Malformed, SlashFound, UpgradeRequested, normalize_path, request_in, request_out_http1, response_in, strip_hop_by_hop,
    target_http2,
};
use crate::http::session::Protocol;

fn head(method: &str, target: &str, fields: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn fields(names_and_values: &[(&str, &str)]) -> HeaderMap {
    names_and_values.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())).fold(
        HeaderMap::new(),
        |mut map, (name, value)| {
            map.append(name, value);
            map
        },
    )
}

const DEFAULTS: HeadOptions = HeadOptions {
    normalize: true,
    merge_slashes: false,
    escaped_slashes: EscapedSlashes::Kept,
    accepts_http1_0: true,
    underscores: UnderscoreNames::Allowed,
};
const MERGE: HeadOptions = HeadOptions { merge_slashes: true, ..DEFAULTS };
const DECODE: HeadOptions = HeadOptions { merge_slashes: true, escaped_slashes: EscapedSlashes::Unescaped, ..DEFAULTS };
const NONE: HeadOptions = HeadOptions { normalize: false, ..DEFAULTS };

#[test]
fn paths_are_normalised_as_istio_base_does() {
    // RFC 3986 §5.4 and §6.2.2; `\` and the rest as Envoy's normalize_path.
    let table = [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a/"),
        ("/a/b/.", "/a/b/"),
        ("/a/%2e%2E/b", "/b"),
        ("/a//b", "/a//b"),
        ("/a//../b", "/a/b"),
        ("/a%2Fb", "/a%2Fb"),
        ("/a\\..\\b", "/b"),
        ("/%41dmin", "/Admin"),
        ("/%C3%A9", "/%C3%A9"),
        ("/a.b/..c/d..", "/a.b/..c/d.."),
        ("/...", "/..."),
        // A root has no parent.
        ("/..", "/"),
        ("/a/../../b", "/b"),
        ("/%2e%2e/a", "/a"),
        ("/..//a", "//a"),
        // Parameters of dot segments, asked of Envoy 1.40; but for the last, which it leaves to the server.
        ("/a/..;x=1/b", "/b"),
        ("/a/.;;/b", "/a/b"),
        ("/a/..;", "/"),
        ("/a/b;x/c", "/a/b;x/c"),
        ("/a/...;/b", "/a/...;/b"),
        ("/a/..%3b/b", "/a/..%3b/b"),
        ("/a/%2e%2e;/b", "/b"),
        // What escapes nothing stays.
        ("/%", "/%"),
        ("/%4", "/%4"),
        ("/%zz%41", "/%zzA"),
        ("/x%%41", "/x%A"),
        // Nor does it become an escape by what is decoded behind it.
        ("/a/%%32e%%32e/b", "/a/%252e%252e/b"),
        ("/a%%32f%%35cb", "/a%252f%255cb"),
        ("/a/%%32%65/b", "/a/%252e/b"),
    ];
    for (path, expected) in table {
        let normal = normalize_path(path, &HeadOptions::default()).unwrap();
        assert_eq!(normal.as_deref().unwrap_or(path), expected, "{path}");
    }
}

#[test]
fn slashes_merge_and_decode_only_if_told_to() {
    assert_eq!(normalize_path("/a//b", &MERGE).unwrap().as_deref(), Some("/a/b"));
    assert_eq!(normalize_path("/a%2F%2fb", &MERGE).unwrap(), None);
    assert_eq!(normalize_path("/a%2F%5Cb/%2F..", &DECODE).unwrap().as_deref(), Some("/a/b/"));
    assert_eq!(normalize_path("/a/../b//c", &NONE).unwrap(), None);
}

#[test]
fn an_escaped_nul_is_refused_where_paths_are_normalised() {
    for path in ["/%00", "/a%00b", "/.%00"] {
        assert_eq!(normalize_path(path, &HeadOptions::default()), Err(Malformed::PathInvalid), "{path}");
        assert_eq!(normalize_path(path, &NONE), Ok(None), "{path}");
    }
}

proptest! {
    #[test]
    fn normalising_twice_is_normalising_once(path in "/[a.%/2356eF;\\\\]{0,32}") {
        for options in [HeadOptions::default(), MERGE, DECODE] {
            if let Ok(Some(normal)) = normalize_path(&path, &options) {
                prop_assert!(normal.starts_with('/'));
                prop_assert_eq!(normalize_path(&normal, &options), Ok(None), "{}", path);
                let is_dots = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
                prop_assert!(!normal.split('/').any(is_dots), "{} -> {}", path, normal);
            }
        }
    }

    #[test]
    fn lengths_that_are_no_plain_number_are_refused(value in "[-+ 0-9,a-fx]{1,12}") {
        let mut map = fields(&[]);
        map.insert(header::CONTENT_LENGTH, value.parse().unwrap());
        let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
        prop_assert_eq!(response_in(StatusCode::OK, &mut map).is_ok(), is_number);
    }
}

#[test]
fn host_is_exactly_one_valid_and_the_targets() {
    let http1 = |target, hosts: &[&str]| {
        let hosts: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
        let mut parts = head("GET", target, &hosts);
        request_in(&mut parts, Protocol::Http1, &HeadOptions::default()).map(|()| parts.headers[header::HOST].to_str().unwrap().to_owned())
    };
    assert_eq!(http1("/", &["web"]).as_deref(), Ok("web"));
    assert_eq!(http1("/", &["web.ns:8080"]).as_deref(), Ok("web.ns:8080"));
    assert_eq!(http1("/", &["[::1]:80"]).as_deref(), Ok("[::1]:80"));
    assert_eq!(http1("http://WEB/x", &["web:80"]).as_deref(), Ok("web:80"));
    assert_eq!(http1("/", &[]), Err(Malformed::HostMissing));
    assert_eq!(http1("http://web/", &[]), Err(Malformed::HostMissing));
    assert_eq!(http1("/", &["a", "b"]), Err(Malformed::HostRepeated));
    assert_eq!(http1("/", &["a", "a"]), Err(Malformed::HostRepeated));
    assert_eq!(http1("http://b/", &["a"]).as_deref(), Ok("b"), "RFC 9112 §3.2.2: host is ignored");
    assert_eq!(http1("http://u@b/", &["a"]), Err(Malformed::HostInvalid));
    for host in ["", "a b", "a/b", "user@a", "a:b", "a:123456", "[::1", "[g]", "a, b", "a#b", "[::1]x", ":80"] {
        assert_eq!(http1("/", &[host]), Err(Malformed::HostInvalid), "{host}");
    }
}

#[test]
fn http_1_0_names_a_host_too_and_goes_on_as_http_1_1() {
    // As Envoy without `default_host_for_http_10`: rules on hosts would not see it otherwise.
    let mut parts = head("GET", "/", &[]);
    parts.version = Version::HTTP_10;
    assert_eq!(request_in(&mut parts, Protocol::Http1, &HeadOptions::default()), Err(Malformed::HostMissing));
    let mut parts = head("GET", "/", &[("host", "web")]);
    parts.version = Version::HTTP_10;
    request_in(&mut parts, Protocol::Http1, &HeadOptions::default()).unwrap();
    request_out_http1(&mut parts);
    assert_eq!(parts.headers[header::HOST], "web");
    assert_eq!(parts.version, Version::HTTP_11);
}

#[test]
fn what_no_path_may_have_raw_is_escaped_as_envoy_does() {
    // Envoy 1.40 with normalize_path, asked byte by byte.
    for (raw, escaped) in [
        ("/a\"b", "/a%22b"),
        ("/a<b", "/a%3Cb"),
        ("/a>b", "/a%3Eb"),
        ("/a^b", "/a%5Eb"),
        ("/a`b", "/a%60b"),
        ("/{id}", "/%7Bid%7D"),
        ("/a|b", "/a%7Cb"),
        ("/caf\u{e9}", "/caf%C3%A9"),
    ] {
        assert_eq!(normalize_path(raw, &HeadOptions::default()).unwrap().as_deref(), Some(escaped), "{raw}");
        assert_eq!(normalize_path(raw, &NONE).unwrap(), None, "{raw}");
    }
    for same in ["/a!$&'()*+,;=:@[]_~-", "/%c3%a9", "/%7bid%7D"] {
        assert_eq!(normalize_path(same, &HeadOptions::default()).unwrap(), None, "{same}");
    }
}

#[test]
fn authority_becomes_host_and_back() {
    let mut parts = head("GET", "https://web:8080/a/../b?c", &[]);
    parts.version = Version::HTTP_2;
    request_in(&mut parts, Protocol::Http2, &HeadOptions::default()).unwrap();
    assert_eq!(parts.uri, "/b?c");
    assert_eq!(parts.headers[header::HOST], "web:8080");
    assert_eq!(target_http2(&parts).unwrap(), "https://web:8080/b?c");
}

#[test]
fn fields_of_one_connection_are_removed_and_essential_ones_are_not() {
    let mut map = fields(&[
        ("connection", "close, x-secret"),
        ("connection", "Host, authorization, X-Forwarded-For, content-length"),
        ("x-secret", "1"),
        ("host", "web"),
        ("authorization", "Bearer x"),
        ("x-forwarded-for", "10.0.0.1"),
        ("content-length", "0"),
        ("keep-alive", "1"),
        ("proxy-connection", "close"),
        ("te", "gzip, Trailers;q=1"),
        ("te", "trailers"),
        ("trailer", "x-sum"),
    ]);
    strip_hop_by_hop(&mut map);
    let expected = [
        ("host", "web"),
        ("authorization", "Bearer x"),
        ("x-forwarded-for", "10.0.0.1"),
        ("content-length", "0"),
        ("te", "trailers"),
        ("trailer", "x-sum"),
    ];
    assert_eq!(map, fields(&expected));
}

#[test]
fn upgrade_is_kept_aside_unless_it_is_to_http2() {
    let upgrade = |protocol| {
        let mut parts = head("GET", "/", &[("host", "a"), ("connection", "keep-alive, Upgrade"), ("upgrade", protocol)]);
        request_in(&mut parts, Protocol::Http1, &HeadOptions::default()).unwrap();
        assert!(!parts.headers.contains_key(header::UPGRADE));
        request_out_http1(&mut parts);
        parts.headers.get(header::UPGRADE).cloned()
    };
    assert_eq!(upgrade("websocket").unwrap(), "websocket");
    assert_eq!(upgrade("h2c"), None);
    assert_eq!(upgrade("websocket, h2c"), None);
}

#[test]
fn upgrade_that_connection_does_not_name_is_none() {
    let mut parts = head("GET", "/", &[("host", "a"), ("upgrade", "websocket")]);
    request_in(&mut parts, Protocol::Http1, &HeadOptions::default()).unwrap();
    assert_eq!(parts.extensions.get::<UpgradeRequested>(), None);
}

#[test]
fn cookie_crumbs_become_one_line_for_http1() {
    let mut parts = head("GET", "/", &[("host", "a"), ("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
    request_out_http1(&mut parts);
    let cookies: Vec<_> = parts.headers.get_all(header::COOKIE).iter().collect();
    assert_eq!(cookies, ["a=1; b=2; c=3"]);
}

#[test]
fn framing_of_responses_is_one_thing_or_refused() {
    let check = |names_and_values: &[(&str, &str)]| {
        let mut map = fields(names_and_values);
        response_in(StatusCode::OK, &mut map).map(|()| map)
    };
    let length = ("content-length", "2");
    assert_eq!(check(&[length, length]), Ok(fields(&[length])));
    assert_eq!(check(&[length, ("content-length", "3")]), Err(Malformed::LengthInvalid));
    assert_eq!(check(&[length, ("transfer-encoding", "chunked")]), Err(Malformed::LengthAndCoding));
    assert_eq!(check(&[("transfer-encoding", "gzip, chunked")]), Err(Malformed::CodingUnknown));
    assert_eq!(check(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]), Err(Malformed::CodingUnknown));
    assert_eq!(check(&[("transfer-encoding", "Chunked")]), Ok(fields(&[])));
}

#[test]
fn asterisk_is_for_options_and_connect_is_refused() {
    let check = |method, target| {
        let mut parts = head(method, target, &[("host", "a")]);
        request_in(&mut parts, Protocol::Http1, &HeadOptions::default())
    };
    assert_eq!(check("OPTIONS", "*"), Ok(()));
    assert_eq!(check("GET", "*"), Err(Malformed::PathInvalid));
    assert_eq!(check("CONNECT", "a:80"), Err(Malformed::Connect));
}

#[test]
fn escaped_slashes_are_found_in_paths_and_nowhere_else() {
    let read = |path: &str, escaped_slashes| {
        let mut parts = head("GET", path, &[("host", "a")]);
        request_in(&mut parts, Protocol::Http1, &HeadOptions { escaped_slashes, ..DEFAULTS }).unwrap();
        (parts.uri.to_string(), parts.extensions.get::<SlashFound>().copied())
    };
    for (action, found) in [
        (EscapedSlashes::Refused, Some(SlashFound::Refused)),
        (EscapedSlashes::Redirected, Some(SlashFound::Redirected)),
        (EscapedSlashes::Unescaped, None),
    ] {
        // One that is refused is shown with its slashes, and no further normalised.
        let dots = if action == EscapedSlashes::Refused { "/a\\%2E%2e/b?c=%2f" } else { "/b?c=%2f" };
        for (path, unescaped) in [("/a%2fb", "/a/b"), ("/a%5C%2E%2e/b?c=%2f", dots)] {
            assert_eq!(read(path, action), (unescaped.to_owned(), found), "{path}");
        }
        for path in ["/a/b?c=%2f", "/a%252f", "/a%2", "/%"] {
            assert_eq!(read(path, action), (path.to_owned(), None), "{path}");
        }
    }
    assert_eq!(read("/a%2fb", EscapedSlashes::Kept), ("/a%2fb".to_owned(), None));
}

#[test]
fn a_client_is_not_led_to_another_host_by_a_path() {
    for (path, leads) in [("/a/b", true), ("/", true), ("//evil.example/x", false), ("/\\evil.example", false)] {
        assert_eq!(SlashFound::Redirected.redirects_to(path), leads, "{path}");
        assert!(!SlashFound::Refused.redirects_to(path));
    }
}

#[test]
fn a_target_of_another_scheme_than_that_of_the_web_is_no_target() {
    for (target, expected) in [
        ("http://a/", Ok(())),
        ("https://a/", Ok(())),
        ("HTTPS://a/", Ok(())),
        ("ftp://a/", Err(Malformed::Syntax)),
        ("ws://a/", Err(Malformed::Syntax)),
    ] {
        let mut parts = head("GET", target, &[("host", "a")]);
        assert_eq!(request_in(&mut parts, Protocol::Http1, &DEFAULTS), expected, "{target}");
    }
}

#[test]
fn names_with_underscores_stay_go_or_are_refused() {
    let read = |underscores| {
        let mut parts = head("GET", "/", &[("host", "a"), ("x_a", "1"), ("x-a", "2"), ("_", "3")]);
        request_in(&mut parts, Protocol::Http1, &HeadOptions { underscores, ..DEFAULTS }).map(|()| parts.headers)
    };
    assert_eq!(read(UnderscoreNames::Allowed).unwrap().len(), 4);
    assert_eq!(read(UnderscoreNames::Dropped).unwrap(), fields(&[("host", "a"), ("x-a", "2")]));
    assert_eq!(read(UnderscoreNames::Refused), Err(Malformed::Underscore));
    let mut parts = head("GET", "/x_y?a_b=1", &[("host", "a_b"), ("x-a", "c_d")]);
    request_in(&mut parts, Protocol::Http1, &HeadOptions { underscores: UnderscoreNames::Refused, ..DEFAULTS }).unwrap();
}
