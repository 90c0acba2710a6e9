#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;

/// The environment of the Deployment that istiod 1.31 renders.
fn environment() -> BTreeMap<String, String> {
    [
        ("ISTIO_META_SERVICE_ACCOUNT", "waypoint"),
        ("ISTIO_META_NODE_NAME", "node-a"),
        ("PILOT_CERT_PROVIDER", "istiod"),
        ("CA_ADDR", "istiod.istio-system.svc:15012"),
        ("POD_NAME", "waypoint-0"),
        ("POD_NAMESPACE", "shop"),
        ("INSTANCE_IP", "10.244.0.100"),
        ("SERVICE_ACCOUNT", "waypoint"),
        ("HOST_IP", "10.244.255.1"),
        ("ISTIO_CPU_LIMIT", "2"),
        ("PROXY_CONFIG", "{\"tracing\":{\"sampling\":100}}\n"),
        ("GOMEMLIMIT", "1073741824"),
        ("GOMAXPROCS", "2"),
        ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
        ("ISTIO_META_INTERCEPTION_MODE", "REDIRECT"),
        ("ISTIO_META_WORKLOAD_NAME", "waypoint"),
        ("ISTIO_META_OWNER", "kubernetes://apis/apps/v1/namespaces/shop/deployments/waypoint"),
        ("ISTIO_META_MESH_ID", "cluster.local"),
        ("TRUST_DOMAIN", "cluster.local"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn pod(path: &Path) -> std::io::Result<String> {
    match path.to_str() {
        Some("/etc/istio/pod/labels") => Ok("gateway.networking.k8s.io/gateway-name=\"waypoint\"\n".to_owned()),
        Some("/etc/istio/pod/annotations") => Ok("istio.io/rev=\"default\"\n".to_owned()),
        _ => Err(std::io::ErrorKind::NotFound.into()),
    }
}

fn read(env: BTreeMap<String, String>) -> Result<Settings, Vec<SettingError>> {
    let args = ProxyArgs {
        domain: Some("shop.svc.cluster.local".to_owned()),
        service_cluster: Some("waypoint.shop".to_owned()),
        ..ProxyArgs::default()
    };
    Settings::read(
        &args,
        Sources { env, interface_addresses: vec!["10.244.0.100".parse().unwrap(), "fd00::1".parse().unwrap()], read_file: &pod },
    )
}

/// With this annotation of metrics.
fn annotated(name: &str, value: &str) -> Result<Settings, Vec<SettingError>> {
    let annotations = format!("sidecar.istio.io/{name}={value:?}\n");
    let read_file = move |path: &Path| if path.ends_with("annotations") { Ok(annotations.clone()) } else { pod(path) };
    Settings::read(&ProxyArgs::default(), Sources { env: environment(), interface_addresses: Vec::new(), read_file: &read_file })
}

#[test]
fn spans_of_tries_and_semantic_conventions_are_there_only_if_asked_for() {
    let asked = [("WAYPOINT_SPANS_OF_TRIES".to_owned(), "true".to_owned())];
    assert!(!read(environment()).unwrap().spans_of_tries);
    assert!(read(environment().into_iter().chain(asked).collect()).unwrap().spans_of_tries);
    let asked = [("WAYPOINT_SEMANTIC_CONVENTIONS".to_owned(), "true".to_owned())];
    assert!(!read(environment()).unwrap().semantic_names);
    assert!(read(environment().into_iter().chain(asked).collect()).unwrap().semantic_names);
}

#[test]
fn filters_to_be_left_out_are_no_policies() {
    let with = |value: &str| read(environment().into_iter().chain([("WAYPOINT_SKIP_FILTERS".to_owned(), value.to_owned())]).collect());
    assert_eq!(read(environment()).unwrap().skipped_filters.iter().count(), 0);
    let named = with("envoy.filters.http.lua, mine").unwrap().skipped_filters;
    assert_eq!(named.iter().collect::<Vec<_>>(), ["envoy.filters.http.lua", "mine"]);
    for policy in ["envoy.filters.http.rbac", "mine,envoy.filters.http.jwt_authn", "envoy.filters.http.ext_authz", "mine,"] {
        let error = with(policy).unwrap_err().remove(0);
        assert_eq!((error.name.as_str(), error.value.as_str()), ("WAYPOINT_SKIP_FILTERS", policy));
        assert!(error.to_string().contains("decides who may do what"), "{error}");
    }
}

#[test]
fn lines_say_why_they_were_refused_unless_that_is_switched_off() {
    let with = |value: &str| read(environment().into_iter().chain([("WAYPOINT_LOG_REFUSALS".to_owned(), value.to_owned())]).collect());
    assert!(read(environment()).unwrap().log_refusals && with("true").unwrap().log_refusals);
    assert!(!with("false").unwrap().log_refusals);
    assert_eq!(with("never").unwrap_err()[0].name, "WAYPOINT_LOG_REFUSALS");
}

fn with_buckets(buckets: &str) -> Result<Settings, Vec<SettingError>> {
    annotated("statsHistogramBuckets", buckets)
}

#[test]
fn series_expire_after_what_the_pods_annotation_says() {
    assert_eq!(annotated("statsEvictionInterval", "90s").unwrap().series_idle_max, Some(Duration::from_secs(90)));
    assert_eq!(read(environment()).unwrap().series_idle_max, None);
    for wrong in ["0s", "soon", ""] {
        assert_eq!(annotated("statsEvictionInterval", wrong).unwrap_err()[0].name, "annotation sidecar.istio.io/statsEvictionInterval");
    }
}

#[test]
fn m36_histogram_buckets_are_read_from_the_pods_annotation() {
    let read = with_buckets(r#"{"istiocustom":[1,10],"cluster.":[0.5]}"#).unwrap().histogram_bounds;
    let expected = [("cluster.", &[0.5][..]), ("istiocustom", &[1.0, 10.0])];
    assert_eq!(read, expected.map(|(prefix, bounds)| (prefix.to_owned(), Bounds::new(bounds).unwrap())));
    for wrong in [r#"{"istiocustom":[10,1]}"#, r#"{"istiocustom":1}"#, "1,10"] {
        assert_eq!(with_buckets(wrong).unwrap_err()[0].name, "annotation sidecar.istio.io/statsHistogramBuckets", "{wrong}");
    }
}

fn with(changes: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut env = environment();
    env.extend(changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    env
}

#[test]
fn the_rendered_deployment_needs_nothing_else() {
    let settings = read(environment()).unwrap();
    assert_eq!(settings.discovery.host, "istiod.istio-system.svc");
    assert_eq!((settings.discovery.port, settings.discovery.plaintext), (15012, false));
    assert_eq!(settings.discovery.root_file, Path::new("/var/run/secrets/istio/root-cert.pem"));
    assert_eq!(settings.token_file, Path::new("/var/run/secrets/tokens/istio-token"));
    assert_eq!(settings.node.instance_ips.len(), 2);
    assert_eq!(settings.node.meta["NODE_NAME"], "node-a");
    assert_eq!(settings.node.istio_version, ISTIO_VERSION_DEFAULT);
    assert_eq!(settings.node.labels["gateway.networking.k8s.io/gateway-name"], "waypoint");
    assert_eq!((settings.concurrency, settings.cpu_limit), (None, Some(2)));
    assert_eq!(settings.local.status.port(), 15021);
    assert_eq!(settings.drain_deadline(), Duration::from_secs(5));
}

#[test]
fn everything_that_is_wrong_is_reported_at_once_with_name_value_and_expectation() {
    let mut env =
        with(&[("INSTANCE_IP", "here"), ("CA_ADDR", "istiod"), ("ISTIO_CPU_LIMIT", "two"), ("WAYPOINT_READY_WITH_REFUSED", "yes")]);
    env.remove("POD_NAMESPACE");
    let errors = read(env).unwrap_err();
    let names: Vec<_> = errors.iter().map(|error| error.name.as_str()).collect();
    for name in ["INSTANCE_IP", "CA_ADDR", "ISTIO_CPU_LIMIT", "WAYPOINT_READY_WITH_REFUSED", "POD_NAMESPACE"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let shown = errors.iter().find(|error| error.name == "ISTIO_CPU_LIMIT").unwrap().to_string();
    assert_eq!(shown, "ISTIO_CPU_LIMIT is \"two\": expected a number of cores");
}

#[test]
fn missing_pod_files_are_named() {
    let args = ProxyArgs::default();
    let nothing = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
    let errors = Settings::read(&args, Sources { env: environment(), interface_addresses: Vec::new(), read_file: &nothing }).unwrap_err();
    assert!(errors.iter().any(|error| error.name == "/etc/istio/pod/labels"));
}

#[test]
fn proxy_config_says_where_istiod_is_and_how_long_a_drain_takes() {
    let config = "{\"discoveryAddress\":\"istiod-canary.istio-system.svc:15012\",\"terminationDrainDuration\":\"120s\",\"concurrency\":3,\
                  \"proxyMetadata\":{\"ISTIO_META_NETWORK\":\"net1\"}}";
    let mut env = with(&[("PROXY_CONFIG", config)]);
    env.remove("CA_ADDR");
    let settings = read(env).unwrap();
    assert_eq!(settings.discovery.server_name, "istiod-canary.istio-system.svc");
    assert_eq!(settings.ca.host, settings.discovery.host);
    assert_eq!(settings.concurrency, Some(3));
    assert_eq!(settings.node.network, "net1");
    assert_eq!(settings.drain_deadline(), Duration::from_secs(28), "always below the pod's grace period");
}

#[test]
fn an_east_west_gateway_is_refused_by_name() {
    let east_west = |path: &Path| match path.to_str() {
        Some("/etc/istio/pod/labels") => Ok("gateway.istio.io/managed=\"istio.io-eastwest-controller\"\n".to_owned()),
        _ => Ok(String::new()),
    };
    let errors =
        Settings::read(&ProxyArgs::default(), Sources { env: environment(), interface_addresses: Vec::new(), read_file: &east_west })
            .unwrap_err();
    assert_eq!(errors[0].value, "istio.io-eastwest-controller");
}

#[test]
fn plaintext_is_spoken_only_where_it_was_asked_for() {
    assert!(read(with(&[("PROXY_CONFIG", "{\"controlPlaneAuthPolicy\":\"NONE\"}")])).unwrap().discovery.plaintext);
    assert!(read(with(&[("CA_ADDR", "istiod:15010")])).unwrap().ca.plaintext);
    assert_eq!(read(with(&[("CA_ADDR", "localhost:15012")])).unwrap().ca.server_name, "istiod.istio-system.svc");
}
