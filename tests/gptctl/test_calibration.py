import pytest
from msgspec.structs import replace

from gptctl.calibration import (
    ACROSS_NODES,
    UNMEASURED_ERROR,
    error_of,
    hold_out,
    predict_mfu,
    read_calibration,
)
from tests.gptctl.estimates import make_measured, recipe_of
from training.config import ModelConfig

KNOWN = read_calibration()
SMALL, MEDIUM = recipe_of("gpt2-124m").model, recipe_of("gpt2-350m").model


def predict(model: ModelConfig = SMALL, gpu: str = "A100-80GB", known=KNOWN, **fields) -> float:
    predicted = predict_mfu(model, **{"gpu": gpu, "gpu_count": 8, "nodes": 1} | fields, known=known)
    assert predicted is not None
    return predicted[0]


@pytest.mark.parametrize("run", KNOWN, ids=lambda run: f"{run.recipe} on {run.gpu}")
def test_every_row_names_its_source_and_the_recipe_as_it_is(run):
    recipe = recipe_of(run.recipe)

    assert run.source
    assert run.parameters == recipe.model.parameters
    assert run.flops_per_token == recipe.model.flops_per_token
    assert not run.is_ours


def test_mfu_of_the_table_is_that_of_the_published_figures():
    # llm.c's formula, from tokens per step, milliseconds per step and NVIDIA's dense peaks.
    percent = {(run.recipe, run.gpu): round(100 * run.mfu) for run in KNOWN}

    assert percent == {
        ("gpt2-124m", "A100-80GB"): 56,
        ("gpt2-350m", "A100-80GB"): 58,
        ("gpt2-774m", "A100-80GB"): 61,
        ("gpt2-1558m", "H100"): 47,
        ("gpt2-124m", "H100"): 38,
        ("gpt2-350m", "H100"): 43,
    }


@pytest.mark.parametrize("run", KNOWN, ids=lambda run: f"{run.recipe} on {run.gpu}")
def test_each_run_held_out_is_predicted_from_the_others_within_a_fifth(run):
    others = [other for other in KNOWN if other is not run]
    predicted = predict(recipe_of(run.recipe).model, run.gpu, known=others)

    assert run.mfu / predicted == pytest.approx(1, abs=0.2)
    assert dict(zip(map(id, KNOWN), (off for _, off in hold_out(KNOWN)), strict=True))[
        id(run)
    ] == pytest.approx(run.mfu / predicted)


def test_larger_models_use_a_gpu_better_and_faster_gpus_are_used_less_well():
    assert predict(SMALL) < predict(MEDIUM)
    assert predict(gpu="A100-80GB") > predict(gpu="H100") > predict(gpu="B200")


def test_gpu_that_nobody_measured_gets_what_its_peak_tells_and_says_so():
    mfu, source = predict_mfu(SMALL, gpu="H200", gpu_count=8, nodes=1, known=KNOWN)

    assert mfu == predict(gpu="H100")  # whose peak it has
    assert (
        source
        == "fitted to 6 runs of others on A100-80GB and H100, as far as the peak of H200 tells"
    )
    assert error_of("H200", KNOWN) == UNMEASURED_ERROR * error_of("H100", KNOWN)


def test_error_is_the_worst_of_the_runs_held_out():
    worst = max(abs(off - 1) for _, off in hold_out(KNOWN))

    assert error_of("A100-80GB", KNOWN) == worst
    assert 0.05 < worst < 0.1


def test_each_gpu_of_a_machine_adds_its_own_speed_and_nodes_lose_a_share():
    assert predict(gpu_count=1) == predict(gpu_count=8)
    assert predict(nodes=2) == pytest.approx(ACROSS_NODES * predict())


@pytest.mark.parametrize(("gpu", "count"), [("L4", 8), ("CPU", 0), ("A100-80GB", 0)])
def test_nothing_is_predicted_for_a_machine_that_no_figure_tells_of(gpu, count):
    assert predict_mfu(SMALL, gpu=gpu, gpu_count=count, nodes=1, known=KNOWN) is None


@pytest.mark.parametrize(("n_layer", "n_embd"), [(2, 128), (64, 4096)])
def test_nothing_is_predicted_for_models_far_from_all_that_were_measured(n_layer, n_embd):
    model = replace(SMALL, n_layer=n_layer, n_embd=n_embd, n_head=1)

    assert predict_mfu(model, gpu="H100", gpu_count=8, nodes=1, known=KNOWN) is None


def test_nothing_is_predicted_from_nothing():
    assert predict_mfu(SMALL, gpu="H100", gpu_count=8, nodes=1, known=[]) is None
    assert error_of("H100", []) > 0.2


def test_run_of_ours_moves_what_is_said_of_models_near_it_on_the_same_gpu():
    expected = predict(SMALL, "H100")
    ours = make_measured("gpt2-124m", "H100:8", 1e6)
    known = [*KNOWN, replace(ours, mfu=0.8 * expected)]

    assert predict(MEDIUM, "H100", known) == pytest.approx(0.8 * predict(MEDIUM, "H100"))
    _, source = predict_mfu(MEDIUM, gpu="H100", gpu_count=8, nodes=1, known=known)
    assert source == "by 1 run here on H100"
    # Not of another GPU, of a far larger model, or of several nodes.
    assert predict(MEDIUM, "A100-80GB", known) == predict(MEDIUM, "A100-80GB")
    large = recipe_of("gpt2-1558m").model
    assert predict(large, "H100", known) == predict(large, "H100")
    assert predict(MEDIUM, "H100", known, nodes=2) == predict(MEDIUM, "H100", nodes=2)


def test_our_runs_leave_the_line_and_its_error_alone():
    ours = make_measured("gpt2-124m", "H100:8", 10.0)

    assert predict(gpu="A100-80GB", known=[*KNOWN, ours]) == predict(gpu="A100-80GB")
    assert error_of("H100", [*KNOWN, ours]) == error_of("H100", KNOWN)
