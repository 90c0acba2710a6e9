#!/usr/bin/env bash
# What a request costs in instructions, compared with tests/costs.toml. See docs/performance.md, "The guard".
#
#   tests/costs.sh [row…]
#
# Builds as tests/bench.sh does, so that neither builds anew what the other has built. UPDATE_COSTS=1 writes the baseline.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v valgrind >/dev/null; then
  echo "costs: valgrind is missing; run tests/setup.sh, or install the package valgrind" >&2
  exit 1
fi
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
echo "costs: building in release mode (the first time takes some minutes) …"
cargo build --locked --release --package waypoint --package loadtest --package tests --bin costs
exec "$target/release/costs" "$@"
