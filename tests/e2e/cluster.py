"""A real Sluice cluster for tests: the shipped programs as child processes on loopback, any free ports.

    with Cluster(prefill=1, decode=1) as cluster:
        answer = cluster.post("/v1/completions", {...})

Every wait has a deadline. Logs of all children lie in cluster.run_dir and are printed when a test fails.
"""

import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

SOURCE_DIR = pathlib.Path(__file__).resolve().parents[2]
BIN_DIR = pathlib.Path(os.environ.get("E2E_BIN_DIR", SOURCE_DIR / "build/release/bin"))
MODEL = str(SOURCE_DIR / "models/deepseek-tiny")
MODEL_NAME = "deepseek-tiny"


def wait_for(condition, timeout_seconds, what):
    """Polls until condition() is true; AssertionError naming `what` after the deadline."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"timed out after {timeout_seconds} s waiting for {what}")
        time.sleep(0.02)


class Process:
    """One child. `ports` is what it wrote to its port file, `host` where they can be reached."""

    def __init__(self, name, program, args, run_dir, env=None, launcher=(), host="127.0.0.1"):
        self.name = name
        self.host = host
        self.log_path = run_dir / f"{name}.log"
        self.port_file = run_dir / f"{name}.ports.json"
        full_env = dict(os.environ)
        full_env.update(env or {})
        command = [*launcher, str(BIN_DIR / program), *args, "--port-file", str(self.port_file)]
        self._log = open(self.log_path, "ab")
        self.popen = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=full_env)
        self.ports = {}

    def wait_for_ports(self, timeout_seconds=20):
        def ready():
            if self.popen.poll() is not None:
                raise AssertionError(
                    f"{self.name} exited with {self.popen.returncode}:\n{self.log_path.read_text()}")
            if not self.port_file.exists():
                return False
            self.ports = json.loads(self.port_file.read_text())
            return self._has_started()

        wait_for(ready, timeout_seconds, f"{self.name} to start")
        return self

    def _has_started(self):
        """A worker listens before it has loaded its model."""
        connection = http.client.HTTPConnection(self.host, self.ports["admin_port"], timeout=5)
        try:
            connection.request("GET", "/startupz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def signal(self, number):
        self.popen.send_signal(number)

    def stop(self, timeout_seconds=15):
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.terminate()
            try:
                self.popen.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(5)
        self._log.close()
        return self.popen.returncode


class Loopback:
    """Where a cluster's processes run: all on this machine's loopback. A test may bring another network."""

    def host(self, name):
        """The address under which the process `name` is reached."""
        return "127.0.0.1"

    def launcher(self, name):
        """Command line to put before its program."""
        return []

    def args(self, name):
        """Flags that it needs on this network."""
        return []

    def router_address(self, name, router):
        """The fleet address by which the worker `name` reaches the router."""
        return f"{router.host}:{router.ports['fleet_port']}"


class Cluster:
    def __init__(self, prefill=1, decode=1, both=0, model=MODEL, router_args=(), worker_args=(), env=None,
                 kv_cache="128MiB", network=None):
        self.network = network or Loopback()
        self.run_dir = pathlib.Path(tempfile.mkdtemp(prefix="sluice-e2e-"))
        self.model = model
        self.env = env or {}
        self.worker_args = [*worker_args, "--kv-cache", kv_cache]
        self.roles = ["prefill"] * prefill + ["decode"] * decode + ["both"] * both
        self.router_args = list(router_args)
        self.workers = []
        self.router = None
        self._started_workers = 0

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise

    def start(self):
        self.router = self._start("router", "sluice-router", [
            "--model", self.model, "--http-port", "0", "--grpc-port", "0", "--fleet-port", "0",
            "--admin-port", "0", *self.router_args])
        for role in self.roles:
            self.add_worker(role)
        wait_for(self.is_ready, 30, "the router to be ready")
        wait_for(lambda: len(self.ready_workers()) == len(self.roles), 30, "all workers to be ready")
        return self

    def add_worker(self, role):
        name = f"{role}-{self._started_workers}"
        self._started_workers += 1
        worker = self._start_worker(role, name)
        self.workers.append(worker)
        return worker

    def restart_worker(self, dead, timeout_seconds=20):
        """A new process with the name of one that has ended, in its place."""
        dead.stop()
        dead.port_file.unlink(missing_ok=True)
        worker = self._start_worker(dead.name.rsplit("-", 1)[0], dead.name, timeout_seconds)
        self.workers[self.workers.index(dead)] = worker
        return worker

    def _start_worker(self, role, name, timeout_seconds=20):
        program = "sluice-prefill-worker" if role == "prefill" else "sluice-decode-worker"
        # As `sluice up` does on crowded cores.
        shares_cores = ["--compute-niceness", "5"] if role == "prefill" else []
        return self._start(name, program, [
            "--model", self.model, "--role", role, "--worker-id", name, "--admin-port", "0",
            "--routers", self.network.router_address(name, self.router), "--threads", "1", *shares_cores, *self.worker_args],
            timeout_seconds)

    def _start(self, name, program, args, timeout_seconds=20):
        return Process(name, program, [*args, *self.network.args(name)], self.run_dir, self.env,
                       self.network.launcher(name), self.network.host(name)).wait_for_ports(timeout_seconds)

    def __exit__(self, exc_type, exc, tb):
        codes = {}
        for process in [self.router, *self.workers] if self.router else self.workers:
            codes[process.name] = process.stop()
        if exc_type is not None:
            for log in sorted(self.run_dir.glob("*.log")):
                text = log.read_text(errors="replace").splitlines()
                print(f"--- {log.name} (last 40 lines)", *text[-40:], sep="\n", file=sys.stderr)
        shutil.rmtree(self.run_dir, ignore_errors=True)
        self.exit_codes = codes
        return False

    # HTTP ---------------------------------------------------------------------------------------

    @property
    def base_url(self):
        return f"http://{self.router.host}:{self.router.ports['http_port']}"

    @property
    def grpc_address(self):
        return f"{self.router.host}:{self.router.ports['grpc_port']}"

    @property
    def http_address(self):
        return self.router.host, self.router.ports["http_port"]

    def request(self, method, path, body=None, headers=None, timeout_seconds=120, address=None):
        """(status, headers, body bytes). `body` may be a dict or raw bytes."""
        host, port = address or self.http_address
        connection = http.client.HTTPConnection(host, port, timeout=timeout_seconds)
        try:
            if isinstance(body, (dict, list)):
                body = json.dumps(body).encode()
            send = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, body=body, headers={**send, **(headers or {})})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def post(self, path, body, timeout_seconds=120):
        status, _, raw = self.request("POST", path, body, timeout_seconds=timeout_seconds)
        if status != 200:
            raise AssertionError(f"POST {path} answered {status}: {raw[:500]!r}")
        return json.loads(raw)

    def stream(self, path, body, timeout_seconds=120):
        """Yields the parsed `data:` objects of an SSE answer; the final [DONE] must come."""
        connection = http.client.HTTPConnection(*self.http_address, timeout=timeout_seconds)
        try:
            connection.request("POST", path, body=json.dumps({**body, "stream": True}),
                               headers={"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise AssertionError(f"POST {path} answered {response.status}: {response.read()[:500]!r}")
            done = False
            for line in response:
                line = line.strip()
                if not line:
                    continue
                assert line.startswith(b"data: "), line
                if line == b"data: [DONE]":
                    done = True
                    break
                yield json.loads(line[len(b"data: "):])
            assert done, "the stream ended without [DONE]"
        finally:
            connection.close()

    def chat(self, text, **fields):
        return self.post("/v1/chat/completions", {
            "model": MODEL_NAME, "messages": [{"role": "user", "content": text}], "temperature": 0, **fields})

    # State --------------------------------------------------------------------------------------

    def is_ready(self):
        try:
            return self.admin(self.router, "/readyz")[0] == 200
        except OSError:
            return False

    def admin(self, process, path):
        """(status, headers, body) from the admin port of one process."""
        return self.request("GET", path, address=(process.host, process.ports["admin_port"]))

    def status(self):
        output = subprocess.run(
            [str(BIN_DIR / "sluice"), "status", "--json", "--server", self.grpc_address],
            check=True, capture_output=True, timeout=20)
        return json.loads(output.stdout)

    def ready_workers(self):
        """Nobody when the router does not answer in time: whoever waits for workers asks again."""
        try:
            return [w for w in self.status()["workers"] if w["state"] == "ready"]
        except subprocess.SubprocessError:
            return []

    def metrics(self, process):
        _, _, body = self.admin(process, "/metrics")
        values = {}
        for line in body.decode().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                values[name] = float(value)
        return values

    def blocks(self, process):
        """KV blocks by state of one worker, from its own metrics."""
        counts = {}
        for name, value in self.metrics(process).items():
            if name.startswith("sluice_kv_blocks{"):
                state = name.split('state="')[1].split('"')[0]
                counts[state] = int(value)
        return counts

    def wait_until_nothing_is_held(self, timeout_seconds=10):
        """Every block of every worker is free or cached."""
        def all_free():
            for worker in self.workers:
                if worker.popen.poll() is not None:
                    continue
                blocks = self.blocks(worker)
                if any(blocks.get(s, 0) for s in ("active", "receiving", "sending", "quarantined")):
                    return False
            return True

        wait_for(all_free, timeout_seconds, "every block to be free or cached")


def wait_for_kv_memory(workers, timeout_seconds=60):
    """Until workers have taken their KV cache from the system: what their memory grows by afterwards is something else."""
    def name_of(task):
        try:
            return (task / "comm").read_text().strip()
        except FileNotFoundError:  # it has just ended
            return ""

    def threads(worker):
        return {name_of(task) for task in pathlib.Path(f"/proc/{worker.popen.pid}/task").iterdir()}

    wait_for(lambda: not any("kv-prefault" in threads(worker) for worker in workers), timeout_seconds,
             "workers to take their KV memory")


def run_parallel(jobs, width):
    """Runs callables on `width` threads; returns their results in order; the first error is raised."""
    results = [None] * len(jobs)
    errors = []
    lock = threading.Lock()
    pending = list(enumerate(jobs))[::-1]

    def work():
        while True:
            with lock:
                if errors or not pending:
                    return
                index, job = pending.pop()
            try:
                results[index] = job()
            except BaseException as error:  # reported by the caller's thread
                with lock:
                    errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(width)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def connect_raw(cluster, receive_buffer_bytes=None):
    """A plain TCP connection to the HTTP port, for rude clients."""
    sock = socket.socket()
    if receive_buffer_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    sock.settimeout(20)
    sock.connect(cluster.http_address)
    return sock
