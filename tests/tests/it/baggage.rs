//! Peers that say in `baggage` who they are, as istiod configures it with `AMBIENT_ENABLE_BAGGAGE`.

use anyhow::{Context, Result, anyhow};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};
use tests::fake_istiod::Kind;
use tests::peer::Http;
use tests::scenario::{DB, DB_CHAIN, Mesh, Scenario, WEB, WEB_CHAIN};
use tests::workload::App;

fn in_json_form(type_name: &str, value: Value) -> Value {
    let type_url = format!("type.googleapis.com/{type_name}");
    json!({"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": type_url, "value": value})
}

/// What istiod changes.
fn enable(scenario: &mut Scenario) -> Result<()> {
    const CONFIG: &str = "envoy.extensions.network_filters.peer_metadata.Config";
    const UPSTREAM: &str = "envoy.extensions.network_filters.peer_metadata.UpstreamConfig";
    const HTTP: &str = "io.istio.http.peer_metadata.Config";
    for (name, changes) in [("connect_originate", true), ("inner_connect_originate", true), ("outer_connect_originate", false)] {
        let filters = scenario.resource(Kind::Listener, name)?["filter_chains"][0]["filters"].as_array_mut().context("no filters")?;
        let (proxy, before) = filters.split_last_mut().context("no proxy")?;
        if changes {
            let tunnel = &mut proxy["typed_config"]["tunneling_config"];
            tunnel["propagate_response_headers"] = true.into();
            let own = json!({
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                "header": {"key": "baggage", "value": "%FILTER_STATE(io.istio.baggage:PLAIN)%"},
            });
            let headers = tunnel["headers_to_add"].take();
            let headers = headers.as_array().cloned().unwrap_or_default().into_iter().chain([own]);
            tunnel["headers_to_add"] = headers.collect();
            let at = before.len();
            let metadata = in_json_form(CONFIG, json!({"baggage_key": "io.istio.baggage"}));
            filters.insert(at, json!({"name": "upstream_hbone_peer_metadata", "typed_config": metadata}));
        }
    }
    let manager = &mut scenario.resource(Kind::Listener, "connect_terminate")?["filter_chains"][0]["filters"][0]["typed_config"];
    let filters = manager["http_filters"].as_array_mut().context("no HTTP filters")?;
    let filter = filters.iter_mut().find(|filter| filter["name"] == "waypoint_downstream_peer_metadata").context("no metadata")?;
    filter["typed_config"] = in_json_form(
        HTTP,
        json!({
            "downstream_discovery": [{"workload_discovery": {}}, {"baggage": {}}],
            "downstream_propagation": [{"baggage": {}}],
            "shared_with_upstream": true,
        }),
    );
    let filters = scenario.http(WEB_CHAIN)?["http_filters"].as_array_mut().context("no HTTP filters")?;
    let filter = filters.iter_mut().find(|filter| filter["name"] == "waypoint_upstream_peer_metadata").context("no metadata")?;
    let methods = json!([{"workload_discovery": {}}, {"upstream_filter_state": {"peer_metadata_key": "upstream_peer"}}]);
    filter["typed_config"] = in_json_form(HTTP, json!({"upstream_discovery": methods}));
    for name in [WEB_CHAIN, DB_CHAIN] {
        let cluster = scenario.resource(Kind::Cluster, name)?;
        cluster["filters"] = json!([{"name": "upstream_hbone_peer_metadata", "typed_config": in_json_form(UPSTREAM, json!({}))}]);
        cluster["metadata"]["filter_metadata"]["istio.peer_metadata"] = json!({"disable_baggage_discovery": true});
    }
    Ok(())
}

fn header(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_discovery_does_not_know_are_who_their_baggage_says_in_labels() -> Result<()> {
    const CLIENT: &str =
        "k8s.cluster.name=west,k8s.namespace.name=abroad,k8s.deployment.name=caller,service.name=caller-svc,service.version=v7";
    const POD: &str = "k8s.cluster.name=east,k8s.namespace.name=afar,k8s.job.name=called,service.name=called-svc,service.version=v8";
    for enabled in [true, false] {
        let builder = Mesh::builder("01-plain")?.environment("ISTIO_META_NETWORK", Some("network1"));
        let builder = builder.edit(|scenario| {
            for chain in [WEB_CHAIN, DB_CHAIN] {
                scenario.keep_endpoints(chain, 1)?;
            }
            if enabled { enable(scenario) } else { Ok(()) }
        })?;
        let mut mesh = builder.environment("ISTIO_META_WORKLOAD_NAME", Some("waypoint")).start().await?;
        let (web, db) = (mesh.pod("web-v1-1", App::Http).await?, mesh.pod("db-v1-1", App::Tcp { greets: false }).await?);
        [&web, &db].iter().for_each(|pod| pod.record().answer_connects_with(header(&[("baggage", POD)])));
        mesh.push_accepted(|scenario| {
            // Discovery knows neither pod.
            let pods: Vec<_> = scenario.resources(Kind::Workload).map(|(name, _)| name.to_owned()).collect();
            for name in pods.iter().filter(|name| name.contains("web-v1-1") || name.contains("db-v1-1")) {
                scenario.resource(Kind::Workload, name)?["addresses"] = json!([]);
            }
            Ok(())
        })
        .await?;
        let connection = mesh.connect("frontend-0").await?;
        let headers = header(&[("x-forwarded-network", "network2"), ("baggage", CLIENT)]);
        let (tunnel, answer) = connection.answered(WEB, headers.clone()).await?.map_err(|status| anyhow!("CONNECT: {status}"))?;
        let mut http = Http::one(tunnel).await?;
        for _ in 0..2 {
            assert_eq!(http.get("/").await?.status, StatusCode::OK);
        }
        let told: Vec<_> = web.record().connects().iter().map(|seen| seen.headers.get("baggage").cloned()).collect();
        let expected = enabled.then_some("k8s.deployment.name=waypoint");
        for own in told.iter().map(Option::as_ref).chain([answer.get("baggage")]) {
            let own = own.map(|own| own.to_str()).transpose()?;
            assert_eq!(own.and_then(|own| own.split(',').next()), expected, "{own:?}");
            assert!(own.is_none_or(|own| own.contains("k8s.namespace.name=shop")), "{own:?}");
        }
        let known = |client: &str, pod: &str| {
            let labels = [format!("source_workload=\"{client}\""), format!("destination_workload=\"{pod}\"")];
            move |line: &str| labels.iter().all(|label| line.contains(label))
        };
        let (client, pod) = if enabled { ("caller", "called") } else { ("unknown", "unknown") };
        let is_known = known(client, pod);
        let line = mesh
            .waypoint
            .metric("both", |line| line.starts_with("istio_requests_total{") && is_known(line) && line.ends_with(" 2"))
            .await?;
        if enabled {
            // The namespace of the client is in its certificate.
            let rest = ["source_workload_namespace=\"clients\"", "source_canonical_service=\"caller-svc\"", "source_cluster=\"west\""];
            let of_pod =
                ["destination_workload_namespace=\"afar\"", "destination_canonical_revision=\"v8\"", "destination_cluster=\"east\""];
            assert!(rest.iter().chain(&of_pod).all(|label| line.contains(label)), "{line}");
        }
        // A client that discovery knows is who discovery says.
        let tunnel = connection.connect_with(DB, header(&[("baggage", CLIENT)])).await?.map_err(|status| anyhow!("CONNECT: {status}"))?;
        assert_eq!(tests::peer::exchange_raw(tunnel, b"select", true).await?, b"echo:select");
        let is_known = known("frontend-0", pod);
        mesh.waypoint.metric("TCP", |line| line.starts_with("istio_tcp_connections_opened_total{") && is_known(line)).await?;
    }
    Ok(())
}
