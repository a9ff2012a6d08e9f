"""Clients that leave, workers that die, programs that are asked to stop: nothing is leaked."""

import json
import select
import signal
import subprocess
import time
import unittest

from cluster import BIN_DIR, Cluster, MODEL, MODEL_NAME, connect_raw, run_parallel, wait_for

LONG = {"model": MODEL_NAME, "prompt": "Tell me a story about a dog.", "max_tokens": 3000, "ignore_eos": True}


class FailuresTest(unittest.TestCase):
    def setUp(self):
        self.sockets = []

    def tearDown(self):
        for sock in self.sockets:
            sock.close()

    def connect(self, cluster):
        self.sockets.append(connect_raw(cluster))
        return self.sockets[-1]

    def start_stream(self, cluster, body=LONG):
        """A socket with a running stream, after its first event."""
        sock = self.connect(cluster)
        raw = json.dumps({**body, "stream": True}).encode()
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                     b"Content-Length: %d\r\n\r\n%s" % (len(raw), raw))
        received = b""
        while b"data: " not in received:
            piece = sock.recv(4096)
            assert piece, received
            received += piece
        return sock, received

    def test_clients_that_leave_free_everything(self):
        with Cluster() as cluster:
            for _ in range(10):
                sock, _ = self.start_stream(cluster)
                sock.close()
            # During the prefill of a long prompt too.
            for _ in range(3):
                sock = self.connect(cluster)
                raw = json.dumps({**LONG, "prompt": list(range(3, 3003)), "max_tokens": 900, "stream": True}).encode()
                sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                             b"Content-Length: %d\r\n\r\n%s" % (len(raw), raw))
                time.sleep(0.05)
                sock.close()
            cluster.wait_until_nothing_is_held(timeout_seconds=5)
            self.assertIn("9034", cluster.chat("The code of Tom is 9034.\nWhat is the code of Tom?")
                          ["choices"][0]["message"]["content"])

    def test_dead_decode_worker_ends_its_streams_with_an_error(self):
        # That a process died is known at once; a worker that is only starved is not to be given up.
        with Cluster(router_args=["--no-worker-timeout", "500ms", "--worker-timeout", "20s"]) as cluster:
            sock, received = self.start_stream(cluster)
            cluster.workers[1].signal(signal.SIGKILL)
            killed = time.monotonic()
            while b"[DONE]" not in received:
                piece = sock.recv(65536)
                self.assertTrue(piece, "closed without a final event")
                received += piece
            self.assertLess(time.monotonic() - killed, 5)
            self.assertIn(b'"error"', received)
            status, _, body = cluster.request("POST", "/v1/completions", {**LONG, "max_tokens": 1})
            self.assertEqual(status, 503, body)
            cluster.wait_until_nothing_is_held(timeout_seconds=10)
            cluster.add_worker("decode")
            wait_for(cluster.is_ready, 15, "readiness with the new decode worker")
            cluster.chat("Hello!")

    def kill_prefill_worker_amid(self, cluster, prompt):
        """The status with which a prompt ends whose prefill worker dies once the decode worker has reserved blocks."""
        sock = self.connect(cluster)
        raw = json.dumps({**LONG, "prompt": prompt, "max_tokens": 10}).encode()
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                     b"Content-Length: %d\r\n\r\n%s" % (len(raw), raw))
        wait_for(lambda: cluster.blocks(cluster.workers[1]).get("receiving", 0) > 0 or select.select([sock], [], [], 0)[0],
                 10, "a reservation")
        cluster.workers[0].signal(signal.SIGKILL)
        response = b""
        while b"\r\n\r\n" not in response:
            piece = sock.recv(65536)
            self.assertTrue(piece)
            response += piece
        return int(response.split(b" ", 2)[1])

    def test_dead_prefill_worker(self):
        # Small steps, so that there is a moment to hit; when the machine stalls, it may be over all the same.
        with Cluster(worker_args=["--scheduler.max-num-batched-tokens", "64"]) as cluster:
            for first in (3, 4, 5):
                status = self.kill_prefill_worker_amid(cluster, list(range(first, first + 3397)))
                cluster.wait_until_nothing_is_held(timeout_seconds=10)
                if status != 200:
                    break
                cluster.restart_worker(cluster.workers[0])
                wait_for(lambda: len(cluster.ready_workers()) == 2, 30, "the new prefill worker to be ready")
            self.assertIn(status, (500, 503))

    def test_sigterm_lets_running_answers_finish(self):
        with Cluster() as cluster:
            sock, received = self.start_stream(cluster, {**LONG, "max_tokens": 300})
            for worker in cluster.workers:
                worker.signal(signal.SIGTERM)
            while b"[DONE]" not in received:
                piece = sock.recv(65536)
                self.assertTrue(piece, "closed without a final event")
                received += piece
            self.assertNotIn(b'"error"', received)
            for worker in cluster.workers:
                self.assertEqual(worker.popen.wait(15), 0)

    def test_drain_delay_serves_those_who_come_before_all_know(self):
        with Cluster(router_args=["--drain-delay", "60s"]) as cluster:
            cluster.router.signal(signal.SIGTERM)
            wait_for(lambda: cluster.request("GET", "/readyz")[0] == 503, 10, "a router that is not ready")
            status, _, body = cluster.request("GET", "/readyz")  # a new connection: it still listens
            self.assertEqual(status, 503)
            self.assertIn(b"draining", body)
            self.assertEqual(cluster.post("/v1/completions", {**LONG, "max_tokens": 3})["usage"]["completion_tokens"], 3)
            # From when it says so on, another signal is not the first one told twice.
            wait_for(lambda: "serving for another" in cluster.router.log_path.read_text(), 10, "the delay")
            cluster.router.signal(signal.SIGTERM)
            self.assertNotEqual(cluster.router.popen.wait(15), 0)

    def test_after_drain_delay_comes_the_drain(self):
        with Cluster(router_args=["--drain-delay", "500ms"]) as cluster:
            sock, received = self.start_stream(cluster, {**LONG, "max_tokens": 300})
            cluster.router.signal(signal.SIGTERM)
            while b"[DONE]" not in received:
                piece = sock.recv(65536)
                self.assertTrue(piece, "closed without a final event")
                received += piece
            self.assertNotIn(b'"error"', received)
            self.assertEqual(cluster.router.popen.wait(15), 0)

    def test_two_signals_at_once_are_one(self):
        with Cluster() as cluster:
            sock, received = self.start_stream(cluster, {**LONG, "max_tokens": 300})
            cluster.router.signal(signal.SIGINT)  # a terminal's
            cluster.router.signal(signal.SIGTERM)  # and a supervisor's
            while b"[DONE]" not in received:
                piece = sock.recv(65536)
                self.assertTrue(piece, "closed without a final event")
                received += piece
            self.assertNotIn(b'"error"', received)
            self.assertEqual(cluster.router.popen.wait(15), 0)

    def test_overload_is_refused_early(self):
        with Cluster(router_args=["--max-running-requests", "2", "--max-queued-requests", "2"]) as cluster:
            def ask():
                start = time.monotonic()
                status, headers, _ = cluster.request("POST", "/v1/completions", {**LONG, "max_tokens": 200})
                return status, headers, time.monotonic() - start

            results = run_parallel([ask] * 12, 12)
            statuses = [status for status, _, _ in results]
            self.assertGreaterEqual(statuses.count(200), 4)
            self.assertGreaterEqual(statuses.count(429), 1)
            self.assertEqual(statuses.count(200) + statuses.count(429), 12)
            for status, headers, _ in results:
                if status == 429:
                    self.assertIn("Retry-After", headers)
            cluster.wait_until_nothing_is_held()

    def test_bad_starts_are_refused_by_name(self):
        def run(program, *args):
            done = subprocess.run([str(BIN_DIR / program), *args], capture_output=True, text=True, timeout=30)
            return done.returncode, done.stdout + done.stderr

        code, output = run("sluice-router", "--model", MODEL, "--max-queued-request", "3")
        self.assertNotEqual(code, 0)
        self.assertIn("max-queued-requests", output.replace("_", "-"))
        code, output = run("sluice-decode-worker", "--model", "/nonexistent", "--routers", "127.0.0.1:1")
        self.assertNotEqual(code, 0)
        self.assertIn("/nonexistent", output)
        code, output = run("sluice-decode-worker", "--model", MODEL, "--routers", "127.0.0.1:1", "--kv-cache", "1KiB")
        self.assertNotEqual(code, 0)
        self.assertIn("block", output.lower())


if __name__ == "__main__":
    unittest.main(verbosity=2)
