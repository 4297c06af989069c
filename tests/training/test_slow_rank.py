import time

import pytest
import torch

from training.slow_rank import EVERY, ForwardClock, find_slow


@pytest.mark.parametrize(
    ("seconds", "found"),
    [
        ([0.10, 0.10, 0.31, 0.11], (2, 0.10)),
        ([0.10, 0.25], (1, 0.10)),
        ([0.10, 0.11, 0.14, 0.12], None),
        ([0.5], None),
        ([0.0, 0.0], None),
    ],
)
def test_a_rank_stands_out_beside_the_median_of_the_others(
    seconds: list[float], found: tuple[int, float] | None
) -> None:
    assert find_slow(seconds) == found


def test_a_clock_tells_the_median_of_the_passes_and_begins_anew() -> None:
    clock = ForwardClock(torch.device("cpu"))
    for number in range(EVERY):
        assert not clock.is_full
        with clock.time():
            time.sleep(0.2 if number == 7 else 0.0)
    assert clock.is_full
    assert 0 <= clock.take() < 0.2  # one slow pass is no slow rank
    assert not clock.is_full
