//! `Expect: 100-continue` from an HTTP/1.1 client: the body waits until the upstream said 100.
//!
//! hyper's server sends `100 Continue` when the body is first polled, so a body that must wait is one that does not poll.
//! The gate opens with the upstream's 100 or after [`CONTINUE_WAIT_MAX`]: an upstream need not send one, and a client
//! need not wait for one (RFC 9110 §10.1.1). If the final answer comes first, the body is never read and
//! the connection must close, for nobody can tell whether the client will still send it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::Sleep;

use super::InUse;
use crate::http::body::{Body, BodyError};

/// How long a body waits for the upstream's 100 before it flows anyway; clients such as curl wait as long.
const CONTINUE_WAIT_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Gate(Mutex<GateState>);

#[derive(Debug, Default)]
struct GateState {
    position: Position,
    reader: Option<Waker>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Position {
    #[default]
    Waiting,
    Open,
    /// The final answer is on its way, and the body was not asked for: it waits without end.
    Answered,
    /// The answer is complete, or nobody is left to give one.
    Abandoned,
}

impl Gate {
    /// Lets the body flow. Does nothing once the final answer is known.
    pub(crate) fn open(&self) {
        self.advance(Position::Waiting, Position::Open);
    }

    /// The final answer is known. True if the body was never asked for.
    pub(crate) fn answered(&self) -> bool {
        self.advance(Position::Waiting, Position::Answered);
        self.0.lock().position != Position::Open
    }

    fn abandon(&self) {
        self.advance(Position::Waiting, Position::Abandoned);
        self.advance(Position::Answered, Position::Abandoned);
    }

    fn advance(&self, from: Position, to: Position) {
        let mut state = self.0.lock();
        if state.position == from {
            state.position = to;
            if let Some(reader) = state.reader.take() {
                reader.wake();
            }
        }
    }
}

/// The body behind the gate.
pub(crate) struct Gated {
    incoming: Incoming,
    gate: Arc<Gate>,
    deadline: Pin<Box<Sleep>>,
    _in_use: InUse,
}

impl Gated {
    pub(crate) fn new(incoming: Incoming, gate: Arc<Gate>, in_use: InUse) -> Gated {
        Gated { incoming, gate, deadline: Box::pin(tokio::time::sleep(CONTINUE_WAIT_MAX)), _in_use: in_use }
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let position = {
            let mut state = self.gate.0.lock();
            if state.position != Position::Open {
                state.reader = Some(cx.waker().clone());
            }
            state.position
        };
        match position {
            Position::Abandoned => return Poll::Ready(Some(Err(BodyError::Abandoned))),
            Position::Answered => return Poll::Pending,
            Position::Waiting if self.deadline.as_mut().poll(cx).is_pending() => return Poll::Pending,
            Position::Waiting => self.gate.open(),
            Position::Open => {}
        }
        Pin::new(&mut self.incoming).poll_frame(cx).map_err(|error| BodyError::from_hyper(&error))
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Ends the wait when it is dropped.
pub(crate) struct GateOwner(Arc<Gate>);

impl GateOwner {
    pub(crate) fn new(gate: Arc<Gate>) -> GateOwner {
        GateOwner(gate)
    }

    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.0
    }
}

impl Drop for GateOwner {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// The answer that came before the body was asked for; when it is gone, so is the wait.
pub(crate) struct AnswerBeforeBody {
    answer: Body,
    _owner: GateOwner,
}

impl AnswerBeforeBody {
    pub(crate) fn new(answer: Body, owner: GateOwner) -> AnswerBeforeBody {
        AnswerBeforeBody { answer, _owner: owner }
    }
}

impl HttpBody for AnswerBeforeBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.answer).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}
