//! Messages that two readers could read differently, towards us and back: what the waypoint makes of each, by whose rule, and what a
//! stock Envoy makes of the same.
//!
//! Not for: the codecs by themselves, whose tables are in `http_core`. Where Envoy's column differs, ours is what the rule asks for as
//! well: it lets no two readers disagree.

mod answers;
mod frames;
mod requests;
mod strict;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde_json::json;
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::frames::{Answers, data, headers, preface};
use tests::peer::Connection;
use tests::scenario::{Mesh, Scenario, WEB, WEB_CHAIN};
use tests::workload::{App, Workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::requests::Row;
use self::strict::{Application, Message, Side};

/// How long one exchange may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Exchanges at the same time.
const AT_A_TIME: usize = 16;
/// The port of `web`'s pods.
const PORT: u16 = 8080;

/// What becomes of the bytes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Answered with this status, and the connection ends; the application gets no whole request.
    Refused(u16),
    /// The application gets these requests, each is answered 200, and so is the next on the connection.
    Reads(&'static [&'static str]),
    /// As `Reads`, but the connection ends then: nothing behind them is a request.
    Ends(&'static [&'static str]),
    /// It is not asked: it says nothing before its client ends.
    Unasked,
}

/// What becomes of a request in HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameFate {
    /// Its stream is reset; the application gets no whole request.
    Reset,
    /// The connection is closed for it, which RFC 9113 §5.4.1 allows; the application gets no whole request.
    Closed,
    /// Answered with this status; the application gets no whole request.
    Refused(u16),
    /// The application gets these requests, and it is answered 200.
    Reads(&'static [&'static str]),
}

impl FrameFate {
    fn of(answers: &Answers, heard: &[String]) -> Option<Self> {
        let first = answers.of(1);
        match (first.status, first.reset) {
            (Some(200), _) if first.is_ended => None,
            (Some(status), _) if heard.is_empty() => Some(Self::Refused(status)),
            (None, Some(_)) if heard.is_empty() => Some(Self::Reset),
            (None, None) if heard.is_empty() => Some(Self::Closed),
            _ => None,
        }
    }
}

/// The same, as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    statuses: Vec<u16>,
    requests: Vec<String>,
}

impl Fate {
    fn seen(self) -> Seen {
        let (requests, more, last) = match self {
            Self::Refused(status) => (&[][..], vec![status], false),
            Self::Reads(requests) => (requests, vec![200], true),
            Self::Ends(requests) => (requests, Vec::new(), false),
            Self::Unasked => (&[][..], Vec::new(), false),
        };
        let mut told: Vec<_> = requests.iter().map(|request| (*request).to_owned()).collect();
        told.extend(last.then(|| "GET /last a".to_owned()));
        Seen { statuses: [vec![200; requests.len()], more].concat(), requests: told }
    }
}

/// The waypoint, an Envoy beside it, and the strict application behind both.
struct Readers {
    mesh: Mesh,
    envoy: Envoy,
    application: Application,
    _pod: Workload,
}

impl Readers {
    async fn start(edit: impl FnOnce(&mut Scenario) -> Result<()>) -> Result<Self> {
        let mesh = Mesh::builder("01-plain")?
            .edit(|scenario| {
                scenario.keep_endpoints(WEB_CHAIN, 1)?;
                edit(scenario)
            })?
            .quiet()
            .start()
            .await?;
        let envoy = Envoy::beside(&mesh).start().await?;
        let address = SocketAddr::new(IpAddr::V4(mesh.net.pod(1, 1)), PORT);
        let application = Application::start(address).await?;
        let pod = mesh.pod("web-v1-1", App::Program(address)).await?;
        Ok(Self { mesh, envoy, application, _pod: pod })
    }

    /// Connections to the waypoint and to Envoy.
    async fn both(&self) -> Result<[(&'static str, Connection); 2]> {
        let peer = self.mesh.peer("frontend-0")?;
        Ok([("ours", peer.connect(self.mesh.hbone()).await?), ("envoy", peer.connect(self.envoy.hbone()).await?)])
    }
}

/// Sends the bytes of rows, each in a tunnel of its own, and reads until it ends, however it does. Some at a time, since Envoy lets a
/// connection be for a while before it closes it.
async fn exchange_all(connection: &Connection, rows: impl IntoIterator<Item = Vec<u8>>) -> Result<Vec<Vec<u8>>> {
    let exchanges = rows.into_iter().map(|bytes| async move {
        let mut tunnel = connection.tunnel(WEB).await?;
        let mut heard = Vec::new();
        let exchanged = async {
            // It may be refused before all of it is read.
            drop(tunnel.write_all(&bytes).await);
            drop(tunnel.flush().await);
            drop(tunnel.read_to_end(&mut heard).await);
        };
        let what = || String::from_utf8_lossy(&bytes).into_owned();
        tokio::time::timeout(DEADLINE, exchanged).await.with_context(|| format!("the connection does not end: {:?}", what()))?;
        anyhow::Ok(heard)
    });
    stream::iter(exchanges).buffered(AT_A_TIME).try_collect().await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_could_be_read_in_two_ways_are_read_in_one_or_refused() -> Result<()> {
    let readers = Readers::start(|_| Ok(())).await?;
    let mut exchanged = Vec::new();
    for (proxy, connection) in readers.both().await? {
        let expected = |row: &Row| if proxy == "ours" { row.ours } else { row.envoy.unwrap_or(row.ours) };
        let rows = requests::rows().into_iter().enumerate().map(|(at, row)| (expected(&row), row, format!("/{proxy}-{at}-")));
        let rows: Vec<_> = rows.filter(|(fate, ..)| *fate != Fate::Unasked).collect();
        let last = "GET ^/last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let bytes = rows.iter().map(|(_, row, tag)| format!("{}{last}", row.bytes).replace('^', tag).into_bytes());
        exchanged.extend(
            rows.iter()
                .zip(exchange_all(&connection, bytes).await?)
                .map(|((fate, row, tag), heard)| (format!("{proxy}: {} ({})", row.name, row.source), *fate, tag.clone(), heard)),
        );
    }
    // What a proxy sent on without an answer is there by now.
    let mut wrong = Vec::new();
    for (row, fate, tag, heard) in exchanged {
        let answers = strict::read(&heard, Side::Answers { to_head: false, has_ended: true });
        let seen = Seen { statuses: answers.iter().map(Message::status).collect(), requests: readers.application.heard(&tag) };
        if seen != fate.seen() {
            wrong.push(format!("{row}: {seen:?}; expected {fate:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The frames of a row, and of a good request behind it.
fn frames_of(row: &frames::Row, tag: &str) -> Vec<u8> {
    let told = |list: &[(&'static str, &'static str)]| -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), value.replace('^', tag))).collect()
    };
    let frame = |stream, list: &[(&'static str, &'static str)], is_end| {
        let list = told(list);
        let list: Vec<_> = list.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        headers(stream, &list, is_end)
    };
    let mut bytes = [preface(), frame(1, &row.head, row.body.is_none())].concat();
    if let Some(body) = row.body {
        bytes.extend(data(1, &body.replace('^', tag), row.trailers.is_none()));
    }
    bytes.extend(row.trailers.map(|trailers| frame(1, trailers, true)).unwrap_or_default());
    let last = [(":method", "GET"), (":scheme", "http"), (":path", "/last"), (":authority", "a")];
    [bytes, frame(3, &last, true)].concat()
}

/// Reads until both streams have ended, or the connection has.
async fn answers_to(connection: &Connection, bytes: &[u8]) -> Result<Answers> {
    let mut tunnel = connection.tunnel(WEB).await?;
    let mut heard = Vec::new();
    let exchanged = async {
        // It may be refused before all of it is read.
        drop(tunnel.write_all(bytes).await);
        drop(tunnel.flush().await);
        let is_over =
            |answers: &Answers| [1, 3].into_iter().all(|stream| answers.of(stream).is_ended || answers.of(stream).reset.is_some());
        while !is_over(&Answers::read(&heard)) && tunnel.read_buf(&mut heard).await.is_ok_and(|n_read| n_read > 0) {}
    };
    tokio::time::timeout(DEADLINE, exchanged).await.context("neither the streams nor the connection end")?;
    Ok(Answers::read(&heard))
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_requests_that_http1_could_read_in_two_ways_are_refused() -> Result<()> {
    let readers = Readers::start(|_| Ok(())).await?;
    let mut wrong = Vec::new();
    for (proxy, connection) in readers.both().await? {
        let exchanges = frames::rows().into_iter().enumerate().map(|(at, row)| {
            let (tag, connection) = (format!("/{proxy}-{at}-"), &connection);
            async move {
                let answers = answers_to(connection, &frames_of(&row, &tag)).await.with_context(|| format!("{proxy}: {}", row.name))?;
                anyhow::Ok((row, tag, answers))
            }
        });
        let exchanges: Vec<_> = stream::iter(exchanges).buffered(AT_A_TIME).try_collect().await?;
        for (row, tag, answers) in exchanges {
            let (heard, fate) = (readers.application.heard(&tag), if proxy == "ours" { row.ours } else { row.envoy });
            let is_right = match fate {
                FrameFate::Reads(requests) => heard == requests && answers.of(1).status == Some(200),
                other => FrameFate::of(&answers, &heard) == Some(other),
            };
            if !is_right {
                wrong.push(format!("{proxy}: {} ({}): {answers:?}, heard {heard:?}; expected {fate:?}", row.name, row.source));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_could_be_read_in_two_ways_are_read_in_one_or_refused() -> Result<()> {
    let readers = Readers::start(|_| Ok(())).await?;
    let mut wrong = Vec::new();
    for (proxy, connection) in readers.both().await? {
        for row in answers::rows() {
            readers.application.says(Some((row.bytes.clone().into_bytes(), row.ends)));
            let request = format!("{} / HTTP/1.1\r\nhost: a\r\n\r\nGET /last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", row.method);
            let heard = exchange_all(&connection, [request.into_bytes()]).await.with_context(|| format!("{proxy}: {}", row.name))?;
            let heard = strict::answers(&heard[0], row.method == "HEAD");
            let expected = if proxy == "ours" { row.ours } else { row.envoy };
            if heard != expected {
                wrong.push(format!("{proxy}: {} ({}): {heard:?}; expected {expected:?}", row.name, row.source));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_answers_that_http1_could_read_in_two_ways_are_refused() -> Result<()> {
    let options = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }});
    let readers = Readers::start(|scenario| {
        scenario.resource(Kind::Cluster, WEB_CHAIN)?["typed_extension_protocol_options"] = options;
        Ok(())
    })
    .await?;
    let mut wrong = Vec::new();
    for (proxy, connection) in readers.both().await? {
        for row in answers::frames() {
            let mut says = headers(1, row.head, row.body.is_none());
            says.extend(row.body.map(|body| data(1, body, row.trailers.is_none())).unwrap_or_default());
            says.extend(row.trailers.map(|trailers| headers(1, trailers, true)).unwrap_or_default());
            // Its connection ends with the answer, so that none is used twice: streams of rows all have the first number.
            readers.application.says(Some((says, true)));
            let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".to_vec();
            let heard = exchange_all(&connection, [request]).await.with_context(|| format!("{proxy}: {}", row.name))?;
            let heard = strict::answers(&heard[0], false);
            let expected = if proxy == "ours" { row.ours } else { row.envoy };
            if heard != [expected] {
                wrong.push(format!("{proxy}: {} ({}): {heard:?}; expected {expected:?}", row.name, row.source));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
