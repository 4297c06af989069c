"""What is compiled, and how often: each shape once, and the results those of eager code."""

from collections.abc import Callable, Iterator
from shutil import which

import pytest
import torch
from torch import Tensor

from training.config import ModelConfig
from training.model import GPT, IGNORED
from training.sample import generate

SHAPE = ModelConfig(n_layer=3, n_head=2, n_embd=16, block_size=32, vocab_size=257)

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Compilations:
    """A backend that counts, and runs what it was given as it is."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        self.count += 1
        return graph.forward


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Compilations:
    counting, compile_ = Compilations(), torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda *args, **options: compile_(*args, **options, backend=counting)
    )
    return counting


def batch(rows: int, width: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, 257, (rows, width + 1), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:].clone()


def train(model: GPT, steps: int = 3) -> None:
    for _ in range(steps):
        model.zero_grad()
        model(*batch(4, 32)).backward()


def evaluate(model: GPT) -> None:
    """With a last batch that is not full, as `ValidationSet` makes it."""
    model.eval()
    inputs, targets = batch(4, 32)
    with torch.no_grad():
        model(inputs, targets, reduction="sum")
        targets[2:] = IGNORED
        model(inputs, targets, reduction="sum")
    model.train()


def score_endings(model: GPT) -> None:
    model.eval()
    with torch.no_grad():
        for width in (24, 16, 8, 16, 24):
            model(*batch(4, width), reduction="none")
    model.train()


def write_sample(model: GPT) -> None:
    model.eval()
    with torch.compiler.set_stance("force_eager"):
        generate(
            model,
            batch(2, 3)[0],
            max_new_tokens=5,
            temperature=1.0,
            top_k=5,
            generator=torch.Generator().manual_seed(1),
        )
    model.train()


def test_each_shape_is_compiled_once_for_all_layers(compilations: Compilations) -> None:
    model = GPT(SHAPE)
    model.compile_blocks()
    train(model)
    assert compilations.count == 2  # a block, and what the loss does to a chunk of logits
    evaluate(model)
    assert compilations.count == 3  # the block again: it needs no backward
    score_endings(model)
    assert compilations.count == 6  # three widths
    for part in (write_sample, train, evaluate, write_sample, score_endings, train):
        part(model)
    assert compilations.count == 6


def test_with_recomputed_activations_nothing_is_compiled_more_often(
    compilations: Compilations,
) -> None:
    model = GPT(SHAPE, checkpoint_activations=True)
    model.compile_blocks()
    for part in (train, evaluate, train, evaluate):
        part(model)
    assert compilations.count == 3


def test_another_model_of_the_same_shape_compiles_nothing(compilations: Compilations) -> None:
    for seed in (1, 2):
        model = GPT(SHAPE, seed=seed)
        model.compile_blocks()
        train(model)
    assert compilations.count == 2


def gradients(model: GPT, *, autocast: bool = False) -> list[Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = model(*batch(4, 32))
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.slow
@pytest.mark.skipif(which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_give_the_numbers_of_eager_ones(recompute: bool) -> None:
    eager, model = GPT(SHAPE), GPT(SHAPE, checkpoint_activations=recompute)
    model.compile_blocks()
    torch.testing.assert_close(gradients(model), gradients(eager), rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        for reduction in ("sum", "none"):
            torch.testing.assert_close(
                model(*batch(4, 24), reduction), eager(*batch(4, 24), reduction)
            )


def test_a_model_compiled_as_a_whole_gives_the_same_numbers() -> None:
    eager, model = GPT(SHAPE), GPT(SHAPE)
    model.compile(backend="aot_eager")
    torch.testing.assert_close(gradients(model), gradients(eager), rtol=1e-4, atol=1e-6)
