from decimal import Decimal

import pytest

from gptctl.bill import correct_going_down
from tests.gptctl.run_folder import make_bill

FIRST = make_bill("going_down", 90.0)
TRAINED = make_bill("training", 600.0, life=2)
TOLD = make_bill("going_down", 90.0, life=2)


@pytest.mark.parametrize("seconds", [35.0, 90.0, 600.0])
def test_what_was_told_ahead_becomes_what_it_was(seconds: float) -> None:
    (*rest, down) = correct_going_down((FIRST, TRAINED, TOLD), seconds)
    assert rest == [FIRST, TRAINED]  # the life before went down in its own time
    assert (down.life, down.phase, down.seconds) == (2, "going_down", seconds)
    assert down.usd == Decimal(str(seconds)) * Decimal("3.60") / 3600


def test_a_life_without_a_last_word_is_billed_until_its_machine_was_given_back() -> None:
    corrected = correct_going_down((FIRST, TRAINED), 1800.25)
    assert [(line.life, line.phase, line.seconds) for line in corrected] == [
        (1, "going_down", 90.0),
        (2, "training", 600.0),
        (2, "going_down", 1800.25),
    ]
    assert correct_going_down(corrected, 1800.25) == corrected


def test_clocks_that_differ_make_no_refund_and_no_machine_no_bill() -> None:
    assert correct_going_down((TRAINED, TOLD), -5.0)[-1].usd == 0
    assert correct_going_down((), 60.0) == ()
