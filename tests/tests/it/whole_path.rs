//! The table of HTTP/1.1 over the whole path: a client in a tunnel, the binary, an application on a socket; and the same through Envoy.
//!
//! `http_core` runs the same rows over the core by itself. What a waypoint makes of a row otherwise, and Envoy, stands in lists with the
//! reasons, which are compared exactly. Not for: rows about smuggling, whose table over the whole path is `smuggling`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::http_rows::Want::{Lacks, Statuses};
use tests::http_rows::{Do, Outcome, Row, act, framing, messages, misses, row};
use tests::peer::Connection;
use tests::scenario::{Mesh, Scenario};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const CHAIN: &str = "inbound-vip|80|http|legacy.shop.svc.cluster.local";
/// Where applications listen.
const PORT: u16 = 8080;
/// Silence after which an end believes that nothing will come: longer than any timer that a row may wait for.
const QUIET: Duration = Duration::from_secs(2);

/// Rows that a waypoint answers otherwise than the core by itself.
const OTHERWISE: &[(&str, &str)] = &[
    ("a GET passes with its fields", "the application is told `x-forwarded-proto` too"),
    ("OPTIONS * passes", "no route begins with `*`: 404"),
    ("an upstream that says nothing is no clean answer", "503, by what Envoy answers"),
];

/// Rows that Envoy answers otherwise than the table.
const OTHERWISE_IN_ENVOY: &[(&str, &str)] = &[
    ("a GET passes with its fields", "as here"),
    ("OPTIONS * passes", "as here"),
    ("an upstream that says nothing is no clean answer", "as here"),
    ("date, server and reason of the upstream are kept", "the reason is its own"),
    ("a client that half-closes after its request is answered", HALF_CLOSED),
    ("a client that half-closes while it waits is answered", HALF_CLOSED),
    ("a client that half-closes after its body is answered", HALF_CLOSED),
    ("a WebSocket passes both ways and half-closes", HALF_CLOSED),
    ("a request cut inside its length is never complete", HALF_CLOSED),
    ("a request cut inside its chunks is never complete", HALF_CLOSED),
    ("a 101 that nobody asked for is a 502", "it passes"),
    ("a CONNECT is refused", "404: no route"),
    ("trailers of a request", "dropped"),
    ("trailers of a response, to a client that takes them", "dropped"),
    ("a response with equal lengths has one", "502"),
    ("a response with obs-fold is refused", "it is unfolded"),
    ("fields that a response keeps to its connection are removed", "only those that it knows"),
];
/// The difference `half-close`.
const HALF_CLOSED: &str = "its end cancels the request, or ends both directions";

/// A service whose applications are at the addresses that its clients name, with as little said about a request as may be.
fn edit(scenario: &mut Scenario, addresses: &str) -> Result<()> {
    let cluster = scenario.resource(Kind::Cluster, CHAIN)?.as_object_mut().context("no cluster")?;
    for field in ["eds_cluster_config", "least_request_lb_config", "common_lb_config"] {
        cluster.remove(field);
    }
    cluster.insert("type".to_owned(), "ORIGINAL_DST".into());
    cluster.insert("lb_policy".to_owned(), "CLUSTER_PROVIDED".into());
    cluster.insert("original_dst_lb_config".to_owned(), json!({"upstream_port_override": PORT}));
    let http = scenario.http(CHAIN)?;
    http["server_header_transformation"] = "PASS_THROUGH".into();
    http["generate_request_id"] = false.into();
    http["http_protocol_options"]["accept_http_10"] = true.into();
    http.as_object_mut().context("no connection manager")?.remove("tracing");
    let router = http["http_filters"].as_array_mut().and_then(|filters| filters.last_mut()).context("no router")?;
    router["typed_config"]["suppress_envoy_headers"] = true.into();
    let route = http["route_config"]["virtual_hosts"][0]["routes"][0].as_object_mut().context("no route")?;
    route.remove("decorator");
    let matcher = &mut scenario.resource(Kind::Listener, "main_internal")?["filter_chain_matcher"]["matcher_tree"];
    let services = matcher["custom_match"]["typed_config"]["range_matchers"].as_array_mut().context("no services")?;
    let is_this = |service: &&mut Value| service["ranges"][0]["address_prefix"] == "10.96.1.7";
    services.iter_mut().find(is_this).context("no such service")?["ranges"][0] = json!({"address_prefix": addresses, "prefix_len": 23});
    Ok(())
}

/// What only a whole waypoint can be asked.
fn more_rows() -> Vec<Row> {
    const PASSED_ON: &str = "Envoy: server_header_transformation is PASS_THROUGH";
    vec![
        row("an answer of its own says no server", PASSED_ON)
            .request("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n")
            .client_sees([Statuses(&[404]), Lacks("server:")]),
        row("an answer about a failure says no server", PASSED_ON)
            .request("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .upstream(vec![Do::Until("\r\n\r\n"), Do::Gone])
            .client_sees([Statuses(&[503]), Lacks("server:")]),
    ]
}

async fn run(row: &Row, connection: &Connection, application: IpAddr) -> Result<Outcome> {
    let listener = TcpListener::bind((application, PORT)).await?;
    let mut next = row.upstream.scripts();
    let (sender, mut connections) = mpsc::unbounded_channel();
    let accepting = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            drop(sender.send(tokio::spawn(next().serve(tcp, QUIET))));
        }
    });
    let tunnel = connection.tunnel(&SocketAddr::new(application, 80).to_string()).await?;
    let client = act(tunnel, row.client.clone(), QUIET).await;
    accepting.abort();
    let mut seen = Vec::new();
    while let Some(connection) = connections.recv().await {
        seen.push(connection.await?);
    }
    Ok(Outcome::of(client, seen))
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_the_table_come_out_over_the_whole_path_as_they_should() -> Result<()> {
    let builder = Mesh::builder("01-plain")?;
    let addresses = builder.net().pod(60, 0).to_string();
    let mesh = builder.edit(|scenario| edit(scenario, &addresses))?.quiet().start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let rows: Vec<_> = messages::rows().into_iter().chain(framing::rows()).chain(more_rows()).collect();
    let peer = mesh.peer("frontend-0")?;
    let proxies = [(60, peer.connect(mesh.hbone()).await?, OTHERWISE), (61, peer.connect(envoy.hbone()).await?, OTHERWISE_IN_ENVOY)];
    let all = proxies.iter().map(|(place, connection, _)| {
        let rows = rows.iter().zip(1..).map(|(row, number)| run(row, connection, mesh.net.pod(*place, number).into()));
        try_join_all(rows)
    });
    let mut wrong = Vec::new();
    for ((place, _, otherwise), outcomes) in proxies.iter().zip(try_join_all(all).await?) {
        let proxy = if *place == 60 { "ours" } else { "envoy" };
        for (row, outcome) in rows.iter().zip(outcomes) {
            let misses = misses(row, &outcome);
            if misses.is_empty() == otherwise.iter().any(|(name, _)| *name == row.name) {
                let (client, upstream) = (outcome.client.text(), outcome.upstream.text());
                wrong.push(format!("{proxy}: {} ({}): {misses:?}; {client:.500?}; {upstream:.500?}", row.name, row.source));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
