#!/usr/bin/env bash
# Everything `make test` promises, in parts, each with its minutes; the first part that fails ends it.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/parts.sh
part "formatting" cargo fmt --all --check
part "lints" cargo clippy --workspace --all-targets --locked -- -D warnings
# Everything in one go, so that the binary the tests start is not built twice.
part "build" cargo build --workspace --all-targets --locked
export WAYPOINT_BINARY="$PWD/target/debug/waypoint"
part "control plane: etcd, kube-apiserver, istiod" tests/controlplane/build.sh
part "consumers: Prometheus and Jaeger, for tests further down" tests/consumers/build.sh
part "manifests, on a real API server and istiod" target/debug/examples/controlplane --dual-stack
part "all tests, the real control plane included" cargo test --workspace --locked
part "demo" target/debug/demo --once
part "costs in instructions, in release mode" tests/costs.sh
all_passed test
