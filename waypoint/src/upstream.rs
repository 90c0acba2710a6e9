//! From a cluster's name to a connection on which a request can be sent.
//!
//! Not for: which cluster, whether to try again. Read from the top: each module may use those above it.

pub mod balance;
pub mod proxy_protocol;
pub mod http_tunnel;
pub mod introduction;
mod eyeballs;
pub mod connect;
pub mod pool;
pub mod dns;
pub mod failure;
