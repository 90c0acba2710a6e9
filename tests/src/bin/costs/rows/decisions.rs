//! Decisions alone: routes and policies, on chains that were translated from messages.

use std::hint::black_box;

use anyhow::{Result, ensure};
use filters::rbac::{Decisions, RbacInput, RbacVerdict, decide_chain};
use filters::route::select;
use http::HeaderMap;
use model::stream_view::RequestHead;
use serde_json::json;
use tests::scenario::{WEB, WEB_CHAIN};

use crate::mesh::{self, allow};
use crate::window::Windows;

/// Decisions counted where one is cheap.
const MANY: u64 = 1000;
/// Where one looks at a thousand rules or routes.
const SOME: u64 = 100;

fn head<'a>(path: &'a str, headers: &'a HeaderMap) -> RequestHead<'a> {
    RequestHead { method: "GET", path, authority: Some("web.shop"), scheme: "http", headers }
}

fn headers() -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in [("host", "web.shop"), ("user-agent", "costs/1"), ("accept", "*/*"), ("x-user", "alice")] {
        headers.insert(name, value.parse()?);
    }
    Ok(headers)
}

/// One policy of three rules.
pub fn rbac_few(windows: &mut Windows) -> Result<()> {
    rbac(windows, (1, 3), MANY)
}

/// A hundred policies of ten rules.
pub fn rbac_many(windows: &mut Windows) -> Result<()> {
    rbac(windows, (100, 10), SOME)
}

fn rbac(windows: &mut Windows, (policies, rules): (usize, usize), times: u64) -> Result<()> {
    let mut scenario = mesh::recorded()?;
    scenario.add_http_filters(WEB_CHAIN, vec![allow(policies, rules)])?;
    let chain = mesh::web_chain(&scenario)?;
    mesh::http(&chain)?;
    let headers = headers()?;
    let judge = |path| {
        let input = RbacInput {
            head: Some(head(path, &headers)),
            peer_principal: Some("spiffe://cluster.local/ns/clients/sa/frontend"),
            peer_address: [10, 244, 9, 1].into(),
            forwarded_for: None,
            destination: WEB.parse().ok(),
            destination_port: 80,
            server_name: "",
            claims: None,
        };
        matches!(decide_chain(&chain, black_box(&input), &mut Decisions::new()), RbacVerdict::Pass)
    };
    ensure!(judge("/ok?a=1"), "the last rule does not match");
    windows.repeat(times, || {
        black_box(judge("/ok?a=1"));
    });
    Ok(())
}

/// Ten routes.
pub fn routes_few(windows: &mut Windows) -> Result<()> {
    routes(windows, 10, MANY)
}

/// A thousand routes.
pub fn routes_many(windows: &mut Windows) -> Result<()> {
    routes(windows, 1000, SOME)
}

/// Ten thousand routes.
pub fn routes_most(windows: &mut Windows) -> Result<()> {
    routes(windows, 10_000, SOME)
}

/// `count` routes in one virtual host as HTTPRoutes with a path and a header become them; the request takes the last.
fn routes(windows: &mut Windows, count: usize, times: u64) -> Result<()> {
    let mut scenario = mesh::recorded()?;
    let route = |at: usize| {
        json!({
            "name": format!("shop.route-{at}.0.0"),
            "match": {
                "path_separated_prefix": format!("/v1/resource-{at}"),
                "case_sensitive": true,
                "headers": [{"name": "x-user", "string_match": {"exact": "alice"}}],
            },
            "route": {"cluster": WEB_CHAIN, "timeout": "0s"},
        })
    };
    let known = &mut scenario.http(WEB_CHAIN)?["route_config"]["virtual_hosts"][0]["routes"];
    *known = (0..count).map(route).collect();
    let chain = mesh::web_chain(&scenario)?;
    let table = &mesh::http(&chain)?.routes;
    let headers = headers()?;
    let path = format!("/v1/resource-{}/item?a=1", count - 1);
    let select = || select(table, black_box(&head(&path, &headers)));
    let last = format!("shop.route-{}.0.0", count - 1);
    ensure!(select().and_then(|(_, route)| route.name.as_deref()) == Some(&last), "the last route does not match");
    windows.repeat(times, || {
        black_box(select());
    });
    Ok(())
}
