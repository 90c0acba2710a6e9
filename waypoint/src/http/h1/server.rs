//! One downstream HTTP/1.1 connection.

use std::future::{Future, poll_fn, ready};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::Either;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::BUFFER_BYTES_MAX;
use super::expect::{AnswerBeforeBody, Gate, GateOwner, Gated};
use super::head_time::{HeadTime, Progress};
use super::rest::{Answer, Connection, InUse, Rested, Unused, is_in_use, rest};
use super::watched::{Gone, Handle};
use crate::http::body::Body;
use crate::http::normalize::{self, Malformed};
use crate::http::session::{Abort, Exchange, HEAD_FIELDS_MAX, HalfClose, Interim, LastAnswer, Protocol, ServeError, ServerOptions};
use crate::http::upgrade;

/// What becomes of a connection once its request is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lasting {
    /// It is the codec's.
    Default,
    /// It is kept for a client of HTTP/1.0 that asked for that, if the answer's end can be told.
    WithLength,
    /// It is closed, and a client of HTTP/1.0 is told so, as Envoy does.
    Closed,
}

impl Lasting {
    fn of(request: &http::request::Parts) -> Self {
        match (request.version, normalize::asks_to_keep_alive(&request.headers)) {
            (Version::HTTP_10, true) => Self::WithLength,
            (Version::HTTP_10, false) => Self::Closed,
            _ => Self::Default,
        }
    }

    fn closes(self, answer: &Response<Body>) -> bool {
        let has_length = || answer.headers().contains_key(header::CONTENT_LENGTH) || answer.body().size_hint().exact().is_some();
        match self {
            Self::Default => false,
            Self::WithLength => !has_length(),
            Self::Closed => true,
        }
    }
}

/// Why a connection stops being hyper's.
enum Stopped {
    /// It is over, by itself or not.
    Ended(Result<(), ServeError>),
    /// Nobody uses it.
    Rests,
    /// The head of a request takes too long.
    HeadIsLate {
        /// All answers before have left, so that one more can be told from them.
        can_answer: bool,
    },
}

/// How long a client may take to read that its head took too long.
const LATE_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

pub(in crate::http) async fn serve<I, E, D>(io: I, exchange: E, options: &ServerOptions, drain: D) -> Result<(), ServeError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    E: Exchange,
    D: Future<Output = ()> + Send,
{
    let connection = Arc::new(Connection::default());
    let handle = Handle::new(io);
    let mut drain = pin!(async {
        tokio::select! {
            () = drain => {}
            () = connection.too_old(options.duration_max) => {}
        }
    });
    let (mut has_rested, mut head_began) = (false, options.head_began);
    let ended = loop {
        let served = Served { connection: &connection, handle: &handle, exchange: &exchange, options };
        match served.until_unused(drain.as_mut(), has_rested, head_began.take()).await {
            Stopped::Ended(ended) => break ended,
            Stopped::Rests => has_rested = true,
            Stopped::HeadIsLate { can_answer } => {
                exchange.malformed(Protocol::Http1, &Malformed::HeadTimeout);
                if can_answer {
                    // Who does not read it is cut.
                    let _read = tokio::time::timeout(LATE_ANSWER_TIMEOUT, write_late(&handle)).await;
                }
                break Err(ServeError::Malformed(Malformed::HeadTimeout));
            }
        }
        match rest(&handle, drain.as_mut(), options.idle_timeout).await {
            Rested::Bytes => {}
            Rested::End => break Ok(()),
            Rested::Limit => break Err(ServeError::IdleTimeout),
        }
    };
    let upgrade = connection.upgrade.lock().take();
    match (&ended, upgrade) {
        (Ok(()), Some(upgrade)) => upgrade.join().await,
        // A client that is gone needs no end.
        (Ok(()), None) => drop(poll_fn(|cx| handle.poll_end(cx)).await),
        (Err(_), _) => {}
    }
    ended
}

struct Served<'s, I, E> {
    connection: &'s Arc<Connection>,
    handle: &'s Handle<I>,
    exchange: &'s E,
    options: &'s ServerOptions,
}

impl<I, E> Served<'_, I, E>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    E: Exchange,
{
    fn progress(&self) -> Progress {
        Progress { read_bytes: self.handle.read_bytes(), requests: self.connection.requests(), is_in_use: is_in_use(self.connection) }
    }

    /// Has hyper serve it.
    async fn until_unused<D: Future<Output = ()>>(&self, mut drain: Pin<&mut D>, has_rested: bool, head_began: Option<Instant>) -> Stopped {
        let Self { connection, handle, exchange, options } = *self;
        let service = {
            let (connection, exchange, head) = (Arc::clone(connection), exchange.clone(), options.head);
            // In a box: hyper keeps the place of a request's future for as long as the connection lives, and most connections are idle.
            service_fn(move |request| Box::pin(answer(request, &exchange, InUse::begin(&connection), &head)))
        };
        // In a box as well: there is none while the connection rests.
        let mut http = Box::new(builder(options).serve_connection(TokioIo::new(handle.watched()), service).with_upgrades());
        let mut unused = Unused::new(has_rested);
        let mut head_time = HeadTime::new(options.head_timeout, head_began, self.progress());
        let mut is_draining = false;
        let stopped = poll_fn(|cx| {
            // First, so that a connection which came with a request during a drain is answered before it is closed.
            if let Poll::Ready(ended) = Pin::new(&mut *http).poll(cx) {
                return Poll::Ready(Stopped::Ended(ended.map_err(|error| serve_error(&error, exchange))));
            }
            if !is_draining && drain.as_mut().poll(cx).is_ready() {
                is_draining = true;
                Pin::new(&mut *http).graceful_shutdown();
                if let Poll::Ready(ended) = Pin::new(&mut *http).poll(cx) {
                    return Poll::Ready(Stopped::Ended(ended.map_err(|error| serve_error(&error, exchange))));
                }
            }
            match handle.poll_gone(cx) {
                Poll::Ready(Gone::HalfClosed) if options.half_close == HalfClose::Answer => {}
                Poll::Ready(Gone::HalfClosed | Gone::Reset) => return Poll::Ready(Stopped::Ended(Err(ServeError::ClientGone))),
                Poll::Pending => {}
            }
            if head_time.poll(cx, || self.progress()).is_ready() {
                return Poll::Ready(Stopped::HeadIsLate { can_answer: handle.only_waits() });
            }
            if unused.poll(cx, connection).is_ready() && !is_draining && !head_time.has_begun() && handle.only_waits() {
                return Poll::Ready(Stopped::Rests);
            }
            Poll::Pending
        })
        .await;
        if matches!(stopped, Stopped::Rests)
            && let Some(parts) = http.into_parts()
        {
            handle.put_back(&parts.read_buf);
        }
        stopped
    }
}

/// Answers a client whose head takes too long, and ends the connection: its codec has no request to answer.
async fn write_late<I: AsyncWrite + Unpin>(handle: &Handle<I>) {
    const ANSWER: &[u8] = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 22\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\nrequest header timeout";
    let mut left = ANSWER;
    while !left.is_empty() {
        match poll_fn(|cx| handle.poll_write(cx, left)).await {
            Ok(n_bytes) if n_bytes > 0 => left = &left[n_bytes..],
            // It is gone, and needs no answer.
            _ => return,
        }
    }
    // A client that is gone needs no end.
    drop(poll_fn(|cx| handle.poll_end(cx)).await);
}

fn builder(options: &ServerOptions) -> Builder {
    let mut builder = Builder::new();
    builder
        .half_close(true)
        .preserve_header_case(options.keeps_header_case)
        .timer(TokioTimer::new())
        .header_read_timeout(options.idle_timeout)
        .max_header_size(options.head_bytes_max)
        .max_buf_size(BUFFER_BYTES_MAX.max(options.head_bytes_max));
    if options.head_fields_max != HEAD_FIELDS_MAX {
        // hyper allocates for every head if it is told a number, even its own default.
        builder.max_headers(options.head_fields_max);
    }
    builder
}

fn serve_error<E: Exchange>(error: &hyper::Error, exchange: &E) -> ServeError {
    let problem = if error.is_parse_too_large() {
        Malformed::HeadTooLarge
    } else if error.is_parse() {
        Malformed::Syntax
    } else if error.is_timeout() {
        return ServeError::IdleTimeout;
    } else if error.is_user() {
        return ServeError::Cut;
    } else if error.is_incomplete_message() {
        return ServeError::ClientGone;
    } else {
        return ServeError::Io(io_kind(error));
    };
    exchange.malformed(Protocol::Http1, &problem);
    ServeError::Malformed(problem)
}

fn io_kind(error: &hyper::Error) -> std::io::ErrorKind {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return io.kind();
        }
        cause = inner.source();
    }
    std::io::ErrorKind::Other
}

/// Answers one request.
///
/// No `async fn`: what is done before the first wait would be part of the future, which hyper moves around.
fn answer<E: Exchange>(
    mut request: Request<Incoming>,
    exchange: &E,
    in_use: InUse,
    at_start: &normalize::HeadOptions,
) -> impl Future<Output = Result<Response<Answer>, Abort>> + Send + use<E> {
    let client_half = request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let (mut parts, incoming) = request.into_parts();
    let (begun, options) = exchange.begin(at_start);
    let lasting = Lasting::of(&parts);
    if let Err(problem) = normalize::request_in(&mut parts, Protocol::Http1, &options) {
        exchange.malformed(Protocol::Http1, &problem);
        return Either::Left(ready(Ok(refuse(problem, lasting).map(|body| Answer { body, _in_use: None }))));
    }
    let expected = expects_continue(&parts, &incoming).then(|| GateOwner::new(Arc::new(Gate::default())));
    let (body, interim) = match &expected {
        Some(owner) => {
            let gate = owner.gate();
            (Body::gated(Gated::new(incoming, Arc::clone(gate), in_use.clone())), Interim::http1(Arc::clone(gate)))
        }
        None => (Body::http1(incoming, Some(&in_use)), Interim::none()),
    };
    let exchanged = exchange.exchange(begun, Request::from_parts(parts, body), interim);
    Either::Right(exchanged.map(move |answered| {
        let answer = conclude(answered?, client_half, expected, (in_use.connection(), lasting))?;
        Ok(answer.map(|body| Answer { body, _in_use: Some(in_use) }))
    }))
}

/// An answer as it goes to the client.
fn conclude(
    mut response: Response<Body>,
    client_half: Option<hyper::upgrade::OnUpgrade>,
    expected: Option<GateOwner>,
    (connection, lasting): (&Connection, Lasting),
) -> Result<Response<Body>, Abort> {
    normalize::strip_hop_by_hop(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switch(response, client_half, connection);
    }
    if let Some(owner) = expected
        && owner.gate().answered()
    {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response = response.map(|answer| Body::wrap(AnswerBeforeBody::new(answer, owner)));
    }
    let is_last = connection.is_leaving() || response.extensions().get::<LastAnswer>().is_some();
    if is_last || lasting.closes(&response) {
        if lasting != Lasting::Default {
            // Of another version the codec would say that the connection is kept.
            *response.version_mut() = Version::HTTP_10;
        }
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(announce_length(response))
}

fn refuse(problem: Malformed, lasting: Lasting) -> Response<Body> {
    let text = problem.text();
    let mut response = Response::new(Body::full(Bytes::from_static(text.as_bytes())));
    if lasting != Lasting::Default {
        // Of another version the codec would say that the connection is kept.
        *response.version_mut() = Version::HTTP_10;
    }
    *response.status_mut() = problem.status();
    if !text.is_empty() {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    // What follows on this connection may be the rest of what we refused.
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn expects_continue(parts: &http::request::Parts, incoming: &Incoming) -> bool {
    let is_expected = parts.headers.get(header::EXPECT).is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    is_expected && parts.version == Version::HTTP_11 && !incoming.is_end_stream()
}

/// The 101 to the client, with `connection` and `upgrade` as the upstream chose.
fn switch(
    mut response: Response<Body>,
    client_half: Option<hyper::upgrade::OnUpgrade>,
    connection: &Connection,
) -> Result<Response<Body>, Abort> {
    let refused = Abort { reason: ::h2::Reason::PROTOCOL_ERROR };
    let protocol = response.extensions_mut().remove::<normalize::UpgradeRequested>().ok_or(refused)?;
    let (client, switched) = client_half.zip(upgrade::Switched::of(&mut response)).ok_or(refused)?;
    response.headers_mut().insert(header::UPGRADE, protocol.0);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    *connection.upgrade.lock() = Some(switched.with(upgrade::Half::Http1(client)));
    Ok(response.map(|_none| Body::empty()))
}

/// hyper drops the `content-length` of a 304 unless its body claims that length.
fn announce_length(response: Response<Body>) -> Response<Body> {
    if response.status() != StatusCode::NOT_MODIFIED {
        return response;
    }
    match normalize::content_length(response.headers()) {
        Some(length) => response.map(|_none| Body::announced(length)),
        None => response,
    }
}
