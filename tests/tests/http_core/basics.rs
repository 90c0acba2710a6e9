//! One request, each combination of protocols, with everything an ordinary one has.

use std::future::pending;

use bytes::Bytes;
use http::{HeaderMap, Request};
use tokio::io::duplex;
use waypoint::http::{Protocol, ServerOptions, serve};

use crate::forward::{ClientEngine, Forward};
use crate::wire::{Do, PIPE_BYTES, act, send};

const REQUEST: &str = "POST /a?b HTTP/1.1\r\nhost: web\r\ncontent-length: 2\r\n\r\nhi";
const RESPONSE: &str = "HTTP/1.1 200 OK\r\ndate: Tue, 01 Jan 2019 00:00:00 GMT\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test(start_paused = true)]
async fn http1_to_http1_round_trip() {
    let (forward, mut upstreams) = Forward::new(Protocol::Http1, ClientEngine::Hyper);
    let (client, ours) = duplex(PIPE_BYTES);
    tokio::spawn(async move { serve(ours, Protocol::Http1, forward, &ServerOptions::default(), pending()).await });
    let client = tokio::spawn(act(client, vec![send(REQUEST), Do::Quiet]));
    let upstream = act(upstreams.recv().await.unwrap(), vec![Do::Until("hi"), send(RESPONSE), Do::Quiet]).await;
    let client = client.await.unwrap();
    assert_eq!(client.text(), RESPONSE);
    assert_eq!(upstream.text(), REQUEST);
}

#[tokio::test(start_paused = true)]
async fn http2_to_http2_round_trip_with_trailers_both_ways() {
    let (forward, mut upstreams) = Forward::new(Protocol::Http2, ClientEngine::Hyper);
    let (client, ours) = duplex(PIPE_BYTES);
    tokio::spawn(async move { serve(ours, Protocol::Http2, forward, &ServerOptions::default(), pending()).await });
    let upstream = tokio::spawn(async move {
        let mut http = h2::server::handshake(upstreams.recv().await.unwrap()).await.unwrap();
        let (request, mut respond) = http.accept().await.unwrap().unwrap();
        tokio::spawn(async move { while matches!(http.accept().await, Some(Ok(_))) {} });
        let (parts, mut body) = request.into_parts();
        let data = body.data().await.unwrap().unwrap();
        let trailers = body.trailers().await.unwrap().unwrap();
        let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
        stream.send_data(data, false).unwrap();
        stream.send_trailers(trailers).unwrap();
        parts.uri
    });
    let (sender, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    let request = Request::post("http://web/a?b").body(()).unwrap();
    let (response, mut stream) = sender.send_request(request, false).unwrap();
    stream.send_data(Bytes::from_static(b"hi"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    stream.send_trailers(trailers.clone()).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "hi");
    assert_eq!(body.trailers().await.unwrap().unwrap(), trailers);
    assert_eq!(upstream.await.unwrap().to_string(), "http://web/a?b");
}
