from statistics import pstdev

import pytest

from training.outliers import WINDOW, Recent

USUAL = tuple(3.0 + 0.01 * (n % 5) for n in range(WINDOW))


def test_nothing_is_skipped_before_the_window_is_full() -> None:
    recent = Recent()
    for n in range(WINDOW):
        recent, z = recent.take(1e6 if n % 7 == 3 else 1.0, limit=0.1)
        assert z is None
    assert len(recent.values) == WINDOW


def test_the_score_is_over_the_window_with_the_new_value_in_it() -> None:
    _, z = Recent(values=USUAL).take(9.0, limit=3.0)
    window = (*USUAL[1:], 9.0)
    assert z == pytest.approx((9.0 - sum(window) / WINDOW) / pstdev(window))


def test_a_skipped_value_leaves_the_window_as_it_was() -> None:
    recent, z = Recent(values=USUAL).take(9.0, limit=3.0)
    assert z is not None
    assert recent.values == USUAL
    recent, z = recent.take(3.02, limit=3.0)
    assert z is None
    assert recent == Recent(values=(*USUAL[1:], 3.02))


def test_values_that_have_changed_for_good_are_soon_usual() -> None:
    recent, skipped = Recent(values=USUAL), 0
    for _ in range(WINDOW):
        recent, z = recent.take(9.0, limit=3.0)
        skipped += z is not None
    assert 3 <= skipped < 12
    assert recent.skipped == 0


@pytest.mark.parametrize("value", [-50.0, 3.0])
def test_a_value_below_the_others_is_no_outlier(value: float) -> None:
    assert Recent(values=USUAL).take(value, limit=0.5)[1] is None


def test_without_a_limit_nothing_is_skipped() -> None:
    recent, z = Recent(values=USUAL).take(1e9, limit=0.0)
    assert z is None
    assert recent.values[-1] == 1e9


def test_values_that_are_all_alike_have_no_deviation() -> None:
    assert Recent(values=(1.0,) * WINDOW).take(1.0, limit=1.0)[1] is None
