#!/usr/bin/env bash
# Builds those who read what a waypoint reports, from their Go modules, unmodified: Prometheus with promtool, and Jaeger.
#
#   tests/consumers/build.sh               result: .build/consumers/{prometheus,promtool,jaeger}; does nothing when that is up to date
#
# Versions are what prometheus/go.mod and jaeger/go.mod pin; go.sum pins their contents. Needs Go: tests/controlplane/build.sh,
# which comes first, finds or installs it. Eleven minutes of CPU the first time, half of that on two cores; most is Jaeger's databases.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(cd "$here/../.." && pwd)/.build/consumers
PATH=$PATH:/usr/local/go/bin:/usr/lib/go/bin

inputs() { cat "$here"/build.sh "$here"/{prometheus,jaeger}/go.{mod,sum} | sha256sum | cut -d' ' -f1; }

# build MODULE-FOLDER NAME PACKAGE [TAGS]
build() {
  local since=$SECONDS
  echo "consumers: building $2 …"
  (cd "$here/$1" && go build -buildvcs=false -tags="${4:-}" -ldflags="-s -w" -o "$out/$2" "$3")
  echo "consumers: $2 in $((SECONDS - since)) s"
}

[ "$(cat "$out/stamp" 2>/dev/null)" = "$(inputs)" ] && exit 0
command -v go >/dev/null || { echo "consumers: Go is missing; tests/controlplane/build.sh finds or installs it" >&2; exit 1; }
mkdir -p "$out"
exec 9>"$out/lock"
flock -n 9 || { echo "consumers: waiting for another build"; flock 9; }
[ "$(cat "$out/stamp" 2>/dev/null)" = "$(inputs)" ] && exit 0
# Without the discovery of clouds, which no test has: half of what there would be to compile.
build prometheus prometheus github.com/prometheus/prometheus/cmd/prometheus remove_all_sd
build prometheus promtool github.com/prometheus/prometheus/cmd/promtool remove_all_sd
build jaeger jaeger github.com/jaegertracing/jaeger/cmd/jaeger
inputs >"$out/stamp"
echo "consumers: ready in $SECONDS s: $out"
