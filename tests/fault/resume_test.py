"""A prefill worker dies when it has handed over 90 % of a long prompt: the next one goes on from there.

Two prefill workers and one decode worker. The one that computes the prompt is stopped when it has
computed about 90 % of it, and killed when the decode worker has taken what was sent. Checked: the other prefill worker
computes less than 30 % of the prompt, the answer is bit for bit the undisturbed one, and no block stays held. The same
without fetching prefixes shows what it saves.
"""

import argparse
import random
import signal
import time

from cluster import Cluster, MODEL_NAME, run_parallel, wait_for
from fault_table import write_section

PROMPT_TOKENS = 3500
BLOCK_TOKENS = 64
# Small steps, so that there is a moment to hit.
WORKER_ARGS = ["--scheduler.max-num-batched-tokens", "64", "--scheduler.max-num-seqs", "8"]
# A stopped worker is not to be given up before it is killed.
PATIENT = ["--transfer.peer-timeout", "5s"]
STOP_AT = 0.88
ACCEPTED = (0.80, 0.99)  # of the prompt, held by the decode worker when the prefill worker died
MAX_COMPUTED = 0.30
MAX_TRIES = 30


def total(cluster, worker, name, *labels):
    return sum(value for key, value in cluster.metrics(worker).items()
               if key.split("{")[0] == name and all(label in key for label in labels))


def computed(cluster, worker):
    return total(cluster, worker, "sluice_engine_step_tokens_sum", 'phase="prefill"')


def received(cluster, decode):
    return total(cluster, decode, "sluice_kv_transfer_bytes_total", 'direction="recv"')


def request(prompt):
    return {"model": MODEL_NAME, "prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True,
            "logprobs": 3}


def answer(body):
    choice = body["choices"][0]
    return choice["text"], choice["finish_reason"], choice["logprobs"]


class Try:
    """One prompt whose prefill worker is killed on the way. `fits` tells whether the moment was hit."""

    def __init__(self, cluster, prompt):
        decode = cluster.workers[2]
        prefill = cluster.workers[:2]
        before = {worker.name: computed(cluster, worker) for worker in prefill}
        held_before = total(cluster, decode, "sluice_kv_prefix_hit_tokens_total")
        result = []
        self.prompt, self.fits = prompt, False

        def disturb():
            worker = self._stop_in_time(cluster, prefill, before, result)
            if worker is None:
                return
            self._wait_until_taken(cluster, decode)
            worker.signal(signal.SIGKILL)
            self.killed = worker

        self.killed = None
        run_parallel([lambda: result.append(cluster.post("/v1/completions", request(prompt))), disturb], 2)
        self.body = result[0]
        if self.killed is None:
            return
        other = next(worker for worker in prefill if worker is not self.killed)
        self.held = total(cluster, decode, "sluice_kv_prefix_hit_tokens_total") - held_before
        self.computed = computed(cluster, other) - before[other.name]
        self.fits = ACCEPTED[0] <= self.held / PROMPT_TOKENS <= ACCEPTED[1]
        cluster.wait_until_nothing_is_held(timeout_seconds=20)
        cluster.restart_worker(self.killed)
        wait_for(lambda: len(cluster.ready_workers()) == 3, 30, "the restarted worker")

    @staticmethod
    def _stop_in_time(cluster, prefill, before, result):
        """The worker that computes, stopped when it has computed enough; None when it was too fast."""
        while not result:
            for worker in prefill:
                done = computed(cluster, worker) - before[worker.name]
                if done >= STOP_AT * PROMPT_TOKENS:
                    worker.signal(signal.SIGSTOP)
                    if done >= PROMPT_TOKENS:
                        worker.signal(signal.SIGCONT)
                        return None
                    return worker
        return None

    @staticmethod
    def _wait_until_taken(cluster, decode):
        """Until no payload has come for a second (the decode worker publishes every 200 ms)."""
        last, since = received(cluster, decode), time.monotonic()
        while time.monotonic() - since < 1:
            now = received(cluster, decode)
            if now != last:
                last, since = now, time.monotonic()
            time.sleep(0.05)


def run(rng, count, worker_args):
    """`count` tries that hit the moment."""
    tries, missed = [], 0
    with Cluster(prefill=2, decode=1, worker_args=[*WORKER_ARGS, *PATIENT, *worker_args],
                 router_args=["--worker-timeout", "20s"]) as cluster:
        while len(tries) < count:
            one = Try(cluster, [rng.randrange(3, 2000) for _ in range(PROMPT_TOKENS)])
            if one.fits:
                tries.append(one)
                continue
            missed += 1
            assert missed <= MAX_TRIES, "the moment is never hit"
    return tries, missed


def check_answers(tries):
    with Cluster(prefill=0, decode=0, both=1) as cluster:
        for one in tries:
            assert answer(one.body) == answer(cluster.post("/v1/completions", request(one.prompt))), \
                "the answer is not the undisturbed one"


def share(values):
    return f"{100 * sum(values) / len(values) / PROMPT_TOKENS:.0f} %"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=2, help="deaths at the right moment, with fetching")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    resumed, missed = run(rng, args.kills, [])
    plain, _ = run(rng, 1, ["--transfer.fetch-patience", "0s"])
    check_answers(resumed + plain)
    write_section("A prompt whose prefill worker dies at 90 %", [
        ("SIGKILL of the prefill worker", len(resumed), "prompt tokens computed again",
         f"{share([one.computed for one in resumed])}; the decode worker held {share([one.held for one in resumed])}"),
        ("the same without prefix fetch", len(plain), "prompt tokens computed again",
         f"{share([one.computed for one in plain])}; the decode worker held {share([one.held for one in plain])}")],
        f"{PROMPT_TOKENS} tokens, 2 prefill and 1 decode worker; {missed} tries missed the moment.")
    for one in resumed:
        assert one.computed < MAX_COMPUTED * PROMPT_TOKENS, f"{one.computed} of {PROMPT_TOKENS} tokens were computed again"
        # What is reported is what was not computed.
        cached = one.body["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached == PROMPT_TOKENS - one.computed, (cached, one.computed)
    assert all(one.computed == PROMPT_TOKENS for one in plain), [one.computed for one in plain]


if __name__ == "__main__":
    main()
