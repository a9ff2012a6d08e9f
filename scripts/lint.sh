#!/usr/bin/env bash
# Checks the sources: formatting, the table of rooms, headers; with --tidy also clang-tidy.
#   scripts/lint.sh                   formatting and includes, a second or two
#   scripts/lint.sh --fix             the same, and formats what is not formatted
#   scripts/lint.sh --tidy            also clang-tidy on the files that differ from origin/main (or main)
#   scripts/lint.sh --tidy-all        also clang-tidy on every file, minutes
#   --build DIR                       whose compile_commands.json clang-tidy reads (build/release)
#   --jobs N                          clang-tidy processes at once (2)
set -euo pipefail
cd "$(dirname "$0")/.."

fix=0 tidy=none build=build/release jobs=2
while [ $# -gt 0 ]; do
  case "$1" in
    --fix) fix=1 ;;
    --tidy) tidy=changed ;;
    --tidy-all) tidy=all ;;
    --build) build="${2:?--build needs a folder}"; shift ;;
    --jobs) jobs="${2:?--jobs needs a number}"; shift ;;
    -h | --help) sed -n '2,8p' "$0" | cut -c3-; exit 0 ;;
    *) echo "lint.sh: unknown argument '$1' (try --help)" >&2; exit 2 ;;
  esac
  shift
done

# A clean clone may belong to another user than the one who checks it.
git() { command git -c safe.directory="$PWD" "$@"; }
find_tool() { command -v "$1-14" || command -v "$1" || { echo "lint.sh: $1 is missing: scripts/setup.sh" >&2; exit 1; }; }

failed=0
mapfile -t sources < <(git ls-files --cached --others --exclude-standard -- '*.h' '*.cc' | while read -r file; do
  [ -f "$file" ] && echo "$file"
done)
[ ${#sources[@]} -gt 0 ] || { echo "lint.sh: no sources: is this a git checkout?" >&2; exit 1; }

clang_format=$(find_tool clang-format)
if [ "$fix" = 1 ]; then
  "$clang_format" -i "${sources[@]}"
fi
unformatted=$("$clang_format" --dry-run "${sources[@]}" 2>&1 | sed -n 's/^\(.*\):[0-9]*:[0-9]*: warning: code should be clang-formatted.*/\1/p' | sort -u)
if [ -n "$unformatted" ]; then
  echo "lint: not formatted (scripts/lint.sh --fix formats them):"
  echo "$unformatted" | sed 's/^/  /'
  failed=1
else
  echo "lint: ${#sources[@]} files are formatted"
fi

if python3 tests/lint/includes_test.py . >/tmp/sluice-lint.$$ 2>&1; then
  echo "lint: includes agree with the table of rooms"
else
  cat /tmp/sluice-lint.$$
  failed=1
fi
rm -f /tmp/sluice-lint.$$

if [ "$tidy" != none ]; then
  clang_tidy=$(find_tool clang-tidy)
  [ -f "$build/compile_commands.json" ] || { echo "lint.sh: $build is not configured: cmake --preset release" >&2; exit 1; }
  if [ "$tidy" = all ]; then
    candidates=("${sources[@]}")
  else
    base=$(git merge-base HEAD origin/main 2>/dev/null || git merge-base HEAD main)
    mapfile -t candidates < <({ git diff --name-only --diff-filter=d "$base" -- '*.cc'; git ls-files --others --exclude-standard -- '*.cc'; } | sort -u)
  fi
  # Only files that the build compiles have a command.
  mapfile -t to_check < <(printf '%s\n' "${candidates[@]}" | grep '\.cc$' | while read -r file; do
    if grep -qF "\"file\": \"$PWD/$file\"" "$build/compile_commands.json"; then echo "$file"; fi
  done || true)
  echo "lint: clang-tidy on ${#to_check[@]} files"
  if [ ${#to_check[@]} -gt 0 ] &&
    ! printf '%s\0' "${to_check[@]}" | xargs -0 -P "$jobs" -n 1 "$clang_tidy" -p "$build" --quiet 2> >(grep -v 'warnings\? generated' >&2); then
    failed=1
  fi
fi

[ "$failed" = 0 ] && echo "lint: ok"
exit "$failed"
