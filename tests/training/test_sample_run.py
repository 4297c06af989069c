"""Texts by a model in the middle of its training."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import make_recipe, make_record, make_run
from training.config import Recipe
from training.distributed import ALONE
from training.events import parse_lines
from training.layout import RunPaths
from training.model import GPT
from training.sample import SEPARATOR
from training.sample_run import RunSamples
from training.telemetry import Telemetry


def autocast() -> AbstractContextManager[None]:
    return nullcontext()


def recipe_with(**sample: Any) -> Recipe:
    return make_recipe(sample={"prompt": "ab", "max_new_tokens": 12, **sample})


def samples_of(root: Path, recipe: Recipe) -> RunSamples:
    record = make_record(recipe)
    paths = make_run(root, record)
    paths.heartbeat.touch()
    return RunSamples(
        recipe=recipe,
        model=GPT(recipe.model, seed=3),
        paths=paths,
        telemetry=Telemetry(record, paths, is_first=True, peak_flops=None),
        ranks=ALONE,
        autocast=autocast,
    )


def events(paths: RunPaths) -> Iterator[dict[str, Any]]:
    return parse_lines(paths.events.read_bytes())


def text_at(samples: RunSamples, step: int) -> str:
    return (samples.paths.samples / f"step-{step:08d}.txt").read_text()


def test_so_many_texts_as_asked_are_written_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = samples_of(tmp_path, recipe_with(count=3))
    samples.write(40)
    texts = text_at(samples, 40).removesuffix("\n").split(f"\n{SEPARATOR}\n")
    assert len(texts) == 3
    assert all(text.startswith("ab") for text in texts)
    told = capsys.readouterr().out
    assert told.startswith("step 40/6  a sample  ")
    assert told.count("\n  ab") == 3
    assert all(c.isprintable() or c == "\n" for c in told)
    (event,) = events(samples.paths)
    assert (event["event"], event["step"]) == ("sampled", 40)


def test_training_goes_on_as_if_nothing_had_been_written(tmp_path: Path) -> None:
    samples = samples_of(tmp_path, recipe_with())
    before = {name: p.clone() for name, p in samples.model.named_parameters()}
    random = torch.get_rng_state()
    samples.write(1)
    assert samples.model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    for name, parameter in samples.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_equal_weights_write_equal_texts_at_any_step_and_others_do_not(tmp_path: Path) -> None:
    samples = samples_of(tmp_path, recipe_with())
    samples.write(1)
    samples.write(2)
    assert text_at(samples, 1) == text_at(samples, 2)
    with torch.no_grad():
        samples.model.wte.weight.normal_(generator=torch.Generator().manual_seed(5))
    samples.write(3)
    assert text_at(samples, 3) != text_at(samples, 1)


def test_compiled_blocks_are_not_compiled_for_each_length(tmp_path: Path) -> None:
    compiled = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> Any:
        compiled.append(graph)
        return graph.forward

    samples = samples_of(tmp_path, recipe_with())
    for block in samples.model.h:
        block.compile(backend=count, dynamic=False)
    samples.write(1)
    assert not compiled
    with torch.no_grad():
        samples.model.logits(torch.zeros(1, 8, dtype=torch.int64))
    assert compiled  # it is compiled as before, where it is trained


def test_without_a_vocabulary_it_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file where tiktoken wants its folder")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    recipe = make_recipe(
        model={"vocab_size": 50_257}, data={"tokenizer": "gpt2"}, sample={"prompt": "ab"}
    )
    samples = samples_of(tmp_path, recipe)
    samples.write(7)
    (event,) = events(samples.paths)
    assert (event["event"], event["step"]) == ("sampling_failed", 7)
    assert "GPT-2's vocabulary" in event["why"]
    assert "step 7/6  no sample: " in capsys.readouterr().out
    assert samples.model.training


@pytest.mark.parametrize("fault", ["not a folder", "not a number"])
def test_what_keeps_texts_away_ends_nothing(tmp_path: Path, fault: str) -> None:
    samples = samples_of(tmp_path, recipe_with())
    if fault == "not a folder":
        samples.paths.samples.write_text("a file in its place")
    else:
        with torch.no_grad():
            samples.model.ln_f.weight.fill_(torch.nan)
    samples.write(7)
    (event,) = events(samples.paths)
    assert event["event"] == "sampling_failed"
    assert samples.model.training


def test_only_the_first_rank_writes_and_none_where_none_are_asked_for(tmp_path: Path) -> None:
    samples = samples_of(tmp_path, recipe_with())
    replace(samples, ranks=replace(ALONE, rank=1, world_size=2)).write(1)
    replace(samples, recipe=recipe_with(count=0)).write(1)
    assert not samples.paths.samples.exists()
    assert not samples.paths.events.exists()
