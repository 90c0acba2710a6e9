//! One upstream HTTP/1.1 connection.

use std::future::Future;

use futures_util::FutureExt as _;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::BUFFER_BYTES_MAX;
use crate::http::body::{Body, BodyError};
use crate::http::client::{ClientOptions, HandshakeError, SendError, SendErrorKind, pass_interim};
use crate::http::normalize::{self, Malformed, UpgradeRequested};
use crate::http::session::{HEAD_FIELDS_MAX, Interim};
use crate::http::upgrade::{Half, UpstreamHalf};

#[derive(Debug)]
pub(in crate::http) struct Http1Session(SendRequest<Body>);

pub(in crate::http) async fn handshake<I>(
    io: I,
    options: &ClientOptions,
) -> Result<(Http1Session, impl Future<Output = ()> + Send + use<I>), HandshakeError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new();
    builder
        .preserve_header_case(options.keeps_header_case)
        .max_header_size(options.head_bytes_max)
        .max_buf_size(BUFFER_BYTES_MAX.max(options.head_bytes_max));
    if options.head_fields_max != HEAD_FIELDS_MAX {
        builder.max_headers(options.head_fields_max);
    }
    let (sender, connection) =
        builder.handshake(TokioIo::new(io)).await.map_err(|_closed| HandshakeError::Io(std::io::ErrorKind::NotConnected))?;
    let driver = async move {
        // Whatever ends the connection is told to the request on it.
        let _ended = connection.with_upgrades().await;
    };
    Ok((Http1Session(sender), driver))
}

impl Http1Session {
    pub(in crate::http) fn is_open(&self) -> bool {
        !self.0.is_closed()
    }

    pub(in crate::http) fn is_ready(&self) -> bool {
        self.0.is_ready()
    }

    pub(in crate::http) async fn ready(&mut self) -> bool {
        self.0.ready().await.is_ok()
    }

    pub(in crate::http) fn send(
        &mut self,
        request: Request<Body>,
        interim: Interim,
    ) -> impl Future<Output = Result<Response<Body>, SendError>> + Send + use<> {
        let (mut parts, body) = request.into_parts();
        normalize::request_out_http1(&mut parts);
        frame(&mut parts, &body);
        let upgrade = parts.extensions.get::<UpgradeRequested>().cloned();
        let is_expected = parts.headers.contains_key(header::EXPECT);
        let mut request = Request::from_parts(parts, body);
        if is_expected || interim.can_send(StatusCode::EARLY_HINTS) {
            hyper::ext::on_informational(&mut request, move |response| pass_interim(&interim, response.status(), response.headers()));
        }
        self.0.try_send_request(request).map(move |answered| receive(answered.map_err(send_error)?, upgrade))
    }
}

fn receive(mut response: Response<Incoming>, upgrade: Option<UpgradeRequested>) -> Result<Response<Body>, SendError> {
    let switched = if response.status() == StatusCode::SWITCHING_PROTOCOLS { Some(switch(&mut response, upgrade)?) } else { None };
    let (mut parts, incoming) = response.into_parts();
    normalize::response_in(parts.status, &mut parts.headers).map_err(|problem| SendError::new(SendErrorKind::Malformed(problem)))?;
    if let Some((half, protocol)) = switched {
        parts.extensions.insert(half);
        parts.extensions.insert(protocol);
    }
    Ok(Response::from_parts(parts, Body::http1(incoming, None)))
}

/// Tells hyper the framing that it would guess wrong: it sends no body with a `GET` whose length it does not know, and
/// no `content-length: 0` with a `POST` that has none.
fn frame(parts: &mut http::request::Parts, body: &Body) {
    if body.is_end_stream() {
        let has_length = parts.headers.contains_key(header::CONTENT_LENGTH);
        if !has_length && matches!(parts.method, Method::POST | Method::PUT | Method::PATCH) {
            parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
    } else if body.size_hint().exact().is_none() {
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// A 101: the stream under it, and the protocol that the upstream chose.
fn switch(response: &mut Response<Incoming>, requested: Option<UpgradeRequested>) -> Result<(UpstreamHalf, UpgradeRequested), SendError> {
    let requested = requested.ok_or_else(|| SendError::new(SendErrorKind::Malformed(Malformed::UpgradeUnasked)))?;
    let protocol = response.headers().get(header::UPGRADE).cloned().map_or(requested, UpgradeRequested);
    Ok((UpstreamHalf::new(Half::Http1(hyper::upgrade::on(response))), protocol))
}

fn send_error(mut error: TrySendError<Request<Body>>) -> SendError {
    if let Some(mut request) = error.take_message() {
        // Uniform again: the next connection may speak HTTP/2.
        normalize::strip_hop_by_hop(request.headers_mut());
        return SendError::unsent(SendErrorKind::ConnectionClosedBeforeResponse, request);
    }
    let error = error.into_error();
    let kind = if error.is_parse_too_large() {
        SendErrorKind::Malformed(Malformed::HeadTooLarge)
    } else if error.is_parse() {
        SendErrorKind::Malformed(Malformed::Syntax)
    } else if error.is_user() {
        SendErrorKind::RequestBody(BodyError::from_hyper(&error))
    } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        SendErrorKind::ConnectionClosedBeforeResponse
    } else {
        match BodyError::from_hyper(&error) {
            BodyError::Io(kind) => SendErrorKind::Io(kind),
            _ => SendErrorKind::ConnectionClosedBeforeResponse,
        }
    };
    SendError::new(kind)
}
