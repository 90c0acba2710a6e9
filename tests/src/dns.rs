//! A name server that a test holds in its hand: A and AAAA over UDP, written by hand so that it knows nothing of the waypoint's resolver.
//!
//! Not for: anything else of DNS. Names that were not set do not exist. Invariant: every question is counted.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
const HEADER_BYTES: usize = 12;
const MESSAGE_BYTES_MAX: usize = 4096;

/// What is answered for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Addresses, and how many seconds they hold.
    Addresses(Vec<IpAddr>, u32),
    /// SERVFAIL.
    Failure,
    /// Nothing at all.
    Silence,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<String, Entry>,
    questions: BTreeMap<String, u64>,
}

/// A running name server.
#[derive(Debug)]
pub struct NameServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    serving: JoinHandle<()>,
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NameServer {
    /// Listens.
    pub async fn start(address: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind(address).await.with_context(|| format!("a name server on {address}"))?;
        let address = socket.local_addr()?;
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let serving = tokio::spawn(async move {
            let mut message = vec![0; MESSAGE_BYTES_MAX];
            while let Ok((n_bytes, from)) = socket.recv_from(&mut message).await {
                // What is no question gets no answer.
                if let Some(answer) = answer(&shared, &message[..n_bytes]) {
                    drop(socket.send_to(&answer, from).await);
                }
            }
        });
        Ok(Self { address, state, serving })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on this is answered.
    pub fn set(&self, name: &str, entry: Entry) {
        lock(&self.state).entries.insert(name.to_owned(), entry);
    }

    /// From now on the name does not exist.
    pub fn remove(&self, name: &str) {
        lock(&self.state).entries.remove(name);
    }

    /// How often a name was asked for.
    #[must_use]
    pub fn questions(&self, name: &str) -> u64 {
        lock(&self.state).questions.get(name).copied().unwrap_or(0)
    }
}

/// RFC 1035 §4.1: the header, the question, records that point at its name.
fn answer(state: &Mutex<State>, query: &[u8]) -> Option<Vec<u8>> {
    let mut at = HEADER_BYTES;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let number = |at: usize| Some(u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]));
    let kind = number(at)?;
    let question = query.get(HEADER_BYTES..at + 4)?;
    let name = labels.join(".");
    let mut state = lock(state);
    *state.questions.entry(name.clone()).or_default() += 1;
    let (code, addresses, seconds) = match state.entries.get(&name) {
        None => (3, Vec::new(), 0),
        Some(Entry::Failure) => (2, Vec::new(), 0),
        Some(Entry::Silence) => return None,
        Some(Entry::Addresses(addresses, seconds)) => {
            let is_wanted = |one: &&IpAddr| (kind == TYPE_A && one.is_ipv4()) || (kind == TYPE_AAAA && one.is_ipv6());
            (0, addresses.iter().filter(is_wanted).copied().collect(), *seconds)
        }
    };
    let mut message = query.get(..2)?.to_vec();
    // An authoritative answer; recursion was desired and is available.
    message.extend([0x85, 0x80 | code, 0, 1, 0, u8::try_from(addresses.len()).ok()?, 0, 0, 0, 0]);
    message.extend_from_slice(question);
    for address in addresses {
        let (kind, data) = match address {
            IpAddr::V4(address) => (TYPE_A, address.octets().to_vec()),
            IpAddr::V6(address) => (TYPE_AAAA, address.octets().to_vec()),
        };
        message.extend([0xc0, 0x0c]);
        message.extend(kind.to_be_bytes());
        message.extend(CLASS_IN.to_be_bytes());
        message.extend(seconds.to_be_bytes());
        message.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        message.extend(data);
    }
    Some(message)
}
