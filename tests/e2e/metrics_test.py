"""What the programs export under load: lint-clean, complete, and what docs/metrics.md says."""

import re
import shutil
import subprocess
import unittest

from cluster import Cluster, MODEL_NAME, SOURCE_DIR, wait_for


def documented_names():
    page = (SOURCE_DIR / "docs/metrics.md").read_text()
    return set(re.findall(r"^\| (sluice_[a-z0-9_]+) \|", page, re.MULTILINE))


class MetricsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(prefill=1, decode=1, both=1).__enter__()
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

    def test_block_states_sum_to_the_pool(self):
        totals = {w["worker_id"]: int(w["kv_blocks"]["total"]) for w in self.cluster.status()["workers"]}
        for worker in self.cluster.workers:
            self.assertEqual(sum(self.cluster.blocks(worker).values()), totals[worker.name])


if __name__ == "__main__":
    unittest.main(verbosity=2)
