#!/usr/bin/env bash
# Gateway API conformance beside a real API server and istiod; see docs/conformance.md.
#
#   tests/conformance.sh [SUITE [TEST]]     report: target/conformance/report.json
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
echo "conformance: building (the first time takes some minutes) …"
# As the tests build it, so that neither builds the other's dependencies again.
cargo build --locked --workspace --all-targets
WAYPOINT_BINARY="$target/debug/waypoint" "$target/debug/conformance" --out "$target/conformance" "$@"
