//! The gatherer over scripted I/O, without sockets and without a runtime.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::VecDeque;
use std::task::Waker;

use tokio::io::AsyncWriteExt;

use super::*;

/// What the socket does with one write.
enum Step {
    Take(usize),
    Full,
    Fail(io::ErrorKind),
}

/// Follows the script, and takes all after it.
#[derive(Default)]
struct Socket {
    script: VecDeque<Step>,
    writes: Vec<Vec<u8>>,
    shut: bool,
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, rustls::Error::NoCertificatesPresented)))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.script.pop_front().unwrap_or(Step::Take(usize::MAX)) {
            Step::Take(most) => {
                let taken = bytes.len().min(most);
                self.writes.push(bytes[..taken].to_vec());
                Poll::Ready(Ok(taken))
            }
            Step::Full => Poll::Pending,
            Step::Fail(kind) => Poll::Ready(Err(kind.into())),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut = true;
        Poll::Ready(Ok(()))
    }
}

fn gatherer(script: impl IntoIterator<Item = Step>) -> (Coalesce<Socket>, Outlet<Socket>) {
    coalesce(Socket { script: script.into_iter().collect(), ..Socket::default() })
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn written(outlet: &Outlet<Socket>) -> Vec<Vec<u8>> {
    outlet.0.lock().io.writes.clone()
}

#[test]
fn all_writes_of_a_turn_leave_as_one() {
    let (mut stream, outlet) = gatherer([]);
    assert!(matches!(Pin::new(&mut stream).poll_write(&mut cx(), b"head"), Poll::Ready(Ok(4))));
    let slices = [io::IoSlice::new(b" of"), io::IoSlice::new(b" a"), io::IoSlice::new(b" frame")];
    assert!(matches!(Pin::new(&mut stream).poll_write_vectored(&mut cx(), &slices), Poll::Ready(Ok(11))));
    assert!(Pin::new(&mut stream).poll_flush(&mut cx()).is_ready());
    assert!(written(&outlet).is_empty(), "a flush in the middle of a turn writes nothing");
    assert!(matches!(outlet.poll_out(&mut cx()), Poll::Ready(Ok(()))));
    assert_eq!(written(&outlet), [b"head of a frame".to_vec()]);
}

#[test]
fn a_full_socket_gets_the_rest_later_and_in_order() {
    let (mut stream, outlet) = gatherer([Step::Take(3), Step::Full]);
    assert!(Pin::new(&mut stream).poll_write(&mut cx(), b"abcdef").is_ready());
    assert!(outlet.poll_out(&mut cx()).is_pending());
    assert!(Pin::new(&mut stream).poll_write(&mut cx(), b"ghi").is_ready());
    assert!(outlet.poll_out(&mut cx()).is_ready());
    assert_eq!(written(&outlet).concat(), b"abcdefghi");
}

#[test]
fn no_more_is_gathered_than_the_bound() {
    let (mut stream, outlet) = gatherer([Step::Full, Step::Full]);
    let large = vec![7; GATHERED_BYTES_MAX + 1];
    assert!(matches!(Pin::new(&mut stream).poll_write(&mut cx(), &large), Poll::Ready(Ok(GATHERED_BYTES_MAX))));
    assert!(Pin::new(&mut stream).poll_write(&mut cx(), b"x").is_pending());
    let slices = [io::IoSlice::new(b"x")];
    assert!(Pin::new(&mut stream).poll_write_vectored(&mut cx(), &slices).is_pending());
    assert_eq!(outlet.0.lock().waiting_bytes(), GATHERED_BYTES_MAX);
    assert!(matches!(Pin::new(&mut stream).poll_write(&mut cx(), b"x"), Poll::Ready(Ok(1))), "the socket has room again");
}

#[test]
fn memory_of_a_burst_is_given_back_when_it_has_left() {
    let (mut stream, outlet) = gatherer([Step::Take(1000), Step::Full]);
    assert!(Pin::new(&mut stream).poll_write(&mut cx(), &vec![7; GATHERED_BYTES_MAX]).is_ready());
    assert!(outlet.poll_out(&mut cx()).is_pending());
    assert!(Pin::new(&mut stream).poll_write(&mut cx(), &vec![7; 1000]).is_ready(), "as much as has left");
    assert_eq!(outlet.0.lock().out.capacity(), GATHERED_BYTES_MAX, "what has left takes no room");
    assert!(outlet.poll_out(&mut cx()).is_ready());
    assert_eq!(outlet.0.lock().out.capacity(), 0, "no other turn may come");
    for _ in 0..2 {
        assert!(Pin::new(&mut stream).poll_write(&mut cx(), b"ping").is_ready());
        assert!(outlet.poll_out(&mut cx()).is_ready());
    }
    assert_eq!(outlet.0.lock().out.capacity(), GATHER_BYTES_KEPT);
}

#[test]
fn an_error_of_the_socket_ends_the_turn_whatever_the_connection_says() {
    let (mut stream, outlet) = gatherer([Step::Fail(io::ErrorKind::BrokenPipe)]);
    assert!(Pin::new(&mut stream).poll_write(&mut cx(), b"abc").is_ready());
    let turn = outlet.end_turn(&mut cx(), Poll::Ready(()));
    assert!(matches!(turn, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe));
    assert_eq!(outlet.failure().get().unwrap().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_socket_that_takes_nothing_is_an_error() {
    let (mut stream, outlet) = gatherer([Step::Take(0)]);
    assert!(Pin::new(&mut stream).poll_write(&mut cx(), b"abc").is_ready());
    assert!(matches!(outlet.poll_out(&mut cx()), Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::WriteZero));
}

#[tokio::test]
async fn shutting_down_sends_what_is_left_first() {
    let (mut stream, outlet) = gatherer([Step::Take(1)]);
    stream.write_all(b"goaway").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(written(&outlet).concat(), b"goaway");
    assert!(outlet.0.lock().io.shut);
}

#[test]
fn what_tls_said_is_kept_for_whoever_asks_why() {
    let (mut stream, outlet) = gatherer([]);
    let mut byte = [0];
    assert!(Pin::new(&mut stream).poll_read(&mut cx(), &mut ReadBuf::new(&mut byte)).is_ready());
    let failure = outlet.failure();
    let cause = crate::tls::rustls_cause(failure.get().unwrap());
    assert_eq!(cause, Some(&rustls::Error::NoCertificatesPresented));
}

/// Counts the writes that reach the stream below.
pub(crate) struct Counting {
    pub(crate) io: tokio::io::DuplexStream,
    pub(crate) writes: Arc<std::sync::atomic::AtomicUsize>,
}

impl AsyncRead for Counting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn answers_of_many_streams_in_one_turn_leave_in_one_write() {
    const STREAMS: usize = 48;
    let (near, far) = tokio::io::duplex(1024 * 1024);
    let writes = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (gathered, outlet) = coalesce(Counting { io: far, writes: Arc::clone(&writes) });
    let server = async {
        let mut connection = outlet.drive(h2::server::handshake(gathered)).await.unwrap().unwrap();
        let mut waiting = Vec::new();
        let before = loop {
            let turn = std::future::poll_fn(|cx| {
                let turn = connection.poll_accept(cx);
                outlet.end_turn(cx, turn)
            });
            waiting.push(turn.await.unwrap().unwrap().unwrap().1);
            if waiting.len() == STREAMS {
                break writes.load(std::sync::atomic::Ordering::Relaxed);
            }
        };
        for mut respond in waiting {
            let mut body = respond.send_response(http::Response::new(()), false).unwrap();
            body.send_data(bytes::Bytes::from(vec![7; 1024]), true).unwrap();
        }
        let after = std::future::poll_fn(|cx| {
            let _ = connection.poll_accept(cx).map(drop);
            outlet.poll_out(cx).map(|sent| {
                sent.unwrap();
                writes.load(std::sync::atomic::Ordering::Relaxed)
            })
        });
        let sent = after.await - before;
        (connection, sent)
    };
    let client = async {
        let (mut send, connection) = h2::client::handshake(near).await.unwrap();
        tokio::spawn(connection);
        let responses: Vec<_> = (0..STREAMS).map(|_| send.send_request(http::Request::new(()), true).unwrap().0).collect();
        for response in responses {
            let _ = response.await;
        }
    };
    let exchange = async {
        tokio::select! {
            (connection, sent) = server => { drop(connection); sent }
            () = client => panic!("the client cannot be done before the server"),
        }
    };
    let sent = tokio::time::timeout(std::time::Duration::from_secs(10), exchange).await.unwrap();
    assert_eq!(sent, 1);
}
