"""One 3,500-token prompt beside 20 short streams: how much slower do the streams' tokens become?

Prints the ratio of their p99 time per output token with and without the long prompt.
"""

import json
import random
import sys
import threading
import time

from cluster import Cluster, MODEL_NAME, connect_raw
from fault_table import write_section
from overload_test import percentile

STREAMS = 20
PROMPT_TOKENS = 3500
# A prompt that blocked the streams would stop all of them for its whole prefill.
MAX_RATIO = 5


class Stream(threading.Thread):
    """Reads a stream and keeps the gaps between its events."""

    def __init__(self, cluster, number):
        super().__init__()
        raw = json.dumps({"model": MODEL_NAME, "prompt": f"Story {number} about a dog.", "max_tokens": 400,
                          "ignore_eos": True, "stream": True}).encode()
        self.sock = connect_raw(cluster)
        self.sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                          b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(raw), raw))
        self.gaps, self.error = [], False
        self.start()

    def run(self):
        last, tail = None, b""
        while piece := self.sock.recv(1 << 16):
            now, events = time.monotonic(), piece.count(b"data: ")
            tail = (tail + piece)[-64:]
            self.error |= b'"error"' in piece
            if last is not None and events:
                self.gaps += [(now - last) / events] * events
            if events:
                last = now
        self.error |= b"[DONE]" not in tail


def time_per_token(cluster, prompts):
    """All gaps of STREAMS streams, with `prompts` long prompts sent one after the other beside them."""
    streams = [Stream(cluster, i) for i in range(STREAMS)]
    took = []
    time.sleep(0.5)
    for prompt in prompts:
        began = time.monotonic()
        cluster.post("/v1/completions", {"model": MODEL_NAME, "prompt": prompt, "max_tokens": 1})
        took.append(time.monotonic() - began)
    for stream in streams:
        stream.join()
        stream.sock.close()
    assert not any(stream.error for stream in streams), "a stream ended with an error"
    return [gap for stream in streams for gap in stream.gaps], took


def main():
    rng = random.Random(1)
    with Cluster(kv_cache="128MiB", router_args=["--worker-timeout", "10s"]) as cluster:
        time_per_token(cluster, [])  # warm
        alone, _ = time_per_token(cluster, [])
        prompts = [[rng.randrange(3, 2000) for _ in range(PROMPT_TOKENS)] for _ in range(3)]
        beside, took = time_per_token(cluster, prompts)
        cluster.wait_until_nothing_is_held()
    p99 = percentile(beside, 0.99) / percentile(alone, 0.99)
    p50 = percentile(beside, 0.5) / percentile(alone, 0.5)
    write_section("A long prompt beside short streams", [
        (f"{PROMPT_TOKENS}-token prompt beside {STREAMS} streams", len(prompts), "time per output token of the streams",
         f"p99 {1e3 * percentile(beside, .99):.0f} ms beside, {1e3 * percentile(alone, .99):.0f} ms alone: ratio {p99:.2f} "
         f"(p50 ratio {p50:.2f}); the prompts took {max(took):.2f} s")],
        "1 prefill and 1 decode worker; on a machine with few cores they also share those.")
    if p99 > MAX_RATIO:
        print(f"p99 time per token rose {p99:.1f} times", file=sys.stderr)
        raise AssertionError("a long prompt stalls the streams of others")


if __name__ == "__main__":
    main()
