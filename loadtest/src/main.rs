//! Load, peers and measurements for an HBONE waypoint. Uses nothing of the proxy: a bug there cannot cancel out here.

mod accept;
mod hbone;
mod hyper_io;
mod mesh;
mod signals;
mod tls;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(version, about)]
enum Command {
    /// Write a test PKI: a root and leaves with SPIFFE identities
    Certs(mesh::pki::CertsArgs),
    /// Run a workload: HBONE server with a built-in HTTP app
    Workload(mesh::workload::WorkloadArgs),
}

fn main() -> anyhow::Result<()> {
    let command = Command::parse();
    // One thread: what the tools cost is then easy to see, and a proxy under test keeps the other cores.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        Command::Certs(args) => mesh::pki::run(&args),
        Command::Workload(args) => runtime.block_on(mesh::workload::run(args)),
    }
}
