import re
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import training
from gptctl.report import (
    KINDS,
    Spent,
    cost_of,
    describe_shares,
    read_curves,
    read_samples,
    reconcile,
    share_by_kind,
)
from tests.gptctl.run_folder import RunFolder, make_bill, make_record, make_status
from training.layout import BillLine, run_key


@given(
    st.lists(
        st.builds(
            BillLine,
            life=st.integers(1, 3),
            phase=st.sampled_from(["checking", "preparing", "training", "finishing"]),
            seconds=st.floats(0, 1e6).map(lambda s: round(s, 3)),
            price_per_hour=st.decimals(0, 100, places=2),
        )
    )
)
def test_phases_add_up_to_what_was_spent_to_the_last_digit(bill):
    status = make_status(bill=tuple(bill))
    cost = cost_of(make_record(), status)

    assert sum((p.usd for p in cost.by_phase.values()), Decimal(0)) == cost.spent_usd
    assert cost.spent_usd == status.spent_usd


def test_cost_document_has_money_as_strings():
    status = make_status(bill=(make_bill("training", 10.0), make_bill("training", 5.0, life=2)))
    document = msgspec.to_builtins(cost_of(make_record(), status))

    assert document == {
        "run_id": "small-3f9a",
        "price_per_hour": "3.60",
        "price_source": "given by --price-per-hour",
        "price_as_of": "2026-11-21",
        "spent_usd": "0.0150",
        "budget_usd": "1.00",
        "nodes": 1,
        "by_phase": {"training": {"seconds": 15.0, "usd": "0.0150"}},
        "by_life": {
            1: {"seconds": 10.0, "usd": "0.0100"},
            2: {"seconds": 5.0, "usd": "0.0050"},
        },
        "shares": {"training": 1.0},
    }


def test_price_changed_at_a_resume_is_said_to_be_given():
    status = make_status(price_per_hour=Decimal("9.99"))
    record = make_record(offer=msgspec.structs.replace(make_record().offer, price_source="list"))

    assert cost_of(record, make_status()).price_source == "list"
    assert cost_of(record, status).price_source == "given by --price-per-hour"


def test_last_line_of_a_step_wins_and_torn_ones_are_passed_over(tmp_path):
    run = RunFolder(tmp_path)
    run.write_metrics(
        {"step": 0, "val_loss": 5.5},
        {"step": 10, "loss": 4.0, "val_loss": 4.1},
        {"step": 20, "loss": 3.0},
        {"step": 10, "loss": 3.9, "val_loss": 4.0},
    )
    key = run_key(run.run_id, "metrics.jsonl")
    run.store.write(key, run.store.read(key) + b'{"step": 30, "lo')

    curves = read_curves(run.store, run.run_id)

    assert curves.train == ((10, 3.9), (20, 3.0))
    assert curves.val == ((0, 5.5), (10, 4.0))


def test_run_without_metrics_or_samples_has_none(tmp_path):
    run = RunFolder(tmp_path)

    assert read_curves(run.store, run.run_id).train == ()
    assert read_samples(run.store, run.run_id) is None


def test_newest_samples_are_read(tmp_path):
    run = RunFolder(tmp_path)
    run.store.write(run_key(run.run_id, "samples", "step-00000020.txt"), b"old")
    run.store.write(run_key(run.run_id, "samples", "step-00000100.txt"), "né".encode())

    assert read_samples(run.store, run.run_id) == "né"


def spent(seconds, usd):
    return Spent(seconds=seconds, usd=Decimal(usd))


def line(phase, seconds, price="1"):
    return BillLine(life=1, phase=phase, seconds=seconds, price_per_hour=Decimal(price))


def test_shares_say_what_the_money_was_good_for_and_not_the_time():
    bill = (
        line("booting", 60, "1"),
        line("installing", 60, "3"),
        line("preparing", 600, "0.1"),
        line("training", 60, "91"),
        line("evaluation", 60, "3"),
        line("going_down", 60, "1"),
    )

    shares = share_by_kind(bill)

    assert shares == pytest.approx(
        {"training": 0.91, "set-up": 0.04, "data": 0.01, "evaluation": 0.03, "idle": 0.01}
    )
    assert (
        describe_shares(shares) == "training 91 %, set-up 4 %, data 1 %, evaluation 3 %, idle 1 %"
    )


def test_shares_of_a_machine_without_a_price_are_of_its_time():
    bill = line("training", 30, "0"), line("finishing", 10, "0")
    assert share_by_kind(bill) == {"training": 0.75, "checkpoints": 0.25}


def test_shares_of_a_small_bill_are_of_the_money_before_it_is_rounded_up():
    bill = line("training", 99, "0.01"), line("checking", 1, "0.01")
    assert share_by_kind(bill) == pytest.approx({"training": 0.99, "set-up": 0.01})


def test_run_that_billed_nothing_has_no_shares():
    assert describe_shares(cost_of(make_record(), make_status(bill=())).shares) == ""


def test_phase_of_a_newer_version_is_shown_as_other():
    assert share_by_kind([line("dreaming", 1)]) == {"other": 1.0}


@given(st.dictionaries(st.sampled_from(sorted(KINDS)), st.floats(1e-6, 1e6), min_size=1))
def test_whole_per_cents_add_up_to_a_hundred_and_are_off_by_less_than_one(sizes):
    whole = sum(sizes.values())
    shares = {kind: size / whole for kind, size in sizes.items()}

    told = dict(re.findall(r"(\S+) (\d+) %", describe_shares(shares)))

    assert sum(int(n) for n in told.values()) == 100
    assert all(abs(int(told.get(kind, 0)) - 100 * shares[kind]) < 1 + 1e-9 for kind in shares)


def test_every_phase_that_a_node_bills_has_a_kind():
    folder = Path(training.__file__).parent
    code = "\n".join(path.read_text() for path in sorted(folder.glob("*.py")))
    phases = {
        *re.findall(r"\.enter\(\"\w+\", \"(\w+)\"", code),
        *re.findall(r"meter\.add\(\"(\w+)\"", code),
        *re.findall(r"_set_aside\(\"(\w+)\"", code),
        *re.findall(r"^(?:GOING_DOWN|LOST) = \"(\w+)\"", code, re.MULTILINE),
        *re.findall(r"^enter (\w+)", (folder / "bootstrap.sh").read_text(), re.MULTILINE),
    }

    assert {"training", "going_down", "booting", "installing"} <= phases
    assert phases - {phase for known in KINDS.values() for phase in known} == set()


def test_bills_that_agree_need_no_words():
    assert reconcile(spent(3600, "10.00"), spent(3610, "10.03")).why == ()


def test_skypilot_that_saw_late_that_a_machine_was_gone_counted_longer():
    told = reconcile(spent(3600, "10.00"), spent(7200, "20.00"))

    assert (told.time_usd, told.price_usd) == (Decimal("10.0000"), Decimal(0))
    assert [why.partition(":")[0] for why in told.why] == ["SkyPilot counted 3,600 s more"]


def test_price_that_moved_since_is_told_from_time_that_was_counted_otherwise():
    told = reconcile(spent(3600, "10.00"), spent(3000, "10.00"))

    assert (told.time_usd, told.price_usd) == (Decimal("-1.6667"), Decimal("1.6667"))
    assert "600 s less" in told.why[0]
    assert "another price" in told.why[1]


def test_machine_without_a_price_in_the_catalogue_costs_nothing_there():
    told = reconcile(spent(3600, "10.00"), spent(3600, "0"))

    assert told.price_usd == Decimal("-10.00")
    assert told.why == ("SkyPilot knows no price for this machine",)


@given(
    st.floats(0, 1e6), st.decimals(0, 10000, places=4), st.floats(0, 1e6),
    st.decimals(0, 10000, places=4),
)  # fmt: skip
def test_what_is_explained_is_the_whole_difference(ours_s, ours_usd, theirs_s, theirs_usd):
    told = reconcile(spent(ours_s, ours_usd), spent(theirs_s, theirs_usd))

    assert told.time_usd + told.price_usd == theirs_usd - ours_usd
