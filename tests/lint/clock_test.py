#!/usr/bin/env python3
"""Holds the protocol's rooms against the wall clock.

They live by monotonic time that is given to them (common/clock.h), so a wall clock that is set back
or forth cannot harm them, and a simulation can drive them. Nobody at all may use Abseil's timed
waits, which end at an instant of the wall clock (common/monotonic_cond_var.h has others).
`clock_test.py DIR` checks the tree at DIR after checking the checker.
"""

import os
import re
import sys
import unittest

ROOMS = ["engine", "kvtransfer", "services/router/core", "services/worker_runtime",
         "services/prefill_worker", "services/decode_worker"]
PRODUCT = ["cli", "common", "engine", "kvtransfer", "metrics", "modelspec", "services", "tokenizer"]
WALL_CLOCK = re.compile(r"absl::Now\(|system_clock|CLOCK_REALTIME|gettimeofday|\btime\(nullptr\)|"
                        r"\btime\(NULL\)|GetCurrentTimeNanos")
TIMED_WAIT = re.compile(r"\b(\w*Await|\w*Wait|\w*LockWhen|WaitForNotification)With(Timeout|Deadline)\(|"
                        r"absl::CondVar\b")


def complaints(path, text, rooms=ROOMS):
    rules = [(TIMED_WAIT, "waits by the wall clock")]
    if any(path.startswith(room + os.sep) for room in rooms):
        rules.append((WALL_CLOCK, "reads the wall clock"))
    return [f"{path}:{number}: {what}: {line.strip()}"
            for number, line in enumerate(text.splitlines(), 1)
            for pattern, what in rules if pattern.search(line)]


class CheckerTest(unittest.TestCase):
    def test_finds_what_it_must(self):
        for line in ["absl::Time t = absl::Now();", "std::chrono::system_clock::now()",
                     "clock_gettime(CLOCK_REALTIME, &t);", "std::time(nullptr)"]:
            self.assertEqual(1, len(complaints("engine/x.cc", line)), line)
            self.assertEqual([], complaints("cli/x.cc", line), line)
        for line in ["mu_.AwaitWithTimeout(absl::Condition(&done), timeout);",
                     "changed_.WaitWithTimeout(&mu_, timeout);", "absl::CondVar changed_;",
                     "mu.ReaderLockWhenWithDeadline(done, time)",
                     "stop_.WaitForNotificationWithTimeout(kInterval)"]:
            self.assertEqual(1, len(complaints("cli/x.cc", line)), line)

    def test_lets_the_rest_be(self):
        for line in ["clock_->Now()", "MonotonicNow()", "network_.Now()", "steady_clock::now()",
                     "changed_.Wait(&mu_, timeout)", "mu_.Await(absl::Condition(&done))"]:
            self.assertEqual([], complaints("engine/x.cc", line), line)


class TreeTest(unittest.TestCase):
    root = "."

    def test_tree(self):
        found, num_files = [], 0
        for room in PRODUCT:
            for folder, _, names in os.walk(os.path.join(self.root, room)):
                for name in names:
                    if not name.endswith((".h", ".cc")):
                        continue
                    num_files += 1
                    path = os.path.join(folder, name)
                    with open(path, encoding="utf-8") as file:
                        found += complaints(os.path.relpath(path, self.root), file.read())
        self.assertGreater(num_files, 300, "this is not the source tree")
        self.assertEqual([], found, "\n" + "\n".join(found))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        TreeTest.root = sys.argv.pop(1)
    unittest.main()
