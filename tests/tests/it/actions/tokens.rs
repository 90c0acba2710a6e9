//! Tokens: RequestAuthentication as istiod translates it, and policies on what tokens say.

use anyhow::Context;
use base64::Engine;
use tests::keyring::{ALGORITHMS, Keyring, base64url, with_secret};
use tests::scenario::REVIEWS_CHAIN;
use tests::tokens::seconds_from_now;

use super::*;

const ISSUER: &str = "https://issuer.example";
const SECOND: &str = "https://second.example";

/// The filters that istiod sent for a RequestAuthentication with two issuers and a policy on claims.
fn recorded_filters() -> Result<Vec<Value>> {
    let mut scenario = Scenario::recorded("06-jwt")?;
    let filters = scenario.http(REVIEWS_CHAIN)?["http_filters"].as_array().context("no filters")?;
    let names = ["envoy.filters.http.jwt_authn", "envoy.filters.http.rbac"];
    Ok(filters.iter().filter(|filter| names.iter().any(|name| filter["name"] == *name)).cloned().collect())
}

fn set_keys(jwt: &mut Value, provider: &str, keys: &str) {
    jwt["typed_config"]["providers"][provider]["local_jwks"] = json!({"inline_string": keys});
}

/// The chain of `web` with the recorded filters, both issuers with the keys of this one.
async fn with_tokens(issuer: &Keyring, edit: impl FnOnce(&mut Value)) -> Result<Both> {
    let mut filters = recorded_filters()?;
    let jwt = &mut filters[0];
    set_keys(jwt, "origins-0", &issuer.key_set());
    set_keys(jwt, "origins-1", &issuer.key_set());
    edit(jwt);
    Both::edited(|scenario| {
        with_routes(scenario, Vec::new())?;
        scenario.add_http_filters(WEB_CHAIN, filters)
    })
    .await
}

fn claims() -> Result<Value> {
    Ok(json!({"iss": ISSUER, "sub": "bob", "aud": "shop", "exp": seconds_from_now(3600)?}))
}

fn with(mut claims: Value, name: &str, value: impl Into<Value>) -> Value {
    claims[name] = value.into();
    claims
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// A request with these headers.
fn ask(headers: &[(&'static str, String)]) -> Asked {
    Asked { method: Method::GET, path: "/reviews/1".into(), headers: headers.to_vec(), is_http2: false }
}

/// As [`Ask`], with texts of its own.
#[derive(Debug, Clone)]
struct Asked {
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    is_http2: bool,
}

impl Both {
    /// What the waypoint makes of a request, and what Envoy does, which need not be the same.
    async fn ask_asked(&mut self, asked: &Asked) -> Result<(Seen, Seen)> {
        let headers: Vec<_> = asked.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let ask = Ask { method: asked.method.clone(), is_http2: asked.is_http2, ..Ask::get(&asked.path).with(&headers) };
        let (mut ours, mut theirs) = self.ask(&[ask]).await?;
        Ok((ours.remove(0), theirs.remove(0)))
    }

    async fn all_same_asked(&mut self, asked: &[Asked]) -> Result<Vec<Seen>> {
        let headers: Vec<Vec<_>> =
            asked.iter().map(|asked| asked.headers.iter().map(|(name, value)| (*name, value.as_str())).collect()).collect();
        let asks = asked.iter().zip(&headers).map(|(asked, headers)| Ask {
            method: asked.method.clone(),
            is_http2: asked.is_http2,
            ..Ask::get(&asked.path).with(headers)
        });
        self.all_same(&asks.collect::<Vec<_>>()).await
    }
}

fn summary(seen: &Seen) -> (u16, String) {
    let text = if seen.status.is_success() { String::new() } else { seen.body.as_str().unwrap_or_default().to_owned() };
    (seen.status.as_u16(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_each_algorithm_lets_its_caller_pass() -> Result<()> {
    let issuer = Keyring::new()?;
    let mut both = with_tokens(&issuer, |_| {}).await?;
    let mut asked = Vec::new();
    for algorithm in ALGORITHMS {
        asked.push(ask(&[("authorization", bearer(&issuer.token(algorithm, &claims()?)?))]));
        // Without a key's id all keys that may sign so are tried.
        let without_id = issuer.signed(&json!({"alg": algorithm}), claims()?.to_string(), algorithm)?;
        asked.push(ask(&[("authorization", bearer(&without_id))]));
    }
    for (seen, asked) in both.all_same_asked(&asked).await?.iter().zip(&asked) {
        assert_eq!(seen.status, StatusCode::OK, "{asked:?}");
        assert_eq!((seen.told("x-jwt-sub").as_str(), seen.told("authorization").is_empty()), ("bob", false));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_tokens_are_refused_in_envoys_words() -> Result<()> {
    let (issuer, other) = (Keyring::new()?, Keyring::new()?);
    let mut both = with_tokens(&issuer, |_| {}).await?;
    let token = |claims: Value| issuer.token("ES256", &claims);
    let known = claims()?.to_string();
    let header = |header: Value| issuer.signed(&header, &known, "ES256");
    let payload = |payload: &str| issuer.signed(&json!({"alg": "ES256", "kid": "ec256"}), payload, "ES256");
    let good = token(claims()?)?;
    let now = seconds_from_now(0)?;
    let parts: Vec<_> = good.split('.').collect();
    let (no_key, bad_form) = (
        "Jwks doesn't have key to match kid or alg from Jwt",
        "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
    );
    let rsa = json!({"alg": "HS256", "kid": "rsa"});
    let cases: Vec<(&str, String, u16, &str)> = vec![
        ("expired", token(with(claims()?, "exp", now - 120))?, 401, "Jwt is expired"),
        ("not yet valid", token(with(claims()?, "nbf", now + 300))?, 401, "Jwt not yet valid"),
        ("another issuer", token(with(claims()?, "iss", "https://evil.example"))?, 401, "Jwt issuer is not configured"),
        ("no issuer", token(json!({"sub": "bob", "aud": "shop"}))?, 401, "Jwt issuer is not configured"),
        ("another audience", token(with(claims()?, "aud", json!(["bank", "x"])))?, 403, "Audiences in Jwt are not allowed"),
        ("no audience", token(json!({"iss": ISSUER, "sub": "bob"}))?, 403, "Audiences in Jwt are not allowed"),
        ("another's key", other.token("ES256", &claims()?)?, 401, "Jwt verification fails"),
        ("another's RSA key", other.token("RS256", &claims()?)?, 401, "Jwt verification fails"),
        ("another's Ed25519 key", other.token("EdDSA", &claims()?)?, 401, "Jwt verification fails"),
        ("unknown kid", header(json!({"alg": "ES256", "kid": "nobody"}))?, 401, no_key),
        ("kid of another family", header(json!({"alg": "ES256", "kid": "rsa"}))?, 401, "Jwt verification fails"),
        ("kid no text", header(json!({"alg": "ES256", "kid": 1}))?, 401, "Jwt header [kid] field is not a string"),
        ("alg none", format!("{}.{}.", base64url(r#"{"alg":"none"}"#), parts[1]), 401, bad_form),
        ("alg none, signed", header(json!({"alg": "none", "kid": "ec256"}))?, 401, "Jwt header [alg] is not supported"),
        ("alg missing", header(json!({"kid": "ec256"}))?, 401, "Jwt header [alg] field is required and must be a string"),
        ("alg no text", header(json!({"alg": 1}))?, 401, "Jwt header [alg] field is required and must be a string"),
        ("alg in small letters", header(json!({"alg": "es256", "kid": "ec256"}))?, 401, "Jwt header [alg] is not supported"),
        ("a public key as a secret", with_secret(&rsa, &claims()?, &issuer.rsa_public_der()?), 401, "Jwt verification fails"),
        ("two parts", format!("{}.{}", parts[0], parts[1]), 401, bad_form),
        ("four parts", format!("{good}.{}", parts[0]), 401, bad_form),
        ("no token", "x".to_owned(), 401, bad_form),
        ("header no base64", format!("!!.{}.{}", parts[1], parts[2]), 401, bad_form),
        ("header cut", format!("{}.{}.{}", &parts[0][4..], parts[1], parts[2]), 401, "Jwt header is an invalid JSON"),
        ("header with blanks in base64", format!("a%b.{}.{}", parts[1], parts[2]), 401, "Jwt header is an invalid Base64url encoded"),
        ("payload no base64", format!("{}.a%b.{}", parts[0], parts[2]), 401, "Jwt payload is an invalid Base64url encoded"),
        ("payload no JSON", payload("{\"iss\":")?, 401, "Jwt payload is an invalid JSON"),
        ("payload no object", payload("[]")?, 401, "Jwt payload is an invalid JSON"),
        (
            "payload of another",
            format!("{}.{}.{}", parts[0], base64url(r#"{"iss":"https://issuer.example","aud":"shop"}"#), parts[2]),
            401,
            "Jwt verification fails",
        ),
        ("signature no base64", format!("{}.{}.a%b", parts[0], parts[1]), 401, "Jwt signature is an invalid Base64url encoded"),
        ("signature empty of meaning", format!("{}.{}.AAAA", parts[0], parts[1]), 401, "Jwt verification fails"),
        ("iss no text", token(with(claims()?, "iss", 1))?, 401, "Jwt payload [iss] field is not a string"),
        ("sub no text", token(with(claims()?, "sub", json!({})))?, 401, "Jwt payload [sub] field is not a string"),
        ("exp a text", token(with(claims()?, "exp", "9999999999"))?, 401, "Jwt payload [exp] field is not an integer"),
        ("exp negative", token(with(claims()?, "exp", -1))?, 401, "Jwt payload [exp] field is not a positive 64 bit integer"),
        ("nbf a list", token(with(claims()?, "nbf", json!([1])))?, 401, "Jwt payload [nbf] field is not an integer"),
        ("iat a bool", token(with(claims()?, "iat", true))?, 401, "Jwt payload [iat] field is not an integer"),
        ("jti a number", token(with(claims()?, "jti", 7))?, 401, "Jwt payload [jti] field is not a string"),
        ("aud a number", token(with(claims()?, "aud", 7))?, 401, "Jwt payload [aud] field is not a string or string list"),
        (
            "aud with a number",
            token(with(claims()?, "aud", json!(["shop", 7])))?,
            401,
            "Jwt payload [aud] field is not a string or string list",
        ),
    ];
    let asked: Vec<_> = cases.iter().map(|(_, token, ..)| ask(&[("authorization", bearer(token))])).collect();
    let seen = both.all_same_asked(&asked).await?;
    for (seen, (name, _, status, text)) in seen.iter().zip(&cases) {
        assert_eq!(summary(seen), (*status, (*text).to_owned()), "{name}");
        assert!(seen.header("www-authenticate").ends_with("/reviews/1\", error=\"invalid_token\""), "{name}: {seen:?}");
        assert_eq!(seen.line["details"], format!("jwt_authn_access_denied{{{}}}", text.replace(' ', "_")), "{name}");
    }
    let lines = both.mesh.waypoint.output_lines().all();
    let refused = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(|line| line["user_agent"].is_string());
    let by: Vec<_> = refused.map(|line| line["waypoint_refusal"]["by"].clone()).collect();
    assert_eq!(by, vec![json!("token"); cases.len()]);
    assert_eq!(both.web.record().requests_total(), 0);
    Ok(())
}

/// A request with a token in `authorization`, and other headers.
fn with_bearer(token: &str, headers: &[(&'static str, &str)]) -> Asked {
    let others = headers.iter().map(|(name, value)| (*name, (*value).to_owned()));
    ask(&std::iter::once(("authorization", bearer(token))).chain(others).collect::<Vec<_>>())
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_found_where_envoy_finds_them_and_told_as_it_tells() -> Result<()> {
    let (issuer, other) = (Keyring::new()?, Keyring::new()?);
    let mut both = with_tokens(&issuer, |_| {}).await?;
    let first = issuer.token("RS256", &with(with(claims()?, "nested", json!({"team": "blue"})), "scope", "read write"))?;
    let second = issuer.token("ES256", &json!({"iss": SECOND, "sub": "eve"}))?;
    let foreign = other.token("ES256", &claims()?)?;
    let at = |path: &str, headers: &[(&'static str, String)]| Asked { path: path.to_owned(), ..ask(headers) };
    let told = [("x-jwt-sub", "root"), ("x-jwt-payload", "e30"), ("x-jwt-team", "red")];
    let grpc = |token: &str| Asked { is_http2: true, ..with_bearer(token, &[("content-type", "application/grpc")]) };
    let preflight = [("origin", "https://a.example"), ("access-control-request-method", "GET")];
    let rows: Vec<(&str, Asked, u16)> = vec![
        ("none", ask(&[]), 403),
        ("none, where none is needed", at("/health", &[]), 200),
        ("none, but claims", Asked { path: "/health".to_owned(), ..ask(&told.map(|(name, value)| (name, value.to_owned()))) }, 200),
        ("in authorization", with_bearer(&first, &told), 200),
        ("in x-jwt", ask(&[("x-jwt", first.clone())]), 200),
        ("in a parameter", at(&format!("/reviews/1?a=1&access_token={first}&b=%20"), &[]), 200),
        ("in a cookie", ask(&[("cookie", format!("a=b; session={second}"))]), 403),
        ("in a cookie, where none is needed", at("/health", &[("cookie", format!("session={second}"))]), 200),
        ("in another's place", ask(&[("cookie", format!("session={first}"))]), 401),
        ("another's in this place", with_bearer(&second, &[]), 401),
        ("behind another scheme", ask(&[("authorization", format!("Basic {first}"))]), 403),
        ("behind another letter", ask(&[("authorization", format!("bearer {first}"))]), 403),
        ("behind more words", ask(&[("authorization", format!("x Bearer {first}"))]), 200),
        ("behind nothing", ask(&[("authorization", first.clone())]), 403),
        ("empty", ask(&[("x-jwt", String::new())]), 401),
        ("two good ones", with_bearer(&first, &[("x-jwt", &first)]), 200),
        ("a good and a bad one", with_bearer(&first, &[("x-jwt", &foreign)]), 401),
        ("a bad and a good one", with_bearer(&foreign, &[("x-jwt", &first)]), 401),
        ("two lines", ask(&[("authorization", bearer(&first)), ("authorization", bearer(&foreign))]), 401),
        ("of both issuers", with_bearer(&first, &[("cookie", &format!("session={second}"))]), 200),
        ("a bad one of the other issuer", with_bearer(&first, &[("cookie", "session=x")]), 200),
        ("a method that the policy does not name", Asked { method: Method::POST, ..with_bearer(&first, &[]) }, 403),
        ("a preflight", Asked { method: Method::OPTIONS, ..with_bearer("x", &preflight) }, 403),
        ("an OPTIONS that is none", Asked { method: Method::OPTIONS, ..with_bearer("x", &preflight[..1]) }, 401),
        ("gRPC", grpc(&first), 200),
        ("gRPC, bad", grpc(&foreign), 200),
        ("over HTTP/2", Asked { is_http2: true, ..with_bearer(&first, &[]) }, 200),
        ("over HTTP/2, bad", Asked { is_http2: true, ..with_bearer(&foreign, &[]) }, 401),
        ("long", with_bearer(&issuer.token("ES256", &with(claims()?, "x", "a".repeat(30_000)))?, &[]), 200),
        ("long and bad", with_bearer(&"a".repeat(40_000), &[]), 401),
    ];
    let asked: Vec<_> = rows.iter().map(|(_, asked, _)| asked.clone()).collect();
    let seen = both.all_same_asked(&asked).await?;
    for (seen, (name, _, status)) in seen.iter().zip(&rows) {
        assert_eq!(seen.status.as_u16(), *status, "{name}: {seen:?}");
    }
    let told: Vec<_> = ["x-jwt-sub", "x-jwt-team", "x-jwt-payload"].map(|name| seen[3].told(name)).into();
    assert_eq!(told, ["bob", "blue", first.split('.').nth(1).context("a payload")?]);
    assert_eq!(
        (seen[0].line["details"].as_str(), seen[0].header("www-authenticate")),
        (Some("rbac_access_denied_matched_policy[none]"), "")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_hold_by_claims_as_in_envoy() -> Result<()> {
    let issuer = Keyring::new()?;
    let mut both = with_tokens(&issuer, |_| {}).await?;
    let alice = json!({
        "iss": ISSUER, "sub": "alice", "aud": ["web", "shop"], "groups": ["staff", "admin"], "nested": {"team": "green"}, "scope": "read write",
    });
    let rows = [
        ("all of them", alice.clone(), true),
        ("a text for a list", with(alice.clone(), "groups", "admin"), true),
        ("an audience alone", with(alice.clone(), "aud", "https://shop/"), false),
        ("a scope as a list", with(alice.clone(), "scope", json!(["write"])), true),
        ("a scope that begins so", with(alice.clone(), "scope", "writer"), false),
        ("another scope", with(alice.clone(), "scope", "read"), false),
        ("another subject", with(alice.clone(), "sub", "Alice"), false),
        ("another group", with(alice.clone(), "groups", json!(["administrator"])), false),
        ("a group in a list", with(alice.clone(), "groups", json!([["admin"]])), false),
        ("a group by name", with(alice.clone(), "groups", json!({"admin": true})), false),
        ("no group", with(alice.clone(), "groups", Value::Null), false),
        ("teams", with(alice.clone(), "nested", json!({"team": ["red", "blue"]})), true),
        ("another team", with(alice.clone(), "nested", json!({"team": "red"})), false),
        ("a team that is not nested", with(with(alice.clone(), "nested", "x"), "nested.team", "blue"), false),
        ("a team nested deeper", with(alice, "nested", json!({"team": {"team": "blue"}})), false),
    ];
    let mut asked = Vec::new();
    for (_, claims, _) in &rows {
        // By POST the policy's first rule, which asks for any subject, does not hold.
        asked.push(Asked { method: Method::POST, ..with_bearer(&issuer.token("ES256", claims)?, &[]) });
    }
    for (seen, (name, _, passes)) in both.all_same_asked(&asked).await?.iter().zip(&rows) {
        assert_eq!(seen.status == StatusCode::OK, *passes, "{name}: {seen:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_leaves_the_request_and_its_claims_choose_the_route() -> Result<()> {
    let issuer = Keyring::new()?;
    let mut filters = recorded_filters()?;
    let provider = json!({
        "issuer": ISSUER, "audiences": ["shop"], "local_jwks": {"inline_bytes": base64::engine::general_purpose::STANDARD.encode(issuer.key_set())},
        "payload_in_metadata": "payload", "clear_route_cache": true, "forward_payload_header": "x-payload", "pad_forward_payload_header": true,
        "claim_to_headers": [
            {"header_name": "x-plan", "claim_name": "plan"}, {"header_name": "x-age", "claim_name": "age"}, {"header_name": "x-share", "claim_name": "share"},
            {"header_name": "x-staff", "claim_name": "staff"}, {"header_name": "x-groups", "claim_name": "groups"},
        ],
    });
    let requires = json!({"requires_any": {"requirements": [{"provider_name": "p"}, {"allow_missing": {}}]}});
    filters[0]["typed_config"]["providers"] = json!({ "p": provider });
    filters[0]["typed_config"]["rules"] = json!([{"match": {"prefix": "/open"}}, {"match": {"prefix": "/"}, "requires": requires}]);
    filters.truncate(1);
    let metadata = |path: &[&str], value: Value| {
        let path: Vec<_> = std::iter::once(&"payload").chain(path).map(|key| json!({ "key": key })).collect();
        json!({"filter": "envoy.filters.http.jwt_authn", "path": path, "value": value})
    };
    let direct = |name: &str, status: u16, condition: Value| {
        let mut route = json!({"name": name, "match": {"prefix": "/"}, "direct_response": {"status": status}});
        route["match"].as_object_mut().into_iter().for_each(|matched| matched.extend(condition.as_object().cloned().unwrap_or_default()));
        route
    };
    let gold = metadata(&["plan"], json!({"string_match": {"exact": "gold"}}));
    let mut not_adult = metadata(&["age"], json!({"double_match": {"range": {"start": 18, "end": 200}}}));
    not_adult["invert"] = true.into();
    let has_age = metadata(&["age"], json!({"present_match": true}));
    let routes = vec![
        direct("gold", 210, json!({"dynamic_metadata": [gold]})),
        direct("minor", 211, json!({"dynamic_metadata": [not_adult, has_age]})),
        direct("staff", 212, json!({"dynamic_metadata": [metadata(&["staff"], json!({"bool_match": true}))]})),
        direct("by a header", 213, json!({"headers": [{"name": "x-plan", "string_match": {"exact": "iron"}}]})),
    ];
    let mut both = Both::edited(|scenario| {
        with_routes(scenario, routes)?;
        scenario.add_http_filters(WEB_CHAIN, filters)
    })
    .await?;
    let token = |claims: Value| issuer.token("EdDSA", &claims);
    let parameter = |path: &str, token: &str| Asked { path: path.replace("TOKEN", token), ..ask(&[]) };
    let tin = with(with(claims()?, "plan", "tin"), "share", 0.25);
    let rows = [
        ("gold", with_bearer(&token(with(claims()?, "plan", "gold"))?, &[]), 210),
        ("a minor", with_bearer(&token(with(claims()?, "age", 17))?, &[]), 211),
        ("staff", with_bearer(&token(with(claims()?, "staff", true))?, &[]), 212),
        ("by a header", with_bearer(&token(with(claims()?, "plan", "iron"))?, &[]), 213),
        ("nothing", ask(&[]), 200),
        ("no claim", with_bearer(&token(with(tin.clone(), "age", 30))?, &[]), 200),
        ("a list", with_bearer(&token(with(with(tin, "groups", json!(["a", "b"])), "staff", false))?, &[]), 200),
        ("a parameter", parameter("/x?access_token=TOKEN", &token(claims()?)?), 200),
        ("a parameter among others", parameter("/x?a=1&access_token=TOKEN&b=2", &token(claims()?)?), 200),
        ("a rule that asks for nothing", Asked { path: "/open".to_owned(), ..with_bearer("bad", &[]) }, 200),
    ];
    let asked: Vec<_> = rows.iter().map(|(_, asked, _)| asked.clone()).collect();
    let seen = both.all_same_asked(&asked).await?;
    for (seen, (name, _, status)) in seen.iter().zip(&rows) {
        assert_eq!(seen.status.as_u16(), *status, "{name}: {seen:?}");
    }
    let told: Vec<_> = ["authorization", "x-plan", "x-age", "x-share"].map(|name| seen[5].told(name)).into();
    assert_eq!(told, ["", "tin", "30", "0.250000"]);
    assert_eq!((&seen[7].body["path"], &seen[8].body["path"]), (&"/x".into(), &"/x?a=1&b=2".into()));
    // Envoy decodes and sorts the other parameters.
    let (ours, theirs) = both.ask_asked(&parameter("/x?b=%41&access_token=TOKEN&a=c+d&e&f=&b=2", &token(claims()?)?)).await?;
    assert_eq!((&ours.body["path"], &theirs.body["path"]), (&"/x?b=%41&a=c+d&e&f=&b=2".into(), &"/x?a=c+d&b=A&b=2&e=&f=".into()));
    // Envoy chooses the route before it takes a caller's own header away, and keeps it where no token clears it.
    let (ours, theirs) = both.ask_asked(&ask(&[("x-plan", "iron".to_owned())])).await?;
    assert_eq!((ours.status.as_u16(), ours.told("x-plan").as_str(), theirs.status.as_u16()), (200, "", 213));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_without_usable_keys_has_no_valid_token_until_keys_are_pushed() -> Result<()> {
    let issuer = Keyring::new()?;
    // What istiod makes of an address that it cannot fetch keys from.
    let text = base64url("Error-IstiodFailedToFetchJwksUri-https://issuer.example/.well-known/jwks");
    let unreachable = json!({"keys": [{"e": "AQAB", "kid": "abc", "kty": "RSA", "n": text}]}).to_string();
    let mut both = with_tokens(&issuer, |jwt| set_keys(jwt, "origins-0", &unreachable)).await?;
    let good = with_bearer(&issuer.token("RS256", &claims()?)?, &[]);
    let (ours, theirs) = both.ask_asked(&good).await?;
    assert_eq!(summary(&ours), summary(&theirs));
    assert_eq!(ours.status, StatusCode::UNAUTHORIZED);
    let second = ask(&[("cookie", format!("session={}", issuer.token("ES256", &json!({"iss": SECOND, "sub": "eve"}))?))]);
    assert_eq!(both.ask_asked(&second).await?.0.line["details"], "rbac_access_denied_matched_policy[none]", "the other issuer's pass");
    let keys = issuer.key_set();
    both.mesh
        .push_accepted(|scenario| {
            set_keys(&mut scenario.http(WEB_CHAIN)?["http_filters"][0], "origins-0", &keys);
            Ok(())
        })
        .await?;
    let (ours, _) = both.ask_asked(&good).await?;
    assert_eq!(ours.status, StatusCode::OK);
    both.mesh
        .push_accepted(|scenario| {
            set_keys(&mut scenario.http(WEB_CHAIN)?["http_filters"][0], "origins-0", &Keyring::new()?.key_set());
            Ok(())
        })
        .await?;
    let (ours, _) = both.ask_asked(&good).await?;
    assert_eq!(summary(&ours), (401, "Jwt verification fails".to_owned()), "a key that was taken back verifies nothing");
    Ok(())
}
