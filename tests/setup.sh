#!/usr/bin/env bash
# Installs what a fresh Debian or Ubuntu machine lacks to build and test, or names it. Needs Rust (rustup) to be there.
set -euo pipefail

missing=()
need() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }
need cc build-essential
need cmake cmake
need unshare util-linux
need ip iproute2
need curl curl
need valgrind valgrind

if [ ${#missing[@]} -gt 0 ]; then
  echo "setup: missing ${missing[*]}"
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
  else
    echo "setup: please run: sudo apt-get install ${missing[*]}" >&2
    exit 1
  fi
fi
if ! command -v cargo >/dev/null; then
  echo "setup: Rust is missing; install it with rustup, the toolchain is named in rust-toolchain.toml" >&2
  exit 1
fi
