//! What applications and clients see of HTTP/1.1 and gRPC-Web: the case of header names, Envoy's own headers, text and trailers in bodies.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tests::peer::full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// A chain, and the cluster of `web`, as istiod has them for a port with gRPC-Web, with so many filters for it.
fn grpc_web(n_filters: usize, scenario: &mut Scenario) -> Result<()> {
    let fault = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
        "abort": {"http_status": 503, "percentage": {"numerator": 100}},
    });
    let mut refused = forward("refused", json!({"prefix": "/refused"}), json!({}));
    refused["typed_per_filter_config"]["envoy.filters.http.fault"] = fault;
    with_routes(scenario, vec![refused])?;
    scenario.resource(Kind::Cluster, WEB_CHAIN)?["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        },
    });
    let filter = json!({
        "name": "envoy.filters.http.grpc_web",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb"},
    });
    scenario.add_http_filters(WEB_CHAIN, vec![filter; n_filters])
}

/// What the application tells of its request, without what differs each time; and what comes behind it.
fn told(body: &[u8]) -> (Vec<String>, Vec<u8>) {
    let end = body.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let (line, rest) = body.split_at(end);
    let Ok(line) = serde_json::from_slice::<Value>(line) else { return (Vec::new(), body.to_vec()) };
    let own = |pair: &&Value| !OWN_HEADERS.contains(&pair[0].as_str().unwrap_or_default());
    let mut told: Vec<_> = line["headers"].as_array().into_iter().flatten().filter(own).map(ToString::to_string).collect();
    told.extend([line["n_body_bytes"].to_string(), line["trailers"].to_string()]);
    told.sort();
    (told, rest.to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_web_is_translated_as_envoy_does() -> Result<()> {
    translated_alike(1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_filter_for_grpc_web_finds_grpc_as_in_envoy() -> Result<()> {
    translated_alike(2).await
}

async fn translated_alike(n_filters: usize) -> Result<()> {
    let both = Both::edited(|scenario| grpc_web(n_filters, scenario)).await?;
    let message = b"\0\0\0\0\x02hi";
    let text = STANDARD.encode(message);
    let (binary, as_text) = ("application/grpc-web+proto", "application/grpc-web-text");
    // Path, content type, what is accepted, body.
    let asks: [(&str, &str, &str, &[u8]); 9] = [
        ("/echo", binary, binary, message),
        ("/echo", as_text, binary, text.as_bytes()),
        ("/echo", "application/grpc-web", "*/*", message),
        ("/messages/2", as_text, as_text, text.as_bytes()),
        ("/messages/2", "application/grpc-web-text+proto", "application/grpc-web-text+proto", text.as_bytes()),
        ("/status/503", binary, binary, message),
        ("/refused", binary, binary, message),
        ("/refused", "application/json", "*/*", b"{}"),
        ("/echo", "application/json", "*/*", b"{}"),
    ];
    for (path, kind, accept, body) in asks {
        for is_http2 in [false, true] {
            let mut seen = Vec::new();
            for proxy in [both.mesh.hbone(), both.envoy.hbone()] {
                let connection = both.mesh.peer("frontend-0")?.connect(proxy).await?;
                let mut http = if is_http2 { connection.http2(WEB).await? } else { connection.http1(WEB).await? };
                let request = http.request(Method::POST, path).header("content-type", kind).header("accept", accept);
                let request = request.header("user-agent", "ask").body(full(Bytes::copy_from_slice(body)))?;
                let answer = http.send(request).await.with_context(|| format!("{path} {kind}"))?;
                // What differs from request to request, or in its order.
                let shown = |name: &str| !OWN_HEADERS.contains(&name) && !matches!(name, "connection" | "transfer-encoding");
                let mut headers: Vec<_> = answer.headers.iter().filter(|(name, _)| shown(name.as_str())).map(text_of).collect();
                headers.sort();
                seen.push((answer.status, headers, told(&answer.body), answer.trailers));
            }
            assert_eq!(seen[0], seen[1], "{path} {kind} {accept} HTTP/2 {is_http2}: ours is on the left, Envoy's on the right");
        }
    }
    Ok(())
}

/// An application that answers every head alike, and keeps the last as it came.
async fn raw_application(address: SocketAddr, answer: &'static [u8]) -> Result<Arc<Mutex<String>>> {
    let listener = TcpListener::bind(address).await?;
    let heard = Arc::new(Mutex::new(String::new()));
    let kept = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                while tcp.read_buf(&mut bytes).await.is_ok_and(|n_read| n_read > 0) {
                    if bytes.ends_with(b"\r\n\r\n") {
                        *kept.lock().unwrap_or_else(PoisonError::into_inner) = String::from_utf8_lossy(&bytes).into_owned();
                        bytes.clear();
                        // Its end is seen when it is read.
                        drop(tcp.write_all(answer).await);
                    }
                }
            });
        }
    });
    Ok(heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_headers_keep_their_case_where_both_sides_are_told_to_as_in_envoy() -> Result<()> {
    let keeping = json!({"header_key_format": {"stateful_formatter": {"name": "preserve_case", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig",
    }}}});
    for keeps in [true, false] {
        let mesh = Mesh::builder("07-telemetry")?
            .edit(|scenario| {
                with_routes(scenario, Vec::new())?;
                if keeps {
                    scenario.http(WEB_CHAIN)?["http_protocol_options"] = keeping.clone();
                    scenario.resource(Kind::Cluster, WEB_CHAIN)?["typed_extension_protocol_options"] = json!({
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                            "explicit_http_config": {"http_protocol_options": keeping},
                        },
                    });
                }
                Ok(())
            })?
            .start()
            .await?;
        let envoy = Envoy::beside(&mesh).start().await?;
        let address = SocketAddr::new(mesh.net.pod(1, 1).into(), 8080);
        let application = raw_application(address, b"HTTP/1.1 200 OK\r\nX-AnSwEr: 1\r\nContent-Length: 2\r\n\r\nok").await?;
        let _pod = mesh.pod("web-v1-1", App::Program(address)).await?;
        for proxy in [mesh.hbone(), envoy.hbone()] {
            let connection = mesh.peer("frontend-0")?.connect(proxy).await?;
            let head = "GET / HTTP/1.1\r\nHost: a\r\nX-AsKeD: 1\r\nConnection: close\r\n\r\n";
            let mut tunnel = connection.tunnel(WEB).await?;
            tunnel.write_all(head.as_bytes()).await?;
            let mut answer = Vec::new();
            while !answer.ends_with(b"ok") && tunnel.read_buf(&mut answer).await? > 0 {}
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let asked = application.lock().unwrap_or_else(PoisonError::into_inner).clone();
            assert_eq!((asked.contains("X-AsKeD: 1"), answer.contains("X-AnSwEr: 1")), (keeps, keeps), "{proxy}: {asked} {answer}");
            assert_eq!((asked.contains("x-asked: 1"), answer.contains("x-answer: 1")), (!keeps, !keeps), "{proxy}: {asked} {answer}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn envoys_own_headers_are_left_out_where_that_is_asked_for() -> Result<()> {
    let mut both = Both::edited(|scenario| {
        let rewritten = forward("rewritten", json!({"prefix": "/old"}), json!({"prefix_rewrite": "/new", "host_rewrite_literal": "b"}));
        with_routes(scenario, vec![rewritten])?;
        let http = scenario.http(WEB_CHAIN)?;
        http["append_x_forwarded_port"] = true.into();
        let filters = http["http_filters"].as_array_mut().context("no filters")?;
        filters.last_mut().context("no router")?["typed_config"]["suppress_envoy_headers"] = true.into();
        Ok(())
    })
    .await?;
    let seen = both.all_same(&[Ask::get("/old/x"), Ask::get("/y").with(&[("x-forwarded-port", "7")])]).await?;
    assert_eq!((&seen[0].body["path"], &*seen[0].told("x-envoy-original-path")), (&"/new/x".into(), ""));
    assert_eq!((&*seen[0].told("x-forwarded-port"), &*seen[1].told("x-forwarded-port")), ("80", "7"));
    let connection = both.mesh.connect("frontend-0").await?;
    assert_eq!(connection.get(WEB, "/y").await?.header("x-envoy-upstream-service-time"), "");
    Ok(())
}
