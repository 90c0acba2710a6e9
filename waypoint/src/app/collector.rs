//! Reaches collectors of spans and logs through our own clusters, like any upstream.
//!
//! Not for: exporting. Lives on the control thread, with an HBONE pool of that thread's own.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use model::collector::{Call, Collector};
use telemetry::export::{CollectorConnector, CollectorIo, Connecting};

use crate::hbone::pool::{Pool, PoolObserver, PoolOptions};
use crate::state::published::{ClusterEntry, Published};
use crate::tls::MeshTls;
use crate::tls::originate::{Inside, Originator};
use crate::tls::verify::PeerMatcher;
use crate::upstream::balance::{self, Wish};
use crate::upstream::connect::{Destination, Dialer, dial};
use crate::upstream::introduction::Introduction;

struct Silent;
impl PoolObserver for Silent {}

/// What the control thread dials with.
pub(super) fn dialer(
    tls: &Arc<MeshTls>,
    accepted: &Arc<ArcSwap<PeerMatcher>>,
    originator: &Arc<Originator>,
    introduction: &Arc<Introduction>,
) -> Dialer {
    Dialer {
        pool: Pool::new(PoolOptions::default(), Arc::new(Silent)),
        tls: Arc::clone(tls),
        accepted: Arc::clone(accepted),
        originator: Arc::clone(originator),
        introduction: Arc::clone(introduction),
    }
}

/// Dials an endpoint of a published cluster.
pub(super) fn connector(published: &Arc<Published>, dialer: &Dialer) -> Arc<dyn CollectorConnector> {
    let (published, dialer) = (Arc::clone(published), dialer.clone());
    Arc::new(move |to: &Collector| -> Connecting {
        let entry = published.cluster(&to.cluster);
        let (dialer, name) = (dialer.clone(), Arc::clone(&to.cluster));
        let inside = match to.call {
            Call::Grpc => Inside::Http2,
            Call::Http(_) => Inside::Http1,
        };
        Box::pin(async move {
            let Some(ClusterEntry::Served(served)) = entry else {
                return Err(io::Error::new(io::ErrorKind::NotFound, format!("no cluster {name}")));
            };
            let chosen = balance::choose(&served, &Wish::default(), || fastrand::u64(..));
            let entry = chosen.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no endpoint in {name}")))?;
            let transport = served.cluster.sockets.of(&entry.endpoint.socket_labels);
            let to = Destination {
                address: &entry.endpoint.address,
                others: &entry.endpoint.others,
                remote: entry.endpoint.remote.as_ref(),
                transport,
                inside,
                host: None,
                proxied: None,
                keepalive: None,
            };
            let stream = dial(&to, &dialer, served.cluster.connect_timeout).await;
            let stream = stream.map_err(|failure| io::Error::other(failure.reason.into_owned()))?;
            Ok(Box::new(stream) as Box<dyn CollectorIo>)
        })
    })
}
