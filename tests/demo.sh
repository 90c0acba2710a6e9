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

echo "demo: building (profile $profile; the first time takes some minutes) …"
# Both in one go: the program then finds the waypoint beside itself.
cargo build --locked --profile "$profile" --package waypoint --bin waypoint
cargo build --locked --profile "$profile" --package tests --bin demo
exec cargo run --quiet --locked --profile "$profile" --package tests --bin demo -- "$@"
