"""The VMs of the data centre: made, ended, killed, and remembered."""

import dataclasses
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.faults import Fault
from tests.e2e.instance_types import INSTANCE_TYPES, InstanceType
from tests.e2e.network import NODE_PREFIX, remove_namespace

HERE = Path(__file__).parent
DRIVER_VERSION = "570.148.08"
BOOTS_WITHIN_S = 60.0
LAST_WORDS = (".sky/skylet.log", ".sky/hooks", "sky_logs")  # of a node's home, kept after its end


@dataclass
class Vm:
    """One VM from launch to end; times are seconds since the epoch."""

    id: str
    name: str
    instance_type: str
    region: str
    cents_per_hour: int
    node: str  # its host name, and its folder among the logs
    ip: str
    ssh_key_names: list[str]
    started_at: float
    status: str = "booting"  # then active, terminating; at last terminated or killed
    active_at: float | None = None
    ended_at: float | None = None


class Fleet:
    """Safe to call from several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._vms: list[Vm] = []
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.RLock()

    def vms(self, alive: bool = False) -> list[Vm]:
        """All that ever were, or those that the provider still has; in the order of launch."""
        with self._lock:
            return [dataclasses.replace(vm) for vm in self._vms if not alive or vm.ended_at is None]

    def launch(self, request: dict[str, Any], keys: Sequence[str], fault: Fault | None) -> Vm:
        kind = INSTANCE_TYPES[request["instance_type_name"]]
        with self._lock:
            number = len(self._vms) + 1
            vm = Vm(
                id=uuid.uuid4().hex,
                name=request.get("name") or "",
                instance_type=kind.name,
                region=request["region_name"],
                cents_per_hour=kind.cents_per_hour,
                node=f"{NODE_PREFIX}{number}",
                ip=f"10.99.{1 + number // 250}.{1 + number % 250}",
                ssh_key_names=request["ssh_key_names"],
                started_at=time.time(),
            )
            self._vms.append(vm)
            if fault is None or not (fault.hang or fault.no_ssh):
                self._boot(vm, kind, keys, fault.defect if fault else {})
            elif fault.no_ssh:
                vm.status, vm.active_at = "active", time.time()
            return dataclasses.replace(vm)

    def terminate(self, vm_id: str) -> Vm:
        """Ends it soon, as the provider does: the call returns first. Raises KeyError."""
        with self._lock:
            vm = self._find(vm_id)
            if vm.status != "terminating":
                vm.status = "terminating"
                # A VM may ask for its own end: it gets the answer before it dies.
                threading.Timer(0.5, self._end, (vm, "terminated")).start()
            return dataclasses.replace(vm)

    def kill(self, name_or_id: str) -> Vm:
        """Gone at once and without a word, as a host that fails. Raises KeyError.

        The beginning of a name is enough; of several VMs it is the first, the head.
        """
        with self._lock:
            vm = self._find(name_or_id)
        self._end(vm, "killed")
        return dataclasses.replace(vm)

    def _find(self, name_or_id: str) -> Vm:
        for vm in self._vms:
            if vm.ended_at is None and (vm.id == name_or_id or vm.name.startswith(name_or_id)):
                return vm
        raise KeyError(name_or_id)

    def _boot(
        self, vm: Vm, kind: InstanceType, keys: Sequence[str], defect: dict[str, Any]
    ) -> None:
        disk = self._folder / "ram" / "nodes" / vm.node / "disk"
        for name in ("etc", "home/ubuntu/.ssh", "usr/bin"):
            (disk / name).mkdir(parents=True)
        (disk / "etc" / "hostname").write_text(f"{vm.node}\n")
        (disk / "home/ubuntu/.ssh/authorized_keys").write_text("".join(f"{k}\n" for k in keys))
        (disk / "home/ubuntu/.ssh/authorized_keys").chmod(0o600)
        (disk / "home/ubuntu/.ssh").chmod(0o700)
        if kind.gpu is not None:
            install_driver(disk, kind, defect)
        with (self._folder / "logs" / f"{vm.node}.log").open("wb") as log:
            self._processes[vm.id] = subprocess.Popen(
                ["bash", str(HERE / "node.sh"), vm.node, vm.ip, str(self._folder / "ram")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        threading.Thread(target=self._wait_for_sshd, args=(vm,), daemon=True).start()

    def _wait_for_sshd(self, vm: Vm) -> None:
        deadline = time.monotonic() + BOOTS_WITHIN_S
        while vm.status == "booting" and time.monotonic() < deadline:
            try:
                with socket.create_connection((vm.ip, 22), timeout=1) as connection:
                    is_there = connection.recv(4) == b"SSH-"
            except OSError:
                is_there = False
            with self._lock:
                if is_there and vm.status == "booting":
                    vm.status, vm.active_at = "active", time.time()
            time.sleep(0.1)

    def _end(self, vm: Vm, how: str) -> None:
        process = self._processes.pop(vm.id, None)
        if process is not None:
            process.send_signal(signal.SIGKILL)  # the VM's first process, and with it all others
            process.wait()
            remove_namespace(vm.node)
            self._keep_last_words(vm)
        with self._lock:
            if vm.ended_at is None:
                vm.status, vm.ended_at = how, time.time()

    def _keep_last_words(self, vm: Vm) -> None:
        """Its disk dies with it; the logs of SkyPilot and of the jobs are for whoever looks."""
        node = self._folder / "ram" / "nodes" / vm.node
        for name in LAST_WORDS:
            source, target = node / "disk/home/ubuntu" / name, self._folder / "logs" / vm.node
            target.mkdir(exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target / source.name, symlinks=True)
            elif source.is_file():
                shutil.copy(source, target)
        shutil.rmtree(node)


def install_driver(disk: Path, kind: InstanceType, defect: dict[str, Any]) -> None:
    """nvidia-smi and what it says. A defect with `driver_version` None: nothing is installed."""
    assert kind.gpu is not None
    gpus = {
        "name": kind.gpu.device,
        "count": kind.gpu_count,
        "memory_mib": kind.gpu.memory_mib,
        "driver_version": DRIVER_VERSION,
        "ecc_errors": 0,
    }
    unknown = defect.keys() - gpus.keys()
    assert not unknown, f"not a field of a GPU: {unknown}"
    gpus |= defect
    if gpus["driver_version"] is None:
        return
    (disk / "etc/gptctl-e2e").mkdir()
    (disk / "etc/gptctl-e2e/gpus.json").write_text(json.dumps(gpus))
    shutil.copy(HERE / "nvidia_smi.py", disk / "usr/bin/nvidia-smi")
    (disk / "usr/bin/nvidia-smi").chmod(0o755)
