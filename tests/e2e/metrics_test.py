"""What the programs export under load: lint-clean, complete, and what docs/metrics.md says."""

import json
import re
import shutil
import signal
import subprocess
import unittest

from cluster import BIN_DIR, Cluster, MODEL_NAME, SOURCE_DIR, wait_for


def documented_names():
    page = (SOURCE_DIR / "docs/metrics.md").read_text()
    return set(re.findall(r"^\| (sluice_[a-z0-9_]+) \|", page, re.MULTILINE))


class MetricsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(prefill=1, decode=1, both=1, router_args=["--worker-timeout", "10s"]).__enter__()
        cls.cluster.chat("Hello!")
        cls.cluster.request("POST", "/v1/completions", {"model": "nobody", "prompt": "x"})
        cls.pages = {p.name: cls.cluster.admin(p, "/metrics")[2].decode()
                     for p in [cls.cluster.router, *cls.cluster.workers]}

    @classmethod
    def tearDownClass(cls):
        cls.cluster.__exit__(None, None, None)

    def test_every_exported_name_is_documented_and_the_other_way_round(self):
        exported = {name for page in self.pages.values()
                    for name in re.findall(r"^# TYPE (sluice_[a-z0-9_]+) ", page, re.MULTILINE)}
        self.assertEqual(exported - documented_names(), set(), "exported, but not in docs/metrics.md")
        self.assertEqual(documented_names() - exported, set(), "in docs/metrics.md, but not exported")

    def test_promtool_finds_nothing(self):
        self.assertTrue(shutil.which("promtool"), "promtool is missing (scripts/setup.sh installs it)")
        for name, page in self.pages.items():
            done = subprocess.run(["promtool", "check", "metrics"], input=page, text=True, capture_output=True)
            self.assertEqual((done.returncode, done.stdout + done.stderr), (0, ""), name)

    def test_counts_are_the_clients_own(self):
        before = self.cluster.metrics(self.cluster.router)
        for _ in range(3):
            self.cluster.post("/v1/completions", {"model": MODEL_NAME, "prompt": "Once", "max_tokens": 7,
                                                  "ignore_eos": True})

        def grew(prefix):
            after = self.cluster.metrics(self.cluster.router)
            return sum(v - before.get(k, 0) for k, v in after.items() if k.startswith(prefix))

        wait_for(lambda: grew("sluice_requests_total") >= 3, 5, "three requests to be counted")
        self.assertEqual(grew("sluice_output_tokens_total"), 21)
        self.assertEqual(grew("sluice_requests_total"), 3)
        self.assertEqual(grew("sluice_time_to_first_token_seconds_count"), 3)

    def status_blocks(self, *flags):
        done = subprocess.run([str(BIN_DIR / "sluice"), "status", "--blocks", *flags, "--server", self.cluster.grpc_address],
                              check=True, capture_output=True, text=True, timeout=30)
        return done.stdout

    def test_blocks_have_named_holders(self):
        def holders():
            workers = json.loads(self.status_blocks("--json"))["workers"]
            self.assertEqual(len(workers), 3)
            for worker in workers:
                blocks = worker["blocks"]
                self.assertEqual(sum(n for state, n in blocks.items() if state != "total"), blocks["total"])
            return [h for worker in workers for h in worker["holders"]]

        wait_for(lambda: not holders(), 10, "nothing to be held")
        events = self.cluster.stream("/v1/completions", {
            "model": MODEL_NAME, "prompt": "Once upon a time", "max_tokens": 3000, "ignore_eos": True})
        next(events)
        held = wait_for(lambda: [h for h in holders() if h["state"] == "decoding"], 10, "a holder")
        self.assertEqual(len(held), 1)
        self.assertRegex(held[0]["request_id"], "^[0-9a-f]{32}$")
        self.assertTrue(held[0]["known_request"])
        self.assertFalse(held[0]["ending"])
        self.assertGreaterEqual(held[0]["blocks"], 1)
        self.assertGreaterEqual(held[0]["held_seconds"], 0)
        table = self.status_blocks()
        self.assertIn(held[0]["request_id"], table)
        self.assertIn("decoding", table)
        events.close()  # the client leaves
        wait_for(lambda: not holders(), 10, "the holder to be gone")

        # A worker that does not answer is named, and the others are shown.
        self.cluster.workers[0].signal(signal.SIGSTOP)
        try:
            self.assertIn("cannot ask its admin port", self.status_blocks())
        finally:
            self.cluster.workers[0].signal(signal.SIGCONT)
        wait_for(lambda: len(self.cluster.ready_workers()) == 3, 30, "the stopped worker to be back")

    def test_block_states_sum_to_the_pool(self):
        totals = {w["worker_id"]: int(w["kv_blocks"]["total"]) for w in self.cluster.status()["workers"]}
        for worker in self.cluster.workers:
            self.assertEqual(sum(self.cluster.blocks(worker).values()), totals[worker.name])


if __name__ == "__main__":
    unittest.main(verbosity=2)
