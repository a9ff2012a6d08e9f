#!/usr/bin/env python3
"""Holds every #include of the rooms against the table of who may include whom.

A room is a folder; it includes itself, the rooms below it (everything reachable in ROOMS) and nothing
else. `includes_test.py DIR` checks the tree at DIR after checking the checker.
"""

import os
import re
import sys
import unittest

# room: the rooms directly below it. Paths are as in #include lines, so the generated protobuf headers
# of proto/ are the room sluice/v1. A folder without an entry belongs to the nearest one above it.
ROOMS = {
    "common": [],
    "metrics": ["common"],
    "modelspec": ["common"],
    "tokenizer": ["common"],
    "sluice/v1": [],
    "engine/device": ["modelspec"],
    "engine/weights": ["engine/device"],
    "engine/kv": ["modelspec"],
    "engine/model": ["engine/weights", "engine/kv"],
    "engine/sampling": ["engine/device"],
    "engine/scheduler": ["engine/kv"],
    "engine/runtime": ["engine/model", "engine/sampling", "engine/scheduler"],
    "kvtransfer/handoff": ["common"],
    "kvtransfer/channel": ["common"],
    "kvtransfer/reshard": ["common"],
    "kvtransfer/agent": ["kvtransfer/handoff", "kvtransfer/channel", "kvtransfer/reshard"],
    "services/rpc": ["sluice/v1", "common"],
    "services/worker_runtime": ["services/rpc", "kvtransfer/agent", "engine/runtime", "metrics", "tokenizer"],
    "services/prefill_worker": ["services/worker_runtime"],
    "services/decode_worker": ["services/worker_runtime"],
    # The router speaks text to clients and token ids to workers: no engine, no kvtransfer below it.
    "services/router/core": ["tokenizer", "metrics", "modelspec"],
    "services/router/api": ["services/router/core"],
    "services/router/http": ["services/router/api"],
    "services/router/grpc": ["services/router/api", "services/rpc"],
    "services/router/fleet": ["services/router/core", "services/rpc"],
    "services/router": ["services/router/http", "services/router/grpc", "services/router/fleet"],
    "sim": ["kvtransfer/agent", "engine/scheduler", "services/router/core"],
    "planner": ["modelspec"],
    "cli": ["services/rpc", "engine/runtime", "tokenizer", "planner", "bench/loadgen"],
    "bench/loadgen": ["sluice/v1", "common"],  # it measures from outside, by HTTP and gRPC
    "bench/handoff_bench": ["kvtransfer/agent", "engine/kv", "common"],
    "bench/router_bench": ["bench", "services/rpc", "tokenizer"],
    "bench": ["bench/loadgen", "engine/runtime", "kvtransfer/agent", "tokenizer", "metrics"],
}
TOP_FOLDERS = {room.split("/")[0] for room in ROOMS}
TESTS = "tests"  # may include every room; no room may include it

# Libraries that cost seconds to compile or that we want to be able to replace: their headers may be
# included by headers of one room only, not by those that other rooms include.
CONFINED = re.compile(
    r"(boost|CLI|grpcpp|nlohmann|prometheus|simdjson|spdlog|uc[pst]|yaml-cpp)[/.](?!.*json_fwd\.hpp)")
# gRPC is what services/rpc is for.
CONFINED_EXCEPT = {("services/rpc", "grpcpp")}

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def room_of(path):
    """The room a file belongs to, or None: the longest entry that is a folder of its path."""
    folder = os.path.dirname(path)
    while folder:
        if folder in ROOMS or folder == TESTS:
            return folder
        folder = os.path.dirname(folder)
    return None


def reachable(room):
    seen = {room}
    pending = [room]
    while pending:
        for below in ROOMS.get(pending.pop(), []):
            if below not in seen:
                seen.add(below)
                pending.append(below)
    return seen


def includes_of(text):
    """[(line, is_quoted, path)] of one file."""
    return [(text.count("\n", 0, m.start()) + 1, m.group(1) == '"', m.group(2))
            for m in INCLUDE.finditer(text)]


def confined_libraries(path, files, seen=frozenset()):
    """Confined libraries that `path` brings in, itself or through headers of its own room."""
    found = set()
    for _, quoted, target in includes_of(files[path]):
        match = CONFINED.match(target)
        if match:
            if (room_of(path), match.group(1)) not in CONFINED_EXCEPT:
                found.add(match.group(1))
        elif quoted and target in files and target not in seen and room_of(target) == room_of(path):
            found |= confined_libraries(target, files, seen | {path})
    return found


def check(files):
    """Complaints about `files`, a dict of path to text."""
    complaints = []
    for path, text in sorted(files.items()):
        room = room_of(path)
        if room is None:
            complaints.append(f"{path}:1: no room of ROOMS holds this file")
            continue
        if path.endswith(".h"):
            if not re.search(r"^#pragma once$", text, re.MULTILINE):
                complaints.append(f"{path}:1: header without #pragma once")
            if not re.match(r"//|/\*", text):
                complaints.append(f"{path}:1: header must open with a comment that says what it is for")
        for line, quoted, target in includes_of(text):
            where = f"{path}:{line}: "
            top = target.split("/")[0]
            if not quoted:
                if top in TOP_FOLDERS and target in files:
                    complaints.append(f"{where}<{target}> is ours: use quotes")
                continue
            if target.startswith((".", "/")):
                complaints.append(f"{where}\"{target}\": includes are paths from the root")
                continue
            if top not in TOP_FOLDERS and top != TESTS:
                if os.path.join(os.path.dirname(path), target) in files:
                    complaints.append(f"{where}\"{target}\": includes are paths from the root")
                continue  # a library that is included with quotes, such as Abseil
            target_room = room_of(target)
            if target_room is None:
                complaints.append(f"{where}\"{target}\" is in no room of ROOMS")
                continue
            if room == TESTS:
                continue
            if target_room == TESTS or target_room not in reachable(room):
                complaints.append(f"{where}{room} may not include {target_room} (\"{target}\")")
            if target in files and target_room != room:
                for library in sorted(confined_libraries(target, files)):
                    complaints.append(
                        f"{where}\"{target}\" brings {library} out of {target_room}")
    return complaints


def load_tree(root):
    files = {}
    for top in sorted(TOP_FOLDERS | {TESTS}):
        for folder, _, names in os.walk(os.path.join(root, top)):
            for name in names:
                if name.endswith((".h", ".cc")):
                    path = os.path.join(folder, name)
                    with open(path, encoding="utf-8") as file:
                        files[os.path.relpath(path, root)] = file.read()
    return files


HEADER = "// Why.\n#pragma once\n"


class CheckerTest(unittest.TestCase):
    """The checker finds what it is for."""

    def complains(self, files, text):
        complaints = check(files)
        self.assertTrue(any(text in c for c in complaints), (text, complaints))

    def test_accepts_what_is_allowed(self):
        self.assertEqual([], check({
            "common/x.h": HEADER + '#include <vector>\n#include "absl/status/status.h"\n',
            "engine/device/cpu/x.cc": '#include "common/x.h"\n#include "engine/device/x.h"\n',
            "services/router/main.cc": '#include "services/router/core/x.h"\n',
            "services/rpc/x.h": HEADER + '#include "sluice/v1/fleet.pb.h"\n',
            "tests/x/x_test.cc": '#include "engine/kv/x.h"\n#include "tests/support/x.h"\n',
        }))

    def test_upward_and_sideways_includes(self):
        self.complains({"common/x.cc": '#include "engine/kv/x.h"\n'},
                       "common/x.cc:1: common may not include engine/kv")
        self.complains({"services/router/main.cc": '\n#include "engine/kv/x.h"\n'},
                       "services/router/main.cc:2: services/router may not include engine/kv")
        self.complains({"services/router/fleet/x.cc": '#include "kvtransfer/agent/x.h"\n'},
                       "may not include kvtransfer/agent")
        self.complains({"services/router/core/x.cc": '#include "services/router/api/x.h"\n'},
                       "may not include services/router/api")
        self.complains({"services/router/http/x.cc": '#include "services/router/grpc/x.h"\n'},
                       "may not include services/router/grpc")
        self.complains({"kvtransfer/handoff/x.cc": '#  include "kvtransfer/channel/x.h"\n'},
                       "may not include kvtransfer/channel")
        self.complains({"tokenizer/x.cc": '#include "modelspec/x.h"\n'}, "may not include modelspec")
        self.complains({"engine/kv/x.cc": '#include "tests/support/x.h"\n'}, "may not include tests")

    def test_headers(self):
        self.complains({"common/x.h": "// Why.\n"}, "without #pragma once")
        self.complains({"common/x.h": "#pragma once\n"}, "must open with a comment")

    def test_spelling(self):
        self.complains({"common/x.cc": '#include "../common/y.h"\n'}, "paths from the root")
        self.complains({"common/y.h": HEADER, "common/x.cc": '#include "y.h"\n'},
                       "paths from the root")
        self.complains({"common/y.h": HEADER, "common/x.cc": "#include <common/y.h>\n"}, "use quotes")

    def test_files_outside_of_all_rooms(self):
        self.complains({"engine/x.cc": ""}, "no room of ROOMS holds this file")
        self.complains({"cli/x.cc": '#include "engine/typo/x.h"\n'}, "is in no room of ROOMS")

    def test_confined_libraries(self):
        leak = {"tokenizer/json.h": HEADER + "#include <simdjson.h>\n",
                "tokenizer/api.h": HEADER + '#include "tokenizer/json.h"\n',
                "tokenizer/api.cc": '#include "tokenizer/api.h"\n'}
        self.assertEqual([], check(leak))
        leak["services/router/core/x.cc"] = '#include "tokenizer/api.h"\n'
        self.complains(leak, '"tokenizer/api.h" brings simdjson out of tokenizer')
        self.assertEqual([], check({
            "services/rpc/x.h": HEADER + "#include <grpcpp/grpcpp.h>\n",
            "services/router/fleet/x.cc": '#include "services/rpc/x.h"\n'}))

    def test_the_table_has_no_cycle(self):
        for room, below in ROOMS.items():
            for other in below:
                self.assertIn(other, ROOMS)
                self.assertNotIn(room, reachable(other), f"{room} and {other} reach each other")


class TreeTest(unittest.TestCase):
    root = "."

    def test_tree(self):
        files = load_tree(self.root)
        self.assertGreater(len(files), 30, "this is not the source tree")
        complaints = check(files)
        self.assertEqual([], complaints, "\n" + "\n".join(complaints))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        TreeTest.root = sys.argv.pop(1)
    unittest.main()
