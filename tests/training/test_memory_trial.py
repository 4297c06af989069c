from contextlib import nullcontext
from pathlib import Path

import torch

from tests.tiny import make_recipe
from training.distributed import ALONE
from training.events import append_event
from training.memory_trial import micro_batch_that_may_fit, take_memory_of_a_step
from training.model import GPT
from training.optimizer import Optimizers

RECIPE = make_recipe(train={"micro_batch_size": 8})


def test_a_trial_changes_nothing() -> None:
    model = GPT(RECIPE.model)
    optimizers = Optimizers(model, RECIPE.train)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    generator = torch.get_rng_state()
    take_memory_of_a_step(
        model, optimizers, 2, device=torch.device("cpu"), autocast=lambda: nullcontext()
    )
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert optimizers.state() == {}
    assert torch.equal(generator, torch.get_rng_state())


def test_half_of_what_was_too_large_may_fit_until_another_machine_tries(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    assert micro_batch_that_may_fit(events, RECIPE, ALONE) == 8
    append_event(events, "life_started")
    append_event(events, "out_of_memory", rank=1, micro_batch_size=8)
    assert micro_batch_that_may_fit(events, RECIPE, ALONE) == 4
    append_event(events, "out_of_memory", rank=0, micro_batch_size=1)
    assert micro_batch_that_may_fit(events, RECIPE, ALONE) == 0
    append_event(events, "life_started")
    assert micro_batch_that_may_fit(events, RECIPE, ALONE) == 8
