#!/usr/bin/env bash
# Builds the real control plane that the tests run: etcd, kube-apiserver and istiod, from their Go modules, unmodified.
#
#   tests/controlplane/build.sh            result: .build/controlplane/{bin,share}; does nothing when that is up to date
#
# Versions are what kubernetes/go.mod and istio/go.mod pin; go.sum pins their contents. `share` holds what the tests read
# of those modules (CRDs, istiod's injection template and chart values), so that a test run needs no Go.
# The first run compiles about 2,500 packages: some six minutes on two cores, mostly silent work of the Go compiler.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out=$root/.build/controlplane
go_needed=1.26
go_minimum=1.21 # from here on, Go fetches the toolchain that go.mod names by itself
progress_interval=10

say() { printf 'controlplane: %s\n' "$*"; }
die() { printf 'controlplane: %s\n' "$@" >&2; exit 1; }

# Is version $1 at least $2?
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n1)" = "$2" ]; }

go_version() { go env GOVERSION 2>/dev/null | sed -n 's/^go\([0-9.]*\).*/\1/p'; }

go_suffices() {
  command -v go >/dev/null || return 1
  local version
  version=$(cd / && GOTOOLCHAIN=local go_version)
  [ -n "$version" ] && at_least "$version" "$go_minimum"
}

# Debian's and Ubuntu's own Go, where it is new enough to fetch the toolchain it needs.
install_go_from_apt() {
  command -v apt-get >/dev/null || return 1
  local candidate as_root=()
  candidate=$(apt-cache policy golang-go 2>/dev/null | sed -n 's/^ *Candidate: *\(2:\)\?\([0-9][0-9.]*\).*/\2/p')
  [ -n "$candidate" ] && at_least "$candidate" "$go_minimum" || return 1
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || return 1
    as_root=(sudo -n)
  fi
  say "installing golang-go $candidate with apt-get"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q golang-go >/dev/null
}

need_go() {
  PATH=$PATH:/usr/local/go/bin:/usr/lib/go/bin
  go_suffices && return
  install_go_from_apt && hash -r && go_suffices && return
  local arch
  case $(uname -m) in aarch64 | arm64) arch=arm64 ;; *) arch=amd64 ;; esac
  die "Go $go_needed is needed to build the control plane, and this system's packages have none that is new enough." \
    "Install it so:" \
    "  curl -fsSL https://go.dev/dl/go1.26.0.linux-$arch.tar.gz | sudo tar -C /usr/local -xz" \
    "(/usr/local/go/bin is found without being on the PATH.)"
}

# step TITLE COMMAND…: runs it, prints a line every few seconds, and its whole output if it fails.
step() {
  local title=$1 log pid start=$SECONDS next
  shift
  log=$(mktemp "$out/build.XXXXXX")
  say "$title"
  "$@" >"$log" 2>&1 &
  pid=$!
  next=$((SECONDS + progress_interval))
  while kill -0 "$pid" 2>/dev/null; do
    if [ "$SECONDS" -ge "$next" ]; then
      say "$title: $((SECONDS - start)) s, $(wc -l <"$log") packages, now $(tail -n1 "$log" | cut -c1-80)"
      next=$((SECONDS + progress_interval))
    fi
    sleep 0.2
  done
  if ! wait "$pid"; then
    cat "$log" >&2
    rm -f "$log"
    die "failed: $title"
  fi
  rm -f "$log"
  say "$title: done in $((SECONDS - start)) s"
}

# build MODULE-FOLDER NAME PACKAGE [TAGS]
build() { (cd "$here/$1" && go build -v -buildvcs=false -tags="${4:-}" -o "$out/bin/$2" "$3"); }

module_folder() { (cd "$here/istio" && go list -m -f '{{.Dir}}' "$1"); }

share() {
  local istio gateway_api chart
  (cd "$here/istio" && go mod download istio.io/istio sigs.k8s.io/gateway-api)
  istio=$(module_folder istio.io/istio)
  gateway_api=$(module_folder sigs.k8s.io/gateway-api)
  chart=$istio/manifests/charts/istio-control/istio-discovery
  rm -rf "$out/share"
  mkdir -p "$out/share/crds"
  cp "$istio/manifests/charts/base/files/crd-all.gen.yaml" "$out/share/crds/istio.yaml"
  cp "$gateway_api"/config/crd/experimental/gateway*.yaml "$out/share/crds/"
  cp "$chart/files/waypoint.yaml" "$out/share/waypoint.template.yaml"
  cp "$chart/values.yaml" "$out/share/values.yaml"
  chmod -R u+w "$out/share"
}

inputs() { cat "$here"/build.sh "$here"/{kubernetes,istio}/go.{mod,sum} | sha256sum | cut -d' ' -f1; }

up_to_date() {
  [ "$(cat "$out/stamp" 2>/dev/null)" = "$(inputs)" ] && [ -x "$out/bin/etcd" ] && [ -x "$out/bin/kube-apiserver" ] && [ -x "$out/bin/pilot-discovery" ]
}

up_to_date && exit 0
mkdir -p "$out/bin"
exec 9>"$out/lock"
flock -n 9 || { say "waiting for another build of the control plane"; flock 9; }
up_to_date && exit 0
trap 'rm -f "$out"/build.??????' EXIT
need_go
began=$SECONDS
say "building etcd, kube-apiserver and istiod with $(cd "$here/istio" && go env GOVERSION); about six minutes the first time"
step "1/4 istiod's templates and the CRDs" share
step "2/4 etcd" build kubernetes etcd go.etcd.io/etcd/server/v3
step "3/4 kube-apiserver" build kubernetes kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
# With the tags of Istio's releases: what istiod sends then has its maps in random order, as in the field.
step "4/4 istiod" build istio pilot-discovery istio.io/istio/pilot/cmd/pilot-discovery vtprotobuf,disable_pgv
inputs >"$out/stamp"
say "ready in $((SECONDS - began)) s: $out"
