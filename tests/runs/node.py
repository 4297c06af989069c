"""One node of a run as a cloud would start it: bootstrap.sh on this machine, its home a folder."""

import os
import random
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import msgspec
import psutil

from tests.processes import find_processes
from tests.tiny import make_recipe, make_record
from training.events import parse_lines
from training.layout import Offer, RunPaths, Status, committed_checkpoints, decode, encode

ROOT = Path(__file__).parents[2]
OFFER = Offer(
    cloud="lambda",
    region="us-east-1",
    instance_type="cpu_4x",
    gpu="",
    gpu_count=0,
    spot=False,
    price_per_hour=Decimal(36),  # a cent a second
    price_source="a test",
    price_as_of="2026-11-21",
)


class Node:
    def __init__(self, home: Path, *, steps: int = 30, budget_usd: str = "10") -> None:
        self.home = home
        self.root = home / "node"
        self.store = home / "store"
        self.programs = home / "bin"
        self.started: list[subprocess.Popen[str]] = []
        self.programs.mkdir()
        self.root.mkdir()
        words = random.Random(7).choices(["the ", "cat ", "sat ", "on ", "a ", "mat. "], k=12_000)
        (self.root / "text.txt").write_text("".join(words))
        recipe = make_recipe(
            data={"source": "text", "path": "text.txt", "shard_tokens": 20_000},
            train={"steps": steps},
            eval={"every": 50},
            checkpoint={"every": 10},
            sample={"count": 0},
        )
        record = make_record(
            recipe, store=str(self.store), offer=OFFER, created_at=datetime.now(UTC)
        )
        self.run_id = record.run_id
        self.paths = RunPaths(self.root, self.run_id)
        self.stored = RunPaths(self.store, self.run_id)
        self.add_program("go-down-in", f'echo "$1" >> {home}/asked\n')
        venv = Path(sys.executable).parent
        self.env = {
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "HOME": str(home),
            "PYTHONPATH": sysconfig.get_path("purelib"),  # in place of what would be installed
            "OMP_NUM_THREADS": "1",
            "UV_PYTHON": sys.executable,
            "UV_OFFLINE": "1",
            "UV_CACHE_DIR": str(home / "uv-cache"),
            "RUN_ID": self.run_id,
            "RUN_STORE": str(self.store),
            "RUN_RECORD": encode(record).decode(),
            "RUN_OFFERS": msgspec.json.encode([OFFER]).decode(),
            "RUN_BUDGET_USD": budget_usd,
            "RUN_MAX_HOURS": "",
            "RUN_TEARDOWN_S": "20",
            "NODE_ROOT": str(self.root),
            "NODE_REQUIREMENTS": "",
            "NODE_GPUS": "0",
            "NODE_GO_DOWN_IN": str(self.programs / "go-down-in"),
            "NODE_RANK": "0",
            "NODE_COUNT": "1",
            "NODE_IPS": "127.0.0.1",
            "NODE_PLACE": '{"cloud": "Lambda", "region": "us-east-1"}',
        }
        (self.programs / "uv").symlink_to(venv / "uv")

    def add_program(self, name: str, script: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/bash\n{script}")
        path.chmod(0o755)

    def add_gpus(
        self,
        *rows: str,
    ) -> None:
        """A stand-in for nvidia-smi that shows these: driver, name, memory, ECC errors."""
        self.add_program("nvidia-smi", "cat <<'END'\n" + "\n".join(rows) + "\nEND\n")

    def start(self) -> "subprocess.Popen[str]":
        bootstrap = subprocess.Popen(
            ["bash", str(ROOT / "training" / "bootstrap.sh")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.env,
            cwd=self.home,
        )
        self.started.append(bootstrap)
        return bootstrap

    def live(self, *, exit_code: int = 0, timeout_s: float = 90) -> str:
        """From start to end: what it said."""
        return self.wait(self.start(), exit_code=exit_code, timeout_s=timeout_s)

    def wait(
        self, node: "subprocess.Popen[str]", *, exit_code: int = 0, timeout_s: float = 90
    ) -> str:
        said, _ = node.communicate(timeout=timeout_s)
        assert node.returncode == exit_code, said
        return said

    def rescue(self) -> str:
        """As the machine's last hook does: without the run's environment."""
        ran = subprocess.run(
            [
                *((self.paths.folder / ".python").read_text().strip(), "-m", "training.rescue"),
                *(self.run_id, "--root", str(self.root), "--hung-after-s", "3"),
            ],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": self.env["PYTHONPATH"]},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    @property
    def asked(self) -> list[int]:
        """Minutes in which the machine was told to end, one for each time that it was."""
        path = self.home / "asked"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    @property
    def status(self) -> Status:
        """As the store has it."""
        return decode(self.stored.status.read_bytes(), Status, name="status.json")

    @property
    def steps(self) -> list[int]:
        """Committed checkpoints in the store."""
        return committed_checkpoints(self.stored.checkpoints)

    def count_events(self, kind: str) -> int:
        path = self.paths.events
        data = path.read_bytes() if path.exists() else b""
        return sum(event["event"] == kind for event in parse_lines(data))

    def processes(self, program: str = "") -> list[psutil.Process]:
        return find_processes(lambda line: str(self.root) in line and program in line)

    def supervisor(self) -> psutil.Process:
        # Not whatever bears the name: a child has its parent's command line until it execs.
        named = self.processes("training.supervise")
        (found,) = [p for p in psutil.Process(self.started[-1].pid).children() if p in named]
        return found

    def wait_until(self, is_so: Callable[[], object], timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def wait_for_checkpoint(self, count: int = 1) -> None:
        """In the store."""
        self.wait_until(lambda: self.stored.checkpoints.exists() and len(self.steps) >= count)

    def clean_up(self) -> None:
        for bootstrap in self.started:  # first: it would start another supervisor
            with bootstrap:
                bootstrap.kill()
        for process in self.processes():
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
