//! The cost of a request in instructions, counted by callgrind: the same on a busy machine as on an idle one.
//!
//! `costs [ROW…]` measures rows, each in a process of its own under valgrind, and compares them with `tests/costs.toml`.
//! `costs --measure ROW REPORT` is that process. Not for: time, memory, or the kernel's share; `make bench` measures those.
//!
//! Invariant: a window holds the work of one thread only, without waiting for another.

mod allocations;
mod guard;
mod mesh;
mod rows;
mod sinks;
mod valgrind;
mod window;

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::allocations::{Allocations, Counted};
use crate::window::Windows;

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Of everything that draws: ids of requests and spans, endpoints.
const SEED: u64 = 7;

fn main() -> Result<ExitCode> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    match given.as_slice() {
        [flag, name, report] if flag == "--measure" => measure(name, report),
        names => guard::run(names),
    }
}

fn measure(name: &str, report: &str) -> Result<ExitCode> {
    fastrand::seed(SEED);
    let row = rows::ALL.iter().find(|row| row.name == name).with_context(|| format!("there is no row {name}"))?;
    let mut windows = Windows::default();
    (row.run)(&mut windows)?;
    let Windows { operations, allocations, held_each } = windows;
    let Allocations { count, bytes } = allocations;
    std::fs::write(report, format!("operations = {operations}\nallocations = {count}\nbytes = {bytes}\nheld_each = {held_each}\n"))?;
    Ok(ExitCode::SUCCESS)
}
