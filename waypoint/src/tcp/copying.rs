//! The bytes of one connection, copied both ways, and for how long nothing has moved.
//!
//! Not for: what is looked for in them, or recorded. Invariant: a move is noted without a timer being set anew; whoever waits for silence
//! wakes when it would be over if nothing moved, and goes on for what is left.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

/// Bytes buffered each way of one connection.
const COPY_BYTES: usize = 16 * 1024;

/// When a connection last moved.
#[derive(Debug)]
pub(super) struct Moves {
    began: Instant,
    /// Since then.
    last_nanos: AtomicU64,
}

impl Moves {
    /// Of a connection that begins now.
    pub(super) fn begin() -> Self {
        Self { began: Instant::now(), last_nanos: AtomicU64::new(0) }
    }

    fn note(&self) {
        // Of 584 years.
        let nanos = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last_nanos.store(nanos, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.began + Duration::from_nanos(self.last_nanos.load(Ordering::Relaxed))
    }

    /// Ends once nothing has moved for `limit`; never if there is none.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn silence(&self, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        loop {
            let over = self.last() + limit;
            if Instant::now() >= over {
                return;
            }
            tokio::time::sleep_until(over).await;
        }
    }
}

/// Which side failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Endpoint,
}

/// What is known of one direction: how many bytes have passed, when any moved, and whose failures reading and writing are.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub count: &'a AtomicU64,
    pub moves: &'a Moves,
    pub sides: (Side, Side),
}

/// Copies until the reader ends, then ends the writer. `look` sees all before it passes, and may end it.
///
/// # Errors
/// Who failed.
pub(super) async fn copy<R, W>(mut reader: R, mut writer: W, way: Way<'_>, mut look: impl FnMut(&[u8]) -> bool) -> Result<(), Side>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (of_reader, of_writer) = way.sides;
    let mut buffer = BytesMut::with_capacity(COPY_BYTES);
    loop {
        buffer.clear();
        let read = reader.read_buf(&mut buffer).await.map_err(|_| of_reader)?;
        if read == 0 {
            return writer.shutdown().await.map_err(|_| of_writer);
        }
        // Both its coming and its going count: between them the writer may be waited for.
        way.moves.note();
        if !look(&buffer) {
            return Err(of_reader);
        }
        writer.write_all(&buffer).await.map_err(|_| of_writer)?;
        writer.flush().await.map_err(|_| of_writer)?;
        way.moves.note();
        way.count.fetch_add(u64::try_from(read).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use tokio::io::duplex;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn way<'a>(count: &'a AtomicU64, moves: &'a Moves) -> Way<'a> {
        Way { count, moves, sides: (Side::Client, Side::Endpoint) }
    }

    /// When a connection ends whose client says something after each of these pauses.
    async fn ends_after(pauses: &[u64]) -> Duration {
        let ((mut client, ours), (theirs, mut endpoint)) = (duplex(64), duplex(64));
        let (count, moves, began) = (AtomicU64::new(0), Moves::begin(), Instant::now());
        let talk = async {
            for pause in pauses {
                tokio::time::sleep(Duration::from_millis(*pause)).await;
                client.write_all(b"x").await.unwrap();
                endpoint.read_u8().await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = moves.silence(Some(LIMIT)) => {}
            _ = copy(ours, theirs, way(&count, &moves), |_| true) => {}
            () = talk => {}
        }
        began.elapsed()
    }

    /// Timers may be a tick late.
    fn is_about(found: Duration, expected_ms: u64) -> bool {
        let expected = Duration::from_millis(expected_ms);
        found >= expected && found <= expected + Duration::from_millis(2)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_from_its_last_byte_on() {
        for (pauses, expected_ms) in [(&[][..], 10_000), (&[1], 10_001), (&[9_990], 19_990), (&[4_000, 7_000, 9_000], 30_000)] {
            let ended = ends_after(pauses).await;
            assert!(is_about(ended, expected_ms), "{pauses:?}: {ended:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_that_can_leave_only_later_has_moved_then() {
        let ((mut client, ours), (theirs, mut endpoint)) = (duplex(64), duplex(1));
        let (count, moves, began) = (AtomicU64::new(0), Moves::begin(), Instant::now());
        let talk = async {
            client.write_all(b"xy").await.unwrap();
            tokio::time::sleep(Duration::from_secs(6)).await;
            let mut heard = [0; 2];
            endpoint.read_exact(&mut heard).await.unwrap();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = moves.silence(Some(LIMIT)) => {}
            _ = copy(ours, theirs, way(&count, &moves), |_| true) => {}
            () = talk => {}
        }
        assert!(is_about(began.elapsed(), 16_000), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_silence_has_no_end() {
        let moves = Moves::begin();
        assert!(tokio::time::timeout(Duration::from_secs(1_000_000), moves.silence(None)).await.is_err());
    }
}
