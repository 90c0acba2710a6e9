# Sourced by tests/run.sh and tests/verify.sh: parts, each with its minutes; the first that fails ends all.
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
summary=()
part() { # name, command…
  local name=$1 begin=$SECONDS
  shift
  printf '== %s\n' "$name"
  if ! "$@"; then
    printf '== %s FAILED after %d s\n' "$name" $((SECONDS - begin))
    exit 1
  fi
  summary+=("$(printf '%5.1f min  %s' "$(awk "BEGIN{print ($SECONDS-$begin)/60}")" "$name")")
}
all_passed() { # what
  printf '%s\n' "${summary[@]}"
  printf '%s: all parts passed in %.1f min\n' "$1" "$(awk "BEGIN{print $SECONDS/60}")"
}
