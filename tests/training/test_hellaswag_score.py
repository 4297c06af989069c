import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2LMHeadModel

from tests.hellaswag_questions import make_questions, publish, write_questions
from tests.hub_server import running_hub
from tests.tiny import make_recipe
from training.checkpoint import CheckpointWriter, TrainerState
from training.config import ModelConfig
from training.distributed import ALONE, Ranks
from training.errors import NotFiniteError
from training.eval_hellaswag import main
from training.export import rename_for_transformers, transformers_config
from training.hellaswag import Example
from training.hellaswag_score import (
    Score,
    ScoringStopped,
    ending_losses,
    plan_batches,
    score,
)
from training.hellaswag_source import Question, render
from training.model import GPT
from training.optimizer import Optimizers
from training.tokenizer import open_tokenizer

GPT2_SHAPE = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=256, vocab_size=50257)
BYTE_SHAPE = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=512, vocab_size=257)


class RankOf(Ranks):
    """A rank whose sum over the others is left to the test."""

    def all_sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


class PricedTokens(nn.Module):
    """A model to which each id costs what it says, wherever it stands."""

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "none"
        return targets.clamp(min=0).flatten().float()


def examples_of(count: int, tokenizer: str = "bytes") -> list[Example]:
    chosen = open_tokenizer(tokenizer)
    return [
        render(Question(ctx=q["ctx"], endings=tuple(q["endings"]), label=q["label"]), chosen)
        for q in make_questions(count)
    ]


def make_model(shape: ModelConfig) -> GPT:
    """Weights so large that the losses of any two endings differ widely."""
    model = GPT(shape, seed=3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.2)
    return model


def losses_of(
    model: nn.Module,
    examples: list[Example],
    *,
    block_size: int,
    micro_batch_size: int = 8,
    ranks: Ranks = ALONE,
) -> np.ndarray:
    return ending_losses(
        model,
        examples,
        batches=plan_batches(examples, block_size=block_size, micro_batch_size=micro_batch_size),
        block_size=block_size,
        ranks=ranks,
        autocast=nullcontext,
    )


def score_of(model: nn.Module, examples: list[Example], *, block_size: int = 512) -> Score:
    return score(
        *(model, examples),
        block_size=block_size,
        micro_batch_size=8,
        ranks=ALONE,
        autocast=nullcontext,
    )


@torch.no_grad()
def losses_by_transformers(model: GPT, examples: list[Example]) -> np.ndarray:
    """One row after the other through GPT2LMHeadModel, cut on the left to fit its block."""
    config = GPT2LMHeadModel.config_class(**transformers_config(model.config, end_of_text=256))
    reference = GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval()
    reference.load_state_dict(
        rename_for_transformers(model.state_dict(), model.config), strict=False
    )
    reference.tie_weights()
    rows = []
    for example in examples:
        for ending in example.endings:
            ids = torch.from_numpy(np.concatenate([example.context, ending]).astype(np.int64))
            ids = ids[-model.config.block_size - 1 :]
            of_tokens = reference(ids[None, :-1]).logits[0].log_softmax(-1)
            picked = -of_tokens.gather(1, ids[1:, None])[:, 0]
            rows.append(picked[-len(ending) :].double().sum().item())
    return np.array(rows).reshape(-1, 4)


@pytest.mark.usefixtures("gpt2_vocabulary")
@pytest.mark.parametrize(
    ("tokenizer", "shape", "count"), [("bytes", BYTE_SHAPE, 40), ("gpt2", GPT2_SHAPE, 6)]
)
def test_losses_and_score_are_those_of_a_plain_loop_over_transformers(
    tokenizer: str, shape: ModelConfig, count: int
) -> None:
    model, examples = make_model(shape), examples_of(count, tokenizer)
    expected = losses_by_transformers(model, examples)

    found = losses_of(model, examples, block_size=shape.block_size)
    np.testing.assert_allclose(found, expected, rtol=1e-4)

    lengths = np.array([[len(ending) for ending in e.endings] for e in examples])
    labels = np.array([e.label for e in examples])
    by_sum, by_mean = expected.argmin(1), (expected / lengths).argmin(1)
    assert (by_sum != by_mean).any()
    assert score_of(model, examples, block_size=shape.block_size) == Score(
        acc=(by_sum == labels).mean(), acc_norm=(by_mean == labels).mean(), count=count, cut=0
    )


@pytest.mark.parametrize("block_size", [16, 100])  # shorter than an ending; than an example
def test_of_an_example_longer_than_the_block_the_end_is_scored_and_told(block_size: int) -> None:
    shape = ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=block_size, vocab_size=257)
    model, examples = make_model(shape), examples_of(12)
    expected = losses_by_transformers(model, examples)
    found = losses_of(model, examples, block_size=block_size)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    longest = [len(e.context) + max(map(len, e.endings)) for e in examples]
    assert score_of(model, examples, block_size=block_size).cut == sum(
        length > block_size + 1 for length in longest
    )


def test_acc_takes_the_smallest_sum_and_acc_norm_the_smallest_mean() -> None:
    endings = ([9], [4, 4], [3, 3, 3, 3], [20])  # sums 9, 8, 12, 20; means 9, 4, 3, 20
    examples = [
        Example(
            context=np.array([200, 201], dtype=np.uint16),
            endings=tuple(np.array(ids, dtype=np.uint16) for ids in endings),
            label=label,
        )
        for label in (1, 1, 1, 2, 0)
    ]
    assert score_of(PricedTokens(), examples) == Score(acc=0.6, acc_norm=0.2, count=5, cut=0)


@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("micro_batch_size", [1, 8, 30])
def test_the_losses_are_the_same_bits_at_any_world_size(
    world_size: int, micro_batch_size: int
) -> None:
    model, examples = make_model(BYTE_SHAPE), examples_of(23)
    each = [
        losses_of(
            model,
            examples,
            block_size=512,
            micro_batch_size=micro_batch_size,
            ranks=RankOf(rank=rank, local_rank=rank, world_size=world_size, device=ALONE.device),
        )
        for rank in range(world_size)
    ]
    alone = losses_of(model, examples, block_size=512, micro_batch_size=micro_batch_size)
    assert np.array_equal(sum(each), alone)
    assert (np.count_nonzero(each, axis=0) == 1).all()


def test_every_example_is_in_one_batch_and_batches_have_few_shapes() -> None:
    examples = examples_of(40)
    batches = plan_batches(examples, block_size=512, micro_batch_size=30)
    assert sorted(i for batch in batches for i in batch.examples) == list(range(40))
    assert {batch.size for batch in batches} == {7}
    assert all(batch.width % 64 == 0 for batch in batches)
    assert batches[0].width == max(batch.width for batch in batches)


def test_a_compiled_model_compiles_once_a_width_and_finds_the_same() -> None:
    compiled = 0

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        nonlocal compiled
        compiled += 1
        return graph.forward

    model, examples = make_model(BYTE_SHAPE), examples_of(40)
    widths = {b.width for b in plan_batches(examples, block_size=512, micro_batch_size=8)}
    assert len(widths) > 2
    expected = losses_of(model, examples, block_size=512)
    torch._dynamo.reset()
    for block in model.h:
        block.compile(backend=count, dynamic=False)
    found = losses_of(model, examples, block_size=512)
    assert 0 < compiled <= len(widths)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("is_training", [True, False])
def test_the_model_is_left_in_the_mode_it_came_in(is_training: bool) -> None:
    model = GPT(BYTE_SHAPE).train(is_training)
    score_of(model, examples_of(2))
    assert model.training == is_training


def test_a_diverged_model_gets_no_score() -> None:
    model = GPT(BYTE_SHAPE)
    with torch.no_grad():
        model.ln_f.weight[0] = float("nan")
    with pytest.raises(NotFiniteError, match="cannot be told apart"):
        score_of(model, examples_of(2))


PROGRAM = """
from contextlib import nullcontext
from pathlib import Path
from tests.training.test_hellaswag_score import BYTE_SHAPE, examples_of, make_model
from training.distributed import join_ranks
from training.hellaswag_score import score

beats = []
with join_ranks("cpu") as ranks:
    found = score(make_model(BYTE_SHAPE), examples_of(23), block_size=512, micro_batch_size=8,
                  ranks=ranks, autocast=nullcontext, on_batch=lambda: beats.append(1))
    assert 0 < len(beats) < 23, beats
    Path(f"{__file__}.{ranks.rank}").write_text(str(found))
"""


@pytest.mark.slow
def test_two_ranks_get_the_score_of_one(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "training.ranks", "--standalone", "--nproc-per-node", "2"),
            str(script),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    expected = str(score_of(make_model(BYTE_SHAPE), examples_of(23)))
    found = [Path(f"{script}.{rank}").read_text() for rank in range(2)]
    assert found == [expected] * 2


def test_scoring_ends_between_batches_where_it_is_told_to() -> None:
    model = GPT(BYTE_SHAPE)
    batches: list[int] = []
    with pytest.raises(ScoringStopped):
        score(
            *(model, examples_of(23)),
            block_size=512,
            micro_batch_size=8,
            ranks=ALONE,
            autocast=nullcontext,
            on_batch=lambda: batches.append(1),
            is_stopping=lambda: len(batches) == 3,
        )
    assert len(batches) == 3
    assert model.training


def said(capsys: pytest.CaptureFixture[str], event: str) -> list[dict[str, Any]]:
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    return [line for line in lines if line.pop("event") == event]


def test_the_program_scores_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(model={"block_size": 512}, train={"batch_tokens": 512})
    model = GPT(recipe.model, seed=5)
    writer = CheckpointWriter(tmp_path, on_commit=lambda *_: None)
    state = TrainerState(step=4, tokens=2048, best_val_loss=None, recipe=recipe)
    writer.save(model, Optimizers(model, recipe.train), state)
    writer.wait()
    options = ["--checkpoint", str(tmp_path / "step-00000004"), "--data", str(tmp_path)]
    file = write_questions(tmp_path / "questions.parquet", make_questions(12))
    with running_hub(tmp_path, monkeypatch) as hub:
        published = publish(hub, file, examples=12)
        assert main([*options, "--limit", "9"], published) == 0
        assert [score["count"] for score in said(capsys, "scored")] == [9]
    assert main(options, published) == 0  # the examples are still there
    expected = score_of(model, examples_of(12))
    assert said(capsys, "scored") == [
        {"acc": expected.acc, "acc_norm": expected.acc_norm, "count": 12, "cut": 0}
    ]
    assert main([*options[2:], "--checkpoint", str(tmp_path)], published) == 1
    assert "never committed" in said(capsys, "error")[0]["message"]
