//! A connection to one of several addresses of one endpoint: the first that answers (happy eyeballs, RFC 8305).
//!
//! Not for: choosing endpoints, or the time that all of it may take. Invariants: an address is tried once; where there is one only, nothing is
//! added to a connect; what has not answered when another has is let go.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How long an address is waited for alone before the next is tried beside it; Envoy's.
const ATTEMPT_DELAY: Duration = Duration::from_millis(300);

/// Connects.
///
/// # Errors
/// That of the last address that failed, all having done so.
///
/// # Cancel safety
/// Safe: what was begun is let go.
pub(super) async fn connect(first: SocketAddr, others: &[SocketAddr]) -> io::Result<TcpStream> {
    if others.is_empty() {
        return TcpStream::connect(first).await;
    }
    let mut waiting = in_turns(first, others).into_iter();
    let mut trying = JoinSet::new();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        match waiting.next() {
            Some(address) => {
                trying.spawn(TcpStream::connect(address));
            }
            None if trying.is_empty() => return Err(failure),
            None => {}
        }
        let is_last = waiting.len() == 0;
        tokio::select! {
            biased;
            Some(tried) = trying.join_next() => match tried {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failure = error,
                Err(error) => failure = io::Error::other(error),
            },
            () = tokio::time::sleep(ATTEMPT_DELAY), if !is_last => {}
        }
    }
}

/// Families take turns, that of the first address first; within one the order stays.
fn in_turns(first: SocketAddr, others: &[SocketAddr]) -> Vec<SocketAddr> {
    let all = || std::iter::once(&first).chain(others).copied();
    let mut same = all().filter(|address| address.is_ipv4() == first.is_ipv4());
    let mut other = all().filter(|address| address.is_ipv4() != first.is_ipv4());
    let mut turns = Vec::with_capacity(others.len() + 1);
    loop {
        let before = turns.len();
        turns.extend(same.next());
        turns.extend(other.next());
        if turns.len() == before {
            return turns;
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn families_take_turns() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let others = addresses(&["10.0.0.2:80", "10.0.0.3:80", "[fd00::1]:80", "[fd00::2]:80"]);
        let expected = ["10.0.0.1:80", "[fd00::1]:80", "10.0.0.2:80", "[fd00::2]:80", "10.0.0.3:80"];
        assert_eq!(in_turns("10.0.0.1:80".parse().unwrap(), &others), addresses(&expected));
        let six = addresses(&["[fd00::1]:80", "10.0.0.1:80"]);
        assert_eq!(in_turns(six[0], &six[1..]), six);
    }

    #[tokio::test]
    async fn the_last_refusal_is_told_when_none_answers() {
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = connect(free(), &[free(), free()]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
