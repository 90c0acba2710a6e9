//! Objects that steer requests: an HTTPRoute and AuthorizationPolicies, applied and deleted while callers look on.

use anyhow::{Result, ensure};
use http::{Method, StatusCode};
use serde_json::json;
use tests::authz::{AuthzServer, Says};
use tests::peer::{Answer, empty};
use tests::wait::{Look, until};

use crate::stage::{EFFECT_DEADLINE, REVIEWS, Stage, WEB};

/// Requests that are split, and how many of them the smaller part gets: a quarter, give or take five standard deviations.
const SPLIT_REQUESTS: usize = 200;
const SPLIT_EXPECTED: std::ops::RangeInclusive<usize> = 20..=80;

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: reviews, port: 9080}]
  rules:
  - matches: [{headers: [{name: x-user, value: alice}]}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: x-set, value: by-route}], add: [{name: x-add, value: added}], remove: [x-gone]}
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: x-routed, value: 'yes'}]}
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /split}}]
    backendRefs: [{name: reviews, port: 9080, weight: 75}, {name: web, port: 80, weight: 25}]
  - backendRefs: [{name: reviews, port: 9080}]
";

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/clients/sa/frontend]}}]
";

/// Where the providers of the mesh lead: gRPC, HTTP.
const AUTHZ: [&str; 2] = ["10.244.8.2:9001", "10.244.8.2:8000"];

fn custom(provider: &str) -> String {
    format!(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: custom, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: web}}]
  action: CUSTOM
  provider: {{name: {provider}}}
  rules:
  - to: [{{operation: {{paths: [/probe]}}}}]
"
    )
}

/// The first value of a header that the pod saw.
fn seen(answer: &Answer, name: &str) -> Option<String> {
    let told = answer.json();
    let pairs = told["headers"].as_array().cloned().unwrap_or_default();
    pairs.into_iter().find(|pair| pair[0] == name).and_then(|pair| pair[1].as_str().map(str::to_owned))
}

async fn get_as(stage: &Stage, user: &str) -> Result<Answer> {
    let mut http = stage.frontend.connect(stage.hbone_address()).await?.http1(REVIEWS).await?;
    let request = http.request(Method::GET, "/who").header("x-user", user).header("x-gone", "1").body(empty())?;
    http.send(request).await
}

/// A header sends requests to another service, with edits; the rest stays; weights are kept to.
pub async fn a_route_takes_effect(stage: &mut Stage) -> Result<()> {
    let before = get_as(stage, "alice").await?;
    ensure!(before.header("x-pod").starts_with("reviews-"), "before the route: {} {}", before.status, before.text());
    stage.plane.apply(ROUTE).await?;
    let alice = until("alice is routed to web", EFFECT_DEADLINE, async || {
        let answer = get_as(stage, "alice").await?;
        let found = answer.header("x-pod").starts_with("web-");
        Ok(if found { Look::Done(answer) } else { Look::NotYet(format!("{}: {}", answer.status, answer.text())) })
    })
    .await?;
    ensure!(alice.header("x-routed") == "yes", "the response is not edited: {:?}", alice.headers);
    let edits = (seen(&alice, "x-set"), seen(&alice, "x-add"), seen(&alice, "x-gone"));
    ensure!(edits == (Some("by-route".to_owned()), Some("added".to_owned()), None), "the request is not edited: {}", alice.text());
    let bob = get_as(stage, "bob").await?;
    ensure!(bob.header("x-pod").starts_with("reviews-") && bob.header("x-routed").is_empty(), "bob is routed as alice: {}", bob.text());
    let mut http = stage.frontend.connect(stage.hbone_address()).await?.http1(REVIEWS).await?;
    let mut n_web = 0;
    for _ in 0..SPLIT_REQUESTS {
        let answer = http.get("/split").await?;
        ensure!(answer.status == StatusCode::OK, "{}: {}", answer.status, answer.text());
        n_web += usize::from(answer.header("x-pod").starts_with("web-"));
    }
    ensure!(SPLIT_EXPECTED.contains(&n_web), "of {SPLIT_REQUESTS} requests {n_web} went to the backend of weight 25 in 100");
    stage.plane.delete_yaml(ROUTE).await?;
    until("alice is routed as before", EFFECT_DEADLINE, async || {
        let answer = get_as(stage, "alice").await?;
        let found = answer.header("x-pod").starts_with("reviews-") && answer.header("x-routed").is_empty();
        Ok(if found { Look::Done(()) } else { Look::NotYet(format!("{}: {}", answer.status, answer.text())) })
    })
    .await
}

/// Envoy's answer for one identity, on open tunnels too; the pod's for the other.
pub async fn a_policy_takes_effect(stage: &mut Stage) -> Result<()> {
    let mut open = stage.batch.connect(stage.hbone_address()).await?.http1(WEB).await?;
    let admitted = open.get("/allowed").await?;
    ensure!(admitted.status == StatusCode::OK, "{}: {}", admitted.status, admitted.text());
    stage.plane.apply(POLICY).await?;
    let denied = stage.get_until("batch is denied", &stage.batch, |answer| answer.status == StatusCode::FORBIDDEN).await?;
    ensure!(denied.text() == "RBAC: access denied", "the body is {:?}", denied.text());
    ensure!(denied.header("x-pod").is_empty(), "a pod answered: {:?}", denied.headers);
    let denied = open.get("/allowed").await?;
    ensure!(denied.status == StatusCode::FORBIDDEN, "on a tunnel opened before the policy: {}", denied.status);
    let answer = stage.get(&stage.frontend, WEB, "/allowed").await?;
    ensure!(answer.status == StatusCode::OK, "{}: {}", answer.status, answer.text());
    stage.plane.delete_yaml(POLICY).await?;
    stage.get_until("batch is admitted again", &stage.batch, |answer| answer.status == StatusCode::OK).await?;
    Ok(())
}

/// A provider of either kind decides about the paths of a policy, and about no other; without it nothing passes.
pub async fn a_custom_policy_takes_effect(stage: &mut Stage) -> Result<()> {
    let [grpc, http] = AUTHZ;
    for provider in ["ext-authz-grpc", "ext-authz-http"] {
        let denied = json!({"status": {"code": 7}, "denied_response": {"status": {"code": "Unauthorized"}, "body": "not you"}});
        let authz = AuthzServer::start(grpc.parse()?, http.parse()?, Says::Check(denied)).await?;
        authz.says_by_http(Says::Http(401, vec![("x-denied-by", "authz")], "not you".to_owned()));
        let policy = custom(provider);
        stage.plane.apply(&policy).await?;
        let refused = stage.get_until("the provider refuses", &stage.frontend, |answer| answer.status == StatusCode::UNAUTHORIZED).await?;
        ensure!(refused.text() == "not you", "{provider}: the body is {:?}", refused.text());
        let other = stage.get(&stage.frontend, WEB, "/other").await?;
        ensure!(other.status == StatusCode::OK, "{provider}: what no rule matches: {} {}", other.status, other.text());
        let set = json!({"header": {"key": "x-allowed-by", "value": "authz"}});
        authz.says(Says::Check(json!({"ok_response": {"headers": [set]}})));
        authz.says_by_http(Says::Http(200, vec![("x-allowed-by", "authz")], String::new()));
        let passed = stage.get(&stage.frontend, WEB, "/probe").await?;
        ensure!(seen(&passed, "x-allowed-by").as_deref() == Some("authz"), "{provider}: {} {}", passed.status, passed.text());
        drop(authz);
        let expected = if provider == "ext-authz-grpc" { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::FORBIDDEN };
        stage.get_until("nothing passes without the provider", &stage.frontend, |answer| answer.status == expected).await?;
        stage.plane.delete_yaml(&policy).await?;
        stage.get_until("nobody is asked", &stage.frontend, |answer| answer.status == StatusCode::OK).await?;
    }
    Ok(())
}
