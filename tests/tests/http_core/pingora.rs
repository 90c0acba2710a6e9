//! The candidate that was not taken: pingora-core's HTTP/1.1 sessions, behind the same seam, so that the same table runs on them.
//!
//! Enough for the table and no more: no upgrades, no idle watch, no timeouts. The checks of `normalize` run here
//! too, since they would run in front of either codec.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use pingora_core::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream, ServerApp};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::v1::client::HttpSession;
use pingora_core::protocols::http::{HttpTask, ServerSession};
use pingora_core::server::ShutdownWatch;
use pingora_http::{RequestHeader, ResponseHeader};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot, watch};
use waypoint::http::normalize::{content_length, request_in, request_out_http1, response_in, strip_hop_by_hop};
use waypoint::http::{Abort, Body, BodyError, Exchange, HeadOptions, Interim, Protocol};

use crate::forward::Forward;

struct App(Forward);

/// Serves one connection with pingora's server session.
pub async fn serve(io: DuplexStream, forward: Forward) {
    let (_sender, shutdown) = watch::channel(false);
    let app = Arc::new(App(forward));
    let mut stream: Option<Stream> = Some(Box::new(io));
    while let Some(next) = stream {
        stream = app.process_new(next, &shutdown).await;
    }
}

#[async_trait]
impl HttpServerApp for App {
    async fn process_new_http(self: &Arc<Self>, mut session: ServerSession, _shutdown: &ShutdownWatch) -> Option<ReusedHttpStream> {
        session.set_pipelining_enabled(true);
        session.set_abort_on_close(false);
        session.set_close_on_response_before_downstream_finish(false);
        session.set_read_timeout(None);
        match session.read_request().await {
            Ok(true) => {}
            Ok(false) => return None,
            Err(_malformed) => {
                let _ = session.respond_error(400).await;
                return None;
            }
        }
        exchange(&self.0, &mut session).await?;
        let settings = HttpPersistentSettings::for_session(&session);
        let stream = session.finish().await.ok().flatten()?;
        Some(ReusedHttpStream::from_reusable_stream(stream, settings))
    }
}

/// `None`: the connection is to be cut.
async fn exchange(forward: &Forward, session: &mut ServerSession) -> Option<()> {
    let (interims, mut interim) = mpsc::unbounded_channel::<(StatusCode, HeaderMap)>();
    let head = session.req_header();
    let is_old = head.version == http::Version::HTTP_10;
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.version_mut() = head.version;
    *request.headers_mut() = head.headers.clone();
    let (mut parts, ()) = request.into_parts();
    if let Err(problem) = request_in(&mut parts, Protocol::Http1, &HeadOptions::default()) {
        forward.malformed(Protocol::Http1, &problem);
        session.set_keepalive(None);
        session.respond_error(problem.status().as_u16()).await.ok()?;
        return Some(());
    }
    let (sender, body) = channel_body(content_length(&parts.headers));
    let mut sender = (!session.is_body_done()).then_some(sender);
    let body = if sender.is_some() { Body::wrap(body) } else { Body::empty() };
    let send = move |status, headers: &HeaderMap| interims.send((status, headers.clone())).is_ok();
    let mut answer = std::pin::pin!(forward.exchange((), Request::from_parts(parts, body), Interim::custom(send)));
    let response = loop {
        tokio::select! {
            biased;
            Some((status, headers)) = interim.recv() => {
                session.write_response_header(Box::new(header(status, headers)?)).await.ok()?;
            }
            response = &mut answer => break response.ok()?,
            () = read_body(session, &mut sender), if sender.is_some() => {}
        }
    };
    let is_framed_by_close = is_old && !response.headers().contains_key(http::header::CONTENT_LENGTH);
    if is_framed_by_close || sender.is_some() {
        // Framed by close; or the rest of a body that nobody reads.
        session.set_keepalive(None);
    }
    answer_with(session, response, sender, is_old).await
}

/// Moves one piece of the request's body on.
async fn read_body(session: &mut ServerSession, sender: &mut Option<mpsc::Sender<Piece>>) {
    let Some(open) = sender else { return };
    let Ok(permit) = open.reserve().await else {
        *sender = None;
        return;
    };
    match session.read_request_body().await {
        Ok(Some(data)) => permit.send(Ok(data)),
        Ok(None) => {
            permit.send(Ok(Bytes::new()));
            *sender = None;
            return;
        }
        Err(_failed) => {
            permit.send(Err(BodyError::Malformed));
            *sender = None;
            return;
        }
    }
    if session.is_body_done() {
        *sender = None;
    }
}

async fn answer_with(
    session: &mut ServerSession,
    response: Response<Body>,
    mut sender: Option<mpsc::Sender<Piece>>,
    is_old: bool,
) -> Option<()> {
    let (mut parts, mut body) = response.into_parts();
    strip_hop_by_hop(&mut parts.headers);
    let is_end = body.is_end_stream();
    let has_framing = is_old || parts.headers.contains_key(http::header::CONTENT_LENGTH) || is_end;
    if !has_framing {
        parts.headers.insert(http::header::TRANSFER_ENCODING, "chunked".parse().ok()?);
    }
    let head = header(parts.status, parts.headers)?;
    let mut is_done = session.response_duplex_vec(vec![HttpTask::Header(Box::new(head), is_end)]).await.ok()? || is_end;
    while !is_done {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = read_body(session, &mut sender), if sender.is_some() => continue,
        };
        let task = match frame {
            None => HttpTask::Done,
            Some(frame) => match frame.ok()?.into_data() {
                Ok(data) => HttpTask::Body(Some(data), body.is_end_stream()),
                Err(frame) => HttpTask::Trailer(frame.into_trailers().ok().map(Box::new)),
            },
        };
        is_done = session.response_duplex_vec(vec![task]).await.ok()?;
    }
    Some(())
}

fn header(status: StatusCode, headers: HeaderMap) -> Option<ResponseHeader> {
    let mut head = ResponseHeader::build(status, Some(headers.len())).ok()?;
    for (name, value) in &headers {
        head.append_header(name.clone(), value.clone()).ok()?;
    }
    Some(head)
}

/// Sends a request with pingora's client session, on the connection kept from the last one or on a fresh one.
pub async fn send(forward: &Forward, request: Request<Body>, interim: Interim) -> Result<Response<Body>, Abort> {
    let stream = forward.kept_stream().unwrap_or_else(|| Box::new(forward.dial()));
    let (heads, head) = oneshot::channel();
    let (pieces, mut body) = channel_body(None);
    let forward = forward.clone();
    tokio::spawn(async move {
        if let Some(stream) = drive(HttpSession::new(stream), request, interim, heads, pieces).await {
            forward.keep_stream(stream);
        }
    });
    let (mut parts, has_body) = match head.await {
        Ok(Ok(head)) => head,
        Ok(Err(BodyError::Malformed | BodyError::Truncated)) => return Ok(refuse(StatusCode::BAD_REQUEST)),
        Ok(Err(_)) | Err(_) => return Ok(refuse(StatusCode::BAD_GATEWAY)),
    };
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        // Upgrades are not adapted.
        return Ok(refuse(StatusCode::BAD_GATEWAY));
    }
    if response_in(parts.status, &mut parts.headers).is_err() {
        return Ok(refuse(StatusCode::BAD_GATEWAY));
    }
    body.length = content_length(&parts.headers);
    let body = if has_body { Body::wrap(body) } else { Body::empty() };
    Ok(Response::from_parts(parts, body))
}

fn refuse(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// A response's head, and whether a body follows.
type Head = (http::response::Parts, bool);

/// The whole exchange on one connection, which comes back if it can be used again.
async fn drive(
    mut session: HttpSession,
    request: Request<Body>,
    interim: Interim,
    heads: oneshot::Sender<Result<Head, BodyError>>,
    pieces: mpsc::Sender<Piece>,
) -> Option<Stream> {
    let (parts, mut body) = request.into_parts();
    let is_chunked = !body.is_end_stream() && body.size_hint().exact().is_none();
    write_head(&mut session, parts, is_chunked).await?;
    let mut heads = Some(heads);
    let mut is_uploaded = body.is_end_stream();
    loop {
        let task = tokio::select! {
            task = session.read_response_task() => task,
            frame = body.frame(), if !is_uploaded => {
                match frame {
                    None => is_uploaded = true,
                    Some(Err(error)) => {
                        heads.take()?.send(Err(error)).ok()?;
                        return None;
                    }
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => { session.write_body(&data).await.ok()?; is_uploaded = body.is_end_stream(); }
                        Err(_trailers) => is_uploaded = true,
                    },
                }
                if is_uploaded {
                    session.finish_body().await.ok()?;
                }
                continue;
            }
        };
        let is_end = match task {
            Ok(HttpTask::Header(head, _)) if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS => {
                interim.send(head.status, &head.headers);
                false
            }
            Ok(HttpTask::Header(head, is_end)) => {
                let mut response = Response::new(());
                *response.status_mut() = head.status;
                *response.headers_mut() = head.headers.clone();
                heads.take()?.send(Ok((response.into_parts().0, !is_end))).ok()?;
                is_end
            }
            Ok(HttpTask::Body(data, is_end)) => {
                if let Some(data) = data {
                    pieces.send(Ok(data)).await.ok()?;
                }
                is_end
            }
            Ok(_) => true,
            Err(_failed) => {
                let _ = pieces.send(Err(BodyError::Truncated)).await;
                return None;
            }
        };
        if is_end {
            break;
        }
    }
    drop(pieces);
    session.respect_keepalive();
    if is_uploaded { session.reuse().await } else { None }
}

async fn write_head(session: &mut HttpSession, mut parts: http::request::Parts, is_chunked: bool) -> Option<()> {
    request_out_http1(&mut parts);
    if is_chunked {
        parts.headers.insert(http::header::TRANSFER_ENCODING, "chunked".parse().ok()?);
    }
    let mut head = RequestHeader::build(parts.method, parts.uri.to_string().as_bytes(), Some(parts.headers.len())).ok()?;
    for (name, value) in &parts.headers {
        head.append_header(name.clone(), value.clone()).ok()?;
    }
    session.write_request_header(Box::new(head)).await.ok()?;
    Some(())
}

type Piece = Result<Bytes, BodyError>;

/// A body that is filled from elsewhere.
struct ChannelBody {
    pieces: mpsc::Receiver<Piece>,
    length: Option<u64>,
}

fn channel_body(length: Option<u64>) -> (mpsc::Sender<Piece>, ChannelBody) {
    let (sender, pieces) = mpsc::channel(1);
    (sender, ChannelBody { pieces, length })
}

impl HttpBody for ChannelBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.pieces.poll_recv(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
