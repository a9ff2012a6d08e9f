"""Clients leave in every rude way at random moments; nothing of theirs stays behind.

    cancellation_test.py [--seed N] [--cycles N] [--seconds N]

Ways: close, reset (SO_LINGER 0), half-close, close before the request is whole, gRPC cancel, gRPC deadline. Afterwards
every block is free or cached within a second, and memory and descriptors of all processes are what they were.
"""

import argparse
import collections
import json
import os
import random
import socket
import struct
import sys
import threading
import time

import grpc

from clients_test import python_stubs
from cluster import Cluster, MODEL_NAME, connect_raw, wait_for, wait_for_kv_memory
from fault_table import write_section

WIDTH = 16
# What a process may have grown by when all is over: allocator slack, not one request's share each.
MAX_RSS_GROWTH_BYTES = 24 << 20
MAX_FD_GROWTH = 8


def rss_bytes(process):
    with open(f"/proc/{process.popen.pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def num_fds(process):
    return len(os.listdir(f"/proc/{process.popen.pid}/fd"))


class Leaver:
    """One thread of clients that leave."""

    def __init__(self, cluster, stubs, rng, counts):
        self.cluster, self.rng, self.counts = cluster, rng, counts
        self.pb, pb_grpc = stubs
        self.channel = grpc.insecure_channel(cluster.grpc_address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.stub = pb_grpc.GenerationStub(self.channel)
        self.ways = [self.close, self.reset, self.half_close, self.half_sent, self.grpc_cancel, self.grpc_deadline]

    def leave_once(self):
        way = self.rng.choice(self.ways)
        way()
        self.counts[way.__name__] += 1

    def moment(self):
        """From at once to some tokens into the answer."""
        return self.rng.choice([0, 0, self.rng.uniform(0, 0.01), self.rng.uniform(0, 0.1), self.rng.uniform(0, 0.3)])

    def request(self):
        words = " ".join(str(self.rng.randrange(1000)) for _ in range(self.rng.choice([5, 5, 60, 400])))
        raw = json.dumps({"model": MODEL_NAME, "prompt": words, "max_tokens": 400, "ignore_eos": True,
                          "n": self.rng.choice([1, 1, 1, 3]), "stream": self.rng.random() < 0.7}).encode()
        return (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(raw), raw))

    def start(self):
        sock = connect_raw(self.cluster)
        sock.sendall(self.request())
        time.sleep(self.moment())
        return sock

    def close(self):
        self.start().close()

    def reset(self):
        sock = self.start()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    def half_close(self):
        sock = self.start()
        try:
            sock.shutdown(socket.SHUT_WR)
            time.sleep(self.moment())
        except OSError:
            pass  # the router was faster
        sock.close()

    def half_sent(self):
        sock = connect_raw(self.cluster)
        whole = self.request()
        sock.sendall(whole[:self.rng.randrange(1, len(whole))])
        time.sleep(self.moment())
        sock.close()

    def grpc_call(self, timeout):
        request = self.pb.GenerateRequest(text="Tell me a story about a dog.")
        request.sampling.max_tokens = 400
        request.sampling.ignore_eos = True
        return self.stub.Generate(request, timeout=timeout)

    def grpc_cancel(self):
        call = self.grpc_call(60)
        time.sleep(self.moment())
        call.cancel()

    def grpc_deadline(self):
        try:
            for _ in self.grpc_call(self.rng.uniform(0.001, 0.2)):
                pass
        except grpc.RpcError as error:
            assert error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED), error


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cycles", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=40, help="stop earlier after this long; 0: never")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    stubs = python_stubs()
    with Cluster(kv_cache="64MiB", router_args=["--worker-timeout", "10s"]) as cluster:
        processes = [cluster.router, *cluster.workers]
        counts = collections.Counter()
        errors = []

        def run(seconds, cycles):
            deadline = time.monotonic() + seconds if seconds else float("inf")
            first = sum(counts.values())

            def work(number):
                leaver = Leaver(cluster, stubs, random.Random(args.seed * 1000 + number + first), counts)
                try:
                    while time.monotonic() < deadline and sum(counts.values()) - first < cycles:
                        leaver.leave_once()
                except Exception as error:  # reported below
                    errors.append(error)
                finally:
                    leaver.channel.close()

            threads = [threading.Thread(target=work, args=(i,)) for i in range(WIDTH)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        def settled():
            began = time.monotonic()
            cluster.wait_until_nothing_is_held(timeout_seconds=20)
            blocks_after = time.monotonic() - began
            wait_for(lambda: cluster.metrics(cluster.router).get("sluice_http_connections", 0) == 0, 20,
                     "all connections to be closed")
            return blocks_after

        run(6, 600)  # warm: buffers, threads and the prefix cache reach their size
        settled()
        cluster.chat("Hello!")
        wait_for_kv_memory(cluster.workers)
        baseline = {p.name: (rss_bytes(p), num_fds(p)) for p in processes}
        counts.clear()
        run(args.seconds, args.cycles)
        samples = [settled()]
        while samples[-1] > 1 and len(samples) < 3:  # once may be the machine's
            run(3, 200)
            samples.append(settled())
        blocks_after = min(samples)
        time.sleep(1)
        answer = cluster.chat("The code of Tom is 9034.\nWhat is the code of Tom?", max_tokens=60)
        assert "9034" in str(answer["choices"][0]["message"]), answer

        growth = {}
        problems = [repr(e) for e in errors[:5]]
        for process in processes:
            rss, fds = rss_bytes(process) - baseline[process.name][0], num_fds(process) - baseline[process.name][1]
            growth[process.name] = f"{rss / 2**20:+.0f} MiB, {fds:+d} fds"
            if rss > MAX_RSS_GROWTH_BYTES:
                problems.append(f"{process.name} grew by {rss >> 20} MiB")
            if fds > MAX_FD_GROWTH:
                problems.append(f"{process.name} holds {fds} more descriptors")
        if blocks_after > 1:
            problems.append(f"blocks were free after {blocks_after:.2f} s only")
        total = sum(counts.values())
        if total < min(500, args.cycles):
            problems.append(f"only {total} cycles")
        times = " and ".join(f"{seconds:.2f}" for seconds in samples)
        result = f"all blocks back after {times} s; " + "; ".join(f"{k} {v}" for k, v in growth.items())
        write_section("Clients leave", [
            (way.replace("_", " "), count, "blocks, memory, descriptors", result) for way, count in sorted(counts.items())],
            f"{WIDTH} clients at once, {total} cycles, seed {args.seed}.")
        if problems:
            print(*problems, sep="\n", file=sys.stderr)
            raise AssertionError(f"{len(problems)} problems; replay with --seed {args.seed}")


if __name__ == "__main__":
    main()
