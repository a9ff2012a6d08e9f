"""The links between workers and router are slow, stop in one direction and break, under running streams.

    slow_links_test.py [--seed N] [--seconds S]

Every worker dials the router through a proxy of its own that does this from a seed. Every answer must be the
undisturbed one; an error must name a worker that could not be reached.
"""

import argparse
import collections
import contextlib
import random
import re
import time

from cluster import Cluster, Loopback, wait_for
from delay_proxy import DelayProxy
from fault_table import write_section
from history import Clients, History, ask_oracle, make_specs
from rounds import check_in_rounds


class Proxied(Loopback):
    """Each worker's own way to the router."""

    def __init__(self, seed):
        self._seed = seed
        self._stack = contextlib.ExitStack()
        self.proxies = []

    def router_address(self, name, router):
        proxy = self._stack.enter_context(DelayProxy(
            (router.host, router.ports["fleet_port"]), self._seed + len(self.proxies)))
        self.proxies.append(proxy)
        return "%s:%d" % proxy.address

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return self._stack.__exit__(*exc)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--streams", type=int, default=24)
    args = parser.parse_args()
    check_in_rounds(lambda seed: run_round(seed, args.seconds, args.streams), args.seed)


def run_round(seed, seconds, num_streams):
    """What was wrong besides damage and leaks, which are raised."""
    print(f"seed {seed}", flush=True)
    with Proxied(seed) as network, \
            Cluster(prefill=2, decode=2, network=network, kv_cache="48MiB",
                    router_args=["--worker-timeout", "2s", "--no-worker-timeout", "20s",
                                 "--max-lost-workers", "20"]) as cluster:
        specs = make_specs(seed, 12)
        history = History(ask_oracle(cluster.http_address, specs, random.Random(seed)))
        clients = Clients(cluster.http_address, history, num_streams, seed).start()
        began = time.monotonic()
        try:
            time.sleep(seconds)
        finally:
            for proxy in network.proxies:
                proxy.end_faults()
            clients.stop()
        took = time.monotonic() - began
        wait_for(lambda: len(cluster.ready_workers()) == len(cluster.workers), 20, "every worker to be back")
        cluster.wait_until_nothing_is_held(timeout_seconds=15)
        counts = sum((proxy.counts for proxy in network.proxies), collections.Counter())
        errors = history.errors()
        print("errors:", collections.Counter(re.sub(r"[0-9.]+m?s|-\d", "N", a.error)[:200] for a in errors))
        result = f"{len(history.damaged)} damaged, {len(errors)} errors, 0 leaked blocks"
        write_section("Links are slow and break", [
            (what, count, "answers against the oracle", result) for what, count in sorted(counts.items())],
            f"2 prefill and 2 decode workers, each behind a proxy of its own, {num_streams} streams at once, "
            f"{len(history.answers)} answers in {took:.0f} s, seed {seed}.")
        assert not history.damaged, f"damaged streams; replay with --seed {seed}: {history.damaged[:5]}"
        problems = [f"error: {a.error}" for a in errors[:5]]
        if counts["connections reset"] == 0:
            problems.append("no connection was reset")
        if len(history.answers) < num_streams:
            problems.append(f"only {len(history.answers)} answers")
        return problems


if __name__ == "__main__":
    main()
