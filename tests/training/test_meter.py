from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from training.layout import BillLine
from training.meter import Limits, Meter, Reserve

PRICE = Decimal("22.32")


def make_meter(*earlier: BillLine, price: Decimal = PRICE) -> Meter:
    return Meter(earlier, life=2, price_per_hour=price)


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
    assert limits(budget_usd=PRICE).left_s(meter) == 3000
    assert limits(budget_usd=PRICE, max_hours=0.5).left_s(meter) == 1200
    assert limits(budget_usd=PRICE, max_hours=2.0).left_s(meter) == 3000


def test_a_free_machine_never_uses_up_a_budget() -> None:
    meter = make_meter(price=Decimal(0))
    meter.add("training", 1e9)
    free = limits(budget_usd=Decimal("0.01"), price_per_hour=Decimal(0))
    assert free.reached(meter, reserve_s=1e9) is None


def test_the_reserve_only_grows() -> None:
    reserve = Reserve().learn(save_s=4, upload_s=10)
    assert reserve.learn(save_s=1, upload_s=1) == reserve
    assert reserve.seconds == 5 + 2 * 14
    assert reserve.learn(boundary_s=30).seconds == reserve.seconds + 30


def test_the_wall_behind_the_meter_stands_at_the_next_whole_minute() -> None:
    meter = make_meter()
    meter.add("training", 3000)
    assert limits().minutes_left(meter) is None
    assert limits(budget_usd=PRICE).minutes_left(meter) == 10
    meter.add("training", 1)
    assert limits(budget_usd=PRICE).minutes_left(meter) == 10
    meter.add("training", 1000)
    assert limits(budget_usd=PRICE).minutes_left(meter) == 1  # there is no less


def test_the_way_down_is_kept_in_reserve() -> None:
    assert Reserve(teardown_s=90).learn(save_s=2).seconds == 5 + 2 * 2 + 90
