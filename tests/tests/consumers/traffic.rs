//! A mesh under load: who calls whom, in every way that a graph shows.

use anyhow::{Context, Result};
use http::Method;
use serde_json::json;
use tests::peer::{Connection, empty, exchange_raw, full};
use tests::scenario::{DB, EMPTY, Mesh, RATINGS, RATINGS_CHAIN, Scenario, WEB, WEB_CHAIN};
use tests::workload::{App, Workload};
use tokio::task::JoinSet;

/// A mesh, its pods, and the calls that go on until it is dropped.
pub(crate) struct Traffic {
    pub(crate) mesh: Mesh,
    _pods: Vec<Workload>,
    _calls: JoinSet<Result<()>>,
}

/// An edge of a graph: from whom, to which service and pod of it, in which protocol, with which result.
pub(crate) type Edge = (&'static str, &'static str, &'static str, &'static str, &'static str);

/// What [`Traffic`] is. A request that reached no pod is for `unknown`.
pub(crate) const EDGES: &[Edge] = &[
    ("clients/frontend-0", "web.shop.svc.cluster.local", "shop/web-v1-1", "http", "200"),
    ("clients/frontend-0", "web.shop.svc.cluster.local", "shop/web-v1-1", "http", "500"),
    ("clients/frontend-0", "web.shop.svc.cluster.local", "unknown/unknown", "http", "403"),
    ("clients/frontend-0", "empty.shop.svc.cluster.local", "unknown/unknown", "http", "503"),
    ("clients/frontend-0", "ratings.shop.svc.cluster.local", "shop/ratings-v1-1", "grpc", "0"),
    ("clients/batch-0", "web.shop.svc.cluster.local", "shop/web-v1-1", "http", "200"),
    ("shop/web-v1-1", "ratings.shop.svc.cluster.local", "shop/ratings-v1-1", "grpc", "0"),
    ("shop/web-v1-1", "db.shop.svc.cluster.local", "shop/db-v1-1", "tcp", "-"),
];

fn configuration(scenario: &mut Scenario) -> Result<()> {
    scenario.keep_endpoints(WEB_CHAIN, 1)?;
    scenario.keep_endpoints(RATINGS_CHAIN, 1)?;
    let denied = json!({"url_path": {"path": {"exact": "/denied"}}});
    let policy = json!({"permissions": [{"and_rules": {"rules": [denied]}}], "principals": [{"any": true}]});
    scenario.add_http_filters(
        WEB_CHAIN,
        vec![json!({
            "name": "envoy.filters.http.rbac",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                "rules": {"action": "DENY", "policies": {"ns[shop]-policy[deny]-rule[0]": policy}},
            },
        })],
    )
}

impl Traffic {
    /// Begins, with calls on several connections at once.
    pub(crate) async fn begin() -> Result<Self> {
        let mesh = Mesh::builder("07-telemetry")?.edit(configuration)?.quiet().start().await?;
        let pods = vec![
            mesh.pod("web-v1-1", App::Http).await?,
            mesh.pod("ratings-v1-1", App::Http).await?,
            mesh.pod("db-v1-1", App::Tcp { greets: false }).await?,
        ];
        let mut calls = JoinSet::new();
        for _ in 0..2 {
            let (frontend, batch, web) = (mesh.connect("frontend-0"), mesh.connect("batch-0"), mesh.connect("web-v1-1"));
            let (frontend, batch, web) = tokio::try_join!(frontend, batch, web)?;
            calls.spawn(again(async move || {
                for path in ["/hello", "/status/500", "/denied"] {
                    frontend.get(WEB, path).await?;
                }
                frontend.get(EMPTY, "/nobody").await?;
                rate(&frontend).await
            }));
            calls.spawn(again(async move || batch.get(WEB, "/hello").await.map(drop)));
            calls.spawn(again(async move || {
                exchange_raw(web.tunnel(DB).await?, b"sixsix", true).await?;
                rate(&web).await
            }));
        }
        Ok(Self { mesh, _pods: pods, _calls: calls })
    }
}

/// A gRPC call with one message each way.
async fn rate(connection: &Connection) -> Result<()> {
    let mut http = connection.http2(RATINGS).await?;
    let request = http.request(Method::POST, "/ratings.Ratings/Get").header("content-type", "application/grpc").header("te", "trailers");
    http.send(request.body(full(&b"\0\0\0\0\x02hi"[..]))?).await.map(drop)
}

async fn again(call: impl AsyncFn() -> Result<()>) -> Result<()> {
    loop {
        call().await?;
    }
}

/// A request whose line and span are looked for: the line as it was written.
pub(crate) async fn logged(mesh: &Mesh, path: &str) -> Result<String> {
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    let request = http.request(Method::GET, path).body(empty())?;
    http.send(request).await.context("the request")?;
    Ok(mesh.waypoint.access_line(&format!("the line of {path}"), |line| line["path"] == path).await?.0)
}
