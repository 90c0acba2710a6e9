//! What every suite works with: the control plane, the waypoint as the pod of its rendered Deployment, and callers with identities.
//!
//! Invariant: nothing here outlives the [`Stage`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::ServerConfig;
use serde_json::Value;
use tests::istiod::{ControlPlane, Options};
use tests::mesh_ca::Member;
use tests::peer::Peer;
use tests::pod::{Placement, Pod, Start};
use tests::{net, process};

use crate::objects::{CONSUMER_NAMESPACE, NAMESPACE, NODE_NAME};

/// The waypoint's network namespace, and its address.
pub const NETWORK: &str = "waypoint";
pub const ADDRESS: &str = "10.244.0.100";

/// What startup takes at most: certificate, discovery, readiness.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// See above.
pub struct Stage {
    pub plane: ControlPlane,
    pub waypoint: Pod,
    members: BTreeMap<&'static str, Member>,
}

impl Stage {
    /// Starts the servers with these objects, and the waypoint; returns when that is ready.
    pub async fn start(folder: &Path, objects: &[Value]) -> Result<Self> {
        let options = Options { objects: objects.iter().map(Value::to_string).collect(), ..Options::default() };
        let plane = ControlPlane::start(folder, options).await?;
        let deployment = plane.rendered_deployment(NAMESPACE, "waypoint", |_| true).await?;
        let name = "waypoint-0".to_owned();
        let placement = Placement { name, address: ADDRESS.parse()?, node_name: NODE_NAME.to_owned(), node_address: net::NODE };
        let binary = process::binary()?;
        let start = Start { deployment: &deployment, network: NETWORK, binary: &binary, extra_environment: &[], placement };
        let mut waypoint = Pod::start(&plane, start).await?;
        waypoint.wait_ready(&format!("http://{ADDRESS}:15021/healthz/ready"), READY_DEADLINE).await?;
        let mut members = BTreeMap::new();
        for namespace in [NAMESPACE, CONSUMER_NAMESPACE] {
            members.insert(namespace, Member::of(&plane, namespace, "default").await?);
        }
        Ok(Self { plane, waypoint, members })
    }

    fn member(&self, namespace: &str) -> Result<&Member> {
        self.members.get(namespace).with_context(|| format!("no certificate for {namespace}"))
    }

    /// A caller of a namespace with the address of one of its pods.
    pub fn caller(&self, namespace: &str, address: &str) -> Result<Peer> {
        Ok(Peer::with_config(self.member(namespace)?.client_config()?, Some(address.parse()?)))
    }

    /// TLS of a pod of a namespace when it is called.
    pub fn called(&self, namespace: &str) -> Result<Arc<ServerConfig>> {
        self.member(namespace)?.workload_config()
    }
}

/// Where the waypoint takes HBONE.
pub fn hbone_address() -> SocketAddr {
    SocketAddr::new(ADDRESS.parse().expect("an address"), 15008)
}
