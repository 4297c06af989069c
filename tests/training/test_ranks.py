"""What torchrun's exit tells of its ranks."""

import subprocess
import sys
from pathlib import Path

import pytest

from training.cluster import OUT_OF_MEMORY

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("exit_code", "told"), [(OUT_OF_MEMORY, OUT_OF_MEMORY), (3, 1)])
def test_want_of_memory_on_one_rank_is_told_from_other_deaths(
    tmp_path: Path, exit_code: int, told: int
) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        f"import os, time\nos._exit({exit_code}) if os.environ['RANK'] == '1' else time.sleep(60)\n"
    )
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "training.ranks", "--standalone", "--nproc-per-node", "2"),
            str(script),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == told
    assert f"exitcode  : {exit_code}" in ran.stderr
