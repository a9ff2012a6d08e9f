"""The machine runs out of descriptors, of room for logs, of shared memory: service goes on or errs clearly, and recovers.

    exhaustion_test.py

Descriptors are taken away from running processes (prlimit). Full disks are small tmpfs mounts in a mount namespace of
this test's own, which needs root; without it those parts are skipped, and say so.
"""

import contextlib
import os
import pathlib
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

from cancellation_test import num_fds
from cluster import Cluster, MODEL_NAME, connect_raw, wait_for
from fault_table import write_section

QUESTION, ANSWER = "The code of Tom is 9034.\nWhat is the code of Tom?", "9034"
INSIDE = "SLUICE_TEST_INSIDE_MOUNT_NAMESPACE"
# A process that waits for descriptors must not burn a core over it.
MAX_CPU_SHARE = 0.5


def ask(cluster):
    answer = cluster.chat(QUESTION, max_tokens=60)
    assert ANSWER in str(answer["choices"][0]["message"]), answer


def cpu_seconds(process):
    with open(f"/proc/{process.popen.pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def descriptors_left(process, count):
    """The process may open `count` more descriptors."""
    pid = process.popen.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # The limit is on the number of a descriptor, not on how many there are.
    highest = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
    used = set(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
    limit = next(n for n in range(1, highest + count + 2) if sum(1 for i in range(n) if i not in used) >= count)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(limit, 3), before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def router_without_descriptors(cluster):
    """A running stream goes on; new connections wait and are served when there is room; so are gRPC and workers after it."""
    ask(cluster)
    before = num_fds(cluster.router)
    pieces, failed = [], []

    def stream():
        try:
            pieces.extend(cluster.stream("/v1/completions", {"model": MODEL_NAME, "prompt": "Once", "max_tokens": 1500,
                                                             "ignore_eos": True, "temperature": 0}))
        except Exception as error:  # reported below
            failed.append(error)

    thread = threading.Thread(target=stream)
    thread.start()
    wait_for(lambda: cluster.metrics(cluster.router).get("sluice_http_connections", 0) >= 1, 10, "the stream to begin")
    held = []
    with descriptors_left(cluster.router, 8):
        held = [connect_raw(cluster) for _ in range(50)]  # the kernel takes what the router cannot
        began, cpu = time.monotonic(), cpu_seconds(cluster.router)
        waiting = connect_raw(cluster)
        waiting.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        waiting.settimeout(3)
        with contextlib.suppress(socket.timeout):
            waiting.recv(1)
        share = (cpu_seconds(cluster.router) - cpu) / (time.monotonic() - began)
        assert cluster.router.popen.poll() is None, "the router died without descriptors"
        for sock in held:
            sock.close()
        ask(cluster)  # room again, though the limit is still there
        waiting.close()
    thread.join(120)
    assert not thread.is_alive() and not failed, f"the running stream was disturbed: {failed}"
    assert len(pieces) > 1 and pieces[-1]["choices"][0]["finish_reason"] == "length", pieces[-1]
    ask(cluster)
    cluster.status()  # over gRPC
    worker = cluster.workers[0]
    worker.popen.kill()
    worker.popen.wait()
    cluster.restart_worker(worker)
    wait_for(lambda: len(cluster.ready_workers()) == len(cluster.workers), 30, "the restarted worker to be ready")
    ask(cluster)
    wait_for(lambda: num_fds(cluster.router) <= before + 2, 20, "the router to hold no more descriptors than before")
    assert share < MAX_CPU_SHARE, f"the router used {share:.0%} of a core while it waited"
    return f"stream of {len(pieces)} events went on, {share:.0%} of a core while waiting"


def worker_without_descriptors(cluster, index):
    """Requests are answered, or refused with a reason; afterwards all are answered."""
    worker = cluster.workers[index]
    ask(cluster)
    before = num_fds(worker)
    outcomes = []
    with descriptors_left(worker, 0):
        for _ in range(5):
            status, _, raw = cluster.request("POST", "/v1/completions", {
                "model": MODEL_NAME, "prompt": "Hello", "max_tokens": 3})
            outcomes.append(status)
            assert status == 200 or b'"error"' in raw, (status, raw[:200])
            assert worker.popen.poll() is None, f"{worker.name} died without descriptors"
    wait_for(lambda: len(cluster.ready_workers()) == len(cluster.workers), 30, "all workers to be ready again")
    ask(cluster)
    cluster.wait_until_nothing_is_held(20)
    assert num_fds(worker) <= before + 4, f"{worker.name} holds {num_fds(worker) - before} more descriptors"
    return f"answers meanwhile: {outcomes}"


def new_peer_without_descriptors(cluster):
    """A decode worker without descriptors cannot reach a new prefill worker: an error or a late answer, then all is well."""
    decode = cluster.workers[1]
    outcomes = []
    with descriptors_left(decode, 0):
        cluster.workers[0].popen.kill()
        cluster.workers[0].popen.wait()
        cluster.restart_worker(cluster.workers[0])
        wait_for(lambda: len(cluster.ready_workers()) == 2, 30, "the new prefill worker to be ready")
        for _ in range(2):
            status, _, raw = cluster.request("POST", "/v1/completions", {
                "model": MODEL_NAME, "prompt": "Hello", "max_tokens": 3})
            outcomes.append(status)
            assert status == 200 or b'"error"' in raw, (status, raw[:200])
        assert decode.popen.poll() is None, "the decode worker died without descriptors"

    def answered():
        try:
            ask(cluster)
            return True
        except AssertionError:
            return False

    wait_for(answered, 30, "answers once there are descriptors again")
    cluster.wait_until_nothing_is_held(20)
    return f"answers meanwhile: {outcomes}"


@contextlib.contextmanager
def small_disk(path, size_bytes):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)], check=True)
    try:
        yield pathlib.Path(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(folder):
    """A file that takes all the room there is."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    return path


def logs_on_a_full_disk():
    """Logs are lost while there is no room for them, and nothing else is."""
    folder = tempfile.mkdtemp(prefix="sluice-logs-")
    verbose = ["--log-level", "debug"]
    with small_disk(folder, 1 << 20) as disk:
        tempfile.tempdir = str(disk)
        try:
            with Cluster(kv_cache="32MiB", router_args=verbose, worker_args=verbose) as cluster:
                ask(cluster)
                filler = fill(disk)
                full = cluster.workers[1].log_path.stat().st_size
                for _ in range(20):
                    ask(cluster)
                # A client that leaves and a worker that dies make the programs log more than usual.
                connect_raw(cluster).close()
                cluster.workers[0].popen.kill()
                cluster.workers[0].popen.wait()
                status, _, raw = cluster.request("POST", "/v1/completions", {
                    "model": MODEL_NAME, "prompt": "Hello", "max_tokens": 3})
                assert status == 200 or b'"error"' in raw, raw[:200]
                assert cluster.router.popen.poll() is None and cluster.workers[1].popen.poll() is None
                filler.unlink()
                cluster.restart_worker(cluster.workers[0])
                wait_for(lambda: len(cluster.ready_workers()) == 2, 30, "the worker to be back")
                ask(cluster)
                cluster.wait_until_nothing_is_held(20)
                # It has a new peer, which is worth a line.
                wait_for(lambda: cluster.workers[1].log_path.stat().st_size > full, 10, "the log to go on")
        finally:
            tempfile.tempdir = None
    shutil.rmtree(folder, ignore_errors=True)
    return "20 questions answered meanwhile, logs go on afterwards"


def no_shared_memory_from_the_start():
    """A worker says what it lacks and what to set; without shared memory transports it works."""
    with small_disk("/dev/shm", 64 << 10):
        try:
            with open(os.devnull, "w") as quiet, contextlib.redirect_stderr(quiet), Cluster(kv_cache="32MiB"):
                raise SystemExit("workers came up without shared memory: this part tests nothing")
        except AssertionError as error:
            assert "/dev/shm has only" in str(error) and "transfer.tls" in str(error), error
        with Cluster(kv_cache="32MiB", worker_args=["--transfer.tls", "tcp"]) as cluster:
            for _ in range(3):
                ask(cluster)
            cluster.wait_until_nothing_is_held(20)
            transports = wait_for(lambda: {t["transport"] for w in cluster.status()["workers"] for t in w["transports"]},
                                  10, "a worker to tell its transport")
            assert transports == {"tcp"}, transports
    return "refused with a hint; answered over tcp"


def shared_memory_fills_up():
    """Workers that run go on; one that starts without room works, or says why not; with room again all is well."""
    with small_disk("/dev/shm", 256 << 20) as disk:
        with Cluster(kv_cache="32MiB") as cluster:
            ask(cluster)
            filler = fill(disk)
            outcomes = []
            for _ in range(5):
                status, _, raw = cluster.request("POST", "/v1/completions", {
                    "model": MODEL_NAME, "prompt": "Hello", "max_tokens": 3})
                outcomes.append(status)
                assert status == 200 or b'"error"' in raw, (status, raw[:200])
            assert all(w.popen.poll() is None for w in cluster.workers), "a worker died when shared memory was full"
            dead = cluster.workers[1]
            dead.popen.kill()
            dead.popen.wait()
            try:
                cluster.restart_worker(dead)
                started = "a new worker started without room"
            except AssertionError as error:  # it ended; its log must say why
                started = "a new worker said why it cannot start"
                assert "/dev/shm has only" in str(error), error
            filler.unlink()
            if cluster.workers[1].popen.poll() is not None:
                cluster.restart_worker(cluster.workers[1])
            wait_for(lambda: len(cluster.ready_workers()) == 2, 30, "both workers to be ready")
            ask(cluster)
            cluster.wait_until_nothing_is_held(20)
        left = sum(f.stat().st_size for f in disk.iterdir() if f.is_file())
        assert left == 0, f"{left} bytes were left in shared memory: {list(disk.iterdir())}"
    return f"answers meanwhile: {outcomes}; {started}"


def enter_mount_namespace():
    """True inside a mount namespace of our own, into which this starts the test anew."""
    if os.environ.get(INSIDE):
        del os.environ[INSIDE]  # the programs refuse variables that they do not know
        return True
    probe = subprocess.run(["unshare", "--mount", "--propagation", "private", "true"], capture_output=True, check=False)
    if os.geteuid() != 0 or probe.returncode != 0:
        return False
    os.execvpe("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv],
               {**os.environ, INSIDE: "1"})


def main():
    isolated = enter_mount_namespace()
    rows = []

    def run(name, part, *args):
        began = time.monotonic()
        result = part(*args)
        rows.append((name, 1, "answers, processes, descriptors, blocks", result))
        print(f"{name}: {result} ({time.monotonic() - began:.1f} s)", flush=True)

    with Cluster(kv_cache="32MiB", router_args=["--worker-timeout", "10s"]) as cluster:
        run("router out of descriptors", router_without_descriptors, cluster)
        run("prefill worker out of descriptors", worker_without_descriptors, cluster, 0)
        run("decode worker out of descriptors", worker_without_descriptors, cluster, 1)
        run("decode worker out of descriptors, new peer", new_peer_without_descriptors, cluster)
    if isolated:
        run("log disk full", logs_on_a_full_disk)
        run("no shared memory from the start", no_shared_memory_from_the_start)
        run("shared memory fills up", shared_memory_fills_up)
    else:
        print("SKIPPED: full disks need root and mount namespaces (unshare --mount)", flush=True)
    write_section("Exhaustion", rows, "Descriptors by prlimit, disks by small tmpfs mounts."
                  + ("" if isolated else " Full disks were skipped: no mount namespaces here."))


if __name__ == "__main__":
    main()
