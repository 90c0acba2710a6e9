#!/usr/bin/env bash
# Runs oha against the demo mesh once and checks that every answer was 200; see docs/load-testing.md. Not part of `make test`:
# it installs oha from the registry of packages, into .build/oha. OHA="-z 30s -c 100" and the like replaces the load.
set -euo pipefail
cd "$(dirname "$0")/.."

# Builds with the toolchain of this repository.
version=1.16.0
oha=.build/oha/bin/oha
load=${OHA:--z 10s -c 50}
# Building the demo for the first time takes minutes; its walk takes seconds.
ready_timeout_seconds=1800
log=.build/oha/demo.log
result=.build/oha/result.json

if [ "$("$oha" --version 2>/dev/null)" != "oha $version" ]; then
  echo "oha: installing oha $version into .build/oha (takes some minutes) …"
  cargo install oha --locked --version "$version" --root .build/oha --force
fi

echo "oha: starting the demo mesh (the first build takes some minutes); its output is in $log"
: >"$log"
tests/demo.sh >"$log" 2>&1 &
demo=$!
stop() {
  kill -INT $demo 2>/dev/null || true
  wait $demo
}
trap 'stop || true' EXIT

url=
for ((second = 0; second < ready_timeout_seconds; second++)); do
  # The last of what it suggests, once it stays up.
  url=$(sed -n 's|^ *oha .* \(http://[^ ]*\) .*|\1|p' "$log")
  [ -z "$url" ] || break
  if ! kill -0 $demo 2>/dev/null; then
    tail -n 20 "$log"
    echo "oha: the demo ended before it was ready" >&2
    exit 1
  fi
  sleep 1
done
[ -n "$url" ] || { echo "oha: the demo was not ready within $ready_timeout_seconds s" >&2; exit 1; }

echo "oha: $load $url"
# Requests under way at the end are waited for: else they count as errors.
# shellcheck disable=SC2086
"$oha" --no-tui --output-format json --wait-ongoing-requests-after-deadline $load "$url" >"$result"
trap - EXIT
stop || { tail -n 20 "$log"; echo "oha: the demo did not end well" >&2; exit 1; }

text=$(tr -d ' \n' <"$result")
latencies=$(sed -n 's/.*"latencyPercentiles":{\([^}]*\)}.*/\1/p' <<<"$text")
field() { sed -n "s/.*\"$2\":\([^,}]*\).*/\1/p" <<<"$1"; }
statuses=$(sed -n 's/.*"statusCodeDistribution":{\([^}]*\)}.*/\1/p' <<<"$text")
errors=$(sed -n 's/.*"errorDistribution":{\([^}]*\)}.*/\1/p' <<<"$text")
if ! [[ $statuses =~ ^\"200\":[1-9][0-9]*$ ]] || [ -n "$errors" ]; then
  echo "oha: not all answers were 200: {$statuses}; errors {$errors}" >&2
  exit 1
fi
milliseconds() { awk -v seconds="$1" 'BEGIN { printf "%.1f", seconds * 1000 }'; }
printf 'oha: %s answers, all 200; %.0f requests/s; p50 %s ms, p99 %s ms\n' "${statuses#*:}" "$(field "$text" requestsPerSec)" \
  "$(milliseconds "$(field "$latencies" p50)")" "$(milliseconds "$(field "$latencies" p99)")"
