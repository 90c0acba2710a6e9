//! What must come through the whole path as it was said: trailers of any size that heads may have, interim answers, expectations.

use std::future::poll_fn;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use tests::scenario::{Mesh, RATINGS, RATINGS_CHAIN, WEB, WEB_CHAIN};
use tests::workload::App;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

/// What gRPC's own limit is commonly raised to, and a bit below what a head may have here.
const TRAILER_BYTES: usize = 50 * 1024;
const LIST_BYTES_MAX: u32 = 1 << 20;

fn large() -> HeaderMap {
    let details = HeaderValue::from_maybe_shared(Bytes::from(vec![b'x'; TRAILER_BYTES])).expect("letters are a value");
    HeaderMap::from_iter([
        (HeaderName::from_static("grpc-status"), HeaderValue::from_static("0")),
        (HeaderName::from_static("grpc-status-details-bin"), details),
    ])
}

/// An application of HTTP/2 that answers each request with a message and the trailers that it was sent.
async fn echoes_trailers(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut http = h2::server::Builder::new().max_header_list_size(LIST_BYTES_MAX).handshake::<_, Bytes>(tcp).await?;
                while let Some(accepted) = http.accept().await {
                    let (request, mut respond) = accepted?;
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        while let Some(data) = body.data().await {
                            body.flow_control().release_capacity(data?.len())?;
                        }
                        let trailers = body.trailers().await?.unwrap_or_default();
                        let mut answer = respond.send_response(Response::new(()), false)?;
                        answer.send_data(Bytes::from_static(b"\0\0\0\0\x02hi"), false)?;
                        answer.send_trailers(trailers)
                    });
                }
                Ok::<_, h2::Error>(())
            });
        }
    });
    Ok(())
}

/// HTTP/2 in a tunnel, with room for such trailers.
async fn http2(tunnel: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<SendRequest<Bytes>> {
    let (requests, connection) = h2::client::Builder::new().max_header_list_size(LIST_BYTES_MAX).handshake(tunnel).await?;
    tokio::spawn(connection);
    Ok(requests.ready().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_trailers_of_fifty_kilobytes_pass_both_ways() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?.edit(|scenario| scenario.keep_endpoints(RATINGS_CHAIN, 1))?.start().await?;
    let address = SocketAddr::new(mesh.net.pod(3, 1).into(), 9000);
    echoes_trailers(address).await?;
    let _pod = mesh.pod("ratings-v1-1", App::Program(address)).await?;
    let mut requests = http2(mesh.connect("frontend-0").await?.tunnel(RATINGS).await?).await?;
    let request = Request::post("http://ratings.shop/r.R/Get").header("content-type", "application/grpc").header("te", "trailers");
    let (answer, mut body) = requests.send_request(request.body(())?, false)?;
    body.send_data(Bytes::from_static(b"\0\0\0\0\x02hi"), false)?;
    body.send_trailers(large())?;
    let answer = answer.await?;
    assert_eq!(answer.status(), StatusCode::OK);
    let mut answer = answer.into_body();
    let data = answer.data().await.context("no message")??;
    assert_eq!(&data[..], b"\0\0\0\0\x02hi");
    answer.flow_control().release_capacity(data.len())?;
    assert!(answer.data().await.is_none());
    assert_eq!(answer.trailers().await?, Some(large()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_expects_100_gets_it_from_the_pod_before_sending_by_either_protocol() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    let mut tunnel = connection.tunnel(WEB).await?;
    tunnel.write_all(b"POST /a HTTP/1.1\r\nhost: web.shop\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n").await?;
    tunnel.flush().await?;
    let mut heard = Vec::new();
    while !heard.ends_with(b"\r\n\r\n") && tunnel.read_buf(&mut heard).await? > 0 {}
    assert!(heard.starts_with(b"HTTP/1.1 100 "), "{}", String::from_utf8_lossy(&heard));
    heard.clear();
    tunnel.write_all(b"hello").await?;
    tunnel.flush().await?;
    while !heard.ends_with(b"}\n") && tunnel.read_buf(&mut heard).await? > 0 {}
    let answer = String::from_utf8(heard)?;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"n_body_bytes\":5"), "{answer}");

    let mut requests = http2(connection.tunnel(WEB).await?).await?;
    let request = Request::post("http://web.shop/b").header("expect", "100-continue").header("content-length", "5").body(())?;
    let (mut answer, mut body) = requests.send_request(request, false)?;
    let interim = poll_fn(|cx| answer.poll_informational(cx)).await.context("no interim answer")??;
    assert_eq!(interim.status(), StatusCode::CONTINUE);
    body.send_data(Bytes::from_static(b"hello"), true)?;
    let mut answer = answer.await?;
    assert_eq!(answer.status(), StatusCode::OK);
    let told = answer.body_mut().data().await.context("no body")??;
    assert!(String::from_utf8_lossy(&told).contains("\"n_body_bytes\":5"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_of_a_pod_reach_clients_of_http2_through_both_tunnels() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let address = SocketAddr::new(mesh.net.pod(1, 1).into(), 8080);
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await?;
        let mut heard = Vec::new();
        while !heard.ends_with(b"\r\n\r\n") && tcp.read_buf(&mut heard).await? > 0 {}
        tcp.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await?;
        tcp.read_buf(&mut heard).await
    });
    let _pod = mesh.pod("web-v1-1", App::Program(address)).await?;
    let mut requests = http2(mesh.connect("frontend-0").await?.tunnel(WEB).await?).await?;
    let (mut answer, _body) = requests.send_request(Request::get("http://web.shop/").body(())?, true)?;
    let interim = poll_fn(|cx| answer.poll_informational(cx)).await.context("no interim answer")??;
    assert_eq!((interim.status(), &interim.headers()["link"]), (StatusCode::EARLY_HINTS, &HeaderValue::from_static("</a>")));
    assert_eq!(answer.await?.status(), StatusCode::OK);
    Ok(())
}
