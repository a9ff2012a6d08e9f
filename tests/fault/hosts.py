"""Hosts for a cluster on one machine: network namespaces with a wire each to a bridge, and a firewall to break them.

    if in_client_host():         # the test starts itself again on a host of its own
        with Hosts(["router", "prefill-0", "decode-0"]) as hosts, Cluster(network=hosts) as cluster:
            hosts.drop("router", "decode-0")   # what the router sends no longer arrives at decode-0
            hosts.heal()

Needs root, `ip` and `iptables`. Everything is removed at the end, and by the next run if a run was killed.
"""

import os
import pathlib
import subprocess
import sys

PREFIX = "sluice-test"
BRIDGE_HOST = f"{PREFIX}-bridge"
CLIENT = "client"


def missing_tool():
    """'' if namespaces and a firewall can be had, else what is missing."""
    if os.geteuid() != 0:
        return "not root"
    for probe in (["ip", "netns", "add", f"{PREFIX}-probe"],
                  [*_inside("probe"), "iptables", "-A", "INPUT", "-s", "10.77.0.1", "-j", "DROP"],
                  ["ip", "netns", "del", f"{PREFIX}-probe"]):
        try:
            done = subprocess.run(probe, capture_output=True, text=True, timeout=20)
        except OSError as error:
            return str(error)
        if done.returncode != 0:
            return f"{' '.join(probe)}: {done.stderr.strip()}"
    return ""


def run_on_client_host(main):
    """Runs main() on a host of the bridge. The process is started anew there, since a namespace is for a whole process."""
    if os.environ.get("FAULT_TEST_HOST") == CLIENT:
        main()
        return
    if reason := missing_tool():
        print(f"SKIPPED: no network namespaces with a firewall here ({reason})")
        sys.exit(77)
    _remove_all()
    try:
        _add_bridge()
        _add_host(CLIENT, 1)
        command = [*_inside(CLIENT), sys.executable, *sys.argv]
        sys.exit(subprocess.run(command, env={**os.environ, "FAULT_TEST_HOST": CLIENT}).returncode)
    finally:
        _remove_all()


class Hosts:
    """The network of a Cluster: see Loopback in cluster.py for the first four methods."""

    def __init__(self, names):
        self._numbers = {CLIENT: 1, **{name: 2 + i for i, name in enumerate(names)}}

    def host(self, name):
        return f"10.77.0.{self._numbers[name]}"

    def launcher(self, name):
        return _inside(name)

    def args(self, name):
        services = ["http", "grpc", "fleet", "admin"] if name == "router" else ["admin"]
        return [part for service in services for part in (f"--{service}-host", self.host(name))]

    def router_address(self, name, router):
        return f"{router.host}:{router.ports['fleet_port']}"

    def __enter__(self):
        for name, number in self._numbers.items():
            if name != CLIENT:
                _add_host(name, number)
        return self

    def __exit__(self, exc_type, exc, tb):
        for name in self._numbers:
            if name != CLIENT:
                _run("ip", "netns", "del", f"{PREFIX}-{name}")
        return False

    def drop(self, sender, receiver):
        """Nothing that `sender` sends arrives at `receiver`; the other direction is untouched."""
        self._firewall(receiver, "-s", self.host(sender), "-j", "DROP")

    def cut(self, a, b):
        """Neither hears the other; nobody is told (half-open connections on both sides)."""
        self.drop(a, b)
        self.drop(b, a)

    def reset(self, sender, receiver):
        """`receiver` answers what `sender` sends with RST, so connections break at once."""
        self._firewall(receiver, "-p", "tcp", "-s", self.host(sender), "-j", "REJECT", "--reject-with", "tcp-reset")

    def lose(self, name, probability):
        """A share of the packets that arrive at a host is lost."""
        self._firewall(name, "-m", "statistic", "--mode", "random", "--probability", str(probability), "-j", "DROP")

    def unplug(self, name):
        _run_in(name, "ip", "link", "set", "eth0", "down")

    def heal(self):
        for name in self._numbers:
            if name != CLIENT:
                _run_in(name, "iptables", "-F", "INPUT")
                _run_in(name, "ip", "link", "set", "eth0", "up")

    def _firewall(self, name, *rule):
        _run_in(name, "iptables", "-A", "INPUT", *rule)


def _inside(name):
    # Not `ip netns exec`, which makes a mount namespace for every command: removing those takes seconds under load.
    return ["nsenter", f"--net=/run/netns/{PREFIX}-{name}"]


def _run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"


def _run_in(name, *command):
    _run(*_inside(name), *command)


def _add_bridge():
    _run("ip", "netns", "add", BRIDGE_HOST)
    _run("ip", "-n", BRIDGE_HOST, "link", "add", "br0", "type", "bridge")
    _run("ip", "-n", BRIDGE_HOST, "link", "set", "br0", "up")


def _add_host(name, number):
    host = f"{PREFIX}-{name}"
    wire = f"wire{number}"
    _run("ip", "netns", "add", host)
    _run("ip", "-n", host, "link", "add", "eth0", "type", "veth", "peer", "name", wire, "netns", BRIDGE_HOST)
    _run("ip", "-n", BRIDGE_HOST, "link", "set", wire, "master", "br0", "up")
    _run("ip", "-n", host, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _run("ip", "-n", host, "link", "set", device, "up")


def _remove_all():
    folder = pathlib.Path("/run/netns")
    for host in folder.glob(f"{PREFIX}-*") if folder.is_dir() else []:
        _run("ip", "netns", "del", host.name)
