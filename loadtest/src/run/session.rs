//! One tunnel with an HTTP connection inside: sends a request, takes the whole answer, says what was wrong with it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, TE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::mpsc;

use super::Plan;
use super::body::{RequestBody, Traffic};
use super::http1::Http1;
use crate::hbone::client::HboneError;
use crate::hbone::stream::HboneStream;
use crate::hbone::{HTTP2_CONNECTION_WINDOW_BYTES, HTTP2_STREAM_WINDOW_BYTES};
use crate::load::Protocol;
use crate::mesh::app::grpc_message;
use crate::stats::Failure;

/// Largest body that leaves with the head of an HTTP/1.1 request; a larger one needs to read while it writes.
const BODY_BESIDE_HEAD_BYTES_MAX: u64 = 16 * 1024;

/// The request that a run sends over and over.
#[derive(Debug)]
pub struct Template {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    body_bytes: u64,
    /// The only message of a call, or each of them.
    message: Option<Bytes>,
    /// The whole of an HTTP/1.1 request whose body is small.
    wire: Option<Bytes>,
    traffic: Arc<Traffic>,
    timeout: Duration,
}

impl Template {
    pub fn new(plan: &Plan, traffic: Arc<Traffic>) -> anyhow::Result<Self> {
        let load = &plan.load;
        let host = load.host.as_deref().unwrap_or(&plan.target);
        let mut headers: HeaderMap = load.header.iter().map(|line| (line.name.clone(), line.value.clone())).collect();
        let (uri, version) = match load.protocol {
            Protocol::Http1 => {
                headers.insert(HOST, HeaderValue::from_str(host)?);
                (load.path.parse()?, Version::HTTP_11)
            }
            Protocol::Http2 | Protocol::Grpc => (format!("http://{host}{}", load.path).parse()?, Version::HTTP_2),
        };
        let is_grpc = load.protocol == Protocol::Grpc;
        if is_grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        let message = if is_grpc { Some(grpc_message(usize::try_from(load.body_bytes)?)) } else { None };
        let method = if is_grpc || load.body_bytes > 0 { Method::POST } else { Method::GET };
        let (body_bytes, timeout) = (load.body_bytes, load.timeout);
        let mut template = Self { method, uri, version, headers, body_bytes, message, wire: None, traffic, timeout };
        if load.protocol == Protocol::Http1 && body_bytes <= BODY_BESIDE_HEAD_BYTES_MAX {
            template.wire = Some(template.on_the_wire()?);
        }
        Ok(template)
    }

    /// Head and body as HTTP/1.1 writes them.
    fn on_the_wire(&self) -> anyhow::Result<Bytes> {
        let mut wire = BytesMut::new();
        wire.put_slice(format!("{} {} HTTP/1.1\r\n", self.method, self.uri).as_bytes());
        for (name, value) in &self.headers {
            wire.put_slice(name.as_str().as_bytes());
            wire.put_slice(b": ");
            wire.put_slice(value.as_bytes());
            wire.put_slice(b"\r\n");
        }
        if self.body_bytes > 0 {
            wire.put_slice(format!("content-length: {}\r\n", self.body_bytes).as_bytes());
        }
        wire.put_slice(b"\r\n");
        wire.put_bytes(b'x', usize::try_from(self.body_bytes)?);
        Ok(wire.freeze())
    }

    fn request(&self, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers.clone();
        request
    }

    /// The prebuilt request, counted as sent.
    fn sent_wire(&self) -> Bytes {
        self.traffic.request_sent();
        self.traffic.moved(usize::try_from(self.body_bytes).expect("a body beside its head is small"));
        self.wire.clone().expect("lanes of this kind are made only for such requests")
    }

    fn body(&self) -> RequestBody {
        match &self.message {
            Some(message) => RequestBody::Whole(message.clone(), Arc::clone(&self.traffic)),
            None if self.body_bytes == 0 => RequestBody::Empty,
            None => RequestBody::Fill(self.body_bytes, Arc::clone(&self.traffic)),
        }
    }
}

impl From<HboneError> for Failure {
    fn from(error: HboneError) -> Self {
        match error {
            HboneError::Refused(status) => Self::ConnectRefused(status.as_u16()),
            HboneError::Http2(_) => Self::Broken,
            HboneError::Timeout(_) => Self::Timeout,
            HboneError::Dial { .. } | HboneError::Tls { .. } | HboneError::Identity { .. } | HboneError::Target(_) => Self::Connection,
        }
    }
}

/// A place for one request at a time: an HTTP/1.1 connection, or one of several that share an HTTP/2 connection.
#[derive(Debug)]
pub enum Lane {
    /// For requests with a small body.
    Http1(Box<Http1>),
    /// For those with a large one.
    Http1Upload(conn::http1::SendRequest<RequestBody>),
    Http2(conn::http2::SendRequest<RequestBody>),
}

/// HTTP inside a tunnel, with one lane; clones of an HTTP/2 lane share its connection.
pub async fn start(stream: HboneStream, template: &Template) -> Result<Lane, Failure> {
    if template.wire.is_some() {
        return Ok(Lane::Http1(Box::new(Http1::new(stream))));
    }
    let io = TokioIo::new(stream);
    if template.version == Version::HTTP_11 {
        let (sender, connection) = conn::http1::handshake(io).await.map_err(|_broken| Failure::Broken)?;
        // The requests say how the connection ended.
        tokio::spawn(connection);
        return Ok(Lane::Http1Upload(sender));
    }
    let mut builder = conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES).initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES);
    let (sender, connection) = builder.handshake(io).await.map_err(|_broken| Failure::Broken)?;
    tokio::spawn(connection);
    Ok(Lane::Http2(sender))
}

impl Lane {
    /// As many lanes as the connection is to carry at once; HTTP/1.1 has one.
    pub fn multiplied(self, count: usize) -> Vec<Self> {
        match self {
            Self::Http1(_) | Self::Http1Upload(_) => vec![self],
            Self::Http2(sender) => (0..count).map(|_| Self::Http2(sender.clone())).collect(),
        }
    }

    /// Waits until a request can be sent; false when the connection is over.
    pub async fn ready(&mut self) -> bool {
        match self {
            Self::Http1(client) => client.is_ready(),
            Self::Http1Upload(sender) => sender.ready().await.is_ok(),
            Self::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    /// Sends the request and takes the whole answer in the time there is. Cancelled or failed in between, the lane must be
    /// dropped.
    pub async fn exchange(&mut self, template: &Template) -> Result<(), Failure> {
        let exchanged = async {
            if let Self::Http1(client) = self {
                let head = client.send(template.sent_wire()).await?;
                client.skip_body(head, &template.traffic).await?;
                return if head.status == StatusCode::OK.as_u16() { Ok(()) } else { Err(Failure::Status(head.status)) };
            }
            let (head, body) = self.head(template, template.body()).await?.into_parts();
            let trailers = read_to_end(body, &template.traffic).await?;
            judge(template, &head, trailers.as_ref())
        };
        tokio::time::timeout(template.timeout, exchanged).await.unwrap_or(Err(Failure::Timeout))
    }

    /// Sends the request and returns when the head of its answer is there, in the time there is; of the body nothing is read.
    /// Dropping hyper's answer, or the lane, ends it.
    pub async fn begin(&mut self, template: &Template) -> Result<Option<Response<Incoming>>, Failure> {
        let begun = async {
            let (status, begun) = if let Self::Http1(client) = self {
                (client.send(template.sent_wire()).await?.status, None)
            } else {
                let response = self.head(template, template.body()).await?;
                (response.status().as_u16(), Some(response))
            };
            if status == StatusCode::OK.as_u16() { Ok(begun) } else { Err(Failure::Status(status)) }
        };
        tokio::time::timeout(template.timeout, begun).await.unwrap_or(Err(Failure::Timeout))
    }

    /// Ends the tunnel. hyper's clients end when they are dropped.
    pub async fn close(self) {
        if let Self::Http1(client) = self {
            client.close().await;
        }
    }

    async fn head(&mut self, template: &Template, body: RequestBody) -> Result<Response<Incoming>, Failure> {
        let request = template.request(body);
        template.traffic.request_sent();
        let sent = match self {
            Self::Http1(_) => return Err(Failure::Broken),
            Self::Http1Upload(sender) => sender.send_request(request).await,
            Self::Http2(sender) => sender.send_request(request).await,
        };
        sent.map_err(|_broken| Failure::Broken)
    }
}

/// A gRPC call of several messages: each is sent when the one before has come back.
#[derive(Debug)]
pub struct Call<'a> {
    lane: &'a mut Lane,
    template: &'a Template,
    /// `None` when the last message was given.
    messages: Option<mpsc::Sender<Bytes>>,
    answer: Option<Response<Incoming>>,
    unread_bytes: usize,
}

impl<'a> Call<'a> {
    pub fn new(lane: &'a mut Lane, template: &'a Template) -> Self {
        Self { lane, template, messages: None, answer: None, unread_bytes: 0 }
    }

    /// Sends a message and waits for one of the same length; with the last one, for the end of the call as well.
    pub async fn exchange(&mut self, is_last: bool) -> Result<(), Failure> {
        let timeout = self.template.timeout;
        tokio::time::timeout(timeout, self.exchange_untimed(is_last)).await.unwrap_or(Err(Failure::Timeout))
    }

    async fn exchange_untimed(&mut self, is_last: bool) -> Result<(), Failure> {
        let message = self.template.message.clone().expect("only gRPC has several messages");
        self.unread_bytes += message.len();
        if self.answer.is_none() {
            let (sender, receiver) = mpsc::channel(1);
            // The first message waits in the channel: a server may answer only once it has it.
            sender.try_send(message).map_err(|_full| Failure::Broken)?;
            self.messages = (!is_last).then_some(sender);
            let body = RequestBody::Messages(receiver, Arc::clone(&self.template.traffic));
            self.answer = Some(self.lane.head(self.template, body).await?);
        } else {
            let messages = self.messages.take().ok_or(Failure::Broken)?;
            messages.send(message).await.map_err(|_ended| Failure::Broken)?;
            self.messages = (!is_last).then_some(messages);
        }
        self.read_message().await?;
        if is_last { self.end().await } else { Ok(()) }
    }

    async fn read_message(&mut self) -> Result<(), Failure> {
        while self.unread_bytes > 0 {
            let answer = self.answer.as_mut().expect("set before anything is read");
            let Some(frame) = answer.body_mut().frame().await else {
                return Err(judge_response(self.template, answer, None).err().unwrap_or(Failure::Broken));
            };
            let frame = frame.map_err(|_broken| Failure::Broken)?;
            if let Some(trailers) = frame.trailers_ref() {
                return Err(judge_response(self.template, answer, Some(trailers)).err().unwrap_or(Failure::Broken));
            }
            let length = frame.data_ref().map_or(0, Bytes::len);
            self.template.traffic.moved(length);
            self.unread_bytes = self.unread_bytes.checked_sub(length).ok_or(Failure::Broken)?;
        }
        Ok(())
    }

    /// Ends the messages, if they have not ended, and takes the answer to its end.
    pub async fn end(&mut self) -> Result<(), Failure> {
        self.messages = None;
        let Some(answer) = self.answer.take() else { return Ok(()) };
        let (head, body) = answer.into_parts();
        let trailers = read_to_end(body, &self.template.traffic).await?;
        judge(self.template, &head, trailers.as_ref())
    }
}

fn judge_response(template: &Template, response: &Response<Incoming>, trailers: Option<&HeaderMap>) -> Result<(), Failure> {
    judge_parts(template, response.status(), trailers.unwrap_or(response.headers()))
}

fn judge(template: &Template, head: &http::response::Parts, trailers: Option<&HeaderMap>) -> Result<(), Failure> {
    judge_parts(template, head.status, trailers.unwrap_or(&head.headers))
}

fn judge_parts(template: &Template, status: StatusCode, last_headers: &HeaderMap) -> Result<(), Failure> {
    if status != StatusCode::OK {
        return Err(Failure::Status(status.as_u16()));
    }
    if template.message.is_none() {
        return Ok(());
    }
    let status = last_headers.get("grpc-status").and_then(|value| value.to_str().ok()?.parse().ok());
    if status == Some(0) { Ok(()) } else { Err(Failure::GrpcStatus(status)) }
}

/// hyper checks the body against its framing; a cut one is an error.
async fn read_to_end(mut body: Incoming, traffic: &Traffic) -> Result<Option<HeaderMap>, Failure> {
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame.map_err(|_broken| Failure::Broken)?.into_data() {
            Ok(data) => traffic.moved(data.len()),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok(trailers)
}
