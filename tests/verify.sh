#!/usr/bin/env bash
# What `make verify` promises beyond `make test`: what takes too long for every change. See CONTRIBUTING.md.
#
# POLICY_REQUESTS and FUZZ_SECONDS choose how much, POLICY_SEED and FUZZ_SEED where it begins; a failure names them.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/parts.sh
export POLICY_REQUESTS=${POLICY_REQUESTS:-2000} FUZZ_SECONDS=${FUZZ_SECONDS:-60}
part "build" cargo build --workspace --all-targets --locked
export WAYPOINT_BINARY="$PWD/target/debug/waypoint"
part "policies and tokens beside a real Envoy: $POLICY_REQUESTS requests per scenario" cargo test --locked -p tests --test it policy_oracle
part "fuzz targets: $FUZZ_SECONDS s each" cargo test --locked -p tests --test fuzz -- --nocapture
part "what a token and a thousand rules cost, in release mode" cargo test --locked --release -p filters --lib -- --nocapture tests::cost
part "what counting a request costs, in release mode" cargo test --locked --release -p telemetry --lib -- --nocapture metrics::tests::cost
part "golden tests hold their constants: ten changed one by one" tests/constants.sh
part "conformance" tests/conformance.sh
all_passed verify
