"""A month's budget, taken before a launch: by one of two who race for the last of it."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from gptctl.errors import PlanRefusedError, UsageError
from gptctl.history import Entry
from gptctl.month import release_month, reserve_month, settle_month

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
STORE = "s3://ada/runs"
LIMIT = Decimal(100)


def make_entry(run_id, usd=0, *, ended_at=None, most=None, **by_month):
    """`november=3, october=4`: what it spent then; else all of `usd` in November."""
    months = {"october": "2026-10", "november": "2026-11"}
    spent = {months[name]: Decimal(part) for name, part in by_month.items()}
    spent = spent or ({"2026-11": Decimal(usd)} if usd else {})
    return Entry(
        run_id=run_id,
        recipe="small",
        cloud="lambda",
        gpu="A100-80GB",
        gpu_count=8,
        nodes=1,
        state="training" if ended_at is None else "succeeded",
        created_at=NOW,
        ended_at=ended_at,
        hours=1.0,
        usd=sum(spent.values(), Decimal(0)),
        budget_usd=None if most is None else Decimal(most),
        most_usd=None if most is None else Decimal(most),
        by_month=spent,
    )


@pytest.fixture
def reserve(tmp_path):
    def call(run_id, usd, *entries, store=STORE, limit=LIMIT, now=NOW):
        reserve_month(
            tmp_path / "month",
            store=store,
            run_id=run_id,
            usd=Decimal(usd),
            limit=limit,
            entries=entries,
            now=now,
        )

    return call


def test_launches_are_taken_until_the_month_is_full(reserve):
    reserve("a-1", 60)
    reserve("b-2", 40)

    with pytest.raises(PlanRefusedError) as refused:
        reserve("c-3", "0.01")
    assert refused.value.message == (
        "c-3 may spend $0.01, and of the $100 for 2026-11 $0.00 is left: $0.00 is spent, "
        "a-1 may spend $60.00, b-2 may spend $40.00"
    )
    assert "gptctl cost budget --month" in refused.value.hint


def test_run_that_goes_on_holds_all_that_it_may_spend_and_not_that_and_more(reserve):
    reserve("a-1", 60)
    spending = make_entry("a-1", 20, most=60)

    reserve("b-2", 40, spending)
    with pytest.raises(PlanRefusedError):
        reserve("c-3", 1, spending)


def test_run_that_has_ended_holds_what_it_spent(reserve):
    reserve("a-1", 60)
    ended = make_entry("a-1", 20, ended_at=NOW + timedelta(hours=1))

    reserve("b-2", 80, ended)
    with pytest.raises(PlanRefusedError, match=r"\$0.00 is left: \$20.00 is spent, b-2 may"):
        reserve("c-3", 1, ended)


def test_what_was_overspent_counts_as_it_was_spent(reserve):
    reserve("a-1", 60)

    with pytest.raises(PlanRefusedError):
        reserve("b-2", 40, make_entry("a-1", 61, most=60))


def test_runs_that_never_reserved_here_count_as_the_store_tells(reserve):
    found = [
        make_entry("ended", 10, ended_at=NOW - timedelta(days=3), most=50),
        make_entry("elsewhere", 5, most=50),
        make_entry("without-limit", 7),
        make_entry("long-ago", ended_at=NOW - timedelta(days=40), october=90),
    ]

    with pytest.raises(PlanRefusedError, match=r"\$33.00 is left"):
        reserve("b-2", 34, *found)
    reserve("b-2", 33, *found)


def test_run_from_last_month_holds_only_what_it_may_yet_spend_in_this_one(reserve):
    reserve("a-1", 60, now=NOW - timedelta(days=30))
    goes_on = make_entry("a-1", october=50, november=2, most=60)

    reserve("b-2", 90, goes_on)
    with pytest.raises(PlanRefusedError, match=r"a-1 may spend \$10.00"):
        reserve("c-3", 1, goes_on)


def test_a_new_month_begins_empty(reserve):
    ended = make_entry("a-1", october=100, ended_at=NOW - timedelta(days=25))
    reserve("a-1", 100, now=NOW - timedelta(days=30))

    reserve("b-2", 100, ended)


def test_month_is_that_of_utc(reserve):
    here = datetime.fromisoformat("2026-12-01T01:00:00+02:00")

    with pytest.raises(PlanRefusedError, match="for 2026-11"):
        reserve("a-1", 101, now=here)


def test_resumed_run_reserves_its_new_total_in_place_of_the_old_one(reserve):
    ended = make_entry("a-1", october=30, november=20, ended_at=NOW - timedelta(hours=1))
    reserve("a-1", 60, now=NOW - timedelta(hours=2))

    reserve("a-1", 130, ended)  # 30 of them were October's
    with pytest.raises(PlanRefusedError):
        reserve("b-2", 1, ended)  # who read the store before the resumption sees the old ending


def test_refused_resumption_leaves_the_reservation_as_it_was(reserve):
    reserve("a-1", 60)
    with pytest.raises(PlanRefusedError):
        reserve("a-1", 101)

    reserve("b-2", 40)
    with pytest.raises(PlanRefusedError):
        reserve("c-3", 1)


def test_machine_that_costs_nothing_is_never_refused(reserve):
    reserve("a-1", 0, make_entry("b-2", 200, ended_at=NOW))


def test_launch_that_came_to_nothing_gives_back(reserve, tmp_path):
    reserve("a-1", 100)
    for _ in range(2):
        release_month(tmp_path / "month", store=STORE, run_id="a-1")

    reserve("b-2", 100)


def test_release_is_of_one_store_as_names_are(reserve, tmp_path):
    reserve("a-1", 100)
    release_month(tmp_path / "month", store="elsewhere", run_id="a-1")

    with pytest.raises(PlanRefusedError):
        reserve("b-2", 1)


def test_launch_that_was_killed_before_its_run_was_recorded_is_forgotten(reserve):
    reserve("a-1", 100)

    with pytest.raises(PlanRefusedError):
        reserve("b-2", 1, now=NOW + timedelta(minutes=5))
    reserve("b-2", 100, now=NOW + timedelta(minutes=11))


def test_runs_of_another_store_hold_their_money_until_it_tells_of_their_end(reserve, tmp_path):
    reserve("a-1", 60)
    ended = make_entry("a-1", 20, ended_at=NOW + timedelta(hours=1))

    with pytest.raises(PlanRefusedError):
        reserve("b-2", 41, store="elsewhere", now=NOW + timedelta(days=1))
    settle_month(tmp_path / "month", store=STORE, entries=[ended], now=NOW)
    reserve("b-2", 80, store="elsewhere", now=NOW + timedelta(days=1))


def test_damaged_ledger_refuses_and_says_what_to_do(reserve, tmp_path):
    reserve("a-1", 60)
    (tmp_path / "month" / "reservations.json").write_text('[{"store": "s3')

    with pytest.raises(UsageError, match="cannot be read") as refused:
        reserve("b-2", 1)
    assert "remove it" in refused.value.hint


def test_ledger_that_cannot_be_kept_refuses(tmp_path, reserve):
    (tmp_path / "month").write_text("a file in the way")

    with pytest.raises(UsageError, match="cannot be used"):
        reserve("b-2", 1)


RACE = """
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from gptctl.errors import PlanRefusedError
from gptctl.month import reserve_month

folder, run_id = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for attempt in range(20):
    try:
        reserve_month(folder, store="s", run_id=f"{run_id}-{attempt}", usd=Decimal(1),
                      limit=Decimal(30), entries=[], now=datetime(2026, 11, 21, tzinfo=UTC))
        print("taken")
    except PlanRefusedError:
        print("refused")
"""


def test_processes_that_race_for_the_last_of_it_never_take_more_than_there_is(tmp_path):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path / "month"), f"r{n}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(4)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.communicate(timeout=60)[0].split() for racer in racers]

    words = [word for words in said for word in words]
    assert (words.count("taken"), words.count("refused")) == (30, 50)
