#!/usr/bin/env bash
# Installs the Debian 12 packages Sluice is built and tested with. Idempotent; needs root or sudo.
#   scripts/setup.sh            everything (build and tests)
#   scripts/setup.sh --build    only what the build needs
#   scripts/setup.sh --dry-run  print the missing packages and stop
set -euo pipefail

build_packages=(
  g++ cmake ninja-build ccache pkg-config git ca-certificates
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler
  libabsl-dev libucx-dev prometheus-cpp-dev libboost1.81-dev
  libsimdjson-dev nlohmann-json3-dev libyaml-cpp-dev libcli11-dev libspdlog-dev
  libpcre2-dev libxxhash-dev libssl-dev libgtest-dev libgmock-dev librapidcheck-dev
)
test_packages=(
  clang clang-format clang-tidy libclang-rt-14-dev python3 python3-grpcio python3-protobuf nodejs npm
  prometheus curl jq procps spin iproute2 iptables
)

dry_run=0
packages=("${build_packages[@]}" "${test_packages[@]}")
for argument in "$@"; do
  case "$argument" in
    --build) packages=("${build_packages[@]}") ;;
    --dry-run) dry_run=1 ;;
    -h | --help) sed -n '2,5p' "$0" | cut -c3-; exit 0 ;;
    *) echo "setup.sh: unknown argument '$argument' (try --help)" >&2; exit 2 ;;
  esac
done

# A tool that is already on the machine (a newer node, say) is left alone.
present() {
  case "$1" in
    nodejs) command -v node >/dev/null ;;
    npm) command -v npm >/dev/null ;;
    *) [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ] ;;
  esac
}

missing=()
for package in "${packages[@]}"; do present "$package" || missing+=("$package"); done
if [ ${#missing[@]} -eq 0 ]; then
  echo "setup: all ${#packages[@]} packages are installed"
  exit 0
fi
echo "setup: ${#missing[@]} of ${#packages[@]} packages are missing: ${missing[*]}"
[ "$dry_run" = 1 ] && exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "setup.sh: run me as root, or install sudo" >&2; exit 1; }
  as_root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
echo "setup: apt-get update"
"${as_root[@]}" apt-get update -qq
echo "setup: apt-get install (a few minutes on a fresh machine)"
# --force-unsafe-io: no fsync per file; a crash in the middle only means running this again.
"${as_root[@]}" apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-unsafe-io \
  -o Dpkg::Use-Pty=0 "${missing[@]}" >/tmp/sluice-setup.log 2>&1 || {
  tail -20 /tmp/sluice-setup.log >&2
  echo "setup.sh: apt-get failed; the whole log is /tmp/sluice-setup.log" >&2
  exit 1
}
echo "setup: done"
