"""This machine as a node: the supervisor as a detached process, its lock as the truth."""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from gptctl.backends import BackendState, Job, Tell, Wanted
from gptctl.errors import BackendError, UsageError
from gptctl.offers import offer_this_machine
from gptctl.programs import training_program
from training.layout import Offer, RunPaths

START_TIMEOUT_S = 60.0
"""Python starts in well under a second; a cold disk or a busy machine may take many."""
_POLL_S = 0.02


class _Detached(subprocess.Popen[bytes]):
    """A process that is meant to outlive us, so that forgetting it warns nobody."""

    def __del__(self) -> None:
        pass


class LocalBackend:
    """Runs under `node_root/runs/<id>/`. A supervisor is alive as long as it holds its lock:

    a process id alone may by now belong to somebody else.
    """

    def __init__(self, node_root: Path, env: Mapping[str, str]) -> None:
        self._root = node_root.absolute()
        self._env = dict(env)
        self._children: dict[str, _Detached] = {}

    def offers(self, wanted: Wanted) -> list[Offer]:
        training_program("supervise")  # a machine without torch has nothing to offer
        price = wanted.price_per_hour
        return [offer_this_machine(self._gpus(), price_per_hour=price, today=wanted.today)]

    def check(self, offers: list[Offer]) -> None:
        pass  # what it lacks it lacked already when it was asked for an offer

    def describe(self, job: Job) -> str:
        raise UsageError(
            "a run on this machine is a process, not a SkyPilot task",
            hint="`--emit` is for rented machines: `--cloud lambda`",
        )

    def submit(self, job: Job, *, tell: Tell) -> Offer:
        run_id = job.record.run_id
        paths = RunPaths(self._root, run_id)
        overrides = {
            "--budget-usd": job.budget_usd,
            "--max-hours": job.max_hours,
            "--price-per-hour": job.offers[0].price_per_hour,
        }
        command = training_program(
            "supervise", run_id, "--store", job.store, "--root", str(self._root)
        )
        command += [w for k, v in overrides.items() if v is not None for w in (k, str(v))]
        log = paths.log("supervise")
        try:
            paths.logs.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                logged = output.tell()
                process = _Detached(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C in our terminal is not for the run
                    cwd=paths.folder,
                    env=self._env,
                )
        except OSError as error:
            raise BackendError(
                f"the supervisor of {run_id} could not be started: {error}",
                hint=f"check that {self._root} can be written to, or set another node_root",
            ) from error
        self._children[run_id] = process
        try:
            _await_hold(process, paths, logged)
        except BaseException:
            process.terminate()
            raise
        return job.offers[0]

    def state(self, run_id: str) -> BackendState:
        if (child := self._children.get(run_id)) is not None:
            child.poll()  # collects our own children when they have ended
        paths = RunPaths(self._root, run_id)
        try:
            if _is_held(paths.lock):
                return "running"
            return "gone" if paths.folder.is_dir() else "unknown"
        except OSError:  # a node_root that is no folder, or another user's
            return "unknown"

    def logs(self, run_id: str) -> Iterator[str]:
        log = RunPaths(self._root, run_id).log("supervise")
        if log.is_file():
            with log.open(encoding="utf-8", errors="replace") as file:
                yield from file

    def follow_log(self, run_id: str, stage: str, offset: int) -> Iterator[bytes]:
        yield from ()  # the store is as near as the node

    def stop(self, run_id: str, *, tell: Tell) -> None:
        lock = RunPaths(self._root, run_id).lock
        try:
            if _is_held(lock) and (pid := _holder(lock)) is not None:
                with suppress(ProcessLookupError):  # it ended by itself in between
                    os.kill(pid, signal.SIGTERM)
        except OSError as error:
            raise BackendError(
                f"{run_id} could not be told to stop: {error.strerror}",
                hint=f"check that {self._root} and what runs there belong to you",
            ) from error

    def _gpus(self) -> list[str]:
        """Names of the GPUs that training would see; none without NVIDIA's driver."""
        visible = self._env.get("CUDA_VISIBLE_DEVICES")
        if shutil.which("nvidia-smi", path=self._env.get("PATH")) is None or visible == "":
            return []
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        if visible is not None:
            command.append(f"--id={visible}")
        try:
            found = subprocess.run(
                command, env=self._env, capture_output=True, text=True, timeout=30, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return []  # a driver that does not answer is a GPU that cannot be used
        return [name.strip() for name in found.stdout.splitlines() if name.strip()]


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _holder(lock: Path) -> int | None:
    """The process id in the lock file: of who holds it, or of who did last."""
    try:
        return int(lock.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _await_hold(process: _Detached, paths: RunPaths, logged: int) -> None:
    """Until `process` has put its id in the lock. Raises BackendError where it does not.

    Looks at the id only: trying the lock could take it away from the one that starts.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while _holder(paths.lock) != process.pid:
        if process.poll() is not None:
            if _holder(paths.lock) == process.pid:
                return  # it lived, briefly: its status says how it ended
            words = paths.log("supervise").read_bytes()[logged:].decode(errors="replace").strip()
            raise BackendError(
                f"the supervisor of {paths.folder.name} did not start: {words or 'no word of why'}",
                hint=f"its log: {paths.log('supervise')}",
            )
        if time.monotonic() > deadline:
            raise BackendError(
                f"the supervisor of {paths.folder.name} did not start in {START_TIMEOUT_S:.0f} s",
                hint=f"its log: {paths.log('supervise')}",
            )
        time.sleep(_POLL_S)
