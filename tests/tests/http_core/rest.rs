//! HTTP/1.1 connections that nobody uses: they let their codec go, and nobody who uses them again notices.

use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use waypoint::http::{Abort, Body, Exchange, HeadOptions, Interim, Malformed, Protocol, ServeError, ServerOptions, serve};

use crate::forward::{ClientEngine, Forward};
use crate::table::OK;
use crate::wire::PIPE_BYTES;

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
/// Longer than a connection is unused before it rests.
const LONG: Duration = Duration::from_secs(5);
/// How much later than told an idle connection may end.
const SLACK: Duration = Duration::from_secs(3);

/// Forwards. Its clones tell whether there is a codec: each has one.
#[derive(Clone)]
struct Counted(Forward, #[expect(dead_code, reason = "its clones are counted")] Arc<()>);

impl Exchange for Counted {
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
        self.0.exchange((), request, interim)
    }

    fn malformed(&self, protocol: Protocol, problem: &Malformed) {
        self.0.malformed(protocol, problem);
    }
}

struct Served {
    client: DuplexStream,
    upstreams: mpsc::UnboundedReceiver<DuplexStream>,
    drain: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), ServeError>>,
    shares: Arc<()>,
}

impl Served {
    fn new(idle_timeout: Option<Duration>) -> Self {
        Self::with(ServerOptions { idle_timeout, ..ServerOptions::default() })
    }

    fn with(options: ServerOptions) -> Self {
        let (forward, upstreams) = Forward::new(Protocol::Http1, ClientEngine::Hyper);
        let (client, ours) = duplex(PIPE_BYTES);
        let (drain, drained) = oneshot::channel::<()>();
        let shares = Arc::new(());
        let exchange = Counted(forward, Arc::clone(&shares));
        let ended = tokio::spawn(async move {
            let drain = async {
                if drained.await.is_err() {
                    pending::<()>().await;
                }
            };
            serve(ours, Protocol::Http1, exchange, &options, drain).await
        });
        Self { client, upstreams, drain, ended, shares }
    }

    /// The test has one share, whoever serves the connection another, and a codec the third.
    fn rests(&self) -> bool {
        Arc::strong_count(&self.shares) == 2
    }

    async fn send(&mut self, text: &str) {
        self.client.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads until what was read ends like this.
    async fn read_until(&mut self, end: &str) -> String {
        read_until(&mut self.client, end).await
    }

    /// Sends a request and answers it, on the upstream that is given or a new one.
    async fn exchange(&mut self, upstream: Option<DuplexStream>) -> DuplexStream {
        self.send(GET).await;
        let mut upstream = match upstream {
            Some(upstream) => upstream,
            None => self.upstreams.recv().await.unwrap(),
        };
        read_until(&mut upstream, "\r\n\r\n").await;
        upstream.write_all(OK.as_bytes()).await.unwrap();
        assert!(self.read_until("ok").await.starts_with("HTTP/1.1 200"));
        upstream
    }
}

async fn read_until(io: &mut DuplexStream, end: &str) -> String {
    let mut seen = Vec::new();
    while !seen.ends_with(end.as_bytes()) {
        assert_ne!(io.read_buf(&mut seen).await.unwrap(), 0, "ended after {:?}", String::from_utf8_lossy(&seen));
    }
    String::from_utf8(seen).unwrap()
}

#[tokio::test(start_paused = true)]
async fn connection_rests_between_requests_and_answers_the_next() {
    let mut served = Served::new(None);
    sleep(LONG).await;
    assert!(served.rests(), "before the first request");
    let mut upstream = None;
    for _ in 0..3 {
        upstream = Some(served.exchange(upstream).await);
        assert!(!served.rests(), "just used");
        sleep(LONG).await;
        assert!(served.rests(), "unused again");
    }
}

#[tokio::test(start_paused = true)]
async fn connection_with_a_request_does_not_rest_however_long_nothing_moves() {
    let mut served = Served::new(None);
    let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n12345";
    served.send(head).await;
    let mut upstream = served.upstreams.recv().await.unwrap();
    read_until(&mut upstream, "12345").await;
    sleep(LONG).await;
    assert!(!served.rests(), "inside a request's body");
    served.send("67890").await;
    read_until(&mut upstream, "67890").await;
    sleep(LONG).await;
    assert!(!served.rests(), "while it is answered");
    upstream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345").await.unwrap();
    served.read_until("12345").await;
    sleep(LONG).await;
    assert!(!served.rests(), "inside the answer");
    upstream.write_all(b"67890").await.unwrap();
    served.read_until("67890").await;
    sleep(LONG).await;
    assert!(served.rests());
}

#[tokio::test(start_paused = true)]
async fn answer_that_the_client_does_not_read_keeps_its_connection_from_resting() {
    let mut served = Served::new(None);
    served.send(GET).await;
    let mut upstream = served.upstreams.recv().await.unwrap();
    read_until(&mut upstream, "\r\n\r\n").await;
    // More than the pipe to the client holds, less than the codec does beside it.
    let n_bytes = PIPE_BYTES + 10_000;
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {n_bytes}\r\n\r\n{}!", "x".repeat(n_bytes - 1));
    upstream.write_all(answer.as_bytes()).await.unwrap();
    sleep(LONG).await;
    assert!(!served.rests());
    assert!(served.read_until("!").await.len() > n_bytes);
    sleep(LONG).await;
    assert!(served.rests());
}

#[tokio::test(start_paused = true)]
async fn upload_goes_on_behind_an_answer_that_is_complete() {
    let mut served = Served::new(None);
    served.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n12345").await;
    let mut upstream = served.upstreams.recv().await.unwrap();
    read_until(&mut upstream, "12345").await;
    upstream.write_all(OK.as_bytes()).await.unwrap();
    served.read_until("ok").await;
    sleep(LONG).await;
    assert!(!served.rests(), "its body is on the way");
}

#[tokio::test(start_paused = true)]
async fn head_in_pieces_arrives_whole_over_a_rest() {
    let mut served = Served::new(None);
    let (first, second) = GET.split_at(10);
    served.send(first).await;
    sleep(LONG).await;
    assert!(served.rests());
    served.send(second).await;
    let mut upstream = served.upstreams.recv().await.unwrap();
    assert!(read_until(&mut upstream, "\r\n\r\n").await.starts_with("GET / HTTP/1.1\r\n"));
    upstream.write_all(OK.as_bytes()).await.unwrap();
    served.read_until("ok").await;
}

#[tokio::test(start_paused = true)]
async fn client_that_sends_a_head_byte_by_byte_is_not_waited_for_without_end() {
    let idle_timeout = Duration::from_secs(60);
    let mut served = Served::new(Some(idle_timeout));
    let begin = Instant::now();
    let slow = async {
        for byte in GET.bytes().cycle().filter(|byte| *byte != b'\r' && *byte != b'\n') {
            if served.client.write_all(&[byte]).await.is_err() {
                break;
            }
            sleep(LONG).await;
        }
    };
    timeout(idle_timeout * 3, slow).await.expect("the client was cut off");
    assert!(matches!(served.ended.await.unwrap(), Err(ServeError::IdleTimeout)));
    assert!(begin.elapsed() < idle_timeout * 2 + LONG * 2, "{:?}", begin.elapsed());
}

/// One whose heads may take so long.
fn with_head_timeout(limit: Duration) -> Served {
    Served::with(ServerOptions { head_timeout: Some(limit), ..ServerOptions::default() })
}

#[tokio::test(start_paused = true)]
async fn head_that_begins_behind_a_rest_has_its_time_and_is_answered_when_it_is_over() {
    let limit = Duration::from_secs(10);
    let mut served = with_head_timeout(limit);
    let _upstream = served.exchange(None).await;
    sleep(limit * 3).await;
    assert!(served.rests(), "between requests there is no such limit");
    served.send("GET / HT").await;
    let begin = Instant::now();
    sleep(LONG).await;
    assert!(!served.rests(), "a head has begun");
    served.send("TP/1.1\r\n").await;
    assert!(served.read_until("request header timeout").await.starts_with("HTTP/1.1 408 "));
    assert!((limit..limit + SLACK).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    assert!(matches!(served.ended.await.unwrap(), Err(ServeError::Malformed(Malformed::HeadTimeout))));
}

#[tokio::test(start_paused = true)]
async fn an_empty_line_between_requests_begins_no_head() {
    let mut served = with_head_timeout(Duration::from_secs(10));
    let upstream = served.exchange(None).await;
    served.send("\r\n").await;
    sleep(LONG * 10).await;
    assert!(!served.ended.is_finished(), "nobody was told to hurry");
    let _upstream = served.exchange(Some(upstream)).await;
}

#[tokio::test(start_paused = true)]
async fn answer_that_the_client_does_not_read_is_cut_and_not_mixed_with_that_of_a_late_head() {
    let mut served = with_head_timeout(Duration::from_secs(10));
    served.send(GET).await;
    let mut upstream = served.upstreams.recv().await.unwrap();
    read_until(&mut upstream, "\r\n\r\n").await;
    let n_bytes = PIPE_BYTES + 10_000;
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {n_bytes}\r\n\r\n{}", "x".repeat(n_bytes));
    upstream.write_all(answer.as_bytes()).await.unwrap();
    sleep(LONG).await;
    served.send("GET / HT").await;
    sleep(LONG * 6).await;
    let mut heard = Vec::new();
    let _end = timeout(LONG, served.client.read_to_end(&mut heard)).await;
    assert!(!String::from_utf8_lossy(&heard).contains("408"), "the rest of the answer would be made of it");
}

#[tokio::test(start_paused = true)]
async fn limit_of_an_idle_connection_holds_while_it_rests() {
    let idle_timeout = Duration::from_secs(60);
    let mut served = Served::new(Some(idle_timeout));
    sleep(LONG * 3).await;
    let _upstream = served.exchange(None).await;
    let begin = Instant::now();
    assert!(matches!(served.ended.await.unwrap(), Err(ServeError::IdleTimeout)));
    assert!((idle_timeout..idle_timeout + SLACK).contains(&begin.elapsed()), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn connection_does_not_rest_right_behind_a_long_request() {
    for milliseconds in (3_000..7_000).step_by(50) {
        let limit = Duration::from_secs(10);
        let mut served = Served::new(Some(limit));
        served.send(GET).await;
        let mut upstream = served.upstreams.recv().await.unwrap();
        read_until(&mut upstream, "\r\n\r\n").await;
        sleep(Duration::from_millis(milliseconds)).await;
        upstream.write_all(OK.as_bytes()).await.unwrap();
        served.read_until("ok").await;
        let ended = Instant::now();
        sleep(Duration::from_millis(1_990)).await;
        assert!(!served.rests(), "{milliseconds}");
        assert!(matches!(served.ended.await.unwrap(), Err(ServeError::IdleTimeout)));
        assert!((limit..limit + SLACK).contains(&ended.elapsed()), "{milliseconds}: {:?}", ended.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn drain_and_clients_that_leave_end_a_resting_connection() {
    let mut drained = Served::new(None);
    sleep(LONG).await;
    assert!(drained.rests());
    drained.drain.send(()).unwrap();
    assert_eq!(drained.client.read(&mut [0]).await.unwrap(), 0);
    drained.ended.await.unwrap().unwrap();

    let mut half_closed = Served::new(None);
    sleep(LONG).await;
    half_closed.client.shutdown().await.unwrap();
    assert_eq!(half_closed.client.read(&mut [0]).await.unwrap(), 0);
    half_closed.ended.await.unwrap().unwrap();

    let cut = Served::new(None);
    let mut cut = (cut.client, cut.ended, cut.drain);
    cut.0.write_all(b"GET / HT").await.unwrap();
    sleep(LONG).await;
    drop(cut.0);
    assert!(matches!(cut.1.await.unwrap(), Err(ServeError::ClientGone)), "inside a head");
}
