//! What a row is, and how one is run over HTTP/1.1 on both sides.

use std::future::pending;

use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;
use waypoint::http::{Protocol, ServerOptions, serve};

use crate::forward::{ClientEngine, Forward};
use crate::pingora;
use crate::wire::{Do, Drip, PIPE_BYTES, Seen, act, contains, send};

/// One line of the table.
pub struct Row {
    pub name: &'static str,
    /// Whose rule the expected outcome is.
    pub source: &'static str,
    pub client: Vec<Do>,
    pub upstream: Upstream,
    pub client_sees: Vec<Want>,
    pub upstream_sees: Vec<Want>,
}

/// What the upstream does on each connection.
pub enum Upstream {
    /// Answers every complete request with these bytes.
    Answers(&'static str),
    /// Follows a script: the first on the first connection, and so on; further connections say nothing.
    Scripts(Vec<Vec<Do>>),
}

/// What one end has to have seen. Texts are compared in lower case: names of fields have none.
#[derive(Debug, Clone)]
pub enum Want {
    /// The statuses of all responses, interim ones too.
    Statuses(&'static [u16]),
    Is(String),
    Has(&'static str),
    Lacks(&'static str),
    Nothing,
    /// So many request heads.
    Requests(usize),
    /// The other side ended the connection.
    Ended,
    /// It did not.
    Open,
    Connections(usize),
}

/// What both ends have seen.
pub struct Outcome {
    pub client: Seen,
    /// All connections, one after another.
    pub upstream: Seen,
    /// The same, each by itself.
    pub upstream_connections: Vec<Seen>,
    pub n_connections: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerEngine {
    Hyper,
    /// As `Hyper`, but whatever the client sends comes in single bytes.
    HyperByteByByte,
    Pingora,
}

/// Runs a row with these engines.
pub async fn run(row: &Row, server: ServerEngine, client_engine: ClientEngine) -> Outcome {
    let (forward, upstreams) = Forward::new(Protocol::Http1, client_engine);
    let (client, ours) = duplex(PIPE_BYTES);
    let upstream = tokio::spawn(serve_upstream(upstreams, row.upstream.scripts()));
    let serving = tokio::spawn(async move {
        match server {
            ServerEngine::Hyper => {
                let _ended = serve(ours, Protocol::Http1, forward, &ServerOptions::default(), pending()).await;
            }
            ServerEngine::HyperByteByByte => {
                let _ended = serve(Drip(ours), Protocol::Http1, forward, &ServerOptions::default(), pending()).await;
            }
            ServerEngine::Pingora => pingora::serve(ours, forward).await,
        }
    });
    let client = act(client, row.client.clone()).await;
    serving.abort();
    let _ = serving.await;
    let upstream_connections = upstream.await.unwrap();
    let upstream = Seen {
        bytes: upstream_connections.iter().flat_map(|seen| seen.bytes.clone()).collect(),
        ended: upstream_connections.last().is_some_and(|seen| seen.ended),
    };
    let n_connections = upstream_connections.len();
    Outcome { client, upstream, upstream_connections, n_connections }
}

enum Script {
    Answer(&'static str),
    Steps(Vec<Do>),
}

impl Upstream {
    fn scripts(&self) -> Box<dyn FnMut() -> Script + Send> {
        match self {
            Upstream::Answers(answer) => {
                let answer = *answer;
                Box::new(move || Script::Answer(answer))
            }
            Upstream::Scripts(scripts) => {
                let mut scripts = scripts.clone().into_iter();
                Box::new(move || Script::Steps(scripts.next().unwrap_or_else(|| vec![Do::Quiet])))
            }
        }
    }
}

async fn serve_upstream(mut upstreams: mpsc::UnboundedReceiver<DuplexStream>, mut next: Box<dyn FnMut() -> Script + Send>) -> Vec<Seen> {
    let mut connections = Vec::new();
    while let Some(io) = upstreams.recv().await {
        connections.push(match next() {
            Script::Answer(answer) => tokio::spawn(answer_all(io, answer)),
            Script::Steps(steps) => tokio::spawn(act(io, steps)),
        });
    }
    let mut seen = Vec::new();
    for connection in connections {
        seen.push(connection.await.unwrap());
    }
    seen
}

/// Answers each complete request, as the strictest of servers would frame it.
async fn answer_all(mut io: DuplexStream, answer: &'static str) -> Seen {
    let mut seen = Seen::default();
    let mut answered = 0;
    while crate::wire::read_some(&mut io, &mut seen).await {
        while let Some(n_bytes) = request_length(&seen.bytes[answered..]) {
            answered += n_bytes;
            crate::wire::write(&mut io, answer.as_bytes()).await;
        }
    }
    seen
}

/// Bytes of the first complete request, if there is one.
fn request_length(bytes: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(bytes).to_lowercase();
    let head = text.find("\r\n\r\n")? + 4;
    if text[..head].contains("transfer-encoding: chunked") {
        return text[head..].find("0\r\n").and_then(|at| text[head + at..].find("\r\n\r\n").map(|end| head + at + end + 4));
    }
    let length = text[..head].lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok()).unwrap_or(0);
    (bytes.len() >= head + length).then_some(head + length)
}

/// Everything that is not as the row wants it.
pub fn misses(row: &Row, outcome: &Outcome) -> Vec<String> {
    let client = row.client_sees.iter().filter(|want| !holds(want, &outcome.client, outcome.n_connections));
    let upstream = row.upstream_sees.iter().filter(|want| !holds(want, &outcome.upstream, outcome.n_connections));
    client.map(|want| format!("client {want:?}")).chain(upstream.map(|want| format!("upstream {want:?}"))).collect()
}

fn holds(want: &Want, seen: &Seen, n_connections: usize) -> bool {
    let text = seen.text().to_lowercase();
    match want {
        Want::Statuses(expected) => statuses(&text) == *expected,
        Want::Is(expected) => text == expected.to_lowercase(),
        Want::Has(part) => contains(text.as_bytes(), part.as_bytes()),
        Want::Lacks(part) => !contains(text.as_bytes(), part.as_bytes()),
        Want::Nothing => text.is_empty(),
        Want::Requests(n_requests) => text.matches(" http/1.1\r\n").count() == *n_requests,
        Want::Ended => seen.ended,
        Want::Open => !seen.ended,
        Want::Connections(expected) => n_connections == *expected,
    }
}

fn statuses(text: &str) -> Vec<u16> {
    let heads = text.match_indices("http/1.").filter(|(at, _)| text.as_bytes().get(at + 8) == Some(&b' '));
    heads.filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok()).collect()
}

pub fn row(name: &'static str, source: &'static str) -> Row {
    Row { name, source, client: Vec::new(), upstream: Upstream::Answers(OK), client_sees: Vec::new(), upstream_sees: Vec::new() }
}

/// An ordinary answer, with a date of its own.
pub const OK: &str = "HTTP/1.1 200 OK\r\ndate: Tue, 01 Jan 2019 00:00:00 GMT\r\ncontent-length: 2\r\n\r\nok";

impl Row {
    /// The client sends this and waits.
    pub fn request(self, bytes: impl AsRef<[u8]>) -> Row {
        self.client(vec![send(bytes), Do::Quiet])
    }

    pub fn client(mut self, script: Vec<Do>) -> Row {
        self.client = script;
        self
    }

    pub fn answer(mut self, answer: &'static str) -> Row {
        self.upstream = Upstream::Answers(answer);
        self
    }

    pub fn upstream(mut self, script: Vec<Do>) -> Row {
        self.upstream = Upstream::Scripts(vec![script]);
        self
    }

    pub fn upstreams(mut self, scripts: Vec<Vec<Do>>) -> Row {
        self.upstream = Upstream::Scripts(scripts);
        self
    }

    pub fn client_sees(mut self, wants: impl IntoIterator<Item = Want>) -> Row {
        self.client_sees.extend(wants);
        self
    }

    pub fn upstream_sees(mut self, wants: impl IntoIterator<Item = Want>) -> Row {
        self.upstream_sees.extend(wants);
        self
    }

    /// Refused with this status, before the upstream hears of it.
    pub fn refused(self, status: &'static [u16]) -> Row {
        self.client_sees([Want::Statuses(status), Want::Ended]).upstream_sees([Want::Nothing])
    }
}
