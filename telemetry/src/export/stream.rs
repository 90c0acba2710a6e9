//! A stream of gRPC that a collector reads for as long as it can: Envoy's access log service.
//!
//! Not for: calls that are answered one by one ([`super::call`]). Source: `envoy.service.accesslog.v3`. Nothing of it is confirmed: a
//! batch counts as exported once the connection has taken it. Invariants: the first message of each stream says who sends; a stream
//! that ended is opened again after a pause, and what it had not taken goes over the next one.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use http::uri::PathAndQuery;
use model::collector::Collector;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, sleep_until};
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::call::{Encoded, channel};
use super::payload::{Entries, Payload};
use super::queue::{Batch, Queue};
use super::{BuildError, COMPLAINT_INTERVAL, CollectorConnector};

/// The pause before a stream is opened again: it doubles, with up to half of it more by chance, until one takes something.
const REOPEN_DELAY_FIRST: Duration = Duration::from_millis(100);
const REOPEN_DELAY_MAX: Duration = Duration::from_secs(10);
/// Batches between the queue and the connection.
const BATCHES_AHEAD: usize = 1;

/// A collector that reads streams.
pub(super) struct Streamer {
    client: Grpc<Channel>,
    metadata: MetadataMap,
    entries: Arc<Entries>,
    cluster: Arc<str>,
}

/// Why a stream ended before it was to.
struct Broken {
    error: Status,
    took_any: bool,
}

impl Streamer {
    pub(super) fn new(collector: &Collector, entries: Entries, connector: Arc<dyn CollectorConnector>) -> Result<Self, BuildError> {
        Ok(Self {
            // A stream lasts as long as it can.
            client: Grpc::new(channel(collector, None, connector)?),
            metadata: MetadataMap::from_headers(collector.headers.iter().cloned().collect()),
            entries: Arc::new(entries),
            cluster: Arc::clone(&collector.cluster),
        })
    }

    /// Streams what the queue holds, until it is asked to stop and empty.
    pub(super) async fn run(self, queue: &Queue, mut tick: Interval) {
        let mut delay = REOPEN_DELAY_FIRST;
        let mut complained: Option<Instant> = None;
        let mut held = VecDeque::new();
        loop {
            if held.is_empty() {
                match next(queue, &mut tick).await {
                    Some(batch) => held.push_back(batch),
                    None => return,
                }
            }
            let Some(broken) = self.stream(&mut held, queue, &mut tick).await else { return };
            if complained.is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL) {
                complained = Some(Instant::now());
                tracing::warn!(cluster = %self.cluster, error = %broken.error, "the stream of an access log service ended");
            }
            if broken.took_any {
                delay = REOPEN_DELAY_FIRST;
            }
            if !pause(delay, queue).await {
                // What is held counts as lost.
                return;
            }
            delay = (delay * 2).min(REOPEN_DELAY_MAX);
        }
    }

    /// One stream; none if everything was sent, and the exporter is to end. What it had not taken is held again.
    async fn stream(&self, held: &mut VecDeque<Batch>, queue: &Queue, tick: &mut Interval) -> Option<Broken> {
        let (batches, ahead) = mpsc::channel(BATCHES_AHEAD);
        let ahead = Arc::new(Mutex::new(Ahead { batches: ahead, took_any: false }));
        let feed = Feed { ahead: Arc::clone(&ahead), entries: Arc::clone(&self.entries) };
        let mut call = std::pin::pin!(self.call(feed));
        loop {
            tokio::select! {
                error = &mut call => {
                    let mut ahead = ahead.lock();
                    held.extend(ahead.batches.try_recv());
                    return Some(Broken { error, took_any: ahead.took_any });
                }
                fed = fill(&batches, held, queue, tick) => if !fed { break },
            }
        }
        drop(batches);
        let _last_words = call.await;
        None
    }

    /// Opens a stream of what is fed, and says why it ended.
    async fn call(&self, feed: Feed) -> Status {
        let mut client = self.client.clone();
        if let Err(error) = client.ready().await {
            return Status::unavailable(error.to_string());
        }
        let mut request = Request::new(feed);
        request.metadata_mut().clone_from(&self.metadata);
        let path = PathAndQuery::from_static("/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs");
        match client.client_streaming(request, path, Encoded).await {
            Ok(_) => Status::unavailable("the collector has ended it"),
            Err(status) => status,
        }
    }
}

/// The next batch; none if there will be no more.
///
/// # Cancel safety
/// Safe.
async fn next(queue: &Queue, tick: &mut Interval) -> Option<Batch> {
    let mut is_flushing = false;
    loop {
        let is_stopping = queue.is_stopping();
        if let Some(batch) = queue.pop(is_flushing || is_stopping) {
            return Some(batch);
        }
        if is_stopping {
            return None;
        }
        is_flushing = tokio::select! {
            () = queue.woken() => false,
            _ = tick.tick() => true,
        };
    }
}

/// Hands the next batch to the stream, once it has a place for one; false if there will be no more.
///
/// # Cancel safety
/// Safe.
async fn fill(batches: &mpsc::Sender<Batch>, held: &mut VecDeque<Batch>, queue: &Queue, tick: &mut Interval) -> bool {
    let Ok(place) = batches.reserve().await else {
        // The stream has ended, as its call will say.
        return std::future::pending().await;
    };
    let batch = match held.pop_front() {
        Some(batch) => batch,
        None => match next(queue, tick).await {
            Some(batch) => batch,
            None => return false,
        },
    };
    place.send(batch);
    true
}

/// Waits; false if the exporter is to end.
async fn pause(delay: Duration, queue: &Queue) -> bool {
    let until = Instant::now() + delay + delay.mul_f64(fastrand::f64() / 2.0);
    loop {
        if queue.is_stopping() {
            return false;
        }
        tokio::select! {
            () = sleep_until(until) => return true,
            // By a full batch, or by the end.
            () = queue.woken() => {}
        }
    }
}

/// What a stream may take.
struct Ahead {
    batches: mpsc::Receiver<Batch>,
    took_any: bool,
}

/// The messages of a stream.
struct Feed {
    ahead: Arc<Mutex<Ahead>>,
    entries: Arc<Entries>,
}

impl Stream for Feed {
    type Item = Payload;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Payload>> {
        let mut ahead = self.ahead.lock();
        let Some(mut batch) = ready!(ahead.batches.poll_recv(cx)) else { return Poll::Ready(None) };
        let is_first = !std::mem::replace(&mut ahead.took_any, true);
        let payload = self.entries.around(batch.bytes(), is_first);
        batch.exported(0);
        Poll::Ready(Some(payload))
    }
}

#[cfg(test)]
mod tests;
