//! The two handshakes: accept as a server, dial as a client; both end with who the peer is.
//!
//! Not for: time limits, which belong to whoever knows what else must fit into them.
//! Cancel safety: dropping either future closes the connection.

use std::io;
use std::sync::Arc;

use model::identity::SpiffeId;
use rustls::CommonState;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::{ClientTls, ServerTls, TlsFacts, TlsFailure, verify};

/// Both ends of a handshake that succeeded.
#[derive(Clone, Debug)]
pub struct Handshake {
    /// Who the peer is.
    pub peer: SpiffeId,
    /// Who we were to it.
    pub local: SpiffeId,
    /// What was agreed on.
    pub tls: TlsFacts,
}

impl ServerTls {
    /// Accepts one connection.
    ///
    /// # Errors
    /// Why the handshake failed. The peer was told by an alert where TLS has one.
    pub async fn accept<T>(&self, io: T) -> Result<(server::TlsStream<T>, Handshake), TlsFailure>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = TlsAcceptor::from(Arc::clone(&self.config)).accept(io).await.map_err(|error| TlsFailure::from_io(&error))?;
        let handshake = facts(stream.get_ref().1, &self.accepted, &self.id)?;
        Ok((stream, handshake))
    }
}

impl ClientTls {
    /// Dials one connection. That it succeeds does not mean that the server likes our certificate: TLS 1.3 tells that
    /// later, as an alert in place of the first bytes.
    ///
    /// # Errors
    /// Why the handshake failed.
    pub async fn connect<T>(&self, io: T, address: std::net::IpAddr) -> Result<(client::TlsStream<T>, Handshake), TlsFailure>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::IpAddress(address.into());
        let connect = TlsConnector::from(Arc::clone(&self.config)).connect(name, io);
        let stream = connect.await.map_err(|error: io::Error| TlsFailure::from_io(&error))?;
        let handshake = facts(stream.get_ref().1, &self.accepted, &self.id)?;
        Ok((stream, handshake))
    }
}

fn facts(state: &CommonState, accepted: &verify::PeerMatcher, local: &SpiffeId) -> Result<Handshake, TlsFailure> {
    let certificate = state.peer_certificates().and_then(<[_]>::first).ok_or(TlsFailure::NoCertificate)?;
    let peer = accepted.identify(certificate).map_err(TlsFailure::Identity)?;
    let name = |found: Option<&'static str>| found.ok_or_else(|| TlsFailure::Protocol("the handshake has no result".to_owned()));
    let version = match state.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        other => return Err(TlsFailure::Incompatible(format!("version {other:?}"))),
    };
    let tls = TlsFacts {
        version,
        cipher_suite: name(state.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()))?,
        group: name(state.negotiated_key_exchange_group().and_then(|group| group.name().as_str()))?,
        peer_certificate: certificate.clone().into_owned(),
    };
    Ok(Handshake { peer, local: local.clone(), tls })
}
