import pytest
import torch
from torch.optim import AdamW

from tests.tiny import make_recipe
from training.model import GPT
from training.optimizer import Optimizers, clip_gradients


def take_steps(model: GPT, optimizers: Optimizers, *, steps: range) -> None:
    for step in steps:
        tokens = torch.randint(0, 257, (4, 9), generator=torch.Generator().manual_seed(step))
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizers.step(0.5)


def test_adamw_decays_matrices_only() -> None:
    recipe = make_recipe(train={"weight_decay": 0.5})
    model = GPT(recipe.model)
    before = {name: p.detach().clone() + 1 for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(before[name])
            p.grad = torch.zeros_like(p)
    Optimizers(model, recipe.train).step(1.0)
    for name, p in model.named_parameters():
        factor = 1 - recipe.train.max_lr * 0.5 if p.dim() == 2 else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor)


def test_steps_equal_those_of_torch_with_the_references_groups() -> None:
    recipe = make_recipe()
    model, reference = GPT(recipe.model), GPT(recipe.model)
    optimizers = Optimizers(model, recipe.train)
    adamw = AdamW(
        [
            {"params": [p for p in reference.parameters() if p.dim() == 2], "weight_decay": 0.1},
            {"params": [p for p in reference.parameters() if p.dim() != 2], "weight_decay": 0.0},
        ],
        lr=recipe.train.max_lr * 0.5,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    take_steps(model, optimizers, steps=range(3))
    for step in range(3):
        tokens = torch.randint(0, 257, (4, 9), generator=torch.Generator().manual_seed(step))
        adamw.zero_grad()
        reference(tokens[:, :-1], tokens[:, 1:]).backward()
        adamw.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        # Where a gradient is all rounding (the keys' biases), Adam makes a step out of noise.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_that_went_through_its_names_continues_bit_for_bit(optimizer: str) -> None:
    recipe = make_recipe(train={"optimizer": optimizer})
    model = GPT(recipe.model)
    optimizers = Optimizers(model, recipe.train)
    take_steps(model, optimizers, steps=range(3))

    copy = GPT(recipe.model, seed=99)
    copy.load_state_dict(model.state_dict())
    copied = Optimizers(copy, recipe.train)
    copied.load_state({name: value.clone() for name, value in optimizers.state().items()})
    take_steps(model, optimizers, steps=range(3, 6))
    take_steps(copy, copied, steps=range(3, 6))
    for name, value in model.state_dict().items():
        assert torch.equal(value, copy.state_dict()[name]), name


def test_muon_takes_the_hidden_matrices_and_leaves_the_rest_to_adamw() -> None:
    recipe = make_recipe(train={"optimizer": "muon"})
    model = GPT(recipe.model)
    optimizers = Optimizers(model, recipe.train)
    take_steps(model, optimizers, steps=range(1))
    by_muon = {name.rsplit("/", 1)[0] for name in optimizers.state() if "momentum" in name}
    assert by_muon == {
        name for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("h.")
    }


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_bytes_of_the_state_are_known_before_the_first_step(optimizer: str) -> None:
    recipe = make_recipe(train={"optimizer": optimizer})
    model = GPT(recipe.model)
    optimizers = Optimizers(model, recipe.train)
    told, shapes = optimizers.state_bytes(), optimizers.state_shapes()
    assert optimizers.state() == {}
    take_steps(model, optimizers, steps=range(1))
    assert {key: value.shape for key, value in optimizers.state().items()} == shapes
    assert sum(value.nbytes for value in optimizers.state().values()) == told


def test_clipping_scales_to_the_limit_and_tells_the_norm_before() -> None:
    model = GPT(make_recipe().model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    norm = clip_gradients(model, 1.0)
    count = sum(p.numel() for p in model.parameters())
    assert norm.item() == pytest.approx(count**0.5)
    assert clip_gradients(model, 0.0).item() == pytest.approx(1.0, rel=1e-4)  # 0: left as it is
