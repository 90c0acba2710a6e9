//! TCP through an HTTP proxy: what a DestinationRule's `tunnel` asks of a TCP service's endpoints, beside Envoy.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::peer::exchange_raw;
use tests::process::Lines;
use tests::scenario::{DB, DB_CHAIN, Mesh, Scenario};
use tests::wait::{Look, until};
use tests::workload::App;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};

/// The port of `db` that its pods listen on.
const DB_PORT: u16 = 5432;

/// What a proxy was asked, and what came after; it answers with the status that it is told.
#[derive(Debug, Default)]
struct Proxy {
    heads: Mutex<Vec<String>>,
    status: Mutex<&'static str>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(proxy: &Proxy, stream: TcpStream) -> Result<()> {
    let (mut stream, mut head) = (BufStream::new(stream), String::new());
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            return Ok(());
        }
    }
    lock(&proxy.heads).push(head);
    let status = *lock(&proxy.status);
    stream.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await?;
    stream.flush().await?;
    // What comes is sent back as it is.
    loop {
        let bytes = stream.fill_buf().await?.to_vec();
        if bytes.is_empty() {
            break;
        }
        stream.consume(bytes.len());
        stream.write_all(&bytes).await?;
        stream.flush().await?;
    }
    Ok(())
}

async fn proxy(mesh: &Mesh) -> Result<Arc<Proxy>> {
    let listener = TcpListener::bind(SocketAddr::new(mesh.net.pod(5, 9).into(), DB_PORT)).await?;
    let proxy = Arc::new(Proxy::default());
    let serving = Arc::clone(&proxy);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let proxy = Arc::clone(&serving);
            tokio::spawn(async move { serve(&proxy, stream).await });
        }
    });
    Ok(proxy)
}

/// `tunneling_config` as istiod writes it.
fn tunnel(scenario: &mut Scenario, tunnelling: &Value) -> Result<()> {
    scenario.keep_endpoints(DB_CHAIN, 1)?;
    let filters = scenario.chain(DB_CHAIN)?["filters"].as_array_mut().context("no filters")?;
    let tcp = filters.iter_mut().find(|filter| filter["name"] == "envoy.filters.network.tcp_proxy").context("no TCP proxy")?;
    tcp["typed_config"]["tunneling_config"] = tunnelling.clone();
    Ok(())
}

/// What comes back of a payload, `n_bytes` of it; none if there was no connection.
async fn through(mesh: &Mesh, at: SocketAddr, n_bytes: usize) -> Result<Option<String>> {
    let Ok(mut tunnel) = mesh.peer("frontend-0")?.connect(at).await?.connect(DB).await? else { return Ok(None) };
    let mut heard = vec![0; n_bytes];
    let exchanged = async {
        tunnel.write_all(b"select 1").await?;
        tunnel.flush().await?;
        tunnel.read_exact(&mut heard).await
    };
    // Envoy answers the CONNECT before it has a connection, and resets it then.
    let is_served = exchanged.await.is_ok();
    Ok(is_served.then(|| String::from_utf8_lossy(&heard).into_owned()))
}

async fn flags(output: &Lines, n_lines: usize) -> Result<Vec<Value>> {
    until("the lines", Duration::from_secs(10), async || {
        let lines = output.all();
        let flags: Vec<_> =
            lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()).map(|line| line["response_flags"].clone()).collect();
        Ok(if flags.len() == n_lines { Look::Done(flags) } else { Look::NotYet(lines.join("\n")) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_service_is_reached_through_a_proxy_as_in_envoy() -> Result<()> {
    for use_post in [false, true] {
        let tunnelling = json!({"hostname": "api.example.com:443", "use_post": use_post});
        let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| tunnel(scenario, &tunnelling))?.start().await?;
        let envoy = Envoy::beside(&mesh).start().await?;
        let proxy = proxy(&mesh).await?;
        let _db = mesh.pod("db-v1-1", App::Program(SocketAddr::new(mesh.net.pod(5, 9).into(), DB_PORT))).await?;
        let (asked, echoed) = if use_post {
            ("POST / HTTP/1.1\r\nhost: api.example.com:443\r\ntransfer-encoding: chunked\r\n\r\n", "8\r\nselect 1\r\n")
        } else {
            ("CONNECT api.example.com:443 HTTP/1.1\r\nhost: api.example.com:443\r\n\r\n", "select 1")
        };
        for (at, output) in [(mesh.hbone(), mesh.waypoint.output_lines()), (envoy.hbone(), envoy.output())] {
            let mut heard = Vec::new();
            for status in ["200 OK", "201 Created", "403 Forbidden"] {
                *lock(&proxy.status) = status;
                heard.push(through(&mesh, at, echoed.len()).await?);
            }
            assert_eq!(heard, [Some(echoed.to_owned()), Some(echoed.to_owned()), None], "{at}");
            assert_eq!(std::mem::take(&mut *lock(&proxy.heads)), [asked; 3], "{at}");
            // The other lines tell how their clients ended, which is no matter of the proxy; they come when they come.
            let n_refused = flags(output, 3).await?.iter().filter(|flags| **flags == "UF,URX").count();
            assert_eq!(n_refused, 1, "{at}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_of_the_client_s_passes_through_a_proxy() -> Result<()> {
    let tunnelling = json!({"hostname": "api.example.com:443"});
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| tunnel(scenario, &tunnelling))?.start().await?;
    let proxy = proxy(&mesh).await?;
    *lock(&proxy.status) = "200 OK";
    let _db = mesh.pod("db-v1-1", App::Program(SocketAddr::new(mesh.net.pod(5, 9).into(), DB_PORT))).await?;
    assert_eq!(exchange_raw(mesh.connect("frontend-0").await?.tunnel(DB).await?, b"select 1", true).await?, b"select 1");
    *lock(&proxy.status) = "502 Bad Gateway";
    assert_eq!(mesh.connect("frontend-0").await?.connect(DB).await?.err(), Some(http::StatusCode::SERVICE_UNAVAILABLE));
    Ok(())
}
