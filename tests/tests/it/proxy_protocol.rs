//! The PROXY protocol towards applications: who the client is comes first, and no connection serves two clients.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use http::StatusCode;
use serde_json::json;
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::exchange_raw;
use tests::scenario::{DB, DB_CHAIN, LEGACY, Mesh, PRIVILEGED_PORT_SHIFT, Scenario};
use tests::workload::{App, Workload};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};

const LEGACY_CHAIN: &str = "inbound-vip|80|http|legacy.shop.svc.cluster.local";

/// A DestinationRule's `proxyProtocol`.
fn speak(scenario: &mut Scenario, cluster: &str, version: &str) -> Result<()> {
    let socket = &mut scenario.resource(Kind::Cluster, cluster)?["transport_socket"]["typed_config"]["transport_socket"];
    let inner = socket.take();
    *socket = json!({"name": "envoy.transport_sockets.upstream_proxy_protocol", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
        "config": {"version": version},
        "transport_socket": inner,
    }});
    Ok(())
}

/// Answers every request of a connection with the header that it began with, in hexadecimal form.
async fn answer(stream: TcpStream) -> Result<()> {
    let mut stream = BufStream::new(stream);
    let mut header = vec![0; 12];
    stream.read_exact(&mut header).await?;
    if header.starts_with(b"PROXY") {
        stream.read_until(b'\n', &mut header).await?;
    } else {
        let mut fixed = [0; 4];
        stream.read_exact(&mut fixed).await?;
        let mut rest = vec![0; usize::from(u16::from_be_bytes([fixed[2], fixed[3]]))];
        stream.read_exact(&mut rest).await?;
        header.extend(fixed.into_iter().chain(rest));
    }
    let told: String = header.iter().map(|byte| format!("{byte:02x}")).collect();
    loop {
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
        }
        stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{told}", told.len()).as_bytes()).await?;
        stream.flush().await?;
    }
}

/// An application that speaks it; counts connections.
async fn application(mesh: &Mesh) -> Result<Arc<AtomicUsize>> {
    let listener = TcpListener::bind(SocketAddr::new(mesh.net.pod(7, 1).into(), PRIVILEGED_PORT_SHIFT + 80)).await?;
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(answer(stream));
        }
    });
    Ok(connections)
}

async fn legacy(version: &str) -> Result<(Mesh, Arc<AtomicUsize>)> {
    let builder = Mesh::builder("01-plain")?.edit(|scenario| speak(scenario, LEGACY_CHAIN, version))?;
    let mesh = builder.proxy_config("concurrency", 1.into()).start().await?;
    let connections = application(&mesh).await?;
    Ok((mesh, connections))
}

fn bytes(hexadecimal: &str) -> Result<Vec<u8>> {
    let digits = |at: usize| hexadecimal.get(at..at + 2).context("half a byte");
    (0..hexadecimal.len()).step_by(2).map(|at| Ok(u8::from_str_radix(digits(at)?, 16)?)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_in_text_and_its_connection_serves_no_other_client() -> Result<()> {
    let (mesh, connections) = legacy("V1").await?;
    let (one, other) = (mesh.connect("frontend-0").await?, mesh.connect("batch-0").await?);
    let mut lines = Vec::new();
    for connection in [&one, &other, &one, &other] {
        let answer = connection.get(LEGACY, "/").await?;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        lines.push(String::from_utf8(bytes(&answer.text())?)?);
    }
    let words: Vec<Vec<&str>> = lines.iter().map(|line| line.trim_end().split(' ').collect()).collect();
    let (virtual_address, virtual_port) = LEGACY.split_once(':').context("no port")?;
    for line in &words {
        assert_eq!((&line[..2], line[3], line[5]), (&["PROXY", "TCP4"][..], virtual_address, virtual_port), "{line:?}");
    }
    assert_ne!(words[0][2], words[1][2], "two clients, two addresses");
    assert_eq!((&words[0], &words[1]), (&words[2], &words[3]));
    assert_eq!(connections.load(Ordering::Relaxed), 2, "one client's requests share a connection");
    Ok(())
}

/// Lets an application that does not know it be spoken to by it: notes each header, and passes on what follows.
async fn in_front(mesh: &Mesh, application: SocketAddr) -> Result<Arc<Mutex<Vec<String>>>> {
    let listener = TcpListener::bind(SocketAddr::new(mesh.net.pod(7, 1).into(), PRIVILEGED_PORT_SHIFT + 80)).await?;
    let headers = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&headers);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let noted = Arc::clone(&noted);
            tokio::spawn(async move {
                let (mut stream, mut header) = (BufStream::new(stream), String::new());
                stream.read_line(&mut header).await?;
                noted.lock().unwrap_or_else(PoisonError::into_inner).push(header);
                tokio::io::copy_bidirectional(&mut stream, &mut TcpStream::connect(application).await?).await
            });
        }
    });
    Ok(headers)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_one_client_share_an_http2_connection_within_the_limit_as_in_envoy() -> Result<()> {
    let builder = Mesh::builder("01-plain")?.edit(|scenario| {
        speak(scenario, LEGACY_CHAIN, "V1")?;
        let cluster = scenario.resource(Kind::Cluster, LEGACY_CHAIN)?;
        cluster["circuit_breakers"]["thresholds"][0]["max_connections"] = 1.into();
        cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }});
        Ok(())
    })?;
    let mesh = builder.proxy_config("concurrency", 1.into()).start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let app = Workload::plain("legacy", SocketAddr::new(mesh.net.pod(7, 2).into(), PRIVILEGED_PORT_SHIFT), App::Http).await?;
    let headers = in_front(&mesh, app.address()).await?;
    for proxy in [mesh.hbone(), envoy.hbone()] {
        headers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let (one, other) = (mesh.peer("frontend-0")?.connect(proxy).await?, mesh.peer("batch-0")?.connect(proxy).await?);
        for connection in [&one, &other] {
            // One after the other, then at once.
            assert_eq!(connection.get(LEGACY, "/").await?.status, StatusCode::OK, "{proxy}");
            let answers = futures_util::future::join_all((0..5).map(|_| connection.get(LEGACY, "/delay/100"))).await;
            answers.into_iter().try_for_each(|answer| answer.map(|answer| assert_eq!(answer.status, StatusCode::OK, "{proxy}")))?;
        }
        let headers = headers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        assert!(headers.len() == 2 && headers[0] != headers[1], "{proxy}: a client has one connection, and one of its own: {headers:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_in_binary_form() -> Result<()> {
    let (mesh, _) = legacy("V2").await?;
    let header = bytes(&mesh.connect("frontend-0").await?.get(LEGACY, "/").await?.text())?;
    assert_eq!(&header[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
    assert_eq!((&header[20..24], &header[26..]), (&[10, 96, 1, 7][..], &[0, 80][..]), "where it wanted to go");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_service_is_told_inside_the_tunnel_before_the_first_byte() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?.edit(|scenario| speak(scenario, DB_CHAIN, "V1"))?.start().await?;
    let _db = mesh.pod("db-v1-1", App::Tcp { greets: false }).await?;
    let heard = exchange_raw(mesh.connect("frontend-0").await?.tunnel(DB).await?, b"select", true).await?;
    let heard = String::from_utf8(heard)?;
    let (line, rest) = heard.split_once("\r\n").context("no line")?;
    let told = format!("echo:PROXY TCP4 {} 10.96.1.5 ", mesh.net.pod(9, 1));
    assert!(line.starts_with(&told) && line.ends_with(" 5432") && rest == "select", "{heard}");
    Ok(())
}
