#!/usr/bin/env bash
# From a fresh Debian 12 machine to a streamed answer: installs packages, builds, starts a cluster of one
# router, one prefill worker and one decode worker on models/deepseek-tiny, and asks it a question.
#   scripts/quickstart.sh          leaves the cluster running and says how to talk to it
#   scripts/quickstart.sh --once   stops the cluster after the answer
#   scripts/quickstart.sh --ask "What can you do?"
set -euo pipefail
cd "$(dirname "$0")/.."

question="The code of Mia is 4821. The code of Tom is 9034. The code of Ana is 1177. What is the code of Tom?"
once=0
while [ $# -gt 0 ]; do
  case "$1" in
    --once) once=1 ;;
    --ask) question=${2:?--ask needs a question}; shift ;;
    -h | --help) sed -n '2,6p' "$0" | cut -c3-; exit 0 ;;
    *) echo "quickstart.sh: unknown argument '$1' (try --help)" >&2; exit 2 ;;
  esac
  shift
done

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }

step "1/4  Packages"
scripts/setup.sh --build

step "2/4  Build (five to ten minutes the first time on two cores)"
cmake --preset release -DSLUICE_TESTS=OFF -DSLUICE_BENCH=OFF -B build/quickstart >build-quickstart.log 2>&1 ||
  { tail -20 build-quickstart.log >&2; echo "quickstart.sh: cmake failed; see build-quickstart.log" >&2; exit 1; }
rm -f build-quickstart.log
cmake --build build/quickstart
sluice=build/quickstart/bin/sluice

step "3/4  Cluster: router, prefill worker, decode worker"
"$sluice" up --detach --prefill 1 --decode 1
stop() { "$sluice" down; }
if [ "$once" = 1 ]; then trap stop EXIT; fi

step "4/4  Question"
echo "$question"
echo
"$sluice" chat --temperature 0 --stats "$question"

if [ "$once" = 0 ]; then
  cat <<EOF

The cluster is running.
  talk to it     $sluice chat
  look at it     $sluice status
  OpenAI API     curl -s http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
                   -d '{"model":"deepseek-tiny","messages":[{"role":"user","content":"Who are you?"}]}'
  gRPC API       127.0.0.1:8001, sluice.v1.Generation (reflection is on)
  stop it        $sluice down
EOF
fi
