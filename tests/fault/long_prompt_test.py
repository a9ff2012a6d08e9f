"""One 3,500-token prompt beside 20 short streams: how much slower do the streams' tokens become?

Prints the ratio of their p99 time per output token with and without the long prompt; pairs of runs alternate, and the
median of their ratios counts, because the machine's own speed changes from second to second.
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
PAIRS = 5
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
        pairs = [(streams(cluster), *streams_beside_a_long_prompt(cluster, rng)) for _ in range(PAIRS)]
        cluster.wait_until_nothing_is_held()
    ratios = sorted(beside["p99"] / alone["p99"] for alone, beside, _ in pairs)
    ratio = statistics.median(ratios)
    alone, beside, _ = zip(*pairs)
    write_section("A long prompt beside short streams", [
        (f"{PROMPT_TOKENS}-token prompt beside {STREAMS} streams", PAIRS, "p99 time per output token of the streams",
         f"{statistics.median(b['p99'] for b in beside):.1f} ms beside, {statistics.median(a['p99'] for a in alone):.1f} ms "
         f"alone; median of the {len(ratios)} ratios {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); the prompts took "
         f"{max(took for _, _, took in pairs):.2f} s")],
        f"1 prefill and 1 decode worker, {OUTPUT_TOKENS} tokens a stream; all processes share the machine's cores.")
    if ratio > MAX_RATIO:
        print(f"p99 time per output token rose {ratio:.2f} times: {ratios}", file=sys.stderr)
        raise AssertionError("a long prompt stalls the streams of others")


if __name__ == "__main__":
    main()
