#!/usr/bin/env bash
# The container runtime's part of starting one pod, for tests/src/pod.rs; runs as `ip netns exec POD bash pod.sh …`, which
# gives it the pod's network and mounts of its own.
#
#   pod.sh ROOT BINARY UID GID read-only|writable [MOUNT ...] -- [NAME=VALUE ...] -- [ARGUMENT ...]
#
# MOUNT is KIND:PATH:SOURCE with KIND `files` (SOURCE, read-only) or `empty` (a writable tmpfs, no SOURCE). ROOT becomes the
# container's root: the machine's /usr, /proc and a few devices, an /etc of its own, the mounts, and BINARY as /waypoint.
# Nothing else of the machine is there. The binary gets exactly the given environment, no capabilities, and this process's id.
set -euo pipefail

root=$1 binary=$2 uid=$3 gid=$4 mode=$5
shift 5

mount -t tmpfs -o mode=755 pod-root "$root"
cd "$root"
mkdir -p usr proc dev/shm etc run var/lib tmp
ln -s ../run var/run
mount --rbind /usr usr
mount -o remount,bind,ro usr 2>/dev/null || true # refused in a user namespace; there, the files are another user's
for folder in bin sbin lib lib32 lib64 libx32; do
  if [ -L "/$folder" ]; then
    cp -P "/$folder" .
  elif [ -d "/$folder" ]; then
    mkdir "$folder"
    mount --rbind "/$folder" "$folder"
  fi
done
mount --rbind /proc proc
for device in null zero full random urandom tty; do
  touch "dev/$device"
  mount --bind "/dev/$device" "dev/$device"
done
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
mount -t tmpfs -o mode=1777 pod-shm dev/shm
cat /etc/hosts >etc/hosts
echo "hosts: files dns" >etc/nsswitch.conf
printf '%s\n' "search svc.cluster.local cluster.local" "nameserver 10.96.0.10" "options ndots:5" >etc/resolv.conf
mkdir etc/ssl
for file in ld.so.cache ld.so.conf ld.so.conf.d ssl/certs; do
  [ ! -e "/etc/$file" ] || cp -rP "/etc/$file" "etc/$file"
done
touch waypoint
mount --bind "$binary" waypoint

while [ "$1" != -- ]; do
  kind=${1%%:*} rest=${1#*:}
  path=${rest%%:*} source=${rest#*:}
  mkdir -p "./$path"
  case $kind in
    empty) mount -t tmpfs -o mode=1777 pod-volume "./$path" ;;
    files)
      mount --bind "$source" "./$path"
      mount -o remount,bind,ro "./$path" 2>/dev/null || true
      ;;
    *) echo "pod.sh: unknown kind of mount: $1" >&2 && exit 1 ;;
  esac
  shift
done
shift
environment=()
while [ "$1" != -- ]; do
  environment+=("$1")
  shift
done
shift
[ "$mode" = writable ] || mount -o remount,bind,ro "$root"

groups=--clear-groups
[ "$(cat /proc/self/setgroups)" = allow ] || groups=--keep-groups # an ordinary user's namespace: groups cannot be changed
exec chroot "$root" /usr/bin/setpriv --reuid "$uid" --regid "$gid" $groups --no-new-privs --inh-caps=-all --bounding-set=-all -- \
  /usr/bin/env -i "${environment[@]}" /waypoint "$@"
