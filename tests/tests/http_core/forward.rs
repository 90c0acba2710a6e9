//! The exchange of the table: forwards each request as it is, over one upstream connection that it keeps.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use pingora_core::protocols::Stream;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::{Mutex, mpsc};
use waypoint::http::{
    Abort, Body, BodyError, ClientOptions, ClientSession, Exchange, HeadOptions, Interim, Malformed, Protocol, SendError, SendErrorKind,
};

use crate::pingora;
use crate::wire::PIPE_BYTES;

/// Which codec speaks to an HTTP/1.1 upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientEngine {
    Hyper,
    Pingora,
}

/// Requests that were tried on a connection that turned out to be closed are tried once more.
const TRIES_MAX: usize = 2;

#[derive(Clone)]
pub struct Forward(Arc<Inner>);

struct Inner {
    protocol: Protocol,
    engine: ClientEngine,
    session: Mutex<Option<ClientSession>>,
    stream: std::sync::Mutex<Option<Stream>>,
    dialed: mpsc::UnboundedSender<DuplexStream>,
    malformed: std::sync::Mutex<Vec<Malformed>>,
}

impl Forward {
    /// Upstream ends of the connections that are dialed come out of the receiver.
    pub fn new(protocol: Protocol, engine: ClientEngine) -> (Forward, mpsc::UnboundedReceiver<DuplexStream>) {
        let (dialed, upstreams) = mpsc::unbounded_channel();
        let inner = Inner {
            protocol,
            engine,
            session: Mutex::default(),
            stream: std::sync::Mutex::default(),
            dialed,
            malformed: std::sync::Mutex::default(),
        };
        (Forward(Arc::new(inner)), upstreams)
    }

    pub fn malformed_seen(&self) -> Vec<Malformed> {
        self.0.malformed.lock().unwrap().clone()
    }

    pub fn dial(&self) -> DuplexStream {
        let (ours, theirs) = duplex(PIPE_BYTES);
        self.0.dialed.send(theirs).unwrap();
        ours
    }

    pub fn kept_stream(&self) -> Option<Stream> {
        self.0.stream.lock().unwrap().take()
    }

    pub fn keep_stream(&self, stream: Stream) {
        *self.0.stream.lock().unwrap() = Some(stream);
    }

    async fn session(&self) -> ClientSession {
        let kept = self.0.session.lock().await.take();
        if let Some(mut session) = kept
            && session.is_open()
            && session.ready().await
        {
            return session;
        }
        let (session, driver) = ClientSession::handshake(self.dial(), self.0.protocol, &ClientOptions::default()).await.unwrap();
        tokio::spawn(driver);
        session
    }

    async fn send(&self, mut request: Request<Body>, interim: Interim) -> Result<Response<Body>, SendError> {
        for _ in 1..TRIES_MAX {
            let mut session = self.session().await;
            match session.send(request, Some(interim.clone())).await {
                Err(SendError { request: Some(unsent), kind: SendErrorKind::ConnectionClosedBeforeResponse, .. }) => request = *unsent,
                sent => {
                    *self.0.session.lock().await = Some(session);
                    return sent;
                }
            }
        }
        let mut session = self.session().await;
        session.send(request, Some(interim)).await
    }
}

impl Exchange for Forward {
    type Begun = ();

    fn begin(&self, at_start: &HeadOptions) -> ((), HeadOptions) {
        ((), *at_start)
    }

    fn exchange(
        &self,
        (): (),
        request: Request<Body>,
        interim: Interim,
    ) -> impl Future<Output = Result<Response<Body>, Abort>> + Send + use<> {
        let forward = self.clone();
        async move {
            if forward.0.engine == ClientEngine::Pingora {
                return pingora::send(&forward, request, interim).await;
            }
            match forward.send(request, interim).await {
                Ok(response) => Ok(response),
                Err(error) => Ok(status_of(error.kind)),
            }
        }
    }

    fn malformed(&self, _: Protocol, problem: &Malformed) {
        self.0.malformed.lock().unwrap().push(*problem);
    }
}

pub fn status_of(kind: SendErrorKind) -> Response<Body> {
    let status = match kind {
        SendErrorKind::RequestBody(BodyError::Malformed | BodyError::Truncated) => StatusCode::BAD_REQUEST,
        SendErrorKind::RefusedStream => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_GATEWAY,
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
