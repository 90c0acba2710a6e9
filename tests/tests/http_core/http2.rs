//! HTTP/2 on one side or both: smuggling between the protocols, trailers, interim responses, resets, flow control.

mod passing;
mod smuggling;

use std::future::pending;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;
use waypoint::http::{Protocol, ServerOptions, serve};

use crate::forward::{ClientEngine, Forward};
use crate::wire::PIPE_BYTES;

/// The core between two ends: the client's, and the upstream's once it is dialed.
fn core(downstream: Protocol, upstream: Protocol) -> (DuplexStream, mpsc::UnboundedReceiver<DuplexStream>) {
    let (forward, upstreams) = Forward::new(upstream, ClientEngine::Hyper);
    let (client, ours) = duplex(PIPE_BYTES);
    tokio::spawn(async move { serve(ours, downstream, forward, &ServerOptions::default(), pending()).await });
    (client, upstreams)
}

/// An HTTP/2 client on this pipe.
async fn h2_client(io: DuplexStream) -> SendRequest<Bytes> {
    let (sender, connection) = h2::client::Builder::new().max_header_list_size(1 << 20).handshake(io).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

/// An HTTP/2 upstream on this pipe: its first stream; the connection goes on by itself.
async fn h2_upstream(io: DuplexStream) -> (Request<RecvStream>, SendResponse<Bytes>) {
    let mut http = h2::server::Builder::new().max_header_list_size(1 << 20).handshake(io).await.unwrap();
    let first = http.accept().await.unwrap().unwrap();
    tokio::spawn(async move { while matches!(http.accept().await, Some(Ok(_))) {} });
    first
}

/// Everything of a body: its bytes, and its trailers.
async fn read(body: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, body.trailers().await?))
}

fn one_field(name: &'static str, value: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(name, value.parse().unwrap());
    headers
}

fn response(status: u16) -> Response<()> {
    Response::builder().status(status).body(()).unwrap()
}
