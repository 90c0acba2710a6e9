//! The calling side: connections to a waypoint (or to a pod's ztunnel) and the CONNECT streams on them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, StatusCode};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::gather::{drive, gather};
use super::stream::HboneStream;
use super::{CONNECT_TIMEOUT, CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, HANDSHAKE_TIMEOUT, HEADER_LIST_BYTES_MAX, STREAM_WINDOW_BYTES};
use crate::tls::spiffe_identity;

/// Why no tunnel came about; one variant per place to look next.
#[derive(Debug, thiserror::Error)]
pub enum HboneError {
    #[error("dialling {address}: {source}")]
    Dial { address: SocketAddr, source: std::io::Error },
    #[error("TLS with {address}: {source}")]
    Tls { address: SocketAddr, source: std::io::Error },
    #[error("{address} shows the identity {found}, expected {expected}")]
    Identity { address: SocketAddr, expected: String, found: String },
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("HTTP/2: {0}")]
    Http2(#[from] h2::Error),
    #[error("the CONNECT target {0:?} is not host:port")]
    Target(String),
    #[error("CONNECT was answered {0}")]
    Refused(StatusCode),
}

/// Makes connections: certificate, source address and expected identity of the peer.
#[derive(Debug, Clone)]
pub struct Connector {
    tls: Arc<ClientConfig>,
    /// Local address to dial from; a waypoint finds the caller's workload by it.
    pub source: Option<IpAddr>,
    /// SPIFFE identity that the peer must show; `None` accepts any under the root.
    pub peer_identity: Option<String>,
}

impl Connector {
    pub fn new(tls: Arc<ClientConfig>) -> Self {
        Self { tls, source: None, peer_identity: None }
    }

    /// Dials, shakes hands and starts HTTP/2. Cancelled, it closes what it had opened.
    pub async fn connect(&self, address: SocketAddr) -> Result<Connection, HboneError> {
        let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(address))
            .await
            .map_err(|_elapsed| HboneError::Timeout(HANDSHAKE_TIMEOUT))??;
        let (gathered, outlet) = gather(tls);
        let (requests, connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .handshake::<_, Bytes>(gathered)
            .await?;
        tokio::spawn(drive(connection, outlet));
        Ok(Connection { requests })
    }

    async fn handshake(&self, address: SocketAddr) -> Result<TlsStream<TcpStream>, HboneError> {
        let tcp = self.dial(address).await.map_err(|source| HboneError::Dial { address, source })?;
        let name = ServerName::IpAddress(address.ip().into());
        let tls = TlsConnector::from(Arc::clone(&self.tls));
        let stream = tls.connect(name, tcp).await.map_err(|source| HboneError::Tls { address, source })?;
        if let Some(expected) = &self.peer_identity {
            let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let found = leaf.and_then(spiffe_identity).unwrap_or_else(|| "(none)".to_owned());
            if found != *expected {
                return Err(HboneError::Identity { address, expected: expected.clone(), found });
            }
        }
        Ok(stream)
    }

    async fn dial(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(source) = self.source {
            // The port is chosen when it is known whereto: else short connections use up the ports of the address.
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            socket.bind(SocketAddr::new(source, 0))?;
        }
        socket.set_nodelay(true)?;
        socket.connect(address).await
    }
}

/// One HBONE connection. Clones share it.
#[derive(Debug, Clone)]
pub struct Connection {
    requests: SendRequest<Bytes>,
}

impl Connection {
    /// CONNECT to `target` (`host:port`) with extra headers; waits for the 200. Cancelled, it resets the stream.
    pub async fn open(&self, target: &str, headers: HeaderMap) -> Result<HboneStream, HboneError> {
        let mut request =
            Request::builder().method(Method::CONNECT).uri(target).body(()).map_err(|_invalid| HboneError::Target(target.to_owned()))?;
        *request.headers_mut() = headers;
        let answered = async {
            let mut requests = self.requests.clone().ready().await?;
            let (response, send) = requests.send_request(request, false)?;
            Ok::<_, HboneError>((response.await?, send))
        };
        let (response, send) =
            tokio::time::timeout(CONNECT_TIMEOUT, answered).await.map_err(|_elapsed| HboneError::Timeout(CONNECT_TIMEOUT))??;
        if response.status() != StatusCode::OK {
            return Err(HboneError::Refused(response.status()));
        }
        Ok(HboneStream::new(send, response.into_body()))
    }
}
