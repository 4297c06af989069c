"""A private data centre in which the real SkyPilot believes that it uses Lambda.

Its parts: a network without a way out, the API, the node image, an S3 server on the bridge
(10.99.0.1, which the client and all nodes reach), and homes for the client's programs.
"""

import fcntl
import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

import psutil

from tests.e2e import needs
from tests.e2e.certificates import make_certificates
from tests.e2e.control import API_KEY, call_control
from tests.e2e.faults import NO_CAPACITY, Fault
from tests.e2e.fleet import Vm
from tests.e2e.homes import Home, home_env, make_home
from tests.e2e.image import build_image
from tests.e2e.network import (
    BRIDGE_IP,
    CLIENT,
    enter_network,
    make_network,
    pids_in,
    remove_network,
    run,
)
from tests.e2e.wheels import build_wheels, cache_folder, node_wheels
from tests.s3_server import start_server

REPOSITORY = Path(__file__).parents[2]
FOLDER = Path(tempfile.gettempdir()) / "gptctl-e2e"
RAM_SIZE = "60g"  # what VMs see as their disk; with torch installed they take 1 GB each
LOCKED_FOR_S = 15  # by one that is going down
BUCKET = "e2e-store"
AWAKE_S, ASLEEP_S = 0.1, 0.6  # of what has to make way
BACKGROUND = ("off-",)  # how the names of VMs begin whose tests run meanwhile


class DataCentre:
    """One at a time on a machine. `up` first removes what an interrupted one left behind.

    After `down` only files are left, under `folder`: `logs/`, `requests.jsonl`, the homes.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self._lock: IO[str] | None = None
        self._cloud: subprocess.Popen[bytes] | None = None
        self._homes: list[Home] = []

    def up(self) -> None:
        missing = needs.what_is_missing()
        if missing:
            raise RuntimeError(missing)
        self._take_lock()
        self._remove()
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "logs").mkdir(parents=True)
        (self.folder / "ram").mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={RAM_SIZE}", "tmpfs", str(self.folder / "ram"))
        make_certificates(self.folder / "pki")
        make_network()
        self._start_cloud()
        self._wheels = build_wheels()
        self.home = self.add_home("client")
        api_server = self.start("sky", "api", "start")
        self._build_image(self._build_skypilot())
        with enter_network():
            self.s3 = start_server(self.folder / "s3", host=BRIDGE_IP)
        out, err = api_server.communicate(timeout=120)
        assert api_server.returncode == 0, (out, err)

    def down(self) -> None:
        """Idempotent. Without the lock, what is there is another one's."""
        if self._lock is None:
            return
        self._remove()
        if self._cloud is not None:
            self._cloud.wait()
            self._cloud = None
        self._lock.close()
        self._lock = None

    def __enter__(self) -> "DataCentre":
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.s3.stop()
        self.down()

    # The client's machine.

    def add_home(self, name: str, *, api_key: str = API_KEY) -> Home:
        """A new home, with an API server of its own once a program of it needs one."""
        home = make_home(self.folder / "homes" / name, len(self._homes), api_key)
        if self._homes:
            wheels = Path(".sky", "wheels")  # of SkyPilot itself, 8 s to build
            shutil.copytree(self.home.folder / wheels, home.folder / wheels)
        self._homes.append(home)
        return home

    def start(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        home: Home | None = None,
        **options: Any,
    ) -> "subprocess.Popen[str]":
        """Starts a program on the client's machine; the process is the program itself."""
        home = home or self.home
        clean = home_env(home, ca=self.folder / "pki" / "ca.pem", wheels=self._wheels)
        defaults: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "cwd": home.folder,
        }
        return subprocess.Popen(
            ["ip", "netns", "exec", CLIENT, *command],
            env=clean | dict(env or {}),
            **(defaults | options),
        )

    def run(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 120,
        home: Home | None = None,
        exit_code: int | None = 0,
    ) -> "subprocess.CompletedProcess[str]":
        """Runs it to its end, which must have that exit code (None: any)."""
        process = self.start(*command, env=env, home=home)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        assert exit_code in (None, process.returncode), (command, process.returncode, out, err)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def processes(self, word: str = "") -> list[psutil.Process]:
        """What runs on the client's machine, with that word in its command line."""
        found = []
        for pid in pids_in(CLIENT):
            try:
                process = psutil.Process(pid)
                if word in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def start_api_server(self, home: Home | None = None) -> None:
        self.run("sky", "api", "start", home=home)

    def kill_api_server(self, home: Home | None = None) -> None:
        """SkyPilot's API server of that home and all it started there, as by a power cut."""
        port = f"--port={(home or self.home).api_server_port}"
        for server in self.processes("sky.server.server"):
            if port in server.cmdline():
                for process in (server, *server.children(recursive=True)):
                    process.kill()

    # The cloud, from behind.

    def instances(self) -> list[Vm]:
        """Those that the provider still has, and bills."""
        return self._call("vms", True)

    def history(self) -> list[Vm]:
        """All that ever were, with when they started, were active and ended, and how."""
        return self._call("vms")

    def requests(self) -> list[dict[str, Any]]:
        """What the API was asked: at, from, method, path, body, and the status it gave."""
        lines = (self.folder / "requests.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def inject(self, operation: str, **fault: Any) -> None:
        """`Fault`'s fields."""
        self._call("inject", Fault(operation, **fault))

    def inject_no_capacity(self, *, times: int | None = 1, **where: str) -> None:
        self.inject(
            "launch",
            status=400,
            code=NO_CAPACITY,
            message="Not enough capacity to fulfill launch request.",
            times=times,
            **where,
        )

    def clear_faults(self) -> None:
        self._call("clear_faults")

    def kill_vm(self, name_or_id: str) -> Vm:
        """It dies as by a preemption or the failure of its host: gone from the API too."""
        return self._call("kill", name_or_id)

    def make_way(self, name: str) -> None:
        """What those VMs (the beginning of their name) now train rests most of the time.

        All VMs share this machine's processors, and training without an end takes its share. All
        else there has its own: who is starved could not save while its time runs out.
        """
        trainers = []
        for vm in self.instances():
            for pid in pids_in(vm.node) if vm.name.startswith(name) else ():
                with suppress(psutil.NoSuchProcess):
                    if "training.train" in (process := psutil.Process(pid)).cmdline():
                        trainers.append(process)
        assert trainers
        threading.Thread(target=_rest, args=(trainers,), daemon=True).start()

    def terminate(self, vms: Sequence[Vm]) -> None:
        for vm in vms:
            self._call("terminate", vm.id)

    def wait_until_empty(self, timeout_s: float, name: str = "") -> list[Vm]:
        """The VMs of that name (its beginning) that are still there at the end of that time.

        Without one, all but those of tests that run in the background.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            named = [vm for vm in self.instances() if vm.name.startswith(name)]
            left = [vm for vm in named if name or not vm.name.startswith(BACKGROUND)]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.2)

    def wait_for_vm(self, name: str, timeout_s: float = 90) -> Vm:
        """The first VM of that name (its beginning) that is active."""
        deadline = time.monotonic() + timeout_s
        while True:
            for vm in self.instances():
                if vm.name.startswith(name) and vm.status == "active":
                    return vm
            assert time.monotonic() < deadline, self.instances()
            time.sleep(0.1)

    def billed_usd(self, name: str = "") -> Decimal:
        """For the VMs of that name (its beginning), from launch to end; to now if they live."""
        total = Decimal(0)
        for vm in self.history():
            if vm.name.startswith(name):
                seconds = Decimal((vm.ended_at or time.time()) - vm.started_at)
                total += vm.cents_per_hour * seconds / 360_000
        return total

    # The store.

    def inside(self) -> AbstractContextManager[None]:
        """Where the calling thread is in the client's network, to speak with the store say."""
        return enter_network()

    def store_url(self, prefix: str = "") -> str:
        with enter_network():
            return self.s3.url(BUCKET, prefix)

    def _call(self, verb: str, *arguments: Any) -> Any:
        return call_control(self.folder / "cloud.sock", verb, *arguments)

    def _take_lock(self) -> None:
        lock = self.folder.with_suffix(".lock").open("w")
        deadline = time.monotonic() + LOCKED_FOR_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    lock.close()
                    raise RuntimeError("another data centre is up on this machine") from error
                time.sleep(0.2)
        self._lock = lock

    def _start_cloud(self) -> None:
        with enter_network(), (self.folder / "logs" / "cloud.log").open("wb") as log:
            self._cloud = subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.fake_lambda", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
            )
        while not (self.folder / "cloud.sock").exists():
            said = (self.folder / "logs" / "cloud.log").read_text()
            assert self._cloud.poll() is None, f"the cloud did not start:\n{said}"
            time.sleep(0.02)

    def _build_skypilot(self) -> Path:
        """The wheel that SkyPilot makes of itself for its nodes, made before it is asked for."""
        build = "from sky.backends.wheel_utils import build_sky_wheel; build_sky_wheel()"
        self.run("python", "-c", build)
        (wheel,) = (self.home.folder / ".sky" / "wheels").glob("*/skypilot-*.whl")
        return wheel

    def _build_image(self, skypilot: Path) -> None:
        build_image(
            self.folder / "ram" / "image",
            ca=self.folder / "pki" / "ca.pem",
            wheels=node_wheels(),
            skypilot=skypilot,
            uv=Path(sysconfig.get_path("scripts")) / "uv",
            private=(REPOSITORY, Path(sys.prefix), cache_folder(), self.folder),
        )

    def _remove(self) -> None:
        remove_network()
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in reversed(mounts):
            if mount.startswith(f"{self.folder}/"):
                run("umount", mount)


def _rest(processes: list[psutil.Process]) -> None:
    """Until all have ended."""
    while processes:
        for process in list(processes):
            try:
                process.suspend()
            except psutil.NoSuchProcess:
                processes.remove(process)
        time.sleep(ASLEEP_S)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()
        time.sleep(AWAKE_S)
