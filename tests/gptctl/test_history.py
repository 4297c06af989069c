"""What runs have cost, together: what is added up stays the same to the last digit."""

import csv
import io
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gptctl.history import as_seen, entries, read_history, read_starts, to_csv, total
from gptctl.runs import view_run
from tests.gptctl.run_folder import NOW, OFFER, RunFolder, make_bill, make_record, make_status
from training.layout import BillLine, run_key

LAMBDA = replace(OFFER, cloud="lambda", gpu="A100-80GB", gpu_count=8)
HOUR = 3600.0
PRICE = Decimal("3.60")
"""Of the bills made here, an hour; a tenth of a cent a second."""


def make_run(run_id="small-3f9a", *, created_at=NOW, record=None, **status):
    run = make_record(run_id, created_at=created_at, **(record or {}))
    return run, make_status(run_id, **{"state": "succeeded", "updated_at": created_at} | status)


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_entry_is_of_the_machine_that_was_taken_and_of_all_lives():
    (entry,) = entries(
        [
            make_run(
                record={"nodes": 2},
                offer=LAMBDA,
                bill=(make_bill("training", HOUR), make_bill("training", HOUR, life=2)),
                life=2,
                updated_at=NOW + timedelta(hours=3),
            )
        ]
    )

    assert (entry.cloud, entry.gpu, entry.gpu_count, entry.nodes) == ("lambda", "A100-80GB", 8, 2)
    assert (entry.hours, entry.usd, entry.budget_usd) == (2.0, Decimal("7.20"), Decimal("1.00"))
    assert entry.ended_at == NOW + timedelta(hours=3)
    assert entry.by_month == {"2026-11": Decimal("7.20")}


def test_run_that_goes_on_has_no_end():
    assert entries([make_run(state="training")])[0].ended_at is None


def test_totals_by_month_recipe_and_cloud():
    november = make_run("a-1", bill=(make_bill("training", HOUR),))
    december = make_run(
        "b-2",
        created_at=at("2026-12-02"),
        record={"recipe_name": "gpt2-124m"},
        offer=LAMBDA,
        bill=(make_bill("training", 2 * HOUR),),
    )

    found = total(entries([december, november]))

    assert found.usd == Decimal("10.80")
    assert found.by_month == {"2026-11": Decimal("3.60"), "2026-12": Decimal("7.20")}
    assert list(found.by_recipe.items()) == [
        ("gpt2-124m", Decimal("7.20")),
        ("small", Decimal("3.60")),
    ]
    assert found.by_cloud == {"lambda": Decimal("7.20"), "local": Decimal("3.60")}


def test_no_runs_cost_nothing():
    assert total([]).usd == 0
    assert to_csv([]).count("\n") == 1


def test_since_lists_what_was_still_heard_of_that_day_and_what_goes_on():
    long_over = make_run("a-1", created_at=at("2026-10-01"))
    that_day = make_run("b-2", created_at=at("2026-10-30"), updated_at=at("2026-11-01T00:00:01"))
    goes_on = make_run("c-3", created_at=at("2026-10-02"), state="training")

    found = entries([goes_on, that_day, long_over], since=date(2026, 11, 1))

    assert [entry.run_id for entry in found] == ["c-3", "b-2"]


def test_run_over_the_end_of_a_month_is_shared_out_by_time():
    # Ended a quarter of an hour after midnight; the queue for a machine was not billed.
    run = make_run(
        created_at=at("2026-10-31T20:00"),
        updated_at=at("2026-11-01T00:15"),
        bill=(make_bill("preparing", HOUR / 4), make_bill("training", HOUR * 3 / 4)),
    )

    assert entries([run])[0].by_month == {"2026-10": Decimal("2.7"), "2026-11": Decimal("0.9")}


def test_lives_lie_where_their_events_say():
    run = make_run(
        created_at=at("2026-10-30T00:00"),
        updated_at=at("2026-11-20T00:00"),
        life=3,
        bill=tuple(make_bill("training", HOUR, life=life) for life in (1, 2, 3)),
    )
    starts = {2: at("2026-10-31T23:30"), 3: at("2026-11-19T23:00")}

    told = entries([run], starts=lambda run_id: starts)[0].by_month
    untold = entries([run])[0].by_month

    assert told == {"2026-10": Decimal("5.4"), "2026-11": Decimal("5.4")}
    assert untold == {"2026-10": Decimal("7.2"), "2026-11": Decimal("3.6")}


def test_resumed_run_without_a_machine_yet_has_billed_when_it_was_launched():
    run = make_run(
        created_at=at("2026-10-30T00:00"),
        updated_at=at("2026-11-20T00:00"),
        state="provisioning",
        bill=(make_bill("training", HOUR),),
    )

    assert entries([run])[0].by_month == {"2026-10": Decimal("3.6")}


def test_events_are_not_read_for_a_run_within_one_month():
    def starts(run_id):
        raise AssertionError("that is a request each")

    assert entries([make_run()], starts=starts)[0].by_month == {"2026-11": Decimal("0.0635")}


@given(
    st.lists(
        st.builds(
            BillLine,
            life=st.integers(1, 4),
            phase=st.sampled_from(["checking", "preparing", "training"]),
            seconds=st.floats(0, 1e7).map(lambda s: round(s, 3)),
            price_per_hour=st.decimals(0, 100, places=2),
        )
    ),
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),
    st.integers(-(10**7), 10**8),
    st.dictionaries(
        st.integers(1, 4),
        st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),
    ),
)
def test_months_add_up_to_what_was_spent_whatever_the_clocks_said(bill, created_at, later_s, told):
    run = make_run(
        created_at=created_at,
        updated_at=created_at + timedelta(seconds=later_s),
        bill=tuple(bill),
        life=4,
    )

    (entry,) = entries([run], starts=lambda run_id: told)

    assert sum(entry.by_month.values(), Decimal(0)) == entry.usd
    assert all(usd >= 0 for usd in entry.by_month.values())
    assert sum(total([entry]).by_month.values(), Decimal(0)) == entry.usd


def test_most_is_what_the_nearer_limit_allows():
    def most(**status):
        return entries([make_run(**status)])[0].most_usd

    assert most(budget_usd=Decimal(9), max_hours=2.0) == Decimal("7.20")
    assert most(budget_usd=Decimal(5), max_hours=2.0) == Decimal(5)
    assert most(budget_usd=None, max_hours=None) is None
    assert most(budget_usd=Decimal(5), price_per_hour=Decimal(0), bill=()) == 0


def test_csv_has_a_line_a_run_and_nothing_where_nothing_is_known():
    run = make_run(state="training", budget_usd=None, bill=(make_bill("training", HOUR),))

    (row,) = csv.DictReader(io.StringIO(to_csv(entries([run]))))

    assert row == {
        "run_id": "small-3f9a",
        "recipe": "small",
        "cloud": "local",
        "gpu": "CPU",
        "gpu_count": "0",
        "nodes": "1",
        "state": "training",
        "created_at": "2026-11-21T12:00:00+00:00",
        "ended_at": "",
        "hours": "1.0",
        "usd": "3.6000",
        "budget_usd": "",
    }


def write_events(run, *lines):
    data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    run.store.write(run_key(run.run_id, "events.jsonl"), data + b'{"event": "life_sta')


def test_starts_are_the_first_of_each_life_and_a_gap_is_a_gap(tmp_path):
    run = RunFolder(tmp_path)
    assert read_starts(run.store, run.run_id) == {}
    write_events(
        run,
        {"at": NOW, "event": "life_started", "life": 1},
        {"at": NOW, "event": "phase_started", "phase": "checking"},
        {"at": NOW + timedelta(hours=5), "event": "life_started", "life": 3},
        {"at": NOW + timedelta(hours=6), "event": "life_started", "life": 3},
    )

    assert read_starts(run.store, run.run_id) == {1: NOW, 3: NOW + timedelta(hours=5)}


def test_history_of_a_store_reads_events_and_warns_of_what_is_damaged(tmp_path):
    run = RunFolder(
        tmp_path,
        state="succeeded",
        updated_at=NOW + timedelta(days=30),
        bill=(make_bill("training", HOUR),),
    )
    write_events(run, {"at": NOW + timedelta(days=1), "event": "life_started", "life": 1})
    RunFolder(tmp_path, "broken-0001").paths.status.write_text("{")

    found, warnings = read_history(run.store)

    assert [(e.run_id, e.by_month) for e in found] == [(run.run_id, {"2026-11": PRICE})]
    assert len(warnings) == 1
    assert "broken-0001" in warnings[0]


def test_run_that_was_killed_is_over_for_whoever_has_looked():
    alive, killed = make_run("a-1", state="training"), make_run("b-2", state="training")
    views = [
        view_run(*run, backend, store="s", now=NOW + timedelta(hours=1))
        for run, backend in ((alive, "running"), (killed, "gone"))
    ]

    seen = entries(as_seen([alive, killed], views))

    assert [(entry.state, entry.ended_at) for entry in seen] == [
        ("training", None),
        ("failed", NOW),
    ]
