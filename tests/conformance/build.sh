#!/usr/bin/env bash
# Builds the unmodified Gateway API conformance suite, and the echo client and server that its images are, from Go modules.
#
#   tests/conformance/build.sh             result: .build/conformance/{suite,client,server}; does nothing when that is up to date
#
# Versions are what go.mod here pins; go.sum pins their contents. The suite's version is the one of the CRDs that the control
# plane's build installs. Needs Go: tests/controlplane/build.sh, which comes first, finds or installs it. About two minutes.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(cd "$here/../.." && pwd)/.build/conformance
PATH=$PATH:/usr/local/go/bin:/usr/lib/go/bin

inputs() { cat "$here"/*.sh "$here"/*.go "$here"/go.{mod,sum} | sha256sum | cut -d' ' -f1; }

[ "$(cat "$out/stamp" 2>/dev/null)" = "$(inputs)" ] && exit 0
mkdir -p "$out"
exec 9>"$out/lock"
flock 9
[ "$(cat "$out/stamp" 2>/dev/null)" = "$(inputs)" ] && exit 0
cd "$here"
echo "conformance: building the Gateway API suite and the echo programs; about two minutes the first time"
go test -c -buildvcs=false -o "$out/suite" .
for program in client server; do
  go build -buildvcs=false -o "$out/$program" "istio.io/istio/pkg/test/echo/cmd/$program"
done
inputs >"$out/stamp"
echo "conformance: ready in $SECONDS s: $out"
