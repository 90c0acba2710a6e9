//! Circuit breakers and the use of connections, as a DestinationRule's connection pool sets them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::{Answer, Connection, empty, exchange_raw};
use tests::scenario::{DB, DB_CHAIN, Mesh, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::{App, Workload};
use tokio::io::AsyncReadExt;

const DEADLINE: Duration = Duration::from_secs(10);
const OVERFLOW: &str = "upstream connect error or disconnect/reset before headers. reset reason: overflow";

const AGE_MAX: Duration = Duration::from_secs(1);
/// What a clock that began a little later may show less.
const SLACK: Duration = Duration::from_millis(100);
/// Between requests.
const PAUSE: Duration = Duration::from_millis(50);

/// Thresholds of a cluster; what is not named is without limit, as istiod writes it.
fn set_limits(scenario: &mut Scenario, cluster: &str, limits: &Value) -> Result<()> {
    let thresholds = &mut scenario.resource(Kind::Cluster, cluster)?["circuit_breakers"]["thresholds"][0];
    for (name, value) in limits.as_object().context("limits are an object")? {
        thresholds[name] = value.clone();
    }
    Ok(())
}

/// A mesh with one pod for the service and one worker.
async fn mesh(cluster: &str, limits: &Value) -> Result<Mesh> {
    let builder = Mesh::builder("07-telemetry")?.edit(|scenario| {
        scenario.keep_endpoints(WEB_CHAIN, 1)?;
        set_limits(scenario, cluster, limits)
    })?;
    builder.proxy_config("concurrency", 1.into()).start().await
}

/// Ten requests at once, each on a connection of its own, after one alone.
async fn ten_at_once(mesh: &Mesh, proxy: SocketAddr) -> Result<(Vec<Answer>, Vec<Answer>)> {
    let connection = mesh.peer("frontend-0")?.connect(proxy).await?;
    assert_eq!(connection.get(WEB, "/warm").await?.status, StatusCode::OK);
    let requests: Vec<_> = (0..10)
        .map(|_| {
            let connection = connection.clone();
            tokio::spawn(async move { connection.get(WEB, "/delay/1500").await })
        })
        .collect();
    let mut answers = Vec::new();
    for request in requests {
        answers.push(request.await??);
    }
    Ok(answers.into_iter().partition(|answer| answer.status == StatusCode::OK))
}

fn assert_overflow(answer: &Answer) {
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::SERVICE_UNAVAILABLE, OVERFLOW));
    assert_eq!(answer.header("x-envoy-overloaded"), "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_the_connections_wait_and_beyond_the_waiting_are_refused_as_envoy_does() -> Result<()> {
    let mesh = mesh(WEB_CHAIN, &json!({"max_connections": 1, "max_pending_requests": 1})).await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    for proxy in [mesh.hbone(), envoy.hbone()] {
        let n_tunnels_before = web.record().connects().len();
        let (served, refused) = ten_at_once(&mesh, proxy).await?;
        assert_eq!((served.len(), refused.len()), (2, 8), "{proxy}: one on the connection, one waits");
        refused.iter().for_each(assert_overflow);
        assert_eq!(web.record().connects().len() - n_tunnels_before, 1, "{proxy}: one connection");
    }
    let (_, line) = mesh.waypoint.access_line("a refused one", |line| line["response_code"] == 503).await?;
    assert_eq!(line["response_flags"], "UO");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_requests_are_in_flight_than_may_be_whatever_the_worker() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            set_limits(scenario, WEB_CHAIN, &json!({"max_requests": 3}))
        })?
        .start()
        .await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let (served, refused) = ten_at_once(&mesh, mesh.hbone()).await?;
    assert_eq!((served.len(), refused.len()), (3, 7));
    refused.iter().for_each(assert_overflow);
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/after").await?.status, StatusCode::OK, "what has ended makes room");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_finds_its_breaker_open_is_not_made_and_the_answer_passes() -> Result<()> {
    let route = json!({
        "name": "retried", "match": {"prefix": "/status", "case_sensitive": true},
        "route": {"cluster": WEB_CHAIN, "timeout": "0s", "retry_policy": {"retry_on": "5xx", "num_retries": 2}},
    });
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            scenario.add_routes(WEB_CHAIN, vec![route])?;
            set_limits(scenario, WEB_CHAIN, &json!({"max_retries": 0}))
        })?
        .start()
        .await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    for (n_before, proxy) in [(0, mesh.hbone()), (1, envoy.hbone())] {
        let answer = mesh.peer("frontend-0")?.connect(proxy).await?.get(WEB, "/status/500").await?;
        assert_eq!((answer.status.as_u16(), answer.header("x-envoy-overloaded")), (500, ""), "{proxy}");
        assert_eq!(web.record().requests("GET /status/500"), n_before + 1, "{proxy}: one try");
    }
    let (_, line) = mesh.waypoint.access_line("the line", |line| line["path"] == "/status/500").await?;
    assert_eq!((&line["response_code"], &line["response_flags"]), (&500.into(), &"UO".into()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_connection_beyond_the_limit_is_refused() -> Result<()> {
    let mesh = mesh(DB_CHAIN, &json!({"max_connections": 1})).await?;
    let _db = mesh.pod("db-v1-1", App::Tcp { greets: true }).await?;
    let connection = mesh.connect("frontend-0").await?;
    let mut first = connection.tunnel(DB).await?;
    let mut greeting = [0; 6];
    first.read_exact(&mut greeting).await?;
    assert_eq!(connection.connect(DB).await?.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
    let (_, line) = mesh.waypoint.access_line("the refused one", |line| line["response_flags"] == "UO").await?;
    assert_eq!(line["upstream_cluster"], "inbound-vip|5432|tcp|db.shop.svc.cluster.local;");
    assert_eq!(exchange_raw(first, b"select 1", true).await?, b"echo:select 1");
    mesh.waypoint.access_line("the one that ended", |line| line["bytes_sent"] == 19).await?;
    assert_eq!(exchange_raw(connection.tunnel(DB).await?, b"", true).await?, b"ready\necho:", "what has ended makes room");
    Ok(())
}

/// A mesh with one pod for `web`, to which connections are used like this.
async fn mesh_with_use(rules: &Value) -> Result<Mesh> {
    let options = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": rules,
        "explicit_http_config": {"http_protocol_options": {}},
    });
    let builder = Mesh::builder("01-plain")?.edit(|scenario| {
        scenario.keep_endpoints(WEB_CHAIN, 1)?;
        let cluster = scenario.resource(Kind::Cluster, WEB_CHAIN)?;
        cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options});
        Ok(())
    })?;
    builder.proxy_config("concurrency", 1.into()).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_carries_no_more_requests_than_it_may() -> Result<()> {
    let mesh = mesh_with_use(&json!({"max_requests_per_connection": 2})).await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    for number in 0..6 {
        assert_eq!(http.get(&format!("/{number}")).await?.status, StatusCode::OK);
    }
    assert_eq!(web.record().connects().len(), 3, "two requests each");
    Ok(())
}

/// A budget of retries, and what becomes of failing requests, each after the one before was retried or answered; retries last.
struct Budget {
    name: &'static str,
    budget: Value,
    /// Requests before that are answered, and such that last.
    before: (usize, usize),
    /// How long ago that is.
    pause: Duration,
    n_failing: usize,
    n_retried: usize,
}

fn budgets() -> Vec<Budget> {
    let row = |name, (percent, min): (u32, u32), interval: Option<&str>, n_failing, n_retried| {
        let mut budget = json!({"budget_percent": {"value": percent}, "min_retry_concurrency": min});
        if let Some(interval) = interval {
            budget["budget_interval"] = interval.into();
        }
        Budget { name, budget, before: (0, 0), pause: Duration::ZERO, n_failing, n_retried }
    };
    let (long, short, pause) = (Some("30s"), Some("0.500s"), Duration::from_secs(1));
    vec![
        row("least", (0, 3), None, 4, 3),
        row("all", (100, 0), None, 3, 3),
        row("half", (50, 1), None, 3, 1),
        row("half, at least two", (50, 2), None, 3, 2),
        Budget { before: (10, 0), ..row("what has ended does not count", (20, 0), None, 1, 0) },
        Budget { before: (0, 5), ..row("what lasts counts", (20, 0), None, 2, 1) },
        Budget { before: (10, 0), ..row("what has ended counts for an interval", (20, 0), long, 6, 3) },
        // The first has no share; each retry is a request of the interval as well.
        row("half of an interval", (50, 0), long, 5, 4),
        row("at least two in an interval", (10, 2), long, 4, 2),
        Budget { before: (10, 0), pause, ..row("what has ended is forgotten", (50, 0), short, 1, 0) },
        Budget { before: (0, 4), pause, ..row("what lasts is forgotten", (50, 0), short, 1, 0) },
    ]
}

fn with_budgets(scenario: &mut Scenario) -> Result<()> {
    scenario.keep_endpoints(WEB_CHAIN, 1)?;
    let cluster = scenario.resource(Kind::Cluster, WEB_CHAIN)?.clone();
    let mut routes = Vec::new();
    for Budget { name, budget, .. } in budgets() {
        let mut cluster = cluster.clone();
        cluster["name"] = name.into();
        cluster["eds_cluster_config"]["service_name"] = WEB_CHAIN.into();
        cluster["circuit_breakers"]["thresholds"][0]["retry_budget"] = budget;
        scenario.insert(Kind::Cluster, name, cluster);
        let policy = json!({"retry_on": "5xx", "num_retries": 1, "retry_back_off": {"base_interval": "0.001s"}});
        routes.push(json!({
            "name": name, "match": {"prefix": "/", "headers": [{"name": "x-row", "string_match": {"exact": name}}]},
            "route": {"cluster": name, "timeout": "0s", "retry_policy": policy},
        }));
    }
    scenario.add_routes(WEB_CHAIN, routes)
}

/// How many of a row's failing requests a proxy retries.
async fn n_retried(connection: &Connection, web: &Workload, row: &Budget, proxy: &str) -> Result<usize> {
    let ask = async |path: &str| {
        let mut http = connection.http1(WEB).await?;
        let request = http.request(Method::GET, path).header("x-row", row.name).header("x-answer-after", "60000").body(empty())?;
        anyhow::Ok(tokio::spawn(async move { http.start(request).await }))
    };
    let seen = |path: &str| web.record().requests(&format!("GET {path}"));
    for _ in 0..row.before.0 {
        assert_eq!((ask("/status/200").await?).await??.status(), StatusCode::OK);
    }
    let mut lasting = Vec::new();
    for number in 0..row.before.1 {
        let path = format!("/lasts/{number}/{proxy}/{}", row.name.replace(' ', "-"));
        lasting.push(ask(&path).await?);
        until("a request that lasts", DEADLINE, async || Ok(if seen(&path) == 1 { Look::Done(()) } else { Look::NotYet(path.clone()) }))
            .await?;
    }
    // There is nothing to be seen of an interval that passes.
    tokio::time::sleep(row.pause).await;
    let mut n_retried = 0;
    for number in 0..row.n_failing {
        let path = format!("/fail/503/1/{number}/{proxy}/{}", row.name.replace(' ', "-"));
        let asked = ask(&path).await?;
        let is_retried = until("a retry or an answer", DEADLINE, async || {
            Ok(match (seen(&path), asked.is_finished()) {
                (2, _) => Look::Done(true),
                (_, true) => Look::Done(false),
                (n_seen, false) => Look::NotYet(format!("{path}: {n_seen}")),
            })
        })
        .await?;
        if is_retried {
            n_retried += 1;
            lasting.push(asked);
        } else {
            assert_eq!(asked.await??.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        }
    }
    lasting.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(n_retried)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_of_retries_follows_the_requests_of_the_moment_or_of_an_interval_as_in_envoy() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(with_budgets)?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let mut different = Vec::new();
    for (proxy, at) in [("ours", mesh.hbone()), ("envoy", envoy.hbone())] {
        let connection = mesh.peer("frontend-0")?.connect(at).await?;
        for row in budgets() {
            let n_retried = n_retried(&connection, &web, &row, proxy).await.with_context(|| format!("{}, {proxy}", row.name))?;
            if n_retried != row.n_retried {
                different.push(format!("{}, {proxy}: {n_retried} retries, not {}", row.name, row.n_retried));
            }
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_as_old_as_it_may_become_takes_no_more_requests_alike() -> Result<()> {
    let mesh = mesh_with_use(&json!({"max_connection_duration": "1s"})).await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let peer = mesh.peer("frontend-0")?;
    for proxy in [mesh.hbone(), envoy.hbone()] {
        let mut http = peer.connect(proxy).await?.http1(WEB).await?;
        let (before, mut began, mut ages) = (web.record().connects().len(), Instant::now(), Vec::new());
        while ages.len() < 2 {
            assert_eq!(http.get("/x").await?.status, StatusCode::OK);
            // The first request makes one, each further one follows an old one.
            if web.record().connects().len() > before + ages.len() + 1 {
                ages.push(began.elapsed());
                began = Instant::now();
            }
            assert!(began.elapsed() < DEADLINE, "{proxy}: one connection for ever");
            tokio::time::sleep(PAUSE).await;
        }
        assert!(ages.iter().all(|age| *age >= AGE_MAX - SLACK && *age < AGE_MAX * 3), "{proxy}: {ages:?}");
    }
    Ok(())
}
