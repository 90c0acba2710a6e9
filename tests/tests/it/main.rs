//! Bytes on a wire: the real binary between a scripted istiod, HBONE callers, workloads and a collector, all on loopback addresses.
//!
//! Each test has a mesh of its own and says what it shows by its name. Expected values are from the contracts (`docs/`) and the RFCs.

mod actions;
mod affinity;
mod bad_input;
mod by_host;
mod cluster_oracle;
mod collectors;
mod control_plane;
mod costs;
mod destinations;
mod differential;
mod dns;
mod envoy_oracle;
mod explain;
mod extensions;
mod external;
mod fidelity;
mod golden_logs;
mod golden_metrics;
mod golden_spans;
mod harness;
mod health;
mod http_tunnels;
mod ingress;
mod life_cycle;
mod limits;
mod networks;
mod origination;
mod parity;
mod policy;
mod policy_oracle;
mod policy_targets;
mod proxy_protocol;
mod releases;
mod requests;
mod retries;
mod routes;
mod scale;
mod server_names;
mod smuggling;
mod subsets;
mod telemetry;
mod telemetry_oracle;
mod tries;
mod upgrades;
