//! The table of HTTP/1.1: what a client and an upstream say as raw bytes, what each must have seen, and whose rule that is.
//!
//! Not for: what joins the two. Under virtual time it is the HTTP core by itself (`tests/http_core`); over sockets it is the binary
//! (`it/whole_path`). Invariant: nothing fails while a script runs; what did not come is missing in what was seen.

pub mod framing;
pub mod messages;

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Bytes read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// What an end does next.
#[derive(Debug, Clone)]
pub enum Do {
    Send(Vec<u8>),
    /// Reads until what was read since the last step contains this.
    Until(&'static str),
    /// Reads until nothing more comes, or the end.
    Quiet,
    /// Ends its writing half.
    Fin,
    /// Closes both halves at once.
    Gone,
}

/// A step that sends this.
pub fn send(bytes: impl AsRef<[u8]>) -> Do {
    Do::Send(bytes.as_ref().to_vec())
}

/// What an end has seen.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Seen {
    pub bytes: Vec<u8>,
    /// The other side ended its writing half.
    pub ended: bool,
}

impl Seen {
    /// Its bytes as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// Runs a script on one end. After `quiet` without a byte it believes that none will come.
pub async fn act(mut io: impl AsyncRead + AsyncWrite + Unpin, script: Vec<Do>, quiet: Duration) -> Seen {
    let mut seen = Seen::default();
    for step in script {
        match step {
            Do::Send(bytes) => write(&mut io, &bytes, quiet).await,
            Do::Until(text) => {
                let from = seen.bytes.len();
                while !contains(&seen.bytes[from..], text.as_bytes()) && read_some(&mut io, &mut seen, quiet).await {}
            }
            Do::Quiet => while read_some(&mut io, &mut seen, quiet).await {},
            // The other side may have closed already; the row's expectations say if it should have.
            Do::Fin => drop(io.shutdown().await),
            Do::Gone => return seen,
        }
    }
    while read_some(&mut io, &mut seen, quiet).await {}
    seen
}

/// Writes; the other side may have closed already, or read no more.
pub async fn write(io: &mut (impl AsyncWrite + Unpin), bytes: &[u8], quiet: Duration) {
    let whole = async {
        io.write_all(bytes).await?;
        io.flush().await
    };
    drop(timeout(quiet, whole).await);
}

/// Reads what comes next; false if nothing does, or the other side has ended.
pub async fn read_some(io: &mut (impl AsyncRead + Unpin), seen: &mut Seen, quiet: Duration) -> bool {
    if seen.ended {
        return false;
    }
    let mut buffer = vec![0_u8; CHUNK_BYTES];
    match timeout(quiet, io.read(&mut buffer)).await {
        Ok(Ok(0) | Err(_)) => {
            seen.ended = true;
            false
        }
        Ok(Ok(n_bytes)) => {
            seen.bytes.extend_from_slice(&buffer[..n_bytes]);
            true
        }
        Err(_quiet) => false,
    }
}

/// Whether the one is in the other.
#[must_use]
pub fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}

/// One line of the table.
#[derive(Debug, Clone)]
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
#[derive(Debug, Clone)]
pub enum Upstream {
    /// Answers every complete request with these bytes.
    Answers(&'static str),
    /// Follows a script: the first on the first connection, and so on; further connections say nothing.
    Scripts(Vec<Vec<Do>>),
}

/// What the upstream does on one connection.
#[derive(Debug, Clone)]
pub enum Script {
    Answer(&'static str),
    Steps(Vec<Do>),
}

impl Upstream {
    /// What it does on each connection, one after another.
    pub fn scripts(&self) -> impl FnMut() -> Script + Send + use<> {
        let (answer, scripts) = match self {
            Self::Answers(answer) => (Some(*answer), Vec::new()),
            Self::Scripts(scripts) => (None, scripts.clone()),
        };
        let mut scripts = scripts.into_iter();
        move || answer.map_or_else(|| Script::Steps(scripts.next().unwrap_or_else(|| vec![Do::Quiet])), Script::Answer)
    }
}

impl Script {
    /// Serves one connection.
    pub async fn serve(self, io: impl AsyncRead + AsyncWrite + Unpin, quiet: Duration) -> Seen {
        match self {
            Self::Answer(answer) => answer_all(io, answer, quiet).await,
            Self::Steps(steps) => act(io, steps, quiet).await,
        }
    }
}

/// Answers each complete request, as the strictest of servers would frame it.
async fn answer_all(mut io: impl AsyncRead + AsyncWrite + Unpin, answer: &'static str, quiet: Duration) -> Seen {
    let mut seen = Seen::default();
    let mut answered = 0;
    while read_some(&mut io, &mut seen, quiet).await {
        while let Some(n_bytes) = request_length(&seen.bytes[answered..]) {
            answered += n_bytes;
            write(&mut io, answer.as_bytes(), quiet).await;
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
#[derive(Debug)]
pub struct Outcome {
    pub client: Seen,
    /// All connections, one after another.
    pub upstream: Seen,
    /// The same, each by itself.
    pub upstream_connections: Vec<Seen>,
    pub n_connections: usize,
}

impl Outcome {
    /// Of the client, and of each connection of the upstream.
    #[must_use]
    pub fn of(client: Seen, upstream_connections: Vec<Seen>) -> Self {
        let upstream = Seen {
            bytes: upstream_connections.iter().flat_map(|seen| seen.bytes.clone()).collect(),
            ended: upstream_connections.last().is_some_and(|seen| seen.ended),
        };
        let n_connections = upstream_connections.len();
        Self { client, upstream, upstream_connections, n_connections }
    }
}

/// Everything that is not as the row wants it.
#[must_use]
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

/// A row whose upstream answers everything with [`OK`].
#[must_use]
pub fn row(name: &'static str, source: &'static str) -> Row {
    Row { name, source, client: Vec::new(), upstream: Upstream::Answers(OK), client_sees: Vec::new(), upstream_sees: Vec::new() }
}

/// An ordinary answer, with a date of its own.
pub const OK: &str = "HTTP/1.1 200 OK\r\ndate: Tue, 01 Jan 2019 00:00:00 GMT\r\ncontent-length: 2\r\n\r\nok";

impl Row {
    /// The client sends this and waits.
    #[must_use]
    pub fn request(self, bytes: impl AsRef<[u8]>) -> Self {
        self.client(vec![send(bytes), Do::Quiet])
    }

    /// The client does this.
    #[must_use]
    pub fn client(mut self, script: Vec<Do>) -> Self {
        self.client = script;
        self
    }

    /// The upstream answers everything with this.
    #[must_use]
    pub fn answer(mut self, answer: &'static str) -> Self {
        self.upstream = Upstream::Answers(answer);
        self
    }

    /// The upstream does this, on one connection.
    #[must_use]
    pub fn upstream(mut self, script: Vec<Do>) -> Self {
        self.upstream = Upstream::Scripts(vec![script]);
        self
    }

    /// The upstream does this, on one connection after another.
    #[must_use]
    pub fn upstreams(mut self, scripts: Vec<Vec<Do>>) -> Self {
        self.upstream = Upstream::Scripts(scripts);
        self
    }

    /// What the client has to have seen.
    #[must_use]
    pub fn client_sees(mut self, wants: impl IntoIterator<Item = Want>) -> Self {
        self.client_sees.extend(wants);
        self
    }

    /// What the upstream has to have seen.
    #[must_use]
    pub fn upstream_sees(mut self, wants: impl IntoIterator<Item = Want>) -> Self {
        self.upstream_sees.extend(wants);
        self
    }

    /// Refused with this status, before the upstream hears of it.
    #[must_use]
    pub fn refused(self, status: &'static [u16]) -> Self {
        self.client_sees([Want::Statuses(status), Want::Ended]).upstream_sees([Want::Nothing])
    }
}
