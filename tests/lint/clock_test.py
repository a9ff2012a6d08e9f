#!/usr/bin/env python3
"""Holds the protocol's rooms against the wall clock.

They live by monotonic time that is given to them (common/clock.h), so a wall clock that is set back
or forth cannot harm them, and a simulation can drive them. `clock_test.py DIR` checks the tree at
DIR after checking the checker.
"""

import os
import re
import sys
import unittest

ROOMS = ["engine", "kvtransfer", "services/router/core", "services/worker_runtime",
         "services/prefill_worker", "services/decode_worker"]
WALL_CLOCK = re.compile(r"absl::Now\(|system_clock|CLOCK_REALTIME|gettimeofday|\btime\(nullptr\)|"
                        r"\btime\(NULL\)|GetCurrentTimeNanos")


def complaints(path, text):
    return [f"{path}:{number}: reads the wall clock: {line.strip()}"
            for number, line in enumerate(text.splitlines(), 1) if WALL_CLOCK.search(line)]


class CheckerTest(unittest.TestCase):
    def test_finds_what_it_must(self):
        for line in ["absl::Time t = absl::Now();", "std::chrono::system_clock::now()",
                     "clock_gettime(CLOCK_REALTIME, &t);", "std::time(nullptr)"]:
            self.assertEqual(1, len(complaints("x.cc", line)), line)

    def test_lets_the_rest_be(self):
        for line in ["clock_->Now()", "MonotonicNow()", "network_.Now()", "steady_clock::now()"]:
            self.assertEqual([], complaints("x.cc", line), line)


class TreeTest(unittest.TestCase):
    root = "."

    def test_tree(self):
        found, num_files = [], 0
        for room in ROOMS:
            for folder, _, names in os.walk(os.path.join(self.root, room)):
                for name in names:
                    if not name.endswith((".h", ".cc")):
                        continue
                    num_files += 1
                    path = os.path.join(folder, name)
                    with open(path, encoding="utf-8") as file:
                        found += complaints(os.path.relpath(path, self.root), file.read())
        self.assertGreater(num_files, 100, "this is not the source tree")
        self.assertEqual([], found, "\n" + "\n".join(found))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        TreeTest.root = sys.argv.pop(1)
    unittest.main()
