"""Whole runs on this machine, through the command line, as a user starts them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.processes import find_processes
from training.events import parse_lines

RECIPE = """
summary = "as small as a whole run gets"
[model]
n_layer = 1
n_head = 2
n_embd = 16
block_size = 16
vocab_size = 257
[data]
source = "text"
tokenizer = "bytes"
shard_tokens = 20_000
[train]
steps = 30
batch_tokens = 128
micro_batch_size = 4
max_lr = 1e-2
warmup_steps = 2
[eval]
every = 10
tokens = 512
[checkpoint]
every = 10
[sample]
prompt = "the"
count = 1
max_new_tokens = 20
[node]
cpu_ranks = 1
"""
ENDLESS = ("--set", "train.steps=1_000_000")


class User:
    """Somebody with a shell, a home of their own, and patience."""

    patience_s = 120.0
    poll_s = 0.3

    def __init__(self, home: Path, *, store: str | None = None, **env: str) -> None:
        self.home = home
        self.store = store or str(home / "data" / "gptctl" / "store")
        self.node = home / "data" / "gptctl" / "node"
        self.env = {
            **os.environ,
            "XDG_DATA_HOME": str(home / "data"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "OMP_NUM_THREADS": "1",
            **env,
        }
        self.recipe = home / "tiny.toml"
        self.recipe.write_text(RECIPE)
        self.text = home / "text.txt"
        words = random.Random(7).choices(["the ", "cat ", "sat ", "on ", "a ", "mat. "], k=12_000)
        self.text.write_text("".join(words))

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "gptctl", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env,
            cwd=self.home,
            **options,
        )

    def run(
        self, *arguments: str, exit_code: int = 0, timeout_s: float = 120
    ) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            process.communicate()  # else its remains fail whatever test comes next
            raise
        assert process.returncode == exit_code, (process.returncode, out, err)
        assert "Traceback" not in err
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def json(self, *arguments: str, exit_code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", exit_code=exit_code).stdout)

    @property
    def launch_arguments(self) -> list[str]:
        return ["launch", str(self.recipe), "--data", str(self.text), "--yes", *self.to_store]

    @property
    def to_store(self) -> list[str]:
        return ["--store", self.store]

    def launch(self, *options: str, exit_code: int = 0) -> Any:
        """Launch and wait for the end: the final view."""
        return self.json(*self.launch_arguments, *options, exit_code=exit_code)

    def launch_detached(self, *options: str) -> str:
        """Launch and come back at once: the run's id."""
        return str(self.json(*self.launch_arguments, "--detach", *options)["run_id"])

    def status(self, run_id: str) -> Any:
        return self.json("status", run_id, *self.to_store)

    def wait_for(self, run_id: str, is_there: Callable[[Any], bool]) -> Any:
        deadline = time.monotonic() + self.patience_s
        while True:
            view = self.status(run_id)
            if is_there(view):
                return view
            assert time.monotonic() < deadline, view
            assert view["state"] not in ("succeeded", "stopped", "failed"), view
            time.sleep(self.poll_s)

    def wait_for_step(self, run_id: str, step: int = 1) -> None:
        self.wait_for(run_id, lambda view: view["step"] >= step)

    def wait_for_end(self, run_id: str) -> Any:
        deadline = time.monotonic() + self.patience_s
        while True:
            view = self.status(run_id)
            if view["state"] in ("succeeded", "stopped", "failed") and not self.processes(run_id):
                return view
            assert time.monotonic() < deadline, view
            time.sleep(self.poll_s)

    def folder(self, run_id: str) -> Path:
        """Of the run in a store that is a folder."""
        return Path(self.store) / "runs" / run_id

    def working_folder(self, run_id: str) -> Path:
        return self.node / "runs" / run_id

    def events(self, run_id: str, kind: str) -> list[dict[str, Any]]:
        path = self.working_folder(run_id) / "events.jsonl"
        return [e for e in parse_lines(path.read_bytes()) if e["event"] == kind]

    def steps(self, run_id: str) -> list[int]:
        """Committed checkpoints in the store."""
        found = (self.folder(run_id) / "checkpoints").glob("step-*/manifest.json")
        return sorted(int(path.parent.name.removeprefix("step-")) for path in found)

    def checkpoint(self, run_id: str, step: int) -> Path:
        """Its folder in a store that is a folder."""
        return self.folder(run_id) / "checkpoints" / f"step-{step:08d}"

    def processes(self, run_id: str = "", program: str = "") -> list[psutil.Process]:
        """Everything of this user's node that is alive, or one kind of program of one run."""
        words = str(self.node), run_id, program
        return find_processes(lambda line: all(word in line for word in words))

    def ranks(self, run_id: str) -> list[psutil.Process]:
        words = str(self.node), run_id, "training.train"
        return find_processes(
            lambda line: all(word in line for word in words) and "training.ranks" not in line
        )

    def kill(self, processes: Sequence[psutil.Process], number: int = signal.SIGKILL) -> None:
        assert processes, "there is nothing to kill"
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # it ends with those killed before it
                process.send_signal(number)


def leave_nothing_running(somebody: User) -> None:
    for process in somebody.processes():
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
