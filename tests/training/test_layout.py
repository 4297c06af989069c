from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import TrainingError
from training.layout import (
    MANIFEST,
    BillLine,
    Status,
    checkpoint_name,
    checkpoint_step,
    checkpoints_to_drop,
    committed_checkpoints,
    decode,
    encode,
    write_atomic,
)


def test_a_status_survives_the_disk() -> None:
    status = Status(
        run_id="demo-3f9a",
        state="training",
        phase="training",
        life=1,
        step=3,
        steps=10,
        tokens=300,
        updated_at=datetime(2026, 11, 21, tzinfo=UTC),
        bill=(BillLine(life=1, phase="training", seconds=1.5, price_per_hour=Decimal("22.32")),),
        budget_usd=Decimal("0.10"),
    )
    assert decode(encode(status), Status, name="status.json") == status
    assert b'"price_per_hour": "22.32"' in encode(status)  # money is never a float


def test_a_damaged_record_is_named() -> None:
    with pytest.raises(TrainingError, match=r"status\.json cannot be read"):
        decode(b'{"run_id": "demo', Status, name="status.json")
    with pytest.raises(TrainingError, match=r"status\.json cannot be read"):
        decode(b'{"run_id": "\xff"}', Status, name="status.json")


def test_fields_of_a_newer_version_are_passed_over() -> None:
    line = BillLine(life=1, phase="training", seconds=1, price_per_hour=Decimal(2))
    newer = encode(line).replace(b"{", b'{"invented_later": 1,', 1)
    assert decode(newer, BillLine, name="x") == line


def test_a_folder_counts_as_checkpoint_when_its_manifest_is_there(tmp_path: Path) -> None:
    for step in (20, 100, 3):
        (tmp_path / checkpoint_name(step)).mkdir()
    for step in (20, 100):
        (tmp_path / checkpoint_name(step) / MANIFEST).write_text("{}")
    (tmp_path / ".step-00000040.partial").mkdir()
    assert committed_checkpoints(tmp_path) == [20, 100]
    assert committed_checkpoints(tmp_path / "nowhere") == []


def test_checkpoint_names_sort_and_parse() -> None:
    assert checkpoint_name(5000) == "step-00005000"
    assert checkpoint_step("step-00005000") == 5000
    assert checkpoint_step(".step-00005000.partial") is None


@given(st.sets(st.integers(0, 50)), st.integers(1, 4), st.integers(0, 50))
def test_retention_keeps_the_newest_and_the_best(steps: set[int], keep: int, best: int) -> None:
    dropped = set(checkpoints_to_drop(list(steps), keep=keep, best=best))
    newest = set(sorted(steps)[-keep:])
    assert dropped == steps - newest - {best}


def test_an_interrupted_write_leaves_the_old_bytes(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
