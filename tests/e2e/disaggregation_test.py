"""Disaggregated output equals colocated output, bit for bit (promise 1).

200 random requests, prompt lengths 1 to 3,500, greedy and seeded sampling, many with shared prefixes,
go to a colocated worker, to a prefill and decode pair over shared memory, and to a pair over TCP.
Token ids and log-probabilities must be the same in all three. E2E_SEED=N makes other requests.
"""

import math
import os
import random
import time
import unittest

from cluster import Cluster, MODEL_NAME, run_parallel

NUM_REQUESTS = int(os.environ.get("E2E_REQUESTS", "200"))
MAX_PROMPT_TOKENS = 3500
VOCAB = 4000  # plain text tokens of deepseek-tiny lie below this


def make_requests(seed):
    rng = random.Random(seed)
    prefixes = [[rng.randrange(3, VOCAB) for _ in range(rng.choice([64, 200, 640, 1500]))] for _ in range(6)]
    requests = []
    for i in range(NUM_REQUESTS):
        # Log-uniform lengths: as many short as long ones; the extremes are always there.
        length = {0: 1, 1: MAX_PROMPT_TOKENS}.get(i, int(math.exp(rng.uniform(0, math.log(MAX_PROMPT_TOKENS)))))
        prompt = [rng.randrange(3, VOCAB) for _ in range(length)]
        if rng.random() < 0.35:
            prefix = rng.choice(prefixes)
            prompt = (prefix + prompt)[:MAX_PROMPT_TOKENS]
        body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": rng.randint(1, 24), "logprobs": 3,
                "return_token_ids": True, "ignore_eos": rng.random() < 0.5}
        if rng.random() < 0.5:
            body["temperature"] = 0
        else:
            body.update(temperature=rng.choice([0.3, 0.8, 1.3]), top_p=rng.choice([1.0, 0.9]),
                        top_k=rng.choice([0, 20]), min_p=rng.choice([0, 0.02]), seed=rng.getrandbits(40),
                        presence_penalty=rng.choice([0, 0.5]), frequency_penalty=rng.choice([0, 0.4]),
                        repetition_penalty=rng.choice([1.0, 1.2]))
        requests.append(body)
    return requests


def outcome(answer):
    choice = answer["choices"][0]
    return (choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"],
            choice["text"], choice["finish_reason"])


def run_all(requests, width, **cluster_options):
    start = time.monotonic()
    with Cluster(kv_cache="192MiB", **cluster_options) as cluster:
        answers = run_parallel(
            [lambda body=body: cluster.post("/v1/completions", body, timeout_seconds=300) for body in requests],
            width)
        cluster.wait_until_nothing_is_held()
        transports = {t["transport"] for w in cluster.status()["workers"] for t in w["transports"]}
    cached = sum(a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in answers)
    print(f"{cluster_options}: {len(answers)} answers in {time.monotonic() - start:.1f} s, "
          f"{cached} prompt tokens from the prefix cache, transports {sorted(transports)}", flush=True)
    return [outcome(a) for a in answers], transports, cached


class DisaggregationTest(unittest.TestCase):
    def test_same_tokens_and_logprobs_bit_for_bit(self):
        seed = int(os.environ.get("E2E_SEED", 1))
        print(f"E2E_SEED={seed}", flush=True)
        requests = make_requests(seed)
        expected, _, cached = run_all(requests, width=1, prefill=0, decode=0, both=1)
        self.assertGreater(cached, 0, "no prefix hits among the requests")
        runs = [("shm", dict(env={})), ("tcp", dict(env={"UCX_TLS": "tcp"}))]
        for transport, options in runs:
            # Another concurrency than the oracle's: other batches, other chunkings.
            got, transports, _ = run_all(requests, width=6, **options)
            self.assertEqual(transports, {transport})
            for i, (want, have) in enumerate(zip(expected, got)):
                self.assertEqual(want, have, f"request {i} over {transport} (seed {seed}): "
                                             f"{len(requests[i]['prompt'])} prompt tokens")


if __name__ == "__main__":
    unittest.main(verbosity=2)
