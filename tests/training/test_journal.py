import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

import training.progress
from tests.tiny import make_dataset, make_recipe, make_record, make_run
from training.events import append_event, append_line, parse_lines
from training.journal import Journal
from training.layout import BillLine, Status, decode
from training.meter import Limits
from training.outcome import Outcome
from training.race import Race

LIMITS = Limits(budget_usd=Decimal(1), max_hours=None, price_per_hour=Decimal(36))


def make_journal(root: Path, *, nodes: int = 1, earlier: tuple[BillLine, ...] = ()) -> Journal:
    record = make_record(make_recipe(), nodes=nodes)
    return Journal(record, make_run(root, record), LIMITS, None, earlier=earlier)


def seconds_of(journal: Journal) -> dict[str, float]:
    return {line.phase: line.seconds for line in journal.meter.bill}


class JumpingClock(datetime):
    """The clock of the day, set by a day forth or back each time that somebody looks."""

    looks = 0

    @classmethod
    def now(cls, tz: object = None) -> datetime:
        cls.looks += 1
        return datetime(2026, 11, 21, tzinfo=UTC) + timedelta(days=(-1) ** cls.looks)


def test_a_clock_that_jumps_bills_no_second_more_or_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.progress, "datetime", JumpingClock)
    started = time.monotonic()
    journal = make_journal(tmp_path)
    told = []
    for _ in range(10):
        time.sleep(0.02)
        journal.tick()
        journal.write_status()
        data = (tmp_path / "runs" / "tiny-0001" / "status.json").read_bytes()
        told.append(decode(data, Status, name="status").updated_at)
    passed_s = time.monotonic() - started
    assert len(set(told)) == 2  # it did jump
    assert 0.2 <= sum(seconds_of(journal).values()) <= passed_s + 0.001


def test_evaluations_saves_and_waits_are_no_training_on_the_bill(tmp_path: Path) -> None:
    journal = make_journal(tmp_path)
    journal.enter("training", "training")
    time.sleep(0.4)
    events = tmp_path / "runs" / "tiny-0001" / "events.jsonl"
    append_event(events, "evaluated", step=0, seconds=0.1)
    append_event(events, "checkpoint_saved", step=2, stall_s=0.05, write_s=9.0)
    append_event(events, "waited_for_data", seconds=0.02)
    journal.tick()
    bill = seconds_of(journal)
    assert (bill["evaluation"], bill["checkpoints"], bill["waiting_for_data"]) == (0.1, 0.05, 0.02)
    whole = sum(bill.values()) - bill["checking"]
    assert bill["training"] == pytest.approx(whole - 0.17, abs=0.002)


def test_a_race_that_training_would_win_is_told_once_and_stands_in_the_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(train={"steps": 1000})  # 64,000 tokens; shards of 500
    record = make_record(recipe)
    paths, data = make_run(tmp_path, record), tmp_path / "data"
    journal = Journal(record, paths, LIMITS, None)
    assert decode(journal.write_status(), Status, name="status").lead is None
    journal.race = Race(data, recipe)
    make_dataset(data, recipe, shards=4, complete=False)
    for _ in range(3):
        append_event(paths.events, "shard_written", tokens=500, seconds=10.0)
    append_event(paths.events, "training_started", step=0)
    line = {"step": 10, "tokens": 640, "loss": 3.0, "mfu": None, "tokens_per_sec": 640.0}
    append_line(paths.metrics, line)
    append_event(paths.events, "waiting_for_data")
    for _ in range(3):
        journal.tick()
        journal.write_status()

    lead = decode(paths.status.read_bytes(), Status, name="status").lead
    assert lead is not None
    assert (lead.ready_tokens, lead.tokens, lead.tokens_per_sec) == (1500, 860, 50.0)
    assert lead.is_losing
    assert lead.is_waiting
    assert 1100 < lead.waits_s < 1200  # 63,000 tokens at 50, less 63,360 at 640 a second
    events = list(parse_lines(paths.events.read_bytes()))
    assert [event["event"] for event in events].count("data_is_late") == 1
    assert "training will wait about 1,1" in capsys.readouterr().out

    append_event(paths.events, "waited_for_data", seconds=1.0)
    journal.tick()
    told = decode(journal.write_status(), Status, name="status").lead
    assert told is not None
    assert not told.is_waiting
    assert decode(journal.close(Outcome.stopped("user")), Status, name="status").lead is None


def test_the_bill_of_earlier_lives_and_the_way_down_are_on_the_last_status(tmp_path: Path) -> None:
    earlier = BillLine(life=1, phase="lost", seconds=100, price_per_hour=Decimal(36))
    journal = make_journal(tmp_path, nodes=2, earlier=(earlier,))
    status = decode(journal.close(Outcome.stopped("budget"), teardown_s=90), Status, name="status")
    assert status.bill[0] == earlier
    assert (status.bill[-1].phase, status.bill[-1].seconds) == ("going_down", 90)
    assert {line.nodes for line in status.bill[1:]} == {2}
