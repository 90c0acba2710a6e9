//! Access logs by outcome, on the wire. Each test's name begins with its row in `docs/contracts.md`.
//!
//! Not for: formats, which are tested where they are made.

use std::time::Duration;

use anyhow::{Context, Result};
use http::StatusCode;
use serde_json::{Value, json};
use tests::scenario::{LEGACY, Mesh, RATINGS_CHAIN, REVIEWS_CHAIN, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::App;

use crate::golden_metrics::LEGACY_CHAIN;
use crate::policy::rbac;

const DEADLINE: Duration = Duration::from_secs(20);

/// Adds what tells why to the lines of a chain.
fn tell_why(scenario: &mut Scenario, chain: &str) -> Result<()> {
    let format = &mut scenario.http(chain)?["access_log"][0]["typed_config"]["log_format"]["json_format"];
    for (key, operator) in [
        ("reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
        ("attempts", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
        ("details", "%RESPONSE_CODE_DETAILS%"),
    ] {
        format[key] = operator.into();
    }
    Ok(())
}

async fn mesh(edit: impl FnOnce(&mut Scenario) -> Result<()>) -> Result<Mesh> {
    let builder = Mesh::builder("07-telemetry")?.edit(|scenario| {
        scenario.keep_endpoints(WEB_CHAIN, 1)?;
        tell_why(scenario, WEB_CHAIN)?;
        tell_why(scenario, LEGACY_CHAIN)
    })?;
    builder.edit(edit)?.start().await
}

async fn line(mesh: &Mesh, path: &str) -> Result<Value> {
    Ok(mesh.waypoint.access_line(&format!("the line of {path}"), |line| line["path"] == path).await?.1)
}

/// Lines so far that are no request to `path`; what comes later is logged later.
fn others(mesh: &Mesh, paths: &[&str]) -> Vec<String> {
    mesh.waypoint.output().into_iter().filter(|line| !paths.iter().any(|path| line.contains(&format!("\"path\":\"{path}\"")))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn l13_a_pod_that_refuses_its_tunnel_leaves_one_line_with_the_cause() -> Result<()> {
    let mesh = mesh(|_| Ok(())).await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    web.record().refuse_connects(Some(StatusCode::SERVICE_UNAVAILABLE));
    let connection = mesh.connect("frontend-0").await?;
    connection.get(WEB, "/refused").await?;
    let line = line(&mesh, "/refused").await?;
    assert_eq!((&line["response_code"], &line["response_flags"]), (&503.into(), &"URX,UF".into()), "{line}");
    assert_eq!((&line["reason"], &line["attempts"]), (&"tunnel_response:503".into(), &3.into()), "{line}");
    connection.get(WEB, "/after").await?;
    self::line(&mesh, "/after").await?;
    assert_eq!(others(&mesh, &["/refused", "/after"]), [""; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn l13b_a_plain_endpoint_that_refuses_is_tried_three_times_and_leaves_one_line() -> Result<()> {
    let mesh = mesh(|_| Ok(())).await?;
    let connection = mesh.connect("frontend-0").await?;
    connection.get(LEGACY, "/refused").await?;
    let line = line(&mesh, "/refused").await?;
    assert_eq!((&line["response_code"], &line["response_flags"], &line["attempts"]), (&503.into(), &"URX,UF".into(), &3.into()), "{line}");
    assert_eq!(line["reason"], "delayed_connect_error:_Connection_refused", "{line}");
    let details = "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}";
    assert_eq!(line["details"], details, "{line}");
    connection.get(LEGACY, "/after").await?;
    self::line(&mesh, "/after").await?;
    assert_eq!(others(&mesh, &["/refused", "/after"]), [""; 0]);
    assert_eq!(mesh.waypoint.output().iter().filter(|line| line.contains("\"/refused\"")).count(), 1, "a line of each try");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn l15_a_tunnel_that_is_opened_leaves_no_line() -> Result<()> {
    let mesh = mesh(|_| Ok(())).await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    drop(connection.tunnel(WEB).await?);
    connection.get(WEB, "/after").await?;
    line(&mesh, "/after").await?;
    assert_eq!(others(&mesh, &["/after"]), [""; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn l21_a_refusal_names_its_policy() -> Result<()> {
    let deny = rbac("DENY", "ns[shop]-policy[deny]-rule[0]", &json!({"any": true}), &json!({"any": true}));
    let mesh = mesh(|scenario| scenario.add_http_filters(WEB_CHAIN, vec![deny])).await?;
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/denied").await?.status, StatusCode::FORBIDDEN);
    let line = line(&mesh, "/denied").await?;
    assert_eq!(line["details"], "rbac_access_denied_matched_policy[ns[shop]-policy[deny]-rule[0]]", "{line}");
    assert_eq!((&line["response_flags"], &line["attempts"]), (&"-".into(), &0.into()), "{line}");
    assert_eq!(
        line["waypoint_refusal"],
        json!({"by": "deny_policy", "policy": "shop/deny", "rule": "0"}),
        "the format asks for no more: {line}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn l22_whatever_bytes_a_request_holds_its_line_is_one_of_json() -> Result<()> {
    let mesh = mesh(|_| Ok(())).await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    let requests: [&[u8]; 6] = [
        b"GET /invalid/\xff\xfe\xc3 HTTP/1.1\r\nhost: web.shop\r\n\r\n",
        b"GET /escaped/%00%0a%22%ff HTTP/1.1\r\nhost: web.shop\r\n\r\n",
        b"GET /control/\x01\x1b\x7f HTTP/1.1\r\nhost: web.shop\r\n\r\n",
        b"GET /quoted/\"\\ HTTP/1.1\r\nhost: web.shop\r\n\r\n",
        b"GET /agent HTTP/1.1\r\nhost: web.shop\r\nuser-agent: a\xff\xed\xa0\x80\t\"\\\xc3\xa9b\r\n\r\n",
        b"GET /last HTTP/1.1\r\nhost: web.shop\r\n\r\n",
    ];
    for request in requests {
        // What is no request is answered, and logged, too.
        drop(tests::peer::exchange_raw(connection.tunnel(WEB).await?, request, true).await);
    }
    line(&mesh, "/last").await?;
    until("a line of each", DEADLINE, async || {
        let n_lines = mesh.waypoint.output().len();
        Ok(if n_lines >= requests.len() { Look::Done(()) } else { Look::NotYet(format!("{n_lines} lines")) })
    })
    .await?;
    let lines = mesh.waypoint.output();
    assert_eq!(lines.len(), requests.len(), "{lines:#?}");
    for line in &lines {
        let parsed: Value = serde_json::from_str(line).with_context(|| line.clone())?;
        assert!(parsed.is_object() && !line.chars().any(char::is_control), "{line:?}");
    }
    // What is UTF-8 stays, what is none is replaced.
    let agent = line(&mesh, "/agent").await?["user_agent"].as_str().unwrap_or_default().to_owned();
    assert!(agent.starts_with("a\u{fffd}") && agent.ends_with("\t\"\\\u{e9}b"), "{agent:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn l23_an_operator_that_is_not_known_prints_null_and_is_told_of_once_however_many_chains_have_it() -> Result<()> {
    const CHAINS: [&str; 4] = [WEB_CHAIN, LEGACY_CHAIN, RATINGS_CHAIN, REVIEWS_CHAIN];
    let unknown = |scenario: &mut Scenario, operator: &str| {
        let log = scenario.http(WEB_CHAIN)?["access_log"].clone();
        for chain in CHAINS {
            scenario.http(chain)?["access_log"] = log.clone();
            let format = &mut scenario.http(chain)?["access_log"][0]["typed_config"]["log_format"]["json_format"];
            (format["odd"], format["mixed"]) = (operator.into(), format!("<{operator}>").into());
        }
        Ok(())
    };
    let mut mesh = mesh(|scenario| unknown(scenario, "%BOGUS(1)%")).await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    assert_eq!(connection.get(WEB, "/odd").await?.status, StatusCode::OK);
    let first = line(&mesh, "/odd").await?;
    assert_eq!((&first["odd"], &first["mixed"]), (&Value::Null, &"<->".into()), "{first}");
    // Another one in all of them, and the first one again.
    mesh.push_accepted(|scenario| unknown(scenario, "%BOGUS(2)%")).await?;
    mesh.push_accepted(|scenario| unknown(scenario, "%BOGUS(1)%")).await?;
    for operator in ["%BOGUS(1)%", "%BOGUS(2)%"] {
        mesh.waypoint.log_line(operator).await?;
        let told: Vec<_> = mesh.waypoint.log().into_iter().filter(|line| line.contains(operator)).collect();
        assert_eq!(told.len(), 1, "{told:#?}");
    }
    Ok(())
}
