"""Where the ranks of a training that hangs stand: asked for by a signal, gathered as one text.

Torch-free. A rank that hangs in C code runs no Python handler, so it is `faulthandler` that
answers, straight from the signal, into a file of the rank's own: none writes over another's.
"""

import faulthandler
import os
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import psutil
from msgspec import Struct

SIGNAL = signal.SIGUSR1
ANSWER_TIMEOUT_S = 5.0
"""Longest wait for all answers: a rank that is stopped, or stuck in a driver, gives none."""
_SETTLE_S = 0.5
"""An answer that has not grown for so long is whole."""
_PREFIX = ".stacks-"

_answers: list[TextIO] = []
"""Open for as long as the process lives: faulthandler keeps only their descriptors."""


def register(folder: Path) -> None:
    """Have this process answer the signal with the stacks of all its threads, in `folder`.

    It is the rank that torchrun has told it to be. To be called first of all in training: the
    signal ends a process that has not.
    """
    rank = os.environ.get("RANK", "0")
    answers = (folder / f"{_PREFIX}{rank}").open("w")  # what an earlier one said is over
    answers.write(f"{os.getpid()}\n")
    answers.flush()
    faulthandler.register(SIGNAL, file=answers, all_threads=True)
    _answers.append(answers)


class Rank(Struct, frozen=True, kw_only=True):
    """One that has registered; what it answers begins at byte `start` of its file."""

    rank: int
    pid: int
    path: Path
    start: int

    def read(self) -> str:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read().decode(errors="replace").strip()


def find_ranks(folder: Path, pids: Collection[int]) -> Iterator[Rank]:
    """Those of the processes `pids` that have registered there."""
    for path in folder.glob(f"{_PREFIX}*"):
        first, newline, _ = path.read_text(errors="replace").partition("\n")
        if newline and int(first) in pids:
            number = int(path.name.removeprefix(_PREFIX))
            yield Rank(rank=number, pid=int(first), path=path, start=path.stat().st_size)


def ask_stacks(folder: Path, pids: Collection[int], *, why: str) -> str:
    """The stacks of these ranks, in their order, or that one gave none; takes some seconds."""
    ranks = sorted(find_ranks(folder, pids), key=lambda rank: rank.rank)
    for rank in ranks:
        with suppress(ProcessLookupError):
            os.kill(rank.pid, SIGNAL)
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    answers, before = [""], None
    while time.monotonic() < deadline and not (all(answers) and answers == before):
        time.sleep(_SETTLE_S)
        answers, before = [rank.read() for rank in ranks], answers
    loading = set(pids) - {rank.pid for rank in ranks}
    parts = [f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: {why}"]
    for rank, answer in zip(ranks, answers, strict=True):
        said = answer or f"no answer in {ANSWER_TIMEOUT_S:.0f} s"
        parts.append(f"rank {rank.rank} (process {rank.pid}, {_state(rank.pid)}):\n{said}")
    parts += [f"process {pid} ({_state(pid)}) was not training yet" for pid in sorted(loading)]
    if not pids:
        parts.append("no rank had been started yet")
    return "\n\n".join(parts) + "\n\n"


def _state(pid: int) -> str:
    """As the kernel has it: `sleeping`, `stopped`, or `disk-sleep` behind a sick device."""
    try:
        return str(psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return "gone"
