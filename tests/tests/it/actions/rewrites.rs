//! Rewrites of paths and hosts.

use super::*;

fn routes() -> Vec<Value> {
    let regex = |pattern: &str, substitution: &str| json!({"pattern": {"regex": pattern}, "substitution": substitution});
    let mut edited = forward("edited", json!({"prefix": "/edited"}), json!({"prefix_rewrite": "/new"}));
    edited["request_headers_to_add"] = json!([
        {"header": {"key": "x-was", "value": "%REQ(:PATH)%"}},
    ]);
    let shares = json!({"clusters": [{"name": WEB_CHAIN, "weight": 1, "host_rewrite_literal": "share.example"}]});
    vec![
        forward(
            "separated",
            json!({"path_separated_prefix": "/old"}),
            json!({"prefix_rewrite": "/new", "host_rewrite_literal": "new.example"}),
        ),
        forward("slash", json!({"path_separated_prefix": "/gone"}), json!({"regex_rewrite": regex("^/gone(/?)(.*)", "/\\2")})),
        forward("exact", json!({"path": "/full"}), json!({"regex_rewrite": regex("/.*", "/replaced")})),
        forward("exact-prefix", json!({"path": "/one"}), json!({"prefix_rewrite": "/two"})),
        forward("regex", json!({"safe_regex": {"regex": "/re/.*"}}), json!({"regex_rewrite": regex("/re/([^/]+)/(.*)", "/\\2/\\1")})),
        forward("any-case", json!({"prefix": "/Case", "case_sensitive": false}), json!({"prefix_rewrite": "/k"})),
        forward("kept", json!({"prefix": "/kept"}), json!({"host_rewrite_literal": "kept.example", "append_x_forwarded_host": true})),
        forward("header", json!({"prefix": "/header"}), json!({"host_rewrite_header": "x-to"})),
        forward("of-path", json!({"prefix": "/of/"}), json!({"host_rewrite_path_regex": regex("^/of/([^/]+).*$", "\\1.example")})),
        forward("share", json!({"path": "/share"}), json!({"weighted_clusters": shares})),
        forward("share-and-route", json!({"path": "/both"}), json!({"weighted_clusters": shares, "host_rewrite_literal": "route.example"})),
        edited,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_hosts_are_rewritten_as_envoy_does() -> Result<()> {
    let mut both = Both::start(routes()).await?;
    let paths = [
        ("/old/x?y=/old", "/new/x?y=/old"),
        ("/old?q", "/new?q"),
        ("/gone", "/"),
        ("/gone/", "/"),
        ("/gone/a/b?c=%2F", "/a/b?c=%2F"),
        ("/full?a=1", "/replaced?a=1"),
        ("/one?a=1", "/two?a=1"),
        ("/re/a/b/c?d", "/b/c/a?d"),
        ("/cASE/x", "/k/x"),
    ];
    let asks = paths.map(|(path, _)| Ask::get(path));
    for (seen, (path, expected)) in both.all_same(&asks).await?.into_iter().zip(paths) {
        assert_eq!((&seen.body["path"], seen.told("x-envoy-original-path")), (&expected.into(), path.to_owned()), "{path}");
        assert_eq!((&seen.line["path"], &seen.line["raw_path"]), (&path.into(), &expected.into()), "{path}");
    }
    let hosts = [
        ("/old", "new.example"),
        ("/kept", "kept.example"),
        ("/of/a/b?c", "a.example"),
        ("/share", "share.example"),
        ("/both", "route.example"),
        ("/edited/x", "web.shop"),
    ];
    let asks = hosts.map(|(path, _)| Ask::get(path));
    for (seen, (path, host)) in both.all_same(&asks).await?.into_iter().zip(hosts) {
        assert_eq!((&seen.body["authority"], &seen.line["authority"]), (&host.into(), &host.into()), "{path}");
    }
    let kept = both.same(Ask::get("/kept").with(&[("x-forwarded-host", "first")])).await?;
    assert_eq!((kept.told("x-forwarded-host"), kept.told("x-envoy-original-host")), ("first,web.shop".into(), "web.shop".into()));
    let again = [&[("x-forwarded-host", "first,web.shop")], &[("x-forwarded-host", "first, web.shop")]];
    both.all_same(&again.map(|headers| Ask::get("/kept").with(headers))).await?;
    let host = both.same(Ask::get("/header").with(&[("x-to", "to.example")])).await?;
    assert_eq!(host.body["authority"], "to.example");
    assert_eq!(both.same(Ask::get("/header")).await?.body["authority"], "web.shop");
    let over_http2 = both.same(Ask { is_http2: true, ..Ask::get("/old/two") }).await?;
    assert_eq!((&over_http2.body["path"], &over_http2.body["authority"]), (&"/new/two".into(), &"new.example".into()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_none_is_refused_by_name_and_sent_nowhere() -> Result<()> {
    let prefix = forward("prefix", json!({"prefix": "/prefix"}), json!({"prefix_rewrite": "no slash"}));
    let routes =
        vec![prefix, forward("cut", json!({"prefix": "/cut"}), json!({"regex_rewrite": {"pattern": {"regex": "^/"}, "substitution": ""}}))];
    let mut both = Both::start(routes).await?;
    for path in ["/prefix", "/cut/x"] {
        let (ours, theirs) = both.ask(&[Ask::get(path)]).await?;
        let ([ours], [theirs]) = (&ours[..], &theirs[..]) else { unreachable!("one request") };
        assert_eq!((ours.status, &ours.line["details"]), (StatusCode::SERVICE_UNAVAILABLE, &"rewritten_path_invalid".into()), "{path}");
        // Envoy sends it nevertheless, and the pod's HTTP refuses it.
        assert_eq!((theirs.status, &theirs.line["details"]), (StatusCode::BAD_REQUEST, &"via_upstream".into()), "{path}");
    }
    assert_eq!(both.web.record().requests_total(), 0);
    Ok(())
}
