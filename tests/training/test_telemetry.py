"""What people are told of an evaluation, and what programs are."""

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from gptctl.recipe import read_recipe
from tests.tiny import make_record, make_run
from training.config import Recipe
from training.events import parse_lines
from training.layout import RunPaths
from training.telemetry import Telemetry


def telemetry_of(root: Path, recipe: Recipe) -> tuple[Telemetry, RunPaths]:
    record = make_record(recipe)
    paths = make_run(root, record)
    return Telemetry(record, paths, is_first=True, peak_flops=None), paths


@pytest.fixture
def small() -> Recipe:
    return read_recipe("gpt2-124m")[1]


def test_val_loss_is_printed_beside_the_reference_and_stored_alone(
    tmp_path: Path, small: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    telemetry, paths = telemetry_of(tmp_path, small)
    telemetry.report_evaluation(1_000, val_loss=4.25, seconds=2.0)
    assert capsys.readouterr().out == (
        "step 1000/18865  val loss 4.2500 (llm.c at this step 4.3170, GPT-2 3.4250)  2.0 s\n"
    )
    (line,) = parse_lines(paths.metrics.read_bytes())
    assert line == {"step": 1_000, "tokens": 524_288_000, "val_loss": 4.25, "seconds": 2.0}


def test_hellaswag_is_printed_beside_the_references(
    tmp_path: Path, small: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    telemetry, _ = telemetry_of(tmp_path, small)
    telemetry.report_hellaswag(1_000, acc=0.26, acc_norm=0.27, examples=10_042, cut=0, seconds=9.0)
    assert capsys.readouterr().out == (
        "step 1000/18865  HellaSwag acc_norm 0.2700 (the reference in the end 0.2990, "
        "GPT-2 0.2945)  acc 0.2600  10,042 examples, 0 of them cut  9.0 s\n"
    )


def test_loss_on_other_data_is_printed_alone(
    tmp_path: Path, small: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    data = msgspec.structs.replace(small.data, source="text", config="", path="a book")
    telemetry, _ = telemetry_of(tmp_path, replace(small, data=data))
    telemetry.report_evaluation(1_000, val_loss=4.25, seconds=2.0)
    assert capsys.readouterr().out == "step 1000/18865  val loss 4.2500  2.0 s\n"
