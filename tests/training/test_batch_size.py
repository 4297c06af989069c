import pytest
import torch

from tests.tiny import make_recipe
from training.batch_size import choose_batch, is_out_of_memory
from training.distributed import ALONE
from training.errors import OutOfMemoryError

RECIPE = make_recipe(train={"batch_tokens": 8 * 48, "micro_batch_size": 48})


class Device:
    """Holds `sequences` at most, and says so in torch's words."""

    def __init__(self, sequences: int) -> None:
        self.sequences = sequences
        self.tried: list[int] = []

    def try_out(self, micro_batch_size: int) -> None:
        self.tried.append(micro_batch_size)
        if micro_batch_size > self.sequences:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("holds", "tried", "chosen"),
    [
        (64, [48], (48, 1)),
        (24, [48, 24], (24, 2)),
        (23, [48, 24, 12], (12, 4)),
        (1, [48, 24, 12, 6, 3, 1], (1, 48)),
    ],
)
def test_the_micro_batch_is_halved_until_it_fits_and_a_step_keeps_its_tokens(
    holds: int, tried: list[int], chosen: tuple[int, int]
) -> None:
    device = Device(holds)
    found = choose_batch(RECIPE, ALONE, at_most=48, try_out=device.try_out)
    assert (found, device.tried) == (chosen, tried)
    assert found[0] * found[1] == 48


def test_what_was_too_large_before_is_not_tried_again() -> None:
    device = Device(64)
    assert choose_batch(RECIPE, ALONE, at_most=20, try_out=device.try_out) == (16, 3)
    assert device.tried == [16]


@pytest.mark.parametrize("at_most", [48, 0])
def test_a_device_that_holds_not_one_sequence_is_refused_with_a_way_out(at_most: int) -> None:
    with pytest.raises(OutOfMemoryError, match="one sequence of 8 tokens do not fit") as refusal:
        choose_batch(RECIPE, ALONE, at_most=at_most, try_out=Device(0).try_out)
    assert "checkpoint_activations" in refusal.value.hint


def test_another_failure_of_the_trial_is_not_taken_for_a_lack_of_memory() -> None:
    def fail(_: int) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        choose_batch(RECIPE, ALONE, at_most=48, try_out=fail)


def test_a_host_that_has_no_memory_left_is_recognised() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
