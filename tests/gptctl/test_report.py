from decimal import Decimal

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gptctl.report import cost_of, read_curves, read_samples
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
        "by_phase": {"training": {"seconds": 15.0, "usd": "0.0150"}},
        "by_life": {
            1: {"seconds": 10.0, "usd": "0.0100"},
            2: {"seconds": 5.0, "usd": "0.0050"},
        },
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
