//! Endpoints by name: looked up, followed, kept while the name server fails, and gone when the name has none.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use http::StatusCode;
use serde_json::{Value, json};
use tests::dns::{Entry, NameServer};
use tests::fake_istiod::Kind;
use tests::peer::Connection;
use tests::scenario::{Mesh, MeshBuilder};
use tests::wait::{Look, until};
use tests::workload::{App, Workload};

const API: &str = "240.0.0.1:80";
const API_CHAIN: &str = "inbound-vip|80|http|api.example.com";
const NAME: &str = "api.example.com";
const PORT: u16 = 8443;
const DNS_PORT: u16 = 5353;
const DEADLINE: Duration = Duration::from_secs(10);

/// A mesh whose names a test answers for. The recorded ServiceEntry, in plain, on a port that anybody may listen on.
async fn with_names(kind: &str) -> Result<(MeshBuilder, NameServer)> {
    let builder = Mesh::builder("08-egress")?.edit(|scenario| {
        let cluster = scenario.resource(Kind::Cluster, API_CHAIN)?;
        cluster["type"] = kind.into();
        cluster["dns_failure_refresh_rate"] = json!({"base_interval": "1s", "max_interval": "1s"});
        cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"] = PORT.into();
        let raw = json!({"name": "raw", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}});
        cluster["transport_socket"]["typed_config"]["transport_socket"] = raw;
        Ok(())
    })?;
    let names = NameServer::start(SocketAddr::new(builder.net().pod(0, 53).into(), DNS_PORT)).await?;
    let servers = names.address().to_string();
    Ok((builder.environment("WAYPOINT_DNS_SERVERS", Some(&servers)), names))
}

async fn app(mesh: &Mesh, last: u8) -> Result<(Workload, IpAddr)> {
    let address = IpAddr::from(mesh.net.pod(50, last));
    Ok((Workload::plain(&format!("api-{last}"), SocketAddr::new(address, PORT), App::Http).await?, address))
}

/// Waits until a request is answered by this pod.
async fn answered_by(connection: &Connection, pod: &str) -> Result<()> {
    until(&format!("an answer of {pod}"), DEADLINE, async || {
        let answer = connection.get(API, "/").await?;
        let is_it = answer.status == StatusCode::OK && answer.json()["pod"] == pod;
        Ok(if is_it { Look::Done(()) } else { Look::NotYet(format!("{} {}", answer.status, answer.text())) })
    })
    .await
}

async fn status_becomes(connection: &Connection, status: StatusCode) -> Result<Value> {
    until(&format!("{status}"), DEADLINE, async || {
        let answer = connection.get(API, "/").await?;
        Ok(if answer.status == status { Look::Done(answer.text().into()) } else { Look::NotYet(answer.status.to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_followed_as_its_answers_end() -> Result<()> {
    let (builder, names) = with_names("STRICT_DNS").await?;
    let mesh = builder.start().await?;
    let ((one, first), (_two, second)) = (app(&mesh, 1).await?, app(&mesh, 2).await?);
    let connection = mesh.connect("frontend-0").await?;
    assert_eq!(status_becomes(&connection, StatusCode::SERVICE_UNAVAILABLE).await?, "no healthy upstream");
    names.set(NAME, Entry::Addresses(vec![first], 1));
    answered_by(&connection, "api-1").await?;
    names.set(NAME, Entry::Addresses(vec![second], 1));
    answered_by(&connection, "api-2").await?;

    // A name server that fails takes nothing away; one that says that there is nothing does.
    names.set(NAME, Entry::Failure);
    let before = names.questions(NAME);
    until("two failed lookups", DEADLINE, async || {
        let asked = names.questions(NAME);
        Ok(if asked > before + 2 { Look::Done(()) } else { Look::NotYet(asked.to_string()) })
    })
    .await?;
    answered_by(&connection, "api-2").await?;
    names.remove(NAME);
    assert_eq!(status_becomes(&connection, StatusCode::SERVICE_UNAVAILABLE).await?, "no healthy upstream");
    names.set(NAME, Entry::Addresses(vec![first], 1));
    answered_by(&connection, "api-1").await?;
    assert!(one.record().requests_total() > 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_addresses_of_a_strict_name_are_endpoints_and_one_of_a_logical_name() -> Result<()> {
    for (kind, expected) in [("STRICT_DNS", 2), ("LOGICAL_DNS", 1)] {
        let (builder, names) = with_names(kind).await?;
        let mesh = builder.start().await?;
        let (one, two) = (app(&mesh, 1).await?, app(&mesh, 2).await?);
        names.set(NAME, Entry::Addresses(vec![one.1, two.1], 60));
        let connection = mesh.connect("frontend-0").await?;
        answered_by(&connection, "api-1").await?;
        for _ in 0..20 {
            assert_eq!(connection.get(API, "/all").await?.status, StatusCode::OK);
        }
        let served = [&one.0, &two.0].into_iter().filter(|app| app.record().requests("GET /all") > 0).count();
        assert_eq!(served, expected, "{kind}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logical_name_whose_first_address_refuses_is_reached_at_its_second() -> Result<()> {
    let (builder, names) = with_names("LOGICAL_DNS").await?;
    let mesh = builder.start().await?;
    let (gone, two) = (app(&mesh, 1).await?, app(&mesh, 2).await?);
    gone.0.kill().await;
    names.set(NAME, Entry::Addresses(vec![gone.1, two.1], 60));
    let connection = mesh.connect("frontend-0").await?;
    answered_by(&connection, "api-2").await?;
    let mut http = connection.http1(API).await?;
    let request = http.request(http::Method::POST, "/once").body(tests::peer::full("order"))?;
    assert_eq!(http.send(request).await?.status, StatusCode::OK);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_sent_again_keeps_what_was_found() -> Result<()> {
    let (builder, names) = with_names("STRICT_DNS").await?;
    let mut mesh = builder.start().await?;
    let (_one, first) = app(&mesh, 1).await?;
    names.set(NAME, Entry::Addresses(vec![first], 60));
    let connection = mesh.connect("frontend-0").await?;
    answered_by(&connection, "api-1").await?;
    let asked = names.questions(NAME);
    mesh.push_accepted(|scenario| {
        scenario.resource(Kind::Cluster, API_CHAIN)?["connect_timeout"] = "3s".into();
        Ok(())
    })
    .await?;
    assert_eq!(connection.get(API, "/").await?.status, StatusCode::OK, "no moment without endpoints");
    assert_eq!(names.questions(NAME), asked);
    Ok(())
}
