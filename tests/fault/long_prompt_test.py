"""One 3,500-token prompt beside 20 short streams: how much slower do the streams' tokens become?

Prints the ratio of their p99 time per output token with and without the long prompt; pairs of runs alternate, and the
median of a round's ratios counts, because the machine's own speed changes from second to second. One round with a good
median is enough: what stalls the streams does so in every round, what stalls the machine does not.
"""

import random
import statistics
import sys
import threading
import time

from cluster import Cluster, MODEL_NAME
from fault_table import write_section
from load import bench

STREAMS = 20
OUTPUT_TOKENS = 400
PROMPT_TOKENS = 3500
PAIRS = 5  # a round
MAX_ROUNDS = 3
MAX_RATIO = 1.2


def streams(cluster):
    """Time per output token of 20 streams, p50 and p99 over the streams, in ms."""
    run = bench(cluster, OUTPUT_TOKENS, "--concurrency", str(STREAMS), "--requests", str(STREAMS), "--warm-up", "0")
    assert run["failed"] == 0, run
    return run["tpot_ms"]


def streams_beside_a_long_prompt(cluster, rng):
    """The same with the prompt arriving while they run; and the prompt's own time to its token, in seconds."""
    took = []

    def long_prompt():
        time.sleep(0.3)
        began = time.monotonic()
        cluster.post("/v1/completions", {"model": MODEL_NAME, "max_tokens": 1,
                                         "prompt": [rng.randrange(3, 2000) for _ in range(PROMPT_TOKENS)]})
        took.append(time.monotonic() - began)

    thread = threading.Thread(target=long_prompt)
    thread.start()
    tpot = streams(cluster)
    thread.join()
    return tpot, took[0]


def main():
    rng = random.Random(1)
    with Cluster(kv_cache="128MiB", router_args=["--worker-timeout", "10s"]) as cluster:
        streams(cluster)  # warm
        medians = []
        while not medians or (medians[-1] > MAX_RATIO and len(medians) < MAX_ROUNDS):
            pairs = [(streams(cluster), *streams_beside_a_long_prompt(cluster, rng)) for _ in range(PAIRS)]
            ratios = sorted(beside["p99"] / alone["p99"] for alone, beside, _ in pairs)
            medians.append(statistics.median(ratios))
        cluster.wait_until_nothing_is_held()
    alone, beside, took = zip(*pairs)
    earlier = f", in the rounds before {', '.join(f'{m:.2f}' for m in medians[:-1])}" if medians[1:] else ""
    write_section("A long prompt beside short streams", [
        (f"{PROMPT_TOKENS}-token prompt beside {STREAMS} streams", PAIRS * len(medians),
         "p99 time per output token of the streams",
         f"{statistics.median(b['p99'] for b in beside):.1f} ms beside, {statistics.median(a['p99'] for a in alone):.1f} ms "
         f"alone; median of the {len(ratios)} ratios {medians[-1]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}){earlier}; "
         f"the prompts took {max(took):.2f} s")],
        f"1 prefill and 1 decode worker, {OUTPUT_TOKENS} tokens a stream; all processes share the machine's cores. "
        f"The figures are those of round {len(medians)} of at most {MAX_ROUNDS}.")
    if medians[-1] > MAX_RATIO:
        print(f"p99 time per output token rose in every round, medians {medians}; the last round's ratios: {ratios}",
              file=sys.stderr)
        raise AssertionError("a long prompt stalls the streams of others")


if __name__ == "__main__":
    main()
