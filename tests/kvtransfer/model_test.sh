#!/usr/bin/env bash
# model_test.sh MODEL.pml: checks the Spin model of the KV handoff exhaustively. The faithful model must be
# safe, every planted fault must be found, every block must come home under fair scheduling, and an
# undisturbed request must be served. Each search is bounded in time, memory and depth; a search that stops at
# a bound fails the test.
set -euo pipefail

model=$(realpath "$1")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

fail() {
  echo "FAILED: $1"
  tail -40 "$scratch/log"
  exit 1
}

# search NAME 'SPIN FLAGS' 'CC FLAGS' 'PAN FLAGS': the verifier's report goes to ./log
search() {
  mkdir "$scratch/$1"
  cd "$scratch/$1"
  # shellcheck disable=SC2086  # flags are lists
  {
    spin $2 -a "$model" >"$scratch/log" 2>&1 || fail "$1: spin refused the model"
    # Spin's generated C is not free of warnings.
    cc -w -DMEMLIM=1024 $3 -o pan pan.c >"$scratch/log" 2>&1 || fail "$1: the verifier does not compile"
    timeout 90 ./pan -m200000 -w22 $4 >"$scratch/log" 2>&1 || true
  }
  cd "$scratch"
}

# Zero errors count only if the search came to its end.
expect_proof() {
  grep -q 'errors: 0$' log || fail "$1: errors found, or the search did not end"
  if grep -qE 'max search depth too small|Search not completed' log; then fail "$1: the search was cut short"; fi
  echo "$1: proved, $(grep -m1 'states, stored' log | xargs)"
}

# Optimized only where the search takes longer than the compiler.
safety='-DSAFETY -DNOCLAIM'
search safety '' "-O1 $safety" ''
expect_proof safety

mutants=(
  "1:blocks are freed before the own receive ended"
  "2:offers are counted instead of cells covered"
  "3:the attempt of a message is ignored"
  "4:activation without verification of the last cell"
  "5:Final is accepted after the transfer was closed"
)
for mutant in "${mutants[@]}"; do
  search "mutant${mutant%%:*}" "-DMUTANT=${mutant%%:*}" "$safety" ''
  grep -q 'assertion violated' log || fail "a fault survived: ${mutant#*:}"
  echo "found: ${mutant#*:}"
done

# Weak fairness: a process that can always move does move at some time.
search all_free '-DLIVE' '-O2 -DNFAIR=3' '-a -f -N all_free'
expect_proof all_free
search served '-DCALM' '-DNFAIR=3' '-a -f -N served'
expect_proof served
