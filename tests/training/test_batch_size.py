import pytest
import torch

from tests.tiny import make_recipe
from training import batch_size
from training.batch_size import fit_micro_batch, memory_bytes, share_batch
from training.distributed import ALONE


@pytest.mark.parametrize(
    ("asked", "memory", "expected"),
    [
        (64, 85.0e9, 64),  # A100-80GB, as torch reports it
        (64, 150e9, 64),  # no more than the recipe asks for
        (64, 42.3e9, 33),  # A100-40GB
        (64, 23.6e9, 18),
        (1, 1e9, 1),
        (64, float("inf"), 64),
    ],
)
def test_a_smaller_device_gets_a_smaller_micro_batch(
    asked: int, memory: float, expected: int
) -> None:
    assert fit_micro_batch(asked, memory) == expected


def test_a_cpu_bounds_nothing() -> None:
    assert memory_bytes(torch.device("cpu")) == float("inf")


def test_a_step_keeps_its_tokens_on_a_smaller_device(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(train={"batch_tokens": 8 * 64, "micro_batch_size": 64})
    assert share_batch(recipe, ALONE) == (64, 1)
    monkeypatch.setattr(batch_size, "memory_bytes", lambda _: 42.3e9)
    assert share_batch(recipe, ALONE) == (32, 2)
