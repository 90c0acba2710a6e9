//! AuthorizationPolicies and a RequestAuthentication as users write them, on `reviews`: who gets in, and who is told why not.

use anyhow::{Context, Result, ensure};
use http::Method;
use serde_json::{Value, json};
use tests::peer::{Peer, empty};
use tests::tokens::{Issuer, seconds_from_now};
use tests::wait::{Look, until};

use crate::stage::{EFFECT_DEADLINE, REVIEWS, Stage};

const POLICIES: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: reviews-allow, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: reviews}]
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/clients/sa/frontend]}}]
    to: [{operation: {methods: [GET, HEAD], paths: ["/reviews/*", "/health", "*/info"]}}]
  - from: [{source: {namespaces: [shop], notPrincipals: [cluster.local/ns/shop/sa/legacy]}}]
    to: [{operation: {notPaths: ["/admin*"], notMethods: [DELETE]}}]
  - from: [{source: {serviceAccounts: ["clients/batch"], ipBlocks: ["10.244.9.0/24"], notIpBlocks: ["10.244.9.250"]}}]
    when:
    - {key: "request.headers[x-token]", values: ["secret-*"], notValues: ["secret-old"]}
    - {key: destination.port, values: ["9080"]}
  - to: [{operation: {hosts: ["reviews.shop.svc.cluster.local*"], ports: ["9080"], paths: ["/public/{*}/info/{**}"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: reviews-deny, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: reviews}]
  action: DENY
  rules:
  - to: [{operation: {paths: ["/internal/*"]}}]
    from: [{source: {notNamespaces: [shop]}}]
  - when: [{key: remote.ip, values: ["203.0.113.0/24"]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: gateway-wide-deny, namespace: shop}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}]
  action: DENY
  rules: [{to: [{operation: {paths: ["/forbidden"]}}]}]
"#;

/// One request, who makes it, and how it ends: status, and the body of a refusal.
struct Row<'a> {
    peer: &'a Peer,
    method: Method,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
    ends: (u16, &'a str),
}

/// As Envoy words it.
const DENIED: (u16, &str) = (403, "RBAC: access denied");
const PASSES: (u16, &str) = (200, "");

impl Row<'_> {
    async fn ask(&self, stage: &Stage) -> Result<Option<String>> {
        let mut http = self.peer.connect(stage.hbone_address()).await?.http1(REVIEWS).await?;
        let mut request = http::Request::builder().method(&self.method).uri(self.path).header("host", "reviews.shop.svc.cluster.local");
        for (name, value) in self.headers {
            request = request.header(*name, *value);
        }
        let answer = http.send(request.body(empty())?).await?;
        let text = if answer.status == http::StatusCode::OK { String::new() } else { answer.text() };
        let ended = (answer.status.as_u16(), text.as_str());
        let differs = || format!("{} {} {:?}: {ended:?}, not {:?}", self.method, self.path, self.headers, self.ends);
        Ok((ended != self.ends).then(differs))
    }
}

/// Until all end as they should: objects take effect one after the other.
async fn all_end(stage: &Stage, what: &str, rows: &[Row<'_>]) -> Result<()> {
    until(what, EFFECT_DEADLINE, async || {
        for row in rows {
            if let Some(difference) = row.ask(stage).await? {
                return Ok(Look::NotYet(difference));
            }
        }
        Ok(Look::Done(()))
    })
    .await
}

/// Every attribute of the policies, met and missed.
pub async fn policies_decide(stage: &mut Stage) -> Result<()> {
    let stage = &*stage;
    stage.plane.apply(POLICIES).await?;
    let (frontend, batch) = (&stage.frontend, &stage.batch);
    let row = |peer, path, headers, ends| Row { peer, method: Method::GET, path, headers, ends };
    let rows = [
        row(frontend, "/reviews/1", &[], PASSES),
        row(frontend, "/health", &[], PASSES),
        row(frontend, "/a/b/info", &[], PASSES),
        Row { method: Method::POST, ..row(frontend, "/reviews/1", &[], DENIED) },
        row(frontend, "/healthy", &[], DENIED),
        row(frontend, "/internal/x/info", &[], DENIED),
        row(frontend, "/a/../internal/x/info", &[], DENIED),
        row(frontend, "/reviews/1", &[("x-forwarded-for", "203.0.113.7")], DENIED),
        row(frontend, "/forbidden", &[], DENIED),
        row(batch, "/reviews/1", &[], DENIED),
        row(batch, "/any", &[("x-token", "secret-new")], PASSES),
        row(batch, "/any", &[("x-token", "secret-old")], DENIED),
        row(batch, "/any", &[("x-token", "other")], DENIED),
        row(batch, "/any", &[("x-token", "secret-new"), ("x-token", "secret-old")], DENIED),
        row(batch, "/public/a/info/b", &[], PASSES),
        row(batch, "/public/a/b/info/c", &[], DENIED),
    ];
    all_end(stage, "the policies decide", &rows).await?;
    names_the_policy(stage).await?;
    stage.plane.delete_yaml(POLICIES).await?;
    all_end(stage, "nobody is refused any more", &[row(batch, "/reviews/1", &[], PASSES)]).await
}

/// Lines of refused requests name the object as `kubectl` shows it, and its rule.
async fn names_the_policy(stage: &Stage) -> Result<()> {
    stage.turn_logging_on().await?;
    let row = |peer, path, headers| Row { peer, method: Method::GET, path, headers, ends: DENIED };
    let rows = [
        row(&stage.frontend, "/internal/why/info", &[][..]),
        row(&stage.frontend, "/reviews/why-too", &[("x-forwarded-for", "203.0.113.7")]),
        row(&stage.frontend, "/forbidden", &[]),
        row(&stage.batch, "/reviews/why-not", &[]),
    ];
    all_end(stage, "requests are refused", &rows).await?;
    for (path, reason) in [
        ("/internal/why/info", json!({"by": "deny_policy", "policy": "shop/reviews-deny", "rule": "0"})),
        ("/reviews/why-too", json!({"by": "deny_policy", "policy": "shop/reviews-deny", "rule": "1"})),
        ("/forbidden", json!({"by": "deny_policy", "policy": "shop/gateway-wide-deny", "rule": "0"})),
    ] {
        let (_, line) = stage.access_line(path).await?;
        ensure!(line["waypoint_refusal"] == reason, "{path}: {line}");
    }
    let (_, line) = stage.access_line("/reviews/why-not").await?;
    let reason = &line["waypoint_refusal"];
    ensure!(reason["by"] == "no_allow_policy" && reason["nearest_policy"] == "shop/reviews-allow", "{line}");
    Ok(())
}

fn token_objects(issuer: &Issuer, second: &Issuer) -> String {
    let (keys, other) = (issuer.jwks(), second.jwks());
    format!(
        r#"
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: reviews-jwt, namespace: shop}}
spec:
  targetRefs: [{{group: "", kind: Service, name: reviews}}]
  jwtRules:
  - issuer: https://issuer.example
    audiences: [shop]
    jwks: '{keys}'
    fromHeaders: [{{name: authorization, prefix: "Bearer "}}, {{name: x-jwt}}]
    fromParams: [access_token]
    outputPayloadToHeader: x-jwt-payload
    outputClaimToHeaders: [{{header: x-jwt-sub, claim: sub}}]
    forwardOriginalToken: true
  - issuer: https://second.example
    jwks: '{other}'
    fromCookies: [session]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: reviews-claims, namespace: shop}}
spec:
  targetRefs: [{{group: "", kind: Service, name: reviews}}]
  action: ALLOW
  rules:
  - from: [{{source: {{requestPrincipals: ["https://issuer.example/*"]}}}}]
    to: [{{operation: {{methods: [GET]}}}}]
  - from: [{{source: {{requestPrincipals: ["https://issuer.example/alice"]}}}}]
    when:
    - {{key: "request.auth.claims[groups]", values: [admin]}}
    - {{key: "request.auth.claims[nested][team]", values: [blue, green]}}
    - {{key: request.auth.audiences, values: [shop]}}
    - {{key: "request.auth.claims[scope]", values: [write]}}
  - to: [{{operation: {{paths: [/health]}}}}]
"#
    )
}

/// Tokens of two issuers, good and bad, and what policies make of their claims.
pub async fn tokens_decide(stage: &mut Stage) -> Result<()> {
    let stage = &*stage;
    let (issuer, second, stranger) = (Issuer::new("one")?, Issuer::new("two")?, Issuer::new("one")?);
    let objects = token_objects(&issuer, &second);
    stage.plane.apply(&objects).await?;
    let claims = json!({
        "iss": "https://issuer.example", "sub": "alice", "aud": ["shop"], "exp": seconds_from_now(600)?,
        "groups": ["dev", "admin"], "nested": {"team": "blue"}, "scope": "read write",
    });
    let with = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        claims
    };
    let alice = issuer.token(&claims)?;
    let bearer = |token: &str| format!("Bearer {token}");
    let (good, forged) = (bearer(&alice), bearer(&stranger.token(&claims)?));
    let expired = bearer(&issuer.token(&with("exp", json!(seconds_from_now(-120)?)))?);
    let other_audience = bearer(&issuer.token(&with("aud", json!("bank")))?);
    let other_team = bearer(&issuer.token(&with("nested", json!({"team": "red"})))?);
    let header = alice.split('.').next().context("a header")?;
    let unsigned = bearer(&format!("{header}.{}.", alice.split('.').nth(1).context("a payload")?));
    let session = format!("session={}", second.token(&json!({"iss": "https://second.example", "sub": "eve"}))?);
    let path = format!("/reviews/1?access_token={alice}");
    let post = |headers, ends| Row { peer: &stage.frontend, method: Method::POST, path: "/reviews/1", headers, ends };
    let get = |path, headers, ends| Row { peer: &stage.frontend, method: Method::GET, path, headers, ends };
    let form = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections";
    let (good, forged, expired) = ([("authorization", &*good)], [("authorization", &*forged)], [("authorization", &*expired)]);
    let (audience, team, unsigned) =
        ([("authorization", &*other_audience)], [("authorization", &*other_team)], [("authorization", &*unsigned)]);
    let (in_header, session) = ([("x-jwt", &*alice)], [("cookie", &*session)]);
    let rows = [
        get("/reviews/1", &good, PASSES),
        get("/reviews/1", &in_header, PASSES),
        get(&path, &[], PASSES),
        get("/reviews/1", &[], DENIED),
        get("/health", &[], PASSES),
        get("/health", &session, PASSES),
        get("/reviews/1", &session, DENIED),
        get("/health", &forged, (401, "Jwt verification fails")),
        get("/health", &expired, (401, "Jwt is expired")),
        get("/health", &unsigned, (401, form)),
        get("/health", &audience, (403, "Audiences in Jwt are not allowed")),
        post(&good, PASSES),
        post(&team, DENIED),
    ];
    all_end(stage, "the tokens decide", &rows).await?;
    stage.plane.delete_yaml(&objects).await?;
    all_end(stage, "nobody is refused any more", &[get("/reviews/1", &[], PASSES)]).await
}
