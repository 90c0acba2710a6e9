#!/usr/bin/env bash
# The network of the pocket mesh: runs a command in namespaces of its own (network, mounts, processes where possible; users
# too when it is not started by root), where the address of every pod and service can be bound.
#
#   tests/net.sh [POD=ADDRESS[,ADDRESS] ...] -- COMMAND...
#
# Inside: 10.244.0.0/16 and fd00:10:244::/64 (pods), 10.96.0.0/16 and fd00:10:96::/112 (services) are local, 10.244.255.1 is
# the node, istiod.istio-system.svc is 10.96.255.1. Each POD has a network namespace of that name (`ip netns exec POD …`)
# that owns its addresses: a process that listens on wildcard addresses needs one, since beside peers that hold
# 10.244.x.y:15008 its bind would fail, and two such pods would take each other's connections.
# No process outlives the command. Nothing of this is visible outside, and nothing outside can be reached.
set -euo pipefail

die() { printf 'net.sh: %s\n' "$@" >&2; exit 1; }

require() {
  local tool
  for tool in unshare:util-linux setpriv:util-linux mount:mount ip:iproute2; do
    command -v "${tool%%:*}" >/dev/null || die "the command ${tool%%:*} is missing; install it with: apt-get install -y ${tool##*:}"
  done
}

explain_refusal() {
  local knob
  printf 'net.sh: no namespace can be made here: %s\n' "$1" >&2
  knob=/proc/sys/kernel/apparmor_restrict_unprivileged_userns
  [ "$(cat $knob 2>/dev/null)" != 1 ] || printf '  AppArmor forbids it to users: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0\n' >&2
  knob=/proc/sys/kernel/unprivileged_userns_clone
  [ "$(cat $knob 2>/dev/null)" != 0 ] || printf '  the kernel forbids it to users: sudo sysctl kernel.unprivileged_userns_clone=1\n' >&2
  knob=/proc/sys/user/max_user_namespaces
  [ "$(cat $knob 2>/dev/null)" != 0 ] || printf '  the limit is zero: sudo sysctl user.max_user_namespaces=10000\n' >&2
  printf '  in a container, start it with --privileged, or with --security-opt seccomp=unconfined --security-opt apparmor=unconfined;\n' >&2
  printf '  or run the tests as root (sudo -E).\n' >&2
  exit 1
}

# Sets `namespaces` to the flags of unshare that work here, best first: without a user namespace every user id exists, so
# that a pod can run as uid 1337; with one and a range of subordinate ids too; else only uid 0, which is the caller.
choose_namespaces() {
  local users processes refusal
  local -a user_choices=()
  [ "$(id -u)" != 0 ] || user_choices+=("")
  user_choices+=("--user --map-root-user --map-auto" "--user --map-root-user")
  for users in "${user_choices[@]}"; do
    for processes in "--pid --mount-proc" ""; do
      namespaces=($users --net --mount $processes)
      refusal=$(unshare "${namespaces[@]}" --fork true 2>&1) && return
    done
  done
  explain_refusal "$refusal"
}

hosts() {
  mount -t tmpfs -o mode=755 pocket-mesh /run
  mkdir -p /run/netns
  printf '%s\n' "127.0.0.1 localhost" "::1 localhost" "10.96.255.1 istiod.istio-system.svc" >/run/hosts
  mount --bind /run/hosts /etc/hosts
}

set_kernel() { [ ! -e "/proc/sys/$1" ] || echo "$2" >"/proc/sys/$1" || die "cannot set $1: is /proc/sys read-only?"; }

addresses() {
  ip link set lo up
  set_kernel net/ipv4/ip_forward 1
  ip address add 10.244.255.1/32 dev lo
  # In table main, not local, so that the more specific route to a pod wins.
  ip route add local 10.244.0.0/16 dev lo table main
  ip route add local 10.96.0.0/16 dev lo table main
  if [ -e /proc/sys/net/ipv6 ] && [ "$(cat /proc/sys/net/ipv6/conf/lo/disable_ipv6)" = 0 ]; then
    ipv6=yes
    set_kernel net/ipv6/conf/all/forwarding 1
    set_kernel net/ipv6/ip_nonlocal_bind 1 # a local route alone lets IPv6 receive, not bind
    ip -6 address add fd00:10:244:ff::1/128 dev lo nodad
    ip -6 route add local fd00:10:244::/64 dev lo table main
    ip -6 route add local fd00:10:96::/112 dev lo table main
  fi
}

# pod NAME NUMBER ADDRESS…
pod() {
  local name=$1 host=pod$2 address
  shift 2
  ip netns add "$name"
  ip link add "$host" type veth peer name eth0 netns "$name"
  ip link set "$host" up
  set_kernel "net/ipv4/conf/$host/proxy_arp" 1
  ip -n "$name" link set lo up
  ip -n "$name" link set eth0 up
  for address in "$@"; do
    case $address in
      *:*)
        [ -n "$ipv6" ] || continue
        [ -n "$(ip -6 address show dev "$host" to fe80::1)" ] || ip -6 address add fe80::1/64 dev "$host" nodad
        ip -n "$name" -6 address add "$address/128" dev eth0 nodad
        ip -n "$name" -6 route replace default via fe80::1 dev eth0
        ip -6 route add "$address/128" dev "$host" src fd00:10:244:ff::1
        ;;
      *)
        ip -n "$name" address add "$address/32" dev eth0
        ip -n "$name" route replace default dev eth0
        ip route add "$address/32" dev "$host" src 10.244.255.1
        ;;
    esac
  done
}

if [ -z "${WAYPOINT_TEST_NETWORK:-}" ]; then
  PATH=$PATH:/usr/sbin:/sbin
  require
  choose_namespaces
  WAYPOINT_TEST_NETWORK=making exec unshare "${namespaces[@]}" --fork --kill-child bash "${BASH_SOURCE[0]}" "$@"
fi
[ "$WAYPOINT_TEST_NETWORK" = making ] || die "already inside such a network"

ipv6=
pods=
number=0
hosts
addresses
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  number=$((number + 1))
  IFS=, read -r -a of_pod <<<"${1#*=}"
  pod "${1%%=*}" "$number" "${of_pod[@]}"
  pods="$pods $1"
  shift
done
[ "${1:-}" = -- ] && [ $# -gt 1 ] || die "usage: net.sh [POD=ADDRESS[,ADDRESS] ...] -- COMMAND..."
shift
export WAYPOINT_TEST_NETWORK="inside$pods" WAYPOINT_TEST_NETWORK_IPV6="$ipv6"
# Not exec: as the first process of its namespace, the shell reaps orphans, and the default of signals stays in force.
status=0
"$@" || status=$?
exit "$status"
