//! A request body that can be sent again, as long as it is small: what was sent is kept up to a bound.
//!
//! Not for: deciding whether it should be. Invariants: every try sends the same bytes in the same order; once more than
//! [`REPLAY_BYTES_MAX`] were read, nothing is kept and there is no further try.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use telemetry::costs::Kept;

use crate::http::body::{Body, BodyError};

/// Bytes of a request body kept for further tries; Envoy's buffer limit is 1 MiB, pingora's 64 KiB.
pub const REPLAY_BYTES_MAX: usize = 64 * 1024;

struct Source {
    body: Body,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    counted: Kept,
    trailers: Option<HeaderMap>,
    has_ended: bool,
    is_too_large: bool,
    /// The try that may read; those before it have been given up, whatever still polls them.
    current_try: u64,
}

/// The client's body, shared by all tries.
#[derive(Clone)]
pub struct Replay(Arc<Mutex<Source>>);

impl Replay {
    /// Of the client's body; what is kept of it is counted.
    #[must_use]
    pub fn new(body: Body, counted: Kept) -> Self {
        Self(Arc::new(Mutex::new(Source {
            body,
            kept: Vec::new(),
            kept_bytes: 0,
            counted,
            trailers: None,
            has_ended: false,
            is_too_large: false,
            current_try: 0,
        })))
    }

    /// Whether another try can send the body from its beginning.
    #[must_use]
    pub fn can_repeat(&self) -> bool {
        !self.0.lock().is_too_large
    }

    /// The body for one try.
    pub fn body(&self) -> Body {
        let mut source = self.0.lock();
        source.current_try += 1;
        Body::wrap(Try { replay: self.clone(), number: source.current_try, next: 0, has_sent_trailers: false })
    }
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Replay").finish_non_exhaustive()
    }
}

struct Try {
    replay: Replay,
    number: u64,
    next: usize,
    has_sent_trailers: bool,
}

impl HttpBody for Try {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let mut source = this.replay.0.lock();
        if source.current_try != this.number {
            return Poll::Ready(Some(Err(BodyError::Abandoned)));
        }
        if let Some(bytes) = source.kept.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(bytes.clone()))));
        }
        if source.has_ended {
            let trailers = source.trailers.clone().filter(|_| !std::mem::replace(&mut this.has_sent_trailers, true));
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let Some(frame) = ready!(Pin::new(&mut source.body).poll_frame(context)?) else {
            source.has_ended = true;
            return Poll::Ready(None);
        };
        match frame.into_data() {
            Ok(data) => {
                source.keep(&data);
                if !source.is_too_large {
                    this.next += 1;
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Err(other) => {
                let trailers = other.into_trailers().unwrap_or_default();
                source.has_ended = true;
                source.trailers = Some(trailers.clone());
                this.has_sent_trailers = true;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let source = self.replay.0.lock();
        let nothing_kept = self.next >= source.kept.len();
        nothing_kept && if source.has_ended { source.trailers.is_none() || self.has_sent_trailers } else { source.body.is_end_stream() }
    }

    fn size_hint(&self) -> SizeHint {
        let source = self.replay.0.lock();
        if source.is_too_large {
            return source.body.size_hint();
        }
        let ahead: usize = source.kept.iter().skip(self.next).map(Bytes::len).sum();
        let ahead = u64::try_from(ahead).unwrap_or(u64::MAX);
        let rest = source.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(ahead));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(ahead)) {
            hint.set_upper(upper);
        }
        hint
    }
}

impl Source {
    fn keep(&mut self, data: &Bytes) {
        if self.is_too_large {
            return;
        }
        self.kept_bytes = self.kept_bytes.saturating_add(data.len());
        if self.kept_bytes > REPLAY_BYTES_MAX {
            self.is_too_large = true;
            self.kept = Vec::new();
            self.counted.clear();
        } else {
            self.kept.push(data.clone());
            self.counted.add(data.len());
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use http_body_util::{BodyExt, StreamBody};

    use telemetry::costs::{Owner, WorkerCosts};

    use super::*;

    fn kept(body: Body) -> Replay {
        Replay::new(body, Kept::new(&WorkerCosts::unread(), Owner::Replay))
    }

    fn replay(chunks: &[&'static [u8]], trailers: Option<HeaderMap>) -> Replay {
        let mut frames: Vec<Result<Frame<Bytes>, BodyError>> =
            chunks.iter().map(|chunk| Ok(Frame::data(Bytes::from_static(chunk)))).collect();
        frames.extend(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        kept(Body::wrap(StreamBody::new(futures_util::stream::iter(frames))))
    }

    #[tokio::test]
    async fn every_try_sends_the_same_bytes_and_trailers() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        let replay = replay(&[b"ab", b"cd"], Some(trailers.clone()));
        let mut first = replay.body();
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "ab");
        drop(first);
        for _ in 0..2 {
            let all = replay.body().collect().await.unwrap();
            assert_eq!(all.trailers(), Some(&trailers));
            assert_eq!(all.to_bytes(), "abcd");
        }
        assert!(replay.can_repeat());
    }

    #[tokio::test]
    async fn a_try_that_was_given_up_reads_nothing_more() {
        let replay = replay(&[b"ab", b"cd"], None);
        let mut given_up = replay.body();
        assert_eq!(given_up.frame().await.unwrap().unwrap().into_data().unwrap(), "ab");
        let next = replay.body();
        assert_eq!(given_up.frame().await.unwrap().err(), Some(BodyError::Abandoned));
        assert_eq!(next.collect().await.unwrap().to_bytes(), "abcd");
    }

    #[tokio::test]
    async fn a_body_beyond_the_bound_passes_once_and_is_not_kept() {
        static CHUNK: [u8; 40_000] = [7; 40_000];
        let replay = replay(&[&CHUNK, &CHUNK], None);
        assert_eq!(replay.body().collect().await.unwrap().to_bytes().len(), 80_000);
        assert!(!replay.can_repeat());
    }

    #[tokio::test]
    async fn a_client_that_fails_fails_the_try() {
        let failing = StreamBody::new(futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"a"))), Err(BodyError::Truncated)]));
        let replay = kept(Body::wrap(failing));
        assert_eq!(replay.body().collect().await.err(), Some(BodyError::Truncated));
    }
}
