//! The HTTP core: one request and its response, over HTTP/1.1 or HTTP/2, on either side of the waypoint.
//!
//! The request loop is written once, against [`http::Request`] and [`http::Response`] with a [`Body`]. Downstream, [`serve`]
//! runs one connection and hands each request to an [`Exchange`]. Upstream, a [`ClientSession`] sends one. Which codec is
//! under them (hyper for HTTP/1.1, `h2` for HTTP/2) shows nowhere else; `docs/http-core.md` says why these.
//!
//! Not here: choosing a protocol ([`crate::sniff`]), routes, retries, pools, deadlines of requests.
//!
//! Invariants:
//! - What an [`Exchange`] sees is already checked and normalised ([`normalize`]): exactly one valid `host` in HTTP/1.1 and
//!   HTTP/2, an origin-form target, no hop-by-hop field.
//! - A body that did not end cleanly on one side is never ended cleanly on the other: it is cut, or reset.
//! - Bodies flow only as fast as they are read.

pub mod body;
pub mod client;
mod h1;
mod h2;
pub mod headers;
pub mod normalize;
pub mod session;
pub mod upgrade;

pub use body::{Body, BodyError};
pub use client::{ClientOptions, ClientSession, HandshakeError, SendError, SendErrorKind};
pub use normalize::{HeadOptions, Malformed};
pub use session::{Abort, Exchange, HalfClose, Interim, Protocol, ServeError, ServerOptions, serve};
