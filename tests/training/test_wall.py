import time
from pathlib import Path
from typing import Any

import pytest

from training.wall import Wall


def write_program(folder: Path, script: str) -> str:
    path = folder / "go-down-in"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def arm(program: str | None, minutes: int) -> list[tuple[str, dict[str, Any]]]:
    told: list[tuple[str, dict[str, Any]]] = []
    wall = Wall(program)
    wall.arm(minutes, tell=lambda event, **fields: told.append((event, fields)))
    wall.settle()
    return told


def test_the_machine_is_told_when_to_end(tmp_path: Path) -> None:
    program = write_program(tmp_path, f'echo "$@" > {tmp_path}/asked')
    assert arm(program, 17) == [("wall_armed", {"minutes": 17})]
    assert (tmp_path / "asked").read_text() == "17\n"


def test_it_is_left_for_when_training_has_begun(tmp_path: Path) -> None:
    wall = Wall(write_program(tmp_path, f"touch {tmp_path}/asked"))
    wall.arm(17, tell=lambda event, **fields: None)
    time.sleep(0.3)
    assert not (tmp_path / "asked").exists()
    wall.hurry()
    deadline = time.monotonic() + 10
    while not (tmp_path / "asked").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_wall_that_does_not_stand_is_told_with_its_reason(tmp_path: Path) -> None:
    ((event, fields),) = arm(write_program(tmp_path, "echo no daemon >&2; exit 3"), 17)
    assert event == "wall_not_armed"
    assert "no daemon" in fields["why"]
    assert arm(str(tmp_path / "missing"), 17)[0][0] == "wall_not_armed"


@pytest.mark.parametrize("minutes", [1, 60])
def test_where_there_is_no_machine_to_end_there_is_no_wall(minutes: int) -> None:
    assert arm(None, minutes) == []
