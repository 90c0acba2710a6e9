//! What older releases of istiod send: `fixtures/istiod-1.28`, `fixtures/istiod-1.29`.

use anyhow::{Context, Result};
use http::StatusCode;
use tests::peer::{exchange_raw, plain_get};
use tests::scenario::{DB, DB_CHAIN, Mesh, RATINGS, RATINGS_CHAIN, WEB, WEB_CHAIN};
use tests::workload::App;

const RELEASES: [&str; 2] = ["../istiod-1.28/default-chain", "../istiod-1.29/default-chain"];
const ADMIN_PORT: u16 = 15000;

async fn mesh(release: &str) -> Result<Mesh> {
    let builder = Mesh::builder(release)?
        .edit(|scenario| [WEB_CHAIN, RATINGS_CHAIN, DB_CHAIN].iter().try_for_each(|cluster| scenario.keep_endpoints(cluster, 1)))?;
    builder.start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn older_releases_are_served_without_a_refusal() -> Result<()> {
    for release in RELEASES {
        let mesh = mesh(release).await?;
        let (_web, _ratings) = (mesh.pod("web-v1-1", App::Http).await?, mesh.pod("ratings-v1-1", App::Http).await?);
        let _db = mesh.pod("db-v1-1", App::Tcp { greets: true }).await?;
        let connection = mesh.connect("frontend-0").await?;
        assert_eq!(connection.get(WEB, "/").await?.json()["pod"], "web-v1-1", "{release}");
        assert_eq!(connection.http2(RATINGS).await?.get("/").await?.json()["pod"], "ratings-v1-1", "{release}");
        assert_eq!(exchange_raw(connection.tunnel(DB).await?, b"select", true).await?, b"ready\necho:select", "{release}");
        let page = plain_get(mesh.waypoint.port(ADMIN_PORT), "/unsupported").await?.json();
        assert_eq!(page["refused"].as_array().context("no list")?.len(), 0, "{release}: {page}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn their_default_route_repeats_what_was_not_sent_twice_and_no_grpc() -> Result<()> {
    for release in RELEASES {
        let mesh = mesh(release).await?;
        let (web, ratings) = (mesh.pod("web-v1-1", App::Http).await?, mesh.pod("ratings-v1-1", App::Http).await?);
        for pod in [&web, &ratings] {
            pod.record().refuse_connects(Some(StatusCode::SERVICE_UNAVAILABLE));
        }
        let connection = mesh.connect("frontend-0").await?;
        assert_eq!(connection.get(WEB, "/").await?.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(connection.http2(RATINGS).await?.get("/").await?.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!((web.record().connects().len(), ratings.record().connects().len()), (3, 1), "{release}");
    }
    Ok(())
}
