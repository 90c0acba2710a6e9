//! One downstream HTTP/2 connection: a task for each stream.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::h2::server::{Builder, SendResponse};
use ::h2::{Reason, RecvStream};
use bytes::Bytes;
use http::{Request, Response, StatusCode, Version, header};
use http_body::Body as HttpBody;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

use super::pump::Pump;
use super::{CONNECTION_WINDOW_BYTES, SEND_BUFFER_BYTES_MAX, STREAM_WINDOW_BYTES, list_bytes};
use crate::hbone::stream::ByteStream;
use crate::http::body::Body;
use crate::http::normalize::{self, HeadOptions, UpgradeRequested};
use crate::http::session::{Abort, Exchange, Interim, LEAVE_TIME, Protocol, ServeError, ServerOptions};
use crate::http::upgrade::{Half, Pending, Switched};

pub(in crate::http) async fn serve<I, E, D>(io: I, exchange: E, options: &ServerOptions, drain: D) -> Result<(), ServeError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    E: Exchange,
    D: Future<Output = ()> + Send,
{
    let mut http = builder(options).handshake::<_, Bytes>(io).await.map_err(|error| serve_error(&error))?;
    let too_old = async {
        match options.duration_max {
            // In a box: most connections have no limit.
            Some(limit) => Box::pin(tokio::time::sleep(limit)).await,
            None => std::future::pending().await,
        }
    };
    let mut drain = pin!(async {
        tokio::select! {
            () = drain => {}
            () = too_old => {}
        }
    });
    let mut leave = Leave::default();
    let mut idle = Idle::new(options.idle_timeout);
    loop {
        let accepted = poll_fn(|cx| {
            if !leave.has_begun() && drain.as_mut().poll(cx).is_ready() {
                leave.begin();
                http.graceful_shutdown();
            }
            // Asked before streams are taken: a client that opens one after the other would keep it from being asked.
            let _streams_may_remain = leave.poll_over(cx);
            loop {
                if let Poll::Ready(accepted) = http.poll_accept(cx) {
                    return Poll::Ready(accepted);
                }
                if !leave.has_begun() && idle.poll(http.has_streams(), cx).is_ready() {
                    leave.begin();
                    http.graceful_shutdown();
                } else if leave.poll_over(cx).is_ready() && !http.has_streams() {
                    if leave.is_cut {
                        return Poll::Ready(None);
                    }
                    leave.cut();
                    http.abrupt_shutdown(Reason::NO_ERROR);
                } else {
                    return Poll::Pending;
                }
            }
        })
        .await;
        match accepted {
            None => return Ok(()),
            // A client that was told to go away, and went, before it was told the last of it.
            Some(Err(error)) if leave.has_begun() && error.is_io() && !http.has_streams() => return Ok(()),
            Some(Err(error)) => return Err(serve_error(&error)),
            // Nothing was done for it, so that it may be sent again elsewhere.
            Some(Ok((_, mut respond))) if leave.is_over => respond.send_reset(Reason::REFUSED_STREAM),
            Some(Ok((request, respond))) => {
                tokio::spawn(stream(request, respond, exchange.clone(), options.head));
            }
        }
    }
}

/// The end of a connection: its client is told to go away, and has [`LEAVE_TIME`] to say that it has heard. A client that never says so could
/// go on using it otherwise. One that does not read the last GOAWAY either has as long again.
#[derive(Default)]
struct Leave {
    end: Option<Pin<Box<Sleep>>>,
    /// New streams are refused.
    is_over: bool,
    /// The last GOAWAY is on its way.
    is_cut: bool,
}

impl Leave {
    fn begin(&mut self) {
        self.end = Some(Box::pin(tokio::time::sleep(LEAVE_TIME)));
    }

    fn has_begun(&self) -> bool {
        self.end.is_some()
    }

    fn cut(&mut self) {
        self.is_cut = true;
        self.begin();
    }

    /// Ready once the client has had its time.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_over && !self.is_cut {
            return Poll::Ready(());
        }
        let Some(end) = &mut self.end else { return Poll::Pending };
        let over = end.as_mut().poll(cx);
        self.is_over |= over.is_ready();
        over
    }
}

/// How long a connection has been without a stream.
struct Idle {
    limit: Option<Duration>,
    end: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    fn new(limit: Option<Duration>) -> Idle {
        Idle { limit, end: None }
    }

    /// Ready once there was no stream for as long as the limit allows.
    fn poll(&mut self, has_streams: bool, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = self.limit else { return Poll::Pending };
        if has_streams {
            self.end = None;
            return Poll::Pending;
        }
        self.end.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit))).as_mut().poll(cx)
    }
}

fn builder(options: &ServerOptions) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
        .max_header_list_size(list_bytes(options.head_bytes_max))
        .max_concurrent_streams(options.streams_max);
    if options.extended_connect {
        builder.enable_connect_protocol();
    }
    builder
}

fn serve_error(error: &::h2::Error) -> ServeError {
    match error.get_io() {
        Some(io) => ServeError::Io(io.kind()),
        None => ServeError::Http2(error.reason().unwrap_or(Reason::INTERNAL_ERROR)),
    }
}

/// One request, from its head to the end of its response.
async fn stream<E: Exchange>(request: Request<RecvStream>, respond: SendResponse<Bytes>, exchange: E, at_start: HeadOptions) {
    let (mut parts, incoming) = request.into_parts();
    let respond = Arc::new(Mutex::new(respond));
    let (begun, options) = exchange.begin(&at_start);
    if let Err(problem) = normalize::request_in(&mut parts, Protocol::Http2, &options) {
        exchange.malformed(Protocol::Http2, &problem);
        if let Some(reason) = problem.reset() {
            return respond.lock().send_reset(reason);
        }
        let mut response = Response::new(());
        *response.status_mut() = problem.status();
        // The stream may be gone by now, which is as good.
        let _refused = respond.lock().send_response(response, true);
        return;
    }
    let (body, incoming) = if parts.extensions.get::<UpgradeRequested>().is_some() {
        // What follows is no body: it waits until the upstream has switched, within the stream's window.
        (Body::empty(), Some(incoming))
    } else {
        (Body::http2(incoming, normalize::content_length(&parts.headers)), None)
    };
    let interim = Interim::http2(Arc::clone(&respond));
    let mut answer = pin!(exchange.exchange(begun, Request::from_parts(parts, body), interim));
    let answered = poll_fn(|cx| {
        if respond.lock().poll_reset(cx).is_ready() {
            return Poll::Ready(None);
        }
        answer.as_mut().poll(cx).map(Some)
    })
    .await;
    match answered {
        // The client reset the stream, or is gone: dropping the answer cancels what it waited for.
        None => {}
        Some(Err(Abort { reason })) => respond.lock().send_reset(reason),
        Some(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => match switch(response, incoming, &respond) {
            Some(pending) => pending.join().await,
            // RFC 9113 §8.6: there is no 101 in HTTP/2.
            None => respond.lock().send_reset(Reason::PROTOCOL_ERROR),
        },
        // Any success would tell the client that the tunnel is there (RFC 9110 §9.3.6): the pod has answered as if nothing had been asked.
        Some(Ok(response)) if incoming.is_some() && response.status().is_success() => {
            // It is over before the stream is reset, which is not its client's doing.
            drop(response);
            respond.lock().send_reset(Reason::CONNECT_ERROR);
        }
        Some(Ok(response)) => send(response, &respond).await,
    }
}

/// Says that the upstream has switched, which is a 200 here (RFC 8441 §5).
fn switch(mut response: Response<Body>, incoming: Option<RecvStream>, respond: &Mutex<SendResponse<Bytes>>) -> Option<Pending> {
    let (incoming, switched) = incoming.zip(Switched::of(&mut response))?;
    let (mut parts, _none) = response.into_parts();
    normalize::strip_hop_by_hop(&mut parts.headers);
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.status = StatusCode::OK;
    parts.version = Version::HTTP_2;
    let outgoing = respond.lock().send_response(Response::from_parts(parts, ()), false).ok()?;
    Some(switched.with(Half::Http2(Box::new(ByteStream::new(outgoing, incoming)), None)))
}

async fn send(response: Response<Body>, respond: &Mutex<SendResponse<Bytes>>) {
    let (mut parts, body) = response.into_parts();
    normalize::strip_hop_by_hop(&mut parts.headers);
    parts.version = Version::HTTP_2;
    let is_end = body.is_end_stream();
    let Ok(stream) = respond.lock().send_response(Response::from_parts(parts, ()), is_end) else {
        return;
    };
    if is_end {
        return;
    }
    let mut pump = Pump::new(stream, body);
    // A body that failed has reset the stream; a peer that is gone wants nothing more.
    let _ended = poll_fn(|cx| pump.poll(cx)).await;
}
