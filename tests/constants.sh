#!/usr/bin/env bash
# Shows that the golden tests of telemetry hold its constants: changes one at a time in a copy of the sources, and expects that a golden
# test of `docs/contracts.md` fails. Part of `make verify`.
#
# The copy is below target/constants; what it compiles goes to the usual target folder, so that dependencies are not built again.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
copy=$root/target/constants

# What it is, in which file, what is put in the place of what (a line is changed, of which there has to be exactly one).
changes=(
  "a label's order|model/src/metrics.rs|^        Self::SourceWorkload,$|        Self::SourceCanonicalService,|^        Self::SourceCanonicalService,$|        Self::SourceWorkload,"
  "what stands for a revision that is not known|telemetry/src/metrics/labels.rs|\"latest\"|\"unknown\""
  "a flag's spelling|model/src/flags.rs|=> \"UF\"|=> \"UX\""
  "a bucket|telemetry/src/metrics/histogram.rs|^    500.0,$|    501.0,"
  "a span attribute's type|telemetry/src/wire.rs|const STRING_VALUE: u32 = 1;|const STRING_VALUE: u32 = 7;"
  "a span attribute's name|telemetry/src/trace/span.rs|\"http.status_code\"|\"http.response.status_code\""
  "gRPC's status for an HTTP one|telemetry/src/grpc.rs|            404 => 12,|            404 => 5,"
  "a member that is missing|model/src/format/json.rs|Value::Missing => out.extend_from_slice(b\"null\")|Value::Missing => out.extend_from_slice(b\"\\\\\"-\\\\\"\")"
  "the digit of a sampled request id|telemetry/src/trace/sampling.rs|const SAMPLED: u8 = b'9';|const SAMPLED: u8 = b'8';"
  "a metric's name|model/src/metrics.rs|=> \"istio_request_bytes\"|=> \"istio_request_size\""
)

tests() { (cd "$copy" && CARGO_TARGET_DIR="$root/target" cargo test --locked --no-fail-fast -p model -p telemetry --lib 2>&1); }

rm -rf "$copy"
mkdir -p "$copy"
git ls-files -z | while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done | xargs -0 cp --parents -t "$copy"
if ! output=$(tests); then
  tail -n 60 <<<"$output"
  echo "constants: tests fail without any change" >&2
  exit 1
fi

# change FILE PATTERN REPLACEMENT
change() {
  [ "$(grep -c -- "$2" "$copy/$1")" = 1 ] || { echo "constants: not one line of $1 is like $2" >&2; exit 1; }
  sed -i -e "/$(sed 's#/#\\/#g' <<<"$2")/s/$(sed 's#/#\\/#g' <<<"$2")/$(sed 's#/#\\/#g' <<<"$3")/" "$copy/$1"
}

for one in "${changes[@]}"; do
  IFS='|' read -r what file from to also_from also_to <<<"$one"
  # Two lines change places by way of a name that is neither.
  if [ -n "$also_from" ]; then
    change "$file" "$also_from" "@@"
    change "$file" "$from" "$to"
    change "$file" "^@@$" "$also_to"
  else
    change "$file" "$from" "$to"
  fi
  output=$(tests || true)
  if ! failed=$(grep -oE '^test .*::[mlt][0-9]{2}b?_[a-z0-9_]+ \.\.\. FAILED' <<<"$output"); then
    printf '%s\n' "$output" | tail -n 40
    echo "constants: no golden test notices a change of $what ($file)" >&2
    exit 1
  fi
  printf 'constants: %s: %d golden tests fail, such as %s\n' "$what" "$(wc -l <<<"$failed")" "$(head -n1 <<<"$failed" | sed 's/^test \(.*\) \.\.\. FAILED$/\1/')"
  cp "$file" "$copy/$file"
done
rm -rf "$copy"
echo "constants: ${#changes[@]} changed, all noticed"
