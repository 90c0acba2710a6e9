//! Load, peers and measurements for an HBONE waypoint. Uses nothing of the proxy: a bug there cannot cancel out here.

mod accept;
mod compare;
mod fill;
mod hbone;
mod load;
mod machine;
mod mesh;
mod process;
mod report;
mod rewound;
mod run;
mod scenario;
mod schedule;
mod signals;
mod sink;
mod stats;
mod target;
mod tls;
mod tunnel;
mod units;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(version, about)]
enum Command {
    /// Write a test PKI: a root and leaves with SPIFFE identities
    Certs(mesh::pki::CertsArgs),
    /// Run a workload: HBONE server with a built-in HTTP app
    Workload(mesh::workload::WorkloadArgs),
    /// Put HBONE load on a waypoint and say what it cost
    Run(run::RunArgs),
    /// Open a plain local port into the mesh
    Tunnel(tunnel::TunnelArgs),
    /// Collect OTLP traces and print one line per span
    Sink(sink::SinkArgs),
    /// Compare CPU per request of our proxy and of a bare Envoy
    Compare(compare::CompareArgs),
    /// Print as JSON what results carry: the machine, the commit, the date
    Origin,
}

fn main() -> anyhow::Result<()> {
    let command = Command::parse();
    machine::raise_file_limit()?;
    // One thread: what the tools cost is then easy to see, and a proxy under test keeps the other cores.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        Command::Certs(args) => mesh::pki::run(&args),
        Command::Workload(args) => runtime.block_on(mesh::workload::run(args)),
        Command::Run(args) => runtime.block_on(run::run(args)),
        Command::Tunnel(args) => runtime.block_on(tunnel::run(args)),
        Command::Sink(args) => runtime.block_on(sink::run(args)),
        Command::Compare(args) => runtime.block_on(compare::run(args)),
        Command::Origin => {
            println!("{}", serde_json::to_string(&machine::Origin::now()?)?);
            Ok(())
        }
    }
}
