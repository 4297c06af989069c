"""What a rescue writes down; that it rescues is shown in tests/runs/test_node.py."""

from decimal import Decimal
from pathlib import Path

import pytest

from tests.tiny import make_recipe, make_record, make_run
from training.layout import BillLine, Status
from training.progress import Progress
from training.rescue import close_status, rescue

RECORD = make_record(make_recipe())
PRICE = Decimal(36)  # a cent a second


def last_words(**changes: object) -> Status:
    line = BillLine(life=2, phase="training", seconds=600, price_per_hour=PRICE)
    fields = {
        "run_id": RECORD.run_id, "state": "training", "phase": "training", "life": 2, "step": 4,
        "steps": 6, "tokens": 256, "updated_at": RECORD.created_at, "bill": (line,),
        "price_per_hour": PRICE,
    }  # fmt: skip
    return Status(**fields | changes)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({}, "user"),
        ({"budget_usd": Decimal(20)}, "user"),
        ({"budget_usd": Decimal("7.50")}, "budget"),
        ({"max_hours": 0.2}, "deadline"),
    ],
)
def test_a_machine_that_ends_at_its_limit_ends_for_that_reason(
    tmp_path: Path, limits: dict[str, object], reason: str
) -> None:
    progress = Progress(make_run(tmp_path, RECORD))
    status = close_status(last_words(**limits), progress, silent_s=60, teardown_s=30)
    assert (status.state, status.reason, status.life) == ("stopped", reason, 2)
    assert [(line.phase, line.seconds) for line in status.bill] == [
        ("training", 600),
        ("hung", 60),
        ("going_down", 30),
    ]
    assert status.spent_usd == Decimal("6.90")


def test_a_run_that_recovers_is_left_open_for_its_next_machine(tmp_path: Path) -> None:
    progress = Progress(make_run(tmp_path, RECORD))
    status = close_status(last_words(), progress, silent_s=0, teardown_s=0, recovers=True)
    assert (status.state, status.reason, status.is_over) == ("preempted", "machine", False)


def test_where_nobody_holds_the_run_nothing_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, RECORD)
    rescue(RECORD.run_id, tmp_path)
    assert "not alive" in capsys.readouterr().out
