"""Links between router, prefill and decode workers are cut, in one or both directions, under running streams.

    network_test.py [--seed N] [--passes N]

Each process has a host (network namespace) of its own. A pass breaks one link after the other, each long enough for
the other side to be thought dead or just shorter, and mends it. Every answer must be the undisturbed one.
"""

import argparse
import collections
import random
import re
import time

from cluster import Cluster, wait_for
from fault_table import write_section
from history import Clients, History, ask_oracle, make_specs
from hosts import Hosts, run_on_client_host
from rounds import check_in_rounds

ROUTER, PREFILL, DECODE = "router", ["prefill-0", "prefill-1"], ["decode-2", "decode-3"]
LONG_SECONDS = 3.5    # more than every time-out
SHORT_SECONDS = 0.6


def faults(hosts, rng):
    """(what, function that breaks something, seconds) of one pass. At least one worker of each role stays well."""
    p, d = rng.choice(PREFILL), rng.choice(DECODE)
    worker = rng.choice(PREFILL + DECODE)
    return [
        ("router and a worker no longer hear each other, long", lambda: hosts.cut(ROUTER, worker), LONG_SECONDS),
        ("router and a worker no longer hear each other, short", lambda: hosts.cut(ROUTER, worker), SHORT_SECONDS),
        ("a decode worker no longer hears the router", lambda: hosts.drop(ROUTER, d), LONG_SECONDS),
        ("the router no longer hears a decode worker", lambda: hosts.drop(d, ROUTER), LONG_SECONDS),
        ("a prefill worker no longer hears the router", lambda: hosts.drop(ROUTER, p), LONG_SECONDS),
        ("the router no longer hears a prefill worker", lambda: hosts.drop(p, ROUTER), LONG_SECONDS),
        ("KV no longer arrives: prefill to decode dropped", lambda: hosts.drop(p, d), LONG_SECONDS),
        ("KV is no longer acknowledged: decode to prefill dropped", lambda: hosts.drop(d, p), LONG_SECONDS),
        ("a KV link is cut, short", lambda: hosts.cut(p, d), SHORT_SECONDS),
        ("a KV link is answered with resets", lambda: hosts.reset(p, d), LONG_SECONDS),
        ("the router's link to a worker is answered with resets", lambda: hosts.reset(worker, ROUTER), SHORT_SECONDS),
        ("a worker's cable is pulled", lambda: hosts.unplug(worker), LONG_SECONDS),
        ("a worker loses 5 % of its packets", lambda: hosts.lose(worker, 0.05), LONG_SECONDS),
    ]


def num_ready(cluster):
    return sum(value for name, value in cluster.metrics(cluster.router).items()
               if name.startswith("sluice_workers{") and 'state="ready"' in name)


def held(cluster):
    return {w.name: (cluster.blocks(w), {name: value for name, value in cluster.metrics(w).items() if value and
                                         name.startswith(("sluice_kv_transfers_in", "sluice_engine_requests"))})
            for w in cluster.workers}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--streams", type=int, default=24)
    args = parser.parse_args()
    check_in_rounds(lambda seed: run_round(seed, args.passes, args.streams), args.seed)


def run_round(seed, num_passes, num_streams):
    """What was wrong besides damage and leaks, which are raised."""
    print(f"seed {seed}", flush=True)
    rng = random.Random(seed)
    counts = collections.Counter()
    with Hosts([ROUTER, *PREFILL, *DECODE]) as hosts, \
            Cluster(prefill=2, decode=2, network=hosts, kv_cache="48MiB",
                    router_args=["--worker-timeout", "2s", "--no-worker-timeout", "20s", "--max-lost-workers", "6"],
                    worker_args=["--transfer.tls", "tcp", "--transfer.peer-timeout", "2s"]) as cluster:
        history = History(ask_oracle(cluster.http_address, make_specs(seed, 16), rng))
        clients = Clients(cluster.http_address, history, num_streams, seed).start()
        began = time.monotonic()
        try:
            for _ in range(num_passes):
                for what, break_it, seconds in faults(hosts, rng):
                    answered = len(history.answers)
                    break_it()
                    time.sleep(seconds)
                    hosts.heal()
                    counts[what] += 1
                    wait_for(lambda: num_ready(cluster) == len(cluster.workers), 40, f"every worker to be back after: {what}")
                    print(f"{time.monotonic() - began:4.0f} s: {what}: {len(history.answers) - answered} answers, "
                          f"{len(history.errors())} errors, {len(history.damaged)} damaged", flush=True)
        finally:
            hosts.heal()
            clients.stop()
        seconds = time.monotonic() - began
        try:
            cluster.wait_until_nothing_is_held(timeout_seconds=15)
        except AssertionError as error:
            raise AssertionError(f"blocks are held without a request; seed {seed}: {held(cluster)}") from error
        retries = sum(value for name, value in cluster.metrics(cluster.router).items()
                      if name.startswith("sluice_request_retries_total"))
        errors = history.errors()
        print("errors:", collections.Counter(re.sub(r"[0-9.]+m?s|-\d", "N", a.error)[:200] for a in errors))
        result = f"{len(history.damaged)} damaged, {len(errors)} errors, 0 leaked blocks"
        write_section("Links break", [(what, count, "answers against the oracle", result) for what, count in counts.items()],
                      f"2 prefill and 2 decode workers on hosts of their own, KV over TCP, {num_streams} streams at once, "
                      f"{len(history.answers)} answers in {seconds:.0f} s, {int(retries)} retries, seed {seed}.")
        assert not history.damaged, f"damaged streams; replay with --seed {seed}: {history.damaged[:5]}"
        # One worker of each role was well at any time, so no answer may end with an error.
        problems = [f"error: {a.error}" for a in errors[:5]]
        if retries == 0:
            problems.append("no request was ever planned anew: the faults hit nothing")
        return problems


if __name__ == "__main__":
    run_on_client_host(main)
