//! Accepting TCP connections without spinning when the system has no room for one.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

/// Pause after a failed accept (out of file descriptors, say).
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// The next connection, without Nagle's delay; `None`, after a pause and a line on stderr, if there was none to be had.
pub async fn next(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    match listener.accept().await.and_then(|(tcp, peer)| tcp.set_nodelay(true).map(|()| (tcp, peer))) {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            eprintln!("accept: {error}");
            tokio::time::sleep(RETRY_DELAY).await;
            None
        }
    }
}
