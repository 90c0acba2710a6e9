#!/usr/bin/env bash
# The waypoint's main job, explained step by step; see docs/demo.md. `--once` checks every step and exits.
# Builds optimized unless --once is given, so that load means something; DEMO_PROFILE chooses otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=quick
for argument in "$@"; do
  case "$argument" in
    --once) profile=dev ;;
    *) echo "usage: tests/demo.sh [--once]" >&2; exit 2 ;;
  esac
done
profile=${DEMO_PROFILE:-$profile}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")

echo "demo: building (profile $profile; the first time takes some minutes) …"
if [ "$profile" = dev ]; then
  # As the tests build it, so that neither builds the other's dependencies again.
  cargo build --locked --workspace --all-targets
  WAYPOINT_BINARY="$target/debug/waypoint" exec "$target/debug/demo" "$@"
fi
cargo build --locked --profile "$profile" --package waypoint --bin waypoint --package tests --bin demo
WAYPOINT_BINARY="$target/$profile/waypoint" exec "$target/$profile/demo" "$@"
