#!/usr/bin/env bash
# install_node_packages.sh SOURCE TARGET: copies the test clients to TARGET and installs their npm
# packages there, exactly those of the lock file. Does nothing when TARGET is up to date.
set -euo pipefail
source_dir=$1 target_dir=$2
mkdir -p "$target_dir"
if [ -d "$target_dir/node_modules" ] && cmp -s "$source_dir/package-lock.json" "$target_dir/installed-lock.json"; then
  cp "$source_dir"/*.mjs "$target_dir"
  echo "node packages are up to date"
  exit 0
fi
cp "$source_dir"/* "$target_dir" 2>/dev/null || true
cd "$target_dir"
npm ci --no-audit --no-fund --ignore-scripts ||
  { echo "npm could not install the test clients (is the npm registry reachable?)" >&2; exit 1; }
cp package-lock.json installed-lock.json
