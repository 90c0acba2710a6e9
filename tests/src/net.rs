//! Entering the network of the pocket mesh, which `tests/net.sh` makes: for test programs whose pods and services have
//! the addresses of `tests/controlplane/mesh.yaml`. Not for tests that loopback serves.
//!
//! Invariant: after [`enter_or_reexec`] returned, every address of the mesh can be bound and each named pod has its namespace.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};

/// Set by `net.sh`: `inside POD=ADDRESS …`.
const INSIDE: &str = "WAYPOINT_TEST_NETWORK";
/// Set by `net.sh`: empty where the kernel has no IPv6.
const IPV6: &str = "WAYPOINT_TEST_NETWORK_IPV6";

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/net.sh");

/// The node's address, as pods see it.
pub const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 255, 1));

/// The address behind `istiod.istio-system.svc`.
pub const ISTIOD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 255, 1));

/// Returns if this process is inside the network already; else becomes `net.sh`, which runs this program again, with its
/// arguments, inside, and exits with that program's code. `pods` are names with their addresses (several, IPv4 or IPv6, are
/// separated by commas) that get a network namespace of their own.
///
/// For the first line of `main` of a test with `harness = false`. Where no namespace can be made, `net.sh` prints why and what
/// would allow it, and the process exits with code 1.
pub fn enter_or_reexec(pods: &[(&str, &str)]) {
    let wanted: Vec<String> = pods.iter().map(|(name, addresses)| format!("{name}={addresses}")).collect();
    match std::env::var(INSIDE) {
        Ok(inside) => {
            let missing: Vec<&String> = wanted.iter().filter(|pod| !inside.split(' ').any(|made| made == *pod)).collect();
            if !missing.is_empty() {
                eprintln!("this network ({inside}) lacks the pods {missing:?}");
                exit(1);
            }
        }
        Err(_) => {
            let program = match std::env::current_exe() {
                Ok(program) => program,
                Err(error) => {
                    eprintln!("cannot find this program to run it again: {error}");
                    exit(1);
                }
            };
            let error = Command::new("bash").arg(SCRIPT).args(wanted).arg("--").arg(program).args(std::env::args_os().skip(1)).exec();
            eprintln!("cannot run bash {SCRIPT}: {error}");
            exit(1);
        }
    }
}

/// Whether this process is inside the network.
#[must_use]
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Whether the IPv6 addresses of the mesh (fd00:10:244::/64, fd00:10:96::/112) can be used.
#[must_use]
pub fn has_ipv6() -> bool {
    std::env::var_os(IPV6).is_some_and(|value| !value.is_empty())
}
