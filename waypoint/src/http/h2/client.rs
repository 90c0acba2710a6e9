//! One upstream HTTP/2 connection, shared by cloning.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use ::h2::client::{Builder, ResponseFuture, SendRequest};
use ::h2::{Reason, RecvStream};
use bytes::Bytes;
use http::header;
use http::{Request, Response, Version};
use http_body::Body as HttpBody;
use tokio::io::{AsyncRead, AsyncWrite};

use super::pump::{Pump, PumpError};
use super::{CONNECTION_WINDOW_BYTES, SEND_BUFFER_BYTES_MAX, STREAM_WINDOW_BYTES, StreamInUse, list_bytes};
use crate::http::body::{Body, BodyError};
use crate::http::client::{ClientOptions, HandshakeError, SendError, SendErrorKind, pass_interim};
use crate::http::normalize::{self, UpgradeRequested};
use crate::http::session::Interim;

#[derive(Debug, Clone)]
pub(in crate::http) struct Http2Session {
    sender: SendRequest<Bytes>,
    n_streams: Arc<AtomicUsize>,
}

pub(in crate::http) async fn handshake<I>(
    io: I,
    options: &ClientOptions,
) -> Result<(Http2Session, impl Future<Output = ()> + Send + use<I>), HandshakeError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
        .max_header_list_size(list_bytes(options.head_bytes_max))
        .enable_push(false);
    let (sender, connection) = builder.handshake::<_, Bytes>(io).await.map_err(|error| match error.get_io() {
        Some(io) => HandshakeError::Io(io.kind()),
        None => HandshakeError::Http2(error.reason().unwrap_or(Reason::INTERNAL_ERROR)),
    })?;
    let driver = async move {
        // Whatever ends the connection is told to the requests on it.
        let _ended = connection.await;
    };
    Ok((Http2Session { sender, n_streams: Arc::default() }, driver))
}

impl Http2Session {
    pub(in crate::http) fn is_open(&self) -> bool {
        !matches!(self.poll_now(), Poll::Ready(Err(_)))
    }

    pub(in crate::http) fn is_ready(&self) -> bool {
        matches!(self.poll_now(), Poll::Ready(Ok(()))) && self.n_streams.load(Ordering::Relaxed) < self.sender.current_max_send_streams()
    }

    /// h2 keeps the state that this asks for behind `&mut`; a clone asks the same connection.
    fn poll_now(&self) -> Poll<Result<(), ::h2::Error>> {
        self.sender.clone().poll_ready(&mut Context::from_waker(Waker::noop()))
    }

    pub(in crate::http) async fn ready(&mut self) -> bool {
        poll_fn(|cx| self.sender.poll_ready(cx)).await.is_ok()
    }

    pub(in crate::http) fn send(&mut self, request: Request<Body>, interim: Interim) -> Sending<'_> {
        Sending::Waiting { session: self, unsent: Some((request, interim)) }
    }

    /// Opens a stream for the request.
    fn begin(&mut self, request: Request<Body>, interim: Interim) -> Result<Exchanged, SendError> {
        let (mut parts, body) = request.into_parts();
        match normalize::target_http2(&parts) {
            Ok(target) => parts.uri = target,
            Err(_not_uniform) => return Err(SendError::unsent(SendErrorKind::Unsupported, Request::from_parts(parts, body))),
        }
        parts.headers.remove(header::HOST);
        parts.version = Version::HTTP_2;
        let is_end = body.is_end_stream();
        let (response, stream) = self.sender.send_request(Request::from_parts(parts, ()), is_end).map_err(|error| SendError {
            kind: connection_error(&error),
            request: None,
            nothing_sent: true,
        })?;
        let in_use = StreamInUse::new(&self.n_streams);
        let upload = (!is_end).then(|| Pump::new(stream, body));
        Ok(Exchanged { response, upload, interim, upload_error: None, in_use: Some(in_use) })
    }
}

/// A request that waits for the peer to allow another stream, and then for its response.
pub(in crate::http) enum Sending<'a> {
    Waiting { session: &'a mut Http2Session, unsent: Option<(Request<Body>, Interim)> },
    Sent(Exchanged),
}

impl Future for Sending<'_> {
    type Output = Result<Response<Body>, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut *self {
                Sending::Sent(exchanged) => return Pin::new(exchanged).poll(cx),
                Sending::Waiting { session, unsent } => {
                    let (request, interim) = unsent.take().expect("a future is not polled after it has ended");
                    if request.extensions().get::<UpgradeRequested>().is_some() {
                        return Poll::Ready(Err(SendError::unsent(SendErrorKind::Unsupported, request)));
                    }
                    match session.sender.poll_ready(cx) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(SendError::unsent(connection_error(&error), request))),
                        Poll::Pending => {
                            *unsent = Some((request, interim));
                            return Poll::Pending;
                        }
                    }
                    let exchanged = session.begin(request, interim)?;
                    *self = Sending::Sent(exchanged);
                }
            }
        }
    }
}

/// A request that is sent, and its response awaited, at the same time.
pub(in crate::http) struct Exchanged {
    response: ResponseFuture,
    upload: Option<Pump>,
    interim: Interim,
    upload_error: Option<BodyError>,
    in_use: Option<StreamInUse>,
}

impl Future for Exchanged {
    type Output = Result<Response<Body>, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(upload) = &mut this.upload
            && let Poll::Ready(ended) = upload.poll(cx)
        {
            this.upload = None;
            if let Err(PumpError::Body(error)) = ended {
                this.upload_error = Some(error);
            }
        }
        while let Poll::Ready(Some(Ok(response))) = this.response.poll_informational(cx) {
            pass_interim(&this.interim, response.status(), response.headers());
        }
        let response = match std::task::ready!(Pin::new(&mut this.response).poll(cx)) {
            Ok(response) => response,
            Err(error) => {
                let kind = this.upload_error.map_or_else(|| response_error(&error), SendErrorKind::RequestBody);
                return Poll::Ready(Err(SendError::new(kind)));
            }
        };
        Poll::Ready(receive(response, this.upload.take(), this.in_use.take()))
    }
}

fn receive(response: Response<RecvStream>, upload: Option<Pump>, in_use: Option<StreamInUse>) -> Result<Response<Body>, SendError> {
    let (mut parts, stream) = response.into_parts();
    normalize::response_in(parts.status, &mut parts.headers).map_err(|problem| SendError::new(SendErrorKind::Malformed(problem)))?;
    let is_over = stream.is_end_stream();
    let body = Body::http2(stream, normalize::content_length(&parts.headers)).counted(in_use);
    let body = match upload {
        // The response began before the request ended: the rest is sent beside it.
        Some(mut upload) if !is_over => body.with_upload(
            tokio::spawn(async move {
                let _ended = poll_fn(|cx| upload.poll(cx)).await;
            })
            .abort_handle(),
        ),
        // The answer is over: nobody will end an upload, and dropping it resets the stream, as Envoy does (RFC 9113 §8.1).
        _ => body,
    };
    Ok(Response::from_parts(parts, body))
}

/// What ended a connection before a stream was opened on it.
fn connection_error(error: &::h2::Error) -> SendErrorKind {
    if error.is_library() && error.is_go_away() {
        return SendErrorKind::Protocol(error.reason().unwrap_or(Reason::INTERNAL_ERROR));
    }
    SendErrorKind::ConnectionClosedBeforeResponse
}

/// What ended a stream before its response.
fn response_error(error: &::h2::Error) -> SendErrorKind {
    if let Some(io) = error.get_io() {
        return match io.kind() {
            std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::UnexpectedEof => SendErrorKind::ConnectionClosedBeforeResponse,
            kind => SendErrorKind::Io(kind),
        };
    }
    match error.reason() {
        Some(Reason::REFUSED_STREAM) if error.is_remote() => SendErrorKind::RefusedStream,
        Some(_) if error.is_remote() && error.is_go_away() => SendErrorKind::RefusedStream,
        Some(reason) if error.is_remote() => SendErrorKind::Reset(reason),
        Some(reason) => SendErrorKind::Protocol(reason),
        None => SendErrorKind::ConnectionClosedBeforeResponse,
    }
}
