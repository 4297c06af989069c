"""What one rank tells the others: two real processes over gloo."""

import subprocess
import sys
from pathlib import Path

import pytest

from training.distributed import ALONE
from training.errors import CheckpointError

PROGRAM = """
import torch
from training.distributed import join_ranks
from training.errors import CheckpointError, TrainingError

def fail(error):
    raise error

with join_ranks("cpu") as ranks:
    assert ranks.ask_first(lambda: {"from": ranks.rank}) == {"from": 0}
    assert ranks.gather(ranks.rank * 10) == [0, 10]
    for raised, heard in ((CheckpointError("no", hint="do"), CheckpointError),
                          (ZeroDivisionError("oh"), TrainingError)):
        try:
            ranks.ask_first(lambda: fail(raised))
        except Exception as error:
            assert type(error) is (type(raised) if ranks.is_first else heard), error
            assert str(raised) in str(error)
            hint = getattr(error, "hint", "do")
            assert hint == "do" or heard is TrainingError
        else:
            raise AssertionError("nothing was raised")
    ranks.barrier()
    print("fine", flush=True)
"""


@pytest.mark.slow
def test_what_rank_0_finds_or_fails_with_reaches_all(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    ranks = ["--standalone", "--nproc-per-node", "2"]
    ran = subprocess.run(
        [sys.executable, "-m", "training.ranks", *ranks, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("fine") == 2


def test_one_rank_asks_only_itself() -> None:
    assert ALONE.ask_first(lambda: 7) == 7
    assert ALONE.gather("x") == ["x"]

    def fail() -> None:
        raise CheckpointError("no")

    with pytest.raises(CheckpointError):
        ALONE.ask_first(fail)
