//! Copies of requests for other clusters: sent beside the request, their answers read and dropped.
//!
//! Not for: recording them; Envoy has no line and no metric for a copy. Invariants: a copy never makes its request wait; copies at a
//! time and bytes of a body kept for one are bounded; a copy whose request broke off breaks off too.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, request};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use model::route::{Forward, Mirror, Priority};
use model::subset::Labels;
use model::tracing::Tracing;
use smallvec::SmallVec;
use telemetry::MirrorCounters;
use telemetry::costs::{Kept, Owner};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout_at};

use super::Run;
use crate::call::{self, verdict_of};
use crate::http::body::{Body, BodyError};
use crate::http::normalize::UpgradeRequested;
use crate::state::breaker::Overflow;
use crate::state::health::Verdict;
use crate::state::published::{ClusterEntry, ServedCluster};
use crate::state::table::EndpointEntry;
use crate::upstream::balance::{self, Wish};
use crate::upstream::failure::UpstreamFailure;
use crate::worker::Worker;

/// Bytes of a body that its copy may be behind; beyond, the copy is given up and counted.
const MIRROR_BYTES_MAX: u64 = 256 * 1024;
/// The longest that a copy may take when its route has no time limit.
const MIRROR_TIME_MAX: Duration = Duration::from_secs(300);

/// Sends the copies that a route asks for. The body is to be read in place of the one that came: the copies' bytes come from it.
/// `subset`: of the original, which a copy asks for as well (Envoy).
pub(super) fn start(
    run: &Run,
    parts: &request::Parts,
    body: Body,
    (forward, subset): (&Forward, &Labels),
    timeout: Option<Duration>,
) -> Body {
    // What follows an upgrade is no request.
    if forward.mirrors.is_empty() || parts.extensions.get::<UpgradeRequested>().is_some() {
        return body;
    }
    let mut copies = SmallVec::<[Writer; 2]>::new();
    for mirror in &forward.mirrors {
        if !mirror.share.includes(run.worker.draw()) {
            continue;
        }
        let Some(ClusterEntry::Served(cluster)) = run.worker.published.cluster(&mirror.cluster) else { continue };
        let counters = run.worker.with_telemetry(|telemetry| telemetry.mirrors.clone());
        let Ok(permit) = Arc::clone(&run.worker.mirrors).try_acquire_owned() else {
            counters.too_many.inc();
            continue;
        };
        let copied = if body.is_end_stream() {
            Body::empty()
        } else {
            let counted = Kept::new(&run.worker.costs, Owner::Mirrors);
            let (copy, copied) = copy_of(counters.clone(), counted, body.size_hint());
            copies.push(copy);
            Body::wrap(copied)
        };
        let request = Request::from_parts(head(mirror, parts, run.served.telemetry.tracing.as_ref()), copied);
        let (priority, subset) = (forward.priority, subset.clone());
        let copy = Copy { worker: Arc::clone(&run.worker), cluster, priority, subset, counters: counters.clone() };
        // A caller could keep copies for longer than its own request.
        let bound = if run.asked.is_some() { MIRROR_TIME_MAX } else { Duration::MAX };
        let limit = timeout.map_or(MIRROR_TIME_MAX, |timeout| timeout.min(bound));
        tokio::spawn(async move {
            copy.send(request, limit).await;
            drop(permit);
        });
    }
    if copies.is_empty() { body } else { Body::wrap(Original { body, copies }) }
}

/// The head of a copy.
fn head(mirror: &Mirror, parts: &request::Parts, tracing: Option<&Tracing>) -> request::Parts {
    let mut parts = parts.clone();
    parts.headers.remove(header::EXPECT);
    let host = match (&mirror.host, parts.headers.get(header::HOST)) {
        (Some(host), _) => Some(host.clone()),
        (None, Some(host)) if mirror.adds_suffix => with_suffix(host),
        _ => None,
    };
    if let Some(host) = host {
        parts.headers.insert(header::HOST, host);
    }
    if let Some(tracing) = tracing.filter(|_| mirror.is_unsampled) {
        telemetry::trace::unsample(tracing, &mut parts.headers);
    }
    parts
}

/// `web.shop:80` becomes `web.shop-shadow:80`.
fn with_suffix(host: &HeaderValue) -> Option<HeaderValue> {
    let text = host.to_str().ok()?;
    let (name, port) = filters::header_match::split_port(text);
    HeaderValue::try_from(format!("{name}-shadow{port}")).ok()
}

/// Where a copy goes.
struct Copy {
    worker: Arc<Worker>,
    cluster: Arc<ServedCluster>,
    priority: Priority,
    subset: Labels,
    counters: MirrorCounters,
}

impl Copy {
    /// Sends it and reads the answer to its end. Nobody waits for it, but the endpoint is judged by it (Envoy).
    async fn send(&self, request: Request<Body>, limit: Duration) {
        let deadline = Instant::now() + limit;
        let authority = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let Ok(Ok(host)) = timeout_at(deadline, balance::host_of(&self.cluster, authority)).await else { return };
        let wish = Wish { host: host.as_deref(), subset: &self.subset, ..Wish::default() };
        let Some(entry) = balance::choose(&self.cluster, &wish, || self.worker.draw()) else { return };
        let verdict = match timeout_at(deadline, self.exchange(request, &entry)).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(Overflow)) => return self.counters.overflow.inc(),
            Err(_elapsed) => Verdict::TimedOut,
        };
        self.cluster.note(&entry, verdict);
    }

    async fn exchange(&self, request: Request<Body>, entry: &EndpointEntry) -> Result<Verdict, Overflow> {
        let (response, holding) = match call::send(&*self.worker, (&self.cluster, entry), request, self.priority).await {
            Ok(sent) => sent,
            Err(UpstreamFailure::Overflow) => return Err(Overflow),
            Err(_) => return Ok(Verdict::NoAnswer),
        };
        let verdict = verdict_of(&response);
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                return Ok(Verdict::NoAnswer);
            }
        }
        holding.give_back(&*self.worker);
        Ok(verdict)
    }
}

enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

/// The writing side of a copied body.
struct Writer {
    pieces: UnboundedSender<Piece>,
    /// Bytes that were not read yet; bounds the pieces, of which none is empty.
    ahead: Arc<Kept>,
    counters: MirrorCounters,
}

/// The reading side.
struct Reader {
    pieces: UnboundedReceiver<Piece>,
    ahead: Arc<Kept>,
    /// Bytes to come, where the request says: the copy says it as well.
    left: Option<u64>,
    has_ended: bool,
}

fn copy_of(counters: MirrorCounters, counted: Kept, size: SizeHint) -> (Writer, Reader) {
    let (sender, pieces) = unbounded_channel();
    let ahead = Arc::new(counted);
    let writer = Writer { pieces: sender, ahead: Arc::clone(&ahead), counters };
    (writer, Reader { pieces, ahead, left: size.exact(), has_ended: false })
}

impl Writer {
    /// Whether the copy goes on.
    fn write(&self, frame: &Frame<Bytes>) -> bool {
        if let Some(trailers) = frame.trailers_ref() {
            return self.pieces.send(Piece::Trailers(trailers.clone())).is_ok();
        }
        let Some(data) = frame.data_ref().filter(|data| !data.is_empty()) else { return true };
        if self.ahead.add(data.len()) > MIRROR_BYTES_MAX {
            self.ahead.take(data.len());
            self.counters.too_slow.inc();
            return false;
        }
        self.pieces.send(Piece::Data(data.clone())).is_ok()
    }
}

/// A request's body that is copied as it is read.
struct Original {
    body: Body,
    copies: SmallVec<[Writer; 2]>,
}

impl HttpBody for Original {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => this.copies.retain(|copy| copy.write(frame)),
            // Dropped without an end, they break off.
            Some(Err(_)) => this.copies.clear(),
            None => {}
        }
        if frame.is_none() || this.body.is_end_stream() {
            for copy in this.copies.drain(..) {
                // A copy that was given up needs no end.
                drop(copy.pieces.send(Piece::End));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl HttpBody for Reader {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.pieces.poll_recv(context)) {
            Some(Piece::Data(data)) => {
                self.ahead.take(data.len());
                self.left = self.left.and_then(|left| left.checked_sub(u64::try_from(data.len()).ok()?));
                Some(Ok(Frame::data(data)))
            }
            Some(Piece::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Piece::End) => {
                self.has_ended = true;
                None
            }
            None => Some(Err(BodyError::Abandoned)),
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use http_body_util::StreamBody;
    use prometheus::IntCounter;
    use telemetry::costs::WorkerCosts;

    use super::*;

    fn uncounted() -> Kept {
        Kept::new(&WorkerCosts::unread(), Owner::Mirrors)
    }

    fn counters() -> MirrorCounters {
        let counter = || IntCounter::new("c", "c").unwrap();
        MirrorCounters { too_many: counter(), too_slow: counter(), overflow: counter() }
    }

    fn original(frames: Vec<Result<Frame<Bytes>, BodyError>>, copy: Writer) -> Original {
        let body = Body::wrap(StreamBody::new(futures_util::stream::iter(frames)));
        Original { body, copies: std::iter::once(copy).collect() }
    }

    #[tokio::test]
    async fn a_copy_has_the_bytes_and_trailers_of_its_request() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        let (copy, copied) = copy_of(counters(), uncounted(), SizeHint::with_exact(2));
        let frames = vec![Ok(Frame::data(Bytes::from_static(b"ab"))), Ok(Frame::trailers(trailers.clone()))];
        assert_eq!(original(frames, copy).collect().await.unwrap().to_bytes(), "ab");
        assert_eq!(copied.size_hint().exact(), Some(2), "it says its length as the request does");
        let copied = copied.collect().await.unwrap();
        assert_eq!(copied.trailers(), Some(&trailers));
        assert_eq!(copied.to_bytes(), "ab");
    }

    #[tokio::test]
    async fn a_copy_breaks_off_with_its_request_or_when_it_is_too_slow() {
        let (copy, copied) = copy_of(counters(), uncounted(), SizeHint::default());
        let broken = vec![Ok(Frame::data(Bytes::from_static(b"ab"))), Err(BodyError::Truncated)];
        assert!(original(broken, copy).collect().await.is_err());
        assert_eq!(copied.collect().await.err(), Some(BodyError::Abandoned));
        let counters = counters();
        let (copy, copied) = copy_of(counters.clone(), uncounted(), SizeHint::default());
        let chunk = || Ok(Frame::data(Bytes::from(vec![7; usize::try_from(MIRROR_BYTES_MAX / 2).unwrap() + 1])));
        assert!(original(vec![chunk(), chunk(), chunk()], copy).collect().await.is_ok());
        assert_eq!((copied.collect().await.err(), counters.too_slow.get()), (Some(BodyError::Abandoned), 1));
    }

    #[test]
    fn a_host_gets_its_suffix_before_the_port() {
        let suffixed = |host| with_suffix(&HeaderValue::from_static(host)).unwrap();
        assert_eq!(
            (suffixed("web.shop"), suffixed("web.shop:80")),
            ("web.shop-shadow".parse().unwrap(), "web.shop-shadow:80".parse().unwrap())
        );
        assert_eq!((suffixed("[::1]"), suffixed("[::1]:80")), ("[::1]-shadow".parse().unwrap(), "[::1]-shadow:80".parse().unwrap()));
    }
}
