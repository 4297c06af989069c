from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.layout import BillLine, State, Status
from training.meter import Limits, Meter, bill_before

PRICE = Decimal("22.32")
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def make_meter(*earlier: BillLine, price: Decimal = PRICE) -> Meter:
    return Meter(earlier, life=2, price_per_hour=price)


def phases(bill: tuple[BillLine, ...]) -> dict[str, float]:
    return {line.phase: line.seconds for line in bill}


def test_an_hour_costs_the_price_per_hour() -> None:
    meter = make_meter()
    meter.add("training", 3600)
    assert meter.spent_usd == PRICE


def test_earlier_lives_stay_on_the_bill_at_their_own_price() -> None:
    earlier = BillLine(life=1, phase="training", seconds=1800, price_per_hour=Decimal(10))
    meter = make_meter(earlier)
    meter.add("preparing", 1800)
    assert meter.bill[0] is earlier
    assert meter.spent_usd == Decimal(5) + PRICE / 2
    assert meter.seconds == 3600


def test_a_line_says_how_many_nodes_its_price_is_of() -> None:
    meter = Meter((), life=1, price_per_hour=PRICE, nodes=2)
    meter.add("training", 3600)
    (line,) = meter.bill
    assert (line.nodes, line.usd) == (2, PRICE)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1e6)), max_size=20),
    st.decimals("0.01", "1000", places=2),
)
def test_phases_add_up_to_the_total_and_never_to_less_than_the_time(
    spells: list[tuple[str, float]], price: Decimal
) -> None:
    meter = make_meter(price=price)
    for phase, seconds in spells:
        meter.add(phase, seconds)
    assert sum((line.usd for line in meter.bill), Decimal(0)) == meter.spent_usd
    billed = sum((Decimal(repr(line.seconds)) for line in meter.bill), Decimal(0))
    assert meter.spent_usd >= billed * price / 3600


def test_time_beside_training_is_moved_and_neither_made_nor_lost() -> None:
    meter = make_meter()
    meter.add("training", 100)
    meter.move(30, to="evaluation")
    meter.move(5, to="evaluation")
    assert phases(meter.bill) == {"training": 65, "evaluation": 35}
    meter.move(1000, to="waiting_for_data")  # of which the rest was billed as something else
    assert phases(meter.bill) == {"training": 0, "evaluation": 35, "waiting_for_data": 65}
    assert meter.seconds == 100


def limits(**changes: object) -> Limits:
    return Limits(**{"budget_usd": None, "max_hours": None, "price_per_hour": PRICE, **changes})


def test_without_limits_nothing_is_reached() -> None:
    meter = make_meter()
    meter.add("training", 1e9)
    assert limits().reached(meter, reserve_s=60) is None


def test_the_budget_is_reached_while_the_reserve_still_fits() -> None:
    wall = limits(budget_usd=PRICE)  # one hour
    meter = make_meter()
    meter.add("training", 3500)
    assert wall.reached(meter, reserve_s=90) is None
    meter.add("training", 15)
    assert wall.reached(meter, reserve_s=90) == "budget"


def test_the_deadline_counts_all_lives() -> None:
    meter = make_meter(BillLine(life=1, phase="training", seconds=3000, price_per_hour=PRICE))
    meter.add("training", 500)
    assert limits(max_hours=1.0).reached(meter, reserve_s=60) is None
    assert limits(max_hours=1.0).reached(meter, reserve_s=101) == "deadline"


def test_what_is_left_is_until_the_nearer_wall() -> None:
    meter = make_meter()
    meter.add("training", 600)
    assert limits().left_s(meter) == float("inf")
    # To a second: what rounding may yet add is not there to be used.
    assert 2999 < limits(budget_usd=PRICE).left_s(meter) < 3000
    assert limits(budget_usd=PRICE, max_hours=0.5).left_s(meter) == 1200
    assert 2999 < limits(budget_usd=PRICE, max_hours=2.0).left_s(meter) < 3000


@given(
    st.decimals("0.01", "1000", places=2),
    st.decimals("0.01", "1000", places=2),
    st.dictionaries(st.sampled_from(("preparing", "training")), st.floats(0, 1e4), min_size=1),
    st.lists(st.floats(0, 1), min_size=6, max_size=6),
)
def test_however_the_time_that_is_left_is_divided_the_bill_stays_within_the_budget(
    price: Decimal, budget: Decimal, so_far: dict[str, float], shares: list[float]
) -> None:
    meter = make_meter(price=price)
    for phase, seconds in so_far.items():
        meter.add(phase, seconds)
    left_s = limits(budget_usd=budget, price_per_hour=price).left_s(meter) - 0.01  # ms are rounded
    if left_s <= 0:
        return
    for name, share in zip("abcdef", shares, strict=True):
        meter.add(name, left_s * share / max(1.0, sum(shares)))
    assert meter.spent_usd <= budget


def test_a_free_machine_never_uses_up_a_budget() -> None:
    meter = make_meter(price=Decimal(0))
    meter.add("training", 1e9)
    free = limits(budget_usd=Decimal("0.01"), price_per_hour=Decimal(0))
    assert free.reached(meter, reserve_s=1e9) is None


def test_the_wall_behind_the_meter_stands_at_the_next_whole_minute() -> None:
    meter = make_meter()
    meter.add("training", 3010)
    assert limits().minutes_left(meter) is None
    assert limits(budget_usd=PRICE).minutes_left(meter) == 10
    meter.add("training", 1000)
    assert limits(budget_usd=PRICE).minutes_left(meter) == 1  # there is no less


def last_heartbeat(state: State = "training") -> Status:
    line = BillLine(life=3, phase="training", seconds=600, price_per_hour=Decimal(9), nodes=2)
    return Status(
        run_id="tiny-0001", state=state, phase=state, life=3, step=4, steps=6, tokens=256,
        updated_at=NOW, bill=(line,),
    )  # fmt: skip


def before(previous: Status | None, *, after_s: float, setup_s: float = 0.0) -> dict[str, float]:
    bill = bill_before(
        previous,
        now=NOW + timedelta(seconds=after_s),
        setup_s=setup_s,
        heartbeat_s=10,
        teardown_s=90,
    )
    return phases(bill)


def test_a_life_without_a_last_word_is_billed_until_its_machine_must_have_been_gone() -> None:
    silent = last_heartbeat()
    assert before(silent, after_s=7200, setup_s=240) == {"training": 600, "lost": 100}
    assert before(silent, after_s=300, setup_s=240) == {"training": 600, "lost": 60}
    (_, lost) = bill_before(
        silent, now=NOW + timedelta(hours=2), setup_s=0, heartbeat_s=10, teardown_s=90
    )
    assert (lost.life, lost.price_per_hour, lost.nodes) == (3, Decimal(9), 2)


def test_no_silence_is_billed_where_the_next_life_bills_it_or_where_there_was_none() -> None:
    whole = {"training": 600}
    assert before(last_heartbeat(), after_s=247.3, setup_s=247.2) == whole  # the same machine
    assert before(last_heartbeat(), after_s=-3600) == whole  # a clock that was set back
    assert before(None, after_s=0) == {}


@pytest.mark.parametrize("state", ["succeeded", "stopped", "failed", "preempted", "provisioning"])
def test_a_last_word_is_taken_at_its_word(state: State) -> None:
    assert before(last_heartbeat(state), after_s=7200) == {"training": 600}
