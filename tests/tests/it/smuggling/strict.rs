//! Reads HTTP/1.1 as the strictest of readers does, and the application that is such a reader.
//!
//! Invariant: a message that two readers could read differently has a problem, by which it equals nothing that a test expects.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use tests::frames;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The first head that our client side opens a stream with.
const HEADERS_FRAME: u8 = 1;

/// A request or an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
    pub is_whole: bool,
    /// Why it could be read in another way.
    problem: Option<&'static str>,
}

impl Message {
    /// All values of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    }

    /// Of an answer.
    pub fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// A request: method, target, host, and its body if there is one; what is this test's of its headers, and what is wrong.
    pub fn told(&self) -> String {
        let mut words = self.line.split(' ');
        let mut told = format!("{} {} {}", words.next().unwrap_or_default(), words.next().unwrap_or_default(), self.all("host").join("+"));
        if !self.body.is_empty() {
            told += &format!(" [{}]", self.body);
        }
        told + &self.more()
    }

    /// An answer: status, and its body, if it is not made by a proxy.
    pub fn answered(&self) -> String {
        if !self.is_whole {
            return "cut".to_owned();
        }
        let body = if self.body.is_empty() || self.status() >= 500 { String::new() } else { format!(" [{}]", self.body) };
        format!("{}{body}{}", self.status(), self.more())
    }

    fn more(&self) -> String {
        let is_shown = |name: &str| name.starts_with("x-t") || name == "cookie";
        let headers = self.headers.iter().filter(|(name, _)| is_shown(name)).map(|(name, value)| format!(" {name}={value}"));
        headers.chain(self.problem.map(|problem| format!(" !{problem}"))).collect()
    }
}

/// Whose messages are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Requests,
    /// Of requests with this method; `has_ended`: nothing more will come.
    Answers {
        to_head: bool,
        has_ended: bool,
    },
}

/// All messages in these bytes; the last may not be whole.
pub fn read(mut bytes: &[u8], side: Side) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some((message, rest)) = message(bytes, side) {
        messages.push(message);
        bytes = rest;
    }
    messages
}

/// All answers that a client read up to the end of its connection. `to_head`: the first is to a HEAD.
pub fn answers(bytes: &[u8], to_head: bool) -> Vec<String> {
    let Some((first, rest)) = message(bytes, Side::Answers { to_head, has_ended: true }) else { return vec!["cut".to_owned()] };
    let others = read(rest, Side::Answers { to_head: false, has_ended: true });
    std::iter::once(first).chain(others).map(|answer| answer.answered()).collect()
}

fn message(bytes: &[u8], side: Side) -> Option<(Message, &[u8])> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let rest = &bytes[end + 4..];
    let mut problem = head.replace("\r\n", "").contains(['\r', '\n', '\0']).then_some("bare CR, LF or NUL");
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default().to_owned();
    let mut headers = Vec::new();
    for field in lines {
        match field.split_once(':') {
            Some((name, value)) if !name.is_empty() && !name.contains([' ', '\t']) => {
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
            _ => problem = Some("no field"),
        }
    }
    let mut message = Message { line, headers, body: String::new(), is_whole: true, problem };
    let (codings, lengths) = (message.all("transfer-encoding"), message.all("content-length"));
    let is_bodyless = match side {
        Side::Requests => false,
        Side::Answers { to_head, .. } => to_head || matches!(message.status(), 100..=199 | 204 | 304),
    };
    let (body, rest) = match (&codings[..], &lengths[..], side) {
        ([], [], Side::Requests) => (Some(Vec::new()), rest),
        _ if is_bodyless => (Some(Vec::new()), rest),
        (["chunked"], [], _) => chunks(rest),
        ([], [length], _) => match length.parse::<usize>().ok() {
            Some(length) if rest.len() >= length => (Some(rest[..length].to_vec()), &rest[length..]),
            _ => (None, &rest[rest.len()..]),
        },
        ([], [], Side::Answers { has_ended, .. }) => (has_ended.then(|| rest.to_vec()), &rest[rest.len()..]),
        _ => {
            message.problem = Some("its framing");
            (Some(Vec::new()), rest)
        }
    };
    message.is_whole = body.is_some();
    message.body = String::from_utf8_lossy(&body.unwrap_or_default()).into_owned();
    Some((message, rest))
}

/// A chunked body without its trailers, if all of it is there.
fn chunks(mut bytes: &[u8]) -> (Option<Vec<u8>>, &[u8]) {
    let mut body = Vec::new();
    let nothing = &bytes[bytes.len()..];
    loop {
        let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") else { return (None, nothing) };
        let size = std::str::from_utf8(&bytes[..end]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        bytes = &bytes[end + 2..];
        match size {
            Some(0) => break,
            Some(size) if bytes.get(size..size + 2) == Some(b"\r\n") => {
                body.extend_from_slice(&bytes[..size]);
                bytes = &bytes[size + 2..];
            }
            _ => return (None, nothing),
        }
    }
    // Trailers, up to an empty line.
    loop {
        let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") else { return (None, nothing) };
        bytes = &bytes[end + 2..];
        if end == 0 {
            return (Some(body), bytes);
        }
    }
}

/// What the application says to the next request, and whether it ends its connection then.
pub type Script = Option<(Vec<u8>, bool)>;

/// An application that reads strictly, keeps what it reads, and answers what it is told.
#[derive(Debug)]
pub struct Application {
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    script: Mutex<Script>,
    heard: Mutex<Vec<String>>,
}

impl Drop for Application {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Application {
    pub async fn start(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| address.to_string())?;
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                tokio::spawn(async move {
                    // What a proxy does with its connection is what is looked at.
                    drop(serve(tcp, &state).await);
                });
            }
        });
        Ok(Self { state, accepting })
    }

    /// What it says from now on.
    pub fn says(&self, script: Script) {
        *lock(&self.state.script) = script;
    }

    /// All whole requests so far whose target has this in it, without it.
    pub fn heard(&self, tag: &str) -> Vec<String> {
        let heard = lock(&self.state.heard);
        heard.iter().filter(|told| told.contains(tag)).map(|told| told.replace(tag, "")).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(mut tcp: TcpStream, state: &State) -> Result<()> {
    let (mut bytes, mut n_answered) = (Vec::new(), 0);
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let n_read = tcp.read(&mut buffer).await?;
        if n_read == 0 {
            return Ok(());
        }
        bytes.extend_from_slice(&buffer[..n_read]);
        if PREFACE.starts_with(&bytes[..bytes.len().min(PREFACE.len())]) {
            if n_answered == 0 && has_request(&bytes) {
                n_answered = 1;
                let script = lock(&state.script).clone();
                let (answer, ends) = script.unwrap_or_default();
                tcp.write_all(&[frames::settings(), answer].concat()).await?;
                if ends {
                    return Ok(tcp.shutdown().await?);
                }
            }
            continue;
        }
        let whole: Vec<_> = read(&bytes, Side::Requests).into_iter().filter(|message| message.is_whole).collect();
        for message in &whole[n_answered..] {
            lock(&state.heard).push(message.told());
            // The request that comes last in each row is answered well.
            let script = lock(&state.script).clone().filter(|_| !message.line.contains("/last "));
            let (answer, ends) = script.unwrap_or_else(|| (ANSWER.to_vec(), false));
            tcp.write_all(&answer).await?;
            if ends {
                return Ok(tcp.shutdown().await?);
            }
        }
        n_answered = whole.len();
    }
}

/// Whether a frame with a head is among these of a client.
fn has_request(bytes: &[u8]) -> bool {
    let mut frames = bytes.get(PREFACE.len()..).unwrap_or_default();
    while let Some(([a, b, c, kind, ..], rest)) = frames.split_first_chunk::<9>() {
        if *kind == HEADERS_FRAME {
            return true;
        }
        let length = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).unwrap_or(usize::MAX);
        frames = rest.get(length..).unwrap_or_default();
    }
    false
}
