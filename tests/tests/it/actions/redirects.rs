//! Redirects and direct responses.

use super::*;

fn redirect(name: &str, matched: Value, to: Value) -> Value {
    json!({
        "name": name, "match": matched, "redirect": to,
        "response_headers_to_add": [{"header": {"key": "x-redirected", "value": "%REQ(:PATH)%"}}],
    })
}

fn routes() -> Vec<Value> {
    let prefix = |path: &str| json!({"path_separated_prefix": path});
    let regex = json!({"pattern": {"regex": "^/re/([^/]+)/(.*)"}, "substitution": "/\\2/\\1"});
    vec![
        redirect(
            "all",
            prefix("/moved"),
            json!({"scheme_redirect": "https", "host_redirect": "other.example", "port_redirect": 8443, "prefix_rewrite": "/there"}),
        ),
        redirect("full", prefix("/full"), json!({"path_redirect": "/gone", "response_code": "FOUND"})),
        redirect("full-query", prefix("/query"), json!({"path_redirect": "/gone?a=b", "response_code": "SEE_OTHER", "strip_query": true})),
        redirect(
            "strip",
            prefix("/strip"),
            json!({"host_redirect": "b.example", "strip_query": true, "response_code": "TEMPORARY_REDIRECT"}),
        ),
        redirect("https", prefix("/https"), json!({"https_redirect": true, "response_code": "PERMANENT_REDIRECT"})),
        redirect("to-http", prefix("/http"), json!({"scheme_redirect": "http"})),
        redirect("port", prefix("/port"), json!({"port_redirect": 81})),
        redirect("regex", prefix("/re"), json!({"regex_rewrite": regex, "strip_query": true})),
        redirect("no-slash", prefix("/relative"), json!({"path_redirect": "x"})),
        json!({"name": "see-here", "match": prefix("/direct"), "direct_response": {"status": 302, "body": {"inline_string": "here"}}}),
        json!({"name": "created", "match": prefix("/created"), "direct_response": {"status": 201}}),
        json!({"name": "nothing", "match": prefix("/nothing"), "direct_response": {"status": 203}}),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_sent_where_envoy_sends_them() -> Result<()> {
    let mut both = Both::start(routes()).await?;
    let expected = [
        ("/moved/x?y=1", 301, "https://other.example:8443/there/x?y=1"),
        ("/full/x?y=1", 302, "http://web.shop/gone?y=1"),
        ("/query?y=1", 303, "http://web.shop/gone?a=b"),
        ("/strip/x?y=1", 307, "http://b.example/strip/x"),
        ("/https/x?y=1", 308, "https://web.shop/https/x?y=1"),
        ("/http", 301, "http://web.shop/http"),
        ("/port", 301, "http://web.shop:81/port"),
        ("/re/a/b?c", 301, "http://web.shop/b/a"),
        ("/relative", 301, "http://web.shop/x"),
        ("/direct?a", 302, "http://web.shop/direct?a"),
        ("/created", 201, "http://web.shop/created"),
        ("/nothing", 203, ""),
    ];
    let asks = expected.map(|(path, ..)| Ask::get(path));
    for (seen, (path, status, location)) in both.all_same(&asks).await?.into_iter().zip(expected) {
        assert_eq!((seen.status.as_u16(), seen.header("location")), (status, location), "{path}");
        assert_eq!((&seen.line["details"], &seen.line["response_flags"]), (&"direct_response".into(), &"-".into()), "{path}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_and_schemes_of_locations_are_those_of_envoy() -> Result<()> {
    let mut both = Both::start(routes()).await?;
    let mut asks = Vec::new();
    for host in ["web.shop:80", "web.shop:443", "web.shop:8080", "[::1]:80", "[::1]"] {
        for path in ["/https", "/http", "/port", "/direct"] {
            for headers in [&[("x-forwarded-proto", "http")], &[("x-forwarded-proto", "https")], &[("x-forwarded-proto", "other")]] {
                asks.push(Ask { host, ..Ask::get(path).with(headers) });
            }
        }
    }
    asks.push(Ask { is_http2: true, ..Ask::get("/https").with(&[("x-forwarded-proto", "https")]) });
    both.all_same(&asks).await?;
    let grpc = both.same(Ask { is_http2: true, ..Ask::get("/https").with(&[("content-type", "application/grpc")]) }).await?;
    assert_eq!((grpc.status.as_u16(), grpc.header("grpc-status")), (200, "2"));
    assert_eq!(grpc.header("location"), "https://web.shop/https");
    Ok(())
}
