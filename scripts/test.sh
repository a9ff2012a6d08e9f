#!/usr/bin/env bash
# Builds Sluice and runs all its tests, as the continuous integration does. Works from a clean clone.
#   scripts/test.sh             everything: lint, release with all tests, chaos (the fault tests that
#                               want the machine for themselves), fuzz, asan and tsan with the unit,
#                               property and simulation tests, clang-tidy on the whole tree
#   scripts/test.sh --quick     lint and release alone
#   --no-setup                  do not look for missing packages (scripts/setup.sh)
#   --only STAGE                one of lint, release, chaos, tidy, asan, tsan, fuzz; may be repeated
#   --fuzz-seconds N            per target of the fuzz stage (30)
#   --jobs N                    compilers and tests at once (2)
# Logs lie in build/<preset>/. The exit code is 0 only if every stage passed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

stages=() quick=0 setup=1 jobs=2 fuzz_seconds=30
while [ $# -gt 0 ]; do
  case "$1" in
    --quick) quick=1 ;;
    --no-setup) setup=0 ;;
    --only)
      case "${2:-}" in
        lint | release | chaos | tidy | asan | tsan | fuzz) stages+=("$2") ;;
        *) echo "test.sh: --only needs lint, release, chaos, tidy, asan, tsan or fuzz" >&2; exit 2 ;;
      esac
      shift ;;
    --fuzz-seconds) fuzz_seconds="${2:?--fuzz-seconds needs a number}"; shift ;;
    --jobs) jobs="${2:?--jobs needs a number}"; shift ;;
    -h | --help) sed -n '2,11p' "$0" | cut -c3-; exit 0 ;;
    *) echo "test.sh: unknown argument '$1' (try --help)" >&2; exit 2 ;;
  esac
  shift
done
if [ ${#stages[@]} -eq 0 ]; then
  stages=(lint release)
  [ "$quick" = 1 ] || stages+=(chaos fuzz asan tsan tidy)
fi

# Compiler results are shared between checkouts of the same sources at different paths.
export CCACHE_BASEDIR="${CCACHE_BASEDIR:-$PWD}" CCACHE_NOHASHDIR="${CCACHE_NOHASHDIR:-1}"

report=()  # one line a stage, printed at the end
failed=0

# run_stage NAME COMMAND...: runs it and keeps its time and outcome.
run_stage() {
  local name="$1" start=$SECONDS outcome=ok
  shift
  echo "== $name"
  "$@" </dev/null || { outcome=FAILED; failed=1; }
  report+=("$(printf '%-16s %-6s %4d s' "$name" "$outcome" $((SECONDS - start)))")
  echo "== $name: $outcome after $((SECONDS - start)) s"
  [ "$outcome" = ok ]
}

configure_and_build() {  # PRESET [TARGETS...]
  local preset="$1" log="build/$1/build.log"
  shift
  mkdir -p "build/$preset"
  if ! cmake --preset "$preset" >"build/$preset/configure.log" 2>&1; then
    tail -40 "build/$preset/configure.log"
    return 1
  fi
  # Progress now and then; all of it when something fails.
  if ! NINJA_STATUS='[%f/%t %es] ' ninja -C "build/$preset" -j "$jobs" "$@" 2>&1 | tee "$log" |
    awk 'NR % 20 == 0 { print; fflush() }'; then
    grep -A 30 -m 3 -E '^FAILED|error:' "$log" || tail -40 "$log"
    return 1
  fi
}

run_tests() {  # PRESET [CTEST ARGUMENTS...]
  local preset="$1" log="$PWD/build/$1/ctest.log"
  shift
  ctest --preset "$preset" -j "$jobs" --no-tests=error --output-log "$log" "$@"
  local status=$?
  summaries+=("$preset $*: $(grep -E 'tests passed|tests failed' "$log" | tail -1)")
  return $status
}

summaries=()
if [ "$setup" = 1 ]; then
  run_stage setup scripts/setup.sh || exit 1
fi
for stage in "${stages[@]}"; do
  case "$stage" in
    lint) run_stage lint scripts/lint.sh ;;
    release) run_stage "release build" configure_and_build release && run_stage "release tests" run_tests release -LE chaos ;;
    chaos) run_stage "chaos build" configure_and_build release && run_stage "chaos tests" run_tests release -L chaos ;;
    tidy) run_stage "tidy build" configure_and_build release && run_stage tidy scripts/lint.sh --tidy-all --jobs "$jobs" ;;
    fuzz) run_stage fuzz scripts/fuzz.sh --seconds "$fuzz_seconds" --seed 1 --jobs "$jobs" ;;
    *)
      run_stage "$stage build" configure_and_build "$stage" tests-unit tests-property tests-simulation &&
        run_stage "$stage tests" run_tests "$stage" ;;
  esac
done

echo
printf '%s\n' "${report[@]}"
[ ${#summaries[@]} -eq 0 ] || printf '%s\n' "${summaries[@]}"
if [ "$failed" = 0 ]; then echo "test.sh: passed"; else echo "test.sh: FAILED"; fi
exit "$failed"
