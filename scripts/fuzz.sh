#!/usr/bin/env bash
# Builds the fuzz targets (preset `fuzz`, clang) and runs them, as many at once as there are jobs.
#   scripts/fuzz.sh                          every target of tests/fuzz for 30 s each
#   scripts/fuzz.sh --seconds 600 http_body_fuzz ...
#   --seconds N     per target
#   --seed N        where the mutations begin (0: anywhere). The stage of scripts/test.sh always begins at 1, so that
#                   its verdict owes less to luck; look further by hand.
#   --jobs N        compilers, then targets, at once (2)
# The inputs in tests/fuzz/corpus are only read: what a run learns goes to build/fuzz/corpus/TARGET
# and is used again by the next one. A finding lies in build/fuzz/findings and makes the exit code 1;
# when it is fixed, its file belongs into tests/fuzz/corpus/TARGET, where every preset replays it.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

seconds=30 jobs=2 seed=0 targets=()
while [ $# -gt 0 ]; do
  case "$1" in
    --seconds) seconds="${2:?--seconds needs a number}"; shift ;;
    --seed) seed="${2:?--seed needs a number}"; shift ;;
    --jobs) jobs="${2:?--jobs needs a number}"; shift ;;
    -h | --help) sed -n '2,11p' "$0" | cut -c3-; exit 0 ;;
    -*) echo "fuzz.sh: unknown argument '$1' (try --help)" >&2; exit 2 ;;
    *) targets+=("$1") ;;
  esac
  shift
done
[[ "$seconds" =~ ^[1-9][0-9]*$ ]] || { echo "fuzz.sh: --seconds needs a positive number" >&2; exit 2; }
[[ "$seed" =~ ^[0-9]+$ ]] || { echo "fuzz.sh: --seed needs a number" >&2; exit 2; }
if [ ${#targets[@]} -eq 0 ]; then
  for source in tests/fuzz/*_fuzz.cc; do targets+=("$(basename "$source" .cc)"); done
fi
for target in "${targets[@]}"; do
  [ -f "tests/fuzz/$target.cc" ] || { echo "fuzz.sh: there is no tests/fuzz/$target.cc" >&2; exit 2; }
done

export CCACHE_BASEDIR="${CCACHE_BASEDIR:-$PWD}" CCACHE_NOHASHDIR="${CCACHE_NOHASHDIR:-1}"
mkdir -p build/fuzz/logs build/fuzz/findings
if ! cmake --preset fuzz >build/fuzz/logs/configure.log 2>&1; then
  tail -40 build/fuzz/logs/configure.log
  exit 1
fi
if ! ninja -C build/fuzz -j "$jobs" "${targets[@]}" >build/fuzz/logs/build.log 2>&1; then
  grep -A 30 -m 3 -E '^FAILED|error:' build/fuzz/logs/build.log || tail -40 build/fuzz/logs/build.log
  exit 1
fi

# A finding stops at the first broken rule, with the place. Limits: an input that takes 20 s, one
# allocation above 512 MB or 2 GB in all are findings too.
export UBSAN_OPTIONS="print_stacktrace=1" ASAN_OPTIONS="detect_leaks=1:strict_string_checks=1"

# fuzz_one TARGET: runs it and prints a line, or what was found. Fails on a finding.
fuzz_one() {
  local target="$1" log="build/fuzz/logs/$1.log" learned="build/fuzz/corpus/$1"
  local before status executions coverage reproducer
  mkdir -p "$learned"
  before=$(mktemp)
  # The limit is for a target that hangs beyond libFuzzer's own.
  timeout --kill-after=10 $((seconds + 120)) build/fuzz/bin/"$target" \
    -seed="$seed" -max_total_time="$seconds" -max_len=16384 -timeout=20 -rss_limit_mb=2048 -malloc_limit_mb=512 \
    -print_final_stats=1 -artifact_prefix="build/fuzz/findings/$target-" \
    "$learned" "tests/fuzz/corpus/$target" >"$log" 2>&1
  status=$?
  executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  coverage=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -1)
  printf '%-22s %9s executions  %6s edges covered  %s\n' "$target" "${executions:-?}" "${coverage:-?}" \
    "$([ $status = 0 ] && echo ok || echo FINDING)"
  if [ $status != 0 ]; then
    grep -m 1 -E 'ERROR: |runtime error|invariant broken' "$log"
    reproducer=$(find build/fuzz/findings -name "$target-*" -newer "$before" | head -1)
    if [ -n "$reproducer" ]; then
      echo "  reproducer: $reproducer"
      echo "  replay:     build/fuzz/bin/$target $reproducer"
    else
      tail -5 "$log"
    fi
    echo "  log:        $log"
  fi
  rm -f "$before"
  return $status
}

failed=0 running=0
for target in "${targets[@]}"; do
  if [ "$running" -ge "$jobs" ]; then
    wait -n || failed=1
    running=$((running - 1))
  fi
  fuzz_one "$target" &
  running=$((running + 1))
done
while [ "$running" -gt 0 ]; do
  wait -n || failed=1
  running=$((running - 1))
done
exit $failed
