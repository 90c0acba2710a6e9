//! What ztunnel does for calling pods: takes their connections over and carries them in HBONE, under the pod's identity and from its address.
//!
//! It listens on the addresses of services and pods themselves, where the route of a pod's network leads; nothing is rewritten.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use tests::peer::Peer;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::pods::{CLIENTS, PODS, PORTS, services};
use crate::stage::{Stage, hbone_address};

/// Callers by the address of the network in which their commands run.
type Callers = Arc<HashMap<IpAddr, Peer>>;

async fn carry(mut plain: TcpStream, source: IpAddr, callers: Callers, authority: SocketAddr, server: SocketAddr) -> Result<()> {
    plain.set_nodelay(true)?;
    let caller = callers.get(&source).with_context(|| format!("{source} is no client"))?;
    let mut tunnel = caller.connect(server).await?.tunnel(&authority.to_string()).await?;
    tokio::io::copy_bidirectional(&mut plain, &mut tunnel).await?;
    Ok(())
}

/// Takes connections to `authority` over from now on, to the HBONE server `server`.
async fn take_over(authority: SocketAddr, server: SocketAddr, callers: &Callers, tasks: &mut JoinSet<()>) -> Result<()> {
    let listener = TcpListener::bind(authority).await.with_context(|| authority.to_string())?;
    let callers = Arc::clone(callers);
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((plain, from)) = listener.accept().await {
            let carried = carry(plain, from.ip(), Arc::clone(&callers), authority, server);
            // One that fails is closed, which is all that its client can be told.
            connections.spawn(async move { drop(carried.await) });
            while connections.try_join_next().is_some() {}
        }
    });
    Ok(())
}

/// Starts it; it ends with what is returned.
pub async fn start(stage: &Stage) -> Result<JoinSet<()>> {
    let mut callers = HashMap::new();
    for (pod, (_, address)) in PODS.iter().zip(CLIENTS) {
        callers.insert(address.parse()?, stage.caller(pod.namespace, pod.address)?);
    }
    let callers = Arc::new(callers);
    let mut tasks = JoinSet::new();
    for service in services() {
        for (_, port, ..) in PORTS {
            let authority = SocketAddr::new(service.address.parse()?, *port);
            take_over(authority, hbone_address(), &callers, &mut tasks).await?;
        }
    }
    for pod in &PODS {
        let address: IpAddr = pod.address.parse()?;
        for (_, _, port, _) in PORTS.iter().filter(|(name, ..)| *name != "http-alt") {
            take_over(SocketAddr::new(address, *port), SocketAddr::new(address, 15008), &callers, &mut tasks).await?;
        }
    }
    Ok(tasks)
}
