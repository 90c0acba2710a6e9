//! The harness. Real: a rootless network with every address of a mesh, an Istio control plane in it, and waypoint pods. In process, on
//! loopback addresses: a scripted istiod that serves recorded configuration, HBONE peers and workloads, a trace sink, and the waypoint's
//! binary between them ([`scenario::Mesh`] puts them together); and a stock Envoy as the waypoint of the same mesh ([`envoy`]).

pub mod authz;
pub mod consumers;
pub mod dns;
pub mod envoy;
pub mod fake_istiod;
pub mod frames;
pub mod fuzz;
pub mod http_rows;
pub mod istiod;
pub mod key_server;
pub mod keyring;
pub mod mesh_ca;
pub mod net;
pub mod otlp;
pub mod peer;
pub mod pki;
pub mod plain_port;
pub mod pod;
pub mod process;
pub mod scale;
pub mod scenario;
pub mod telemetry_sink;
pub mod tokens;
pub mod wait;
pub mod workload;

mod tunnel;
