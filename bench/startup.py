#!/usr/bin/env python3
"""How long a cluster takes to be ready, and what memory it needs: one router, one prefill and one decode worker.

    bench/startup.py [--runs 5] [--bin build/release/bin]

Ready means that the router's /readyz answers 200, which needs both workers loaded, checked and attached. Memory is
read after one request, as resident set (RSS) and as proportional set (PSS: shared pages counted once). A second after
loading a worker begins to take its KV cache (128 MiB here), which is then counted too: on a slow machine it may be.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/e2e"))


def memory_kib(pid):
    values = {}
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            values[name] = int(rest.split()[0])
    return values


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--bin", help="folder of the programs")
    options = parser.parse_args()
    if options.bin:
        os.environ["E2E_BIN_DIR"] = options.bin
    from cluster import Cluster  # reads E2E_BIN_DIR

    ready_seconds, memory = [], {}
    for _ in range(options.runs):
        start = time.monotonic()
        with Cluster() as cluster:
            ready_seconds.append(time.monotonic() - start)
            cluster.chat("Hello!")
            memory = {p.name: memory_kib(p.popen.pid) for p in [cluster.router, *cluster.workers]}
    print(f"ready after   median {statistics.median(ready_seconds):.2f} s "
          f"(min {min(ready_seconds):.2f}, max {max(ready_seconds):.2f}, {options.runs} runs)")
    for name, kib in memory.items():
        print(f"{name:12}  RSS {kib['Rss'] / 1024:7.1f} MiB   PSS {kib['Pss'] / 1024:7.1f} MiB")
    print(f"{'together':12}  RSS {sum(m['Rss'] for m in memory.values()) / 1024:7.1f} MiB   "
          f"PSS {sum(m['Pss'] for m in memory.values()) / 1024:7.1f} MiB")


if __name__ == "__main__":
    main()
