#!/usr/bin/env python3
"""docs/handoff-model.md sets the states of the Spin model beside those of the code: all of both.

`model_page_test.py DIR` checks the tree at DIR.
"""

import os
import re
import sys
import unittest


class ModelPageTest(unittest.TestCase):
    root = "."

    def read(self, path):
        with open(os.path.join(self.root, path), encoding="utf-8") as file:
            return file.read()

    def test_every_state_is_on_the_page(self):
        page = self.read("docs/handoff-model.md")
        named = set(re.findall(r"`(\w+)`", page))
        model = self.read("kvtransfer/handoff/model/handoff.pml")
        states = []
        for side in ("D", "P"):
            found = re.search(r"mtype = \{([^}]*)\};\s*/\* %s, per attempt" % side, model)
            self.assertIsNotNone(found, f"no states of {side} in the model")
            states += re.findall(r"\w+", found.group(1))
        for header in ("receiver.h", "sender.h"):
            found = re.search(r"enum class State \{([^}]*)\}", self.read("kvtransfer/handoff/" + header))
            self.assertIsNotNone(found, f"no states in {header}")
            states += re.findall(r"\bk[A-Z]\w+", found.group(1))
        self.assertGreater(len(states), 20)
        self.assertEqual([], [state for state in states if state not in named])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        ModelPageTest.root = sys.argv.pop(1)
    unittest.main()
