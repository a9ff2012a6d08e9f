"""Five times more work than the cluster can do, and clients that do not read: the work that is done stays the same.

    overload_test.py [--seconds N] [--times N]

Capacity is measured before and after, in the same run, with as many clients as may run at once; between, requests arrive
on their own schedule, however slow the answers are (open loop). The clients share the cores with the cluster, and five
times the requests cost them more: of the capacity counts what they leave.
"""

import argparse
import json
import os
import socket
import sys
import threading
import time

from cancellation_test import rss_bytes
from cluster import Cluster, MODEL_NAME, connect_raw, wait_for, wait_for_kv_memory
from fault_table import write_section
from history import ask
from load import bench

RUNNING = 24
OUTPUT_TOKENS = 60
MIN_GOODPUT_RATIO = 0.9
MAX_ROUNDS = 3  # a neighbour on the machine can slow down one round; what the cluster loses, it loses in each
MAX_REFUSAL_MS = 10  # median; the clients and the cluster share the cores
SLOW_READERS = 2
MAX_RSS_GROWTH_BYTES = 32 << 20


def spec(number):
    return "/v1/completions", {"model": MODEL_NAME, "prompt": f"Story {number} about a dog.", "temperature": 0,
                               "max_tokens": OUTPUT_TOKENS, "ignore_eos": True}


def percentile(values, q):
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else 0.0


def idle_cores(run):
    """Cores that the clients of a run left to the cluster."""
    return len(os.sched_getaffinity(0)) - run["cpu_seconds"] / run["duration_seconds"]


def measure_capacity(cluster, seconds, guess):
    """(answers per second of RUNNING clients in a closed loop, cores they left), over about `seconds`."""
    run = bench(cluster, OUTPUT_TOKENS, "--concurrency", str(RUNNING), "--requests", str(max(RUNNING, int(guess * seconds))))
    return run["requests_per_second"], idle_cores(run)


def check_rejections_have_advice(cluster, address):
    """While the cluster is full, a refusal says when to come again."""
    keep = [threading.Thread(target=ask, args=(address, spec(i), False, 60)) for i in range(3 * RUNNING)]
    for thread in keep:
        thread.start()
    seen = {}

    def refused():
        status, headers, _ = cluster.request("POST", *spec(0))
        if status in (429, 503):
            seen.update(headers)
        return status in (429, 503)

    try:
        wait_for(refused, 20, "a refusal")
    finally:
        for thread in keep:
            thread.join()
    return "retry-after" in {name.lower() for name in seen}


def slow_readers(cluster, address):
    """(seconds until all were closed, slowest other answer beside them, beside the same requests that are read)."""
    raw = json.dumps({"model": MODEL_NAME, "prompt": "Tell me a story.", "max_tokens": 1200, "ignore_eos": True,
                      "stream": True, "n": 8, "logprobs": 20}).encode()

    def start(receive_buffer_bytes):
        socks = [connect_raw(cluster, receive_buffer_bytes) for _ in range(SLOW_READERS)]
        for sock in socks:
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                         b"Content-Length: %d\r\n\r\n%s" % (len(raw), raw))
        return socks

    def slowest_other(count=8):
        answers = [ask(address, spec(i), True, 60) for i in range(count)]
        assert not any(a.error or a.damage for a in answers), answers
        return max(a.ended - a.began for a in answers)

    def evictions():
        return sum(value for name, value in cluster.metrics(cluster.router).items()
                   if name.startswith("sluice_slow_client_evictions_total"))

    def read_all(sock):
        try:
            while sock.recv(1 << 16):
                pass
        except OSError:
            pass  # closed below

    readers = start(None)
    threads = [threading.Thread(target=read_all, args=(sock,)) for sock in readers]
    for thread in threads:
        thread.start()
    beside_readers = slowest_other()
    for sock in readers:
        sock.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    for sock in readers:
        sock.close()
    cluster.wait_until_nothing_is_held()

    began = time.monotonic()
    socks = start(2048)
    beside_slow = slowest_other()
    wait_for(lambda: evictions() >= SLOW_READERS, 120, "slow readers to be closed")
    closed_after = time.monotonic() - began
    for sock in socks:
        sock.close()
    return closed_after, beside_slow, beside_readers


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of overload")
    parser.add_argument("--times", type=float, default=5, help="capacity")
    args = parser.parse_args()
    problems = []
    with Cluster(kv_cache="128MiB", router_args=[
            "--worker-timeout", "10s", "--max-running-requests", str(RUNNING), "--max-queued-requests", str(RUNNING),
            "--queue-timeout", "5s"]) as cluster:
        guess, _ = measure_capacity(cluster, 3, 30)
        before_load, cores_before = measure_capacity(cluster, 6, guess)
        processes = [cluster.router, *cluster.workers]
        wait_for_kv_memory(cluster.workers)
        before = {p.name: rss_bytes(p) for p in processes}
        for _ in range(MAX_ROUNDS):
            rate = args.times * before_load
            run = bench(cluster, OUTPUT_TOKENS, "--rate", f"{rate:.2f}", "--requests", str(int(rate * args.seconds)))
            growth = {p.name: rss_bytes(p) - before[p.name] for p in processes}
            after_load, cores_after = measure_capacity(cluster, 6, guess)
            # The machine's own speed changes from minute to minute: the load is held against both measurements around it.
            whole_capacity = (before_load + after_load) / 2
            capacity = whole_capacity * idle_cores(run) / ((cores_before + cores_after) / 2)
            goodput, refusal = run["requests_per_second"], run["refusal_ms"]
            if goodput >= MIN_GOODPUT_RATIO * capacity:
                break
            print(f"goodput {goodput:.1f} of {capacity:.1f} answers/s; measured again", flush=True)
            before_load, cores_before = after_load, cores_after
        other = run["failed"] - run["rejected"]
        cluster.wait_until_nothing_is_held()
        address = cluster.http_address
        has_advice = check_rejections_have_advice(cluster, address)
        cluster.wait_until_nothing_is_held()
        memory = ", ".join(f"{name} {size / 2**20:+.0f} MiB" for name, size in growth.items())
        write_section("Overload", [
            (f"{args.times:.0f} times the capacity for {run['duration_seconds']:.0f} s", run["requests"],
             "goodput, refusals, memory",
             f"goodput {goodput:.1f} answers/s ({100 * goodput / whole_capacity:.0f} % of the capacity, {before_load:.1f} "
             f"before and {after_load:.1f} after; {100 * goodput / capacity:.0f} % of what the clients' own work left of it); "
             f"{run['rejected']} refused after p50 {refusal['p50']:.1f} ms, p99 {refusal['p99']:.1f} ms; {memory}")],
            f"At most {RUNNING} run and {RUNNING} wait.")

        closed_after, beside_slow, beside_readers = slow_readers(cluster, address)
        cluster.wait_until_nothing_is_held()
        write_section("Slow readers", [
            ("readers that never read", SLOW_READERS, "closed at the cap; others go on",
             f"all closed after {closed_after:.1f} s; the slowest other answer took {beside_slow:.2f} s beside them, "
             f"{beside_readers:.2f} s beside the same requests when they are read")],
            "Receive buffers of 2 KiB, 8 choices with 20 log-probabilities a token; the cap is 1 MiB a stream.")
        # Blocked by a reader, others would wait until it is closed.
        if beside_slow > 5 * beside_readers + 1:
            problems.append(f"answers take {beside_slow:.1f} s beside slow readers, {beside_readers:.1f} s beside others")
        if goodput < MIN_GOODPUT_RATIO * capacity:
            problems.append(f"goodput fell to {goodput:.1f} of {capacity:.1f} answers/s")
        if not run["rejected"]:
            problems.append("nothing was refused")
        if other:
            problems.append(f"{other} ended otherwise")
        if refusal["p50"] > MAX_REFUSAL_MS:
            problems.append(f"refusals take {refusal['p50']:.1f} ms")
        if not has_advice:
            problems.append("a refusal without Retry-After")
        problems += [f"{name} grew by {size >> 20} MiB" for name, size in growth.items()
                     if size > MAX_RSS_GROWTH_BYTES]
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        raise AssertionError(f"{len(problems)} problems")


if __name__ == "__main__":
    main()
