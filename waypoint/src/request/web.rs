//! The bodies of gRPC-Web: a request's text on its way up, an answer's trailers in its body on its way back.
//!
//! Not for: what they become; `filters::grpc_web` knows. Bytes are counted as the application gets and sends them (`grpc-web-bytes`).
//! Invariant: a body that is cut stays cut.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use filters::grpc_web::{TextReader, TextWriter, Web, answer_head, is_foreign, trailers_frame};
use futures_util::FutureExt as _;
use http::Response;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use telemetry::grpc::GrpcStatus;

use super::reply::percent_encoded;
use crate::http::body::{Body, BodyError};

/// Of an answer that is none of gRPC's, bytes that become its message; the rest is left out, as Envoy does.
const WEB_MESSAGE_BYTES_MAX: usize = 16 * 1024;
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// A request's body as the application gets it.
pub(super) fn request_body(web: Web, body: Body) -> Body {
    if web.is_text && !body.is_end_stream() { Body::wrap(Read { inner: body, reader: TextReader::default() }) } else { body }
}

/// An answer as the client gets it.
pub(super) async fn answer(web: Web, response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let has_body = !body.is_end_stream();
    let foreign = is_foreign(parts.status.as_u16(), &parts.headers, has_body);
    answer_head(web, &mut parts.headers);
    let body = match (has_body, foreign) {
        (false, _) => body,
        (true, false) => Body::wrap(Written { inner: body, web, writer: TextWriter::default(), has_ended: false }),
        (true, true) => {
            let message = beginning(body).await;
            let status = GrpcStatus::from_http(parts.status.as_u16()).unwrap_or(GrpcStatus::UNKNOWN);
            parts.headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(status.number())));
            let message = HeaderValue::try_from(percent_encoded(&message)).expect("percent-encoded text is a header's value");
            parts.headers.insert(GRPC_MESSAGE, message);
            parts.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
            Body::empty()
        }
    };
    Response::from_parts(parts, body)
}

/// The same of an answer that is made here, all of which is at hand.
pub(super) fn answer_here(web: Web, response: Response<Body>) -> Response<Body> {
    answer(web, response).now_or_never().unwrap_or_else(|| Response::new(Body::empty()))
}

/// The beginning of a body; what cannot be read is left out.
async fn beginning(mut body: Body) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let data = frame.into_data().unwrap_or_default();
        let room = WEB_MESSAGE_BYTES_MAX - bytes.len();
        bytes.extend_from_slice(data.get(..room).unwrap_or(&data));
    }
    bytes
}

struct Read {
    inner: Body,
    reader: TextReader,
}

impl HttpBody for Read {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            let Some(frame) = ready!(Pin::new(&mut this.inner).poll_frame(context)?) else {
                return Poll::Ready((!this.reader.is_whole()).then_some(Err(BodyError::Malformed)));
            };
            let Ok(text) = frame.into_data() else { continue };
            let data = this.reader.read(&text).map_err(|_no_text| BodyError::Malformed)?;
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data.into()))));
            }
        }
    }
}

struct Written {
    inner: Body,
    web: Web,
    writer: TextWriter,
    has_ended: bool,
}

impl HttpBody for Written {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            if this.has_ended {
                return Poll::Ready(None);
            }
            let Some(frame) = ready!(Pin::new(&mut this.inner).poll_frame(context)?) else { return Poll::Ready(None) };
            let data = match frame.into_data() {
                Ok(data) if this.web.wants_text => this.writer.write(&data).into(),
                Ok(data) => data,
                Err(other) => {
                    this.has_ended = true;
                    trailers_frame(this.web, &other.into_trailers().unwrap_or_default()).into()
                }
            };
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
