"""The network of the data centre: a client's namespace with a bridge, and no way out."""

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

CLIENT = "gptctl-e2e"
NODE_PREFIX = f"{CLIENT}-vm-"
BRIDGE_IP = "10.99.0.1"
# SkyPilot asks these two whether the network is up before it believes that a node is gone.
PROBED_IPS = ("1.1.1.1", "8.8.8.8")
HOSTS = ("cloud.lambdalabs.com", "cloud.lambda.ai", "raw.githubusercontent.com")
# Of SkyPilot's API servers, one a home: nobody who takes any port gets one of them.
RESERVED_PORTS = "46580-46679"
CLONE_NEWNET = 0x40000000


def make_network() -> None:
    """The client's namespace; all hosts it knows are its own loopback."""
    run("ip", "netns", "add", CLIENT)
    for line in (
        "link set lo up",
        "link add bridge type bridge",
        f"address add {BRIDGE_IP}/16 dev bridge",
        "link set bridge up",
        *(f"address add {ip}/32 dev lo" for ip in PROBED_IPS),
    ):
        run("ip", "-n", CLIENT, *line.split())
    with enter_network():
        Path("/proc/sys/net/ipv4/ip_local_reserved_ports").write_text(RESERVED_PORTS)
    _etc().mkdir(parents=True)
    (_etc() / "hosts").write_text(f"127.0.0.1 localhost {' '.join(HOSTS)}\n")
    (_etc() / "resolv.conf").write_text("")


def remove_network() -> None:
    """Every namespace of ours with all that runs in it, whoever left it. Idempotent."""
    for name in namespaces():
        remove_namespace(name)
    shutil.rmtree(_etc(), ignore_errors=True)


def namespaces() -> list[str]:
    names = [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line]
    return [name for name in names if name == CLIENT or name.startswith(NODE_PREFIX)]


def remove_namespace(name: str) -> None:
    """Kills what is in it and waits until that is gone."""
    deadline = time.monotonic() + 20
    while pids := pids_in(name):
        assert time.monotonic() < deadline, f"processes of {name} do not die: {pids}"
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
    run("ip", "netns", "delete", name)


def pids_in(name: str) -> list[int]:
    """The processes in a namespace of ours; without zombies, which have left it."""
    return [int(pid) for pid in run("ip", "netns", "pids", name).split()]


@contextmanager
def enter_network(name: str = CLIENT) -> Iterator[None]:
    """This thread's new sockets, threads and children are in that network until it leaves it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(namespace: IO[bytes]) -> None:
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace.name}")

    with (
        Path("/proc/thread-self/ns/net").open("rb") as home,
        Path(f"/run/netns/{name}").open("rb") as away,
    ):
        enter(away)
        try:
            yield
        finally:
            enter(home)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def _etc() -> Path:
    return Path("/etc/netns") / CLIENT
