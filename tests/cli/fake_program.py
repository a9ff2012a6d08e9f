#!/usr/bin/env python3
"""Stands in for sluice-router and the workers in tests of `sluice up`.

Writes its port file, answers /readyz, and notes what happens to it in $FAKE_EVENTS. What it does wrong comes
from $FAKE_BEHAVIOUR: "decode-0:die,router:ignore-term" (die, never-ready, ignore-term, load-slowly: 20 % in
two seconds, load-half: 20 % a second, and no further than 40, die-later: once $FAKE_EVENTS.die exists,
die-once: likewise, but not when it is started again).
"""

import http.server
import json
import os
import signal
import sys
import threading
import time

arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
name = arguments.get("--worker-id", "router")
behaviour = dict(
    item.split(":") for item in os.environ.get("FAKE_BEHAVIOUR", "").split(",") if item).get(name, "")


started = time.monotonic()
die_file = os.environ["FAKE_EVENTS"] + ".die"
is_to_die = behaviour == "die-later" or (behaviour == "die-once" and not os.path.exists(die_file))


def note(event):
    with open(os.environ["FAKE_EVENTS"], "a") as events:
        events.write(f"{name} {event} {os.getpid()}\n")


class Probe(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ready, body = behaviour != "never-ready", b"waits for a blessing\n"
        if behaviour.startswith("load"):
            seconds, most = (1, 40) if behaviour == "load-half" else (2, 100)
            percent = min(int((time.monotonic() - started) / seconds) * 20, most)
            ready, body = percent == 100, b"loading the model, %d%%\n" % percent
        body = b"ok\n" if ready else body
        self.send_response(200 if ready else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def on_term(_signal, _frame):
    note("term")
    if behaviour == "ignore-term":
        return
    if name != "router":
        time.sleep(0.3)  # drains
    note("end")
    os._exit(0)


note("start")
print(f"{name} says hello: {' '.join(sys.argv[1:])}", flush=True)
if behaviour == "die":
    print("cannot find the moon", file=sys.stderr, flush=True)
    sys.exit(3)
signal.signal(signal.SIGTERM, on_term)
server = http.server.HTTPServer(("127.0.0.1", 0), Probe)
ports = {"pid": os.getpid(), "admin_port": server.server_port}
if name == "router":
    ports.update(http_port=int(arguments["--http-port"]) or 4711, grpc_port=4712, fleet_port=4713)
path = arguments["--port-file"]
with open(path + ".new", "w") as file:
    json.dump(ports, file)
os.rename(path + ".new", path)
threading.Thread(target=server.serve_forever, daemon=True).start()
if is_to_die:
    while not os.path.exists(die_file):
        time.sleep(0.02)
    os._exit(7)
while True:
    signal.pause()
