"""What training computes does not depend on how it is shared out, told, stopped or gone on with."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.checkpoints import read_tensors
from tests.tiny import make_dataset, make_recipe, make_record, make_run
from tests.training.test_train import events, final_tensors, metrics, start, train, wait_for_step
from training.cluster import OUT_OF_MEMORY
from training.config import Recipe
from training.layout import RunPaths, committed_checkpoints
from training.schedule import lr_factor

pytestmark = pytest.mark.slow


def curve(paths: RunPaths, name: str) -> list[float]:
    return [line[name] for line in metrics(paths) if name in line]


@pytest.mark.parametrize(
    ("ranks", "micro_batch_size"), [(1, 2), (1, 1), (2, 4), (2, 1), (4, 2)], ids=str
)
def test_the_curves_are_the_same_however_a_step_is_shared_out(
    tmp_path: Path, ranks: int, micro_batch_size: int
) -> None:
    def recipe(micro: int) -> Recipe:
        return make_recipe(train={"steps": 20, "micro_batch_size": micro}, eval={"every": 5})

    whole = train(tmp_path / "whole", recipe(8))  # all 8 sequences of a step at once
    shared = train(tmp_path / "shared", recipe(micro_batch_size), ranks=ranks)
    # fp32 sums in another order differ by some 1e-7 each; 20 steps add that up.
    assert curve(shared, "loss") == pytest.approx(curve(whole, "loss"), rel=1e-5)
    assert curve(shared, "grad_norm") == pytest.approx(curve(whole, "grad_norm"), rel=1e-4)
    assert curve(shared, "val_loss") == pytest.approx(curve(whole, "val_loss"), rel=1e-5)
    assert [line["tokens"] for line in metrics(shared) if "loss" in line] == [
        64 * step for step in range(1, 21)
    ]


def test_what_is_told_in_windows_is_what_is_told_step_by_step(tmp_path: Path) -> None:
    each, windows = (
        train(tmp_path / str(n), make_recipe(train={"steps": 20, "log_every": n}), ranks=2)
        for n in (1, 7)
    )
    for name in ("loss", "grad_norm", "lr", "val_loss"):
        assert curve(each, name) == curve(windows, name)


def test_a_sharded_optimizer_takes_the_same_steps(tmp_path: Path) -> None:
    whole, sharded = (
        train(
            tmp_path / str(shards),
            make_recipe(train={"steps": 12, "optimizer": "muon", "shard_optimizer": shards}),
            ranks=2,
        )
        for shards in (False, True)
    )
    assert curve(whole, "loss") == curve(sharded, "loss")
    ours, theirs = final_tensors(whole), final_tensors(sharded)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_activations_that_are_computed_again_change_nothing(tmp_path: Path) -> None:
    kept, again = (
        train(tmp_path / str(flag), make_recipe(train={"checkpoint_activations": flag}), ranks=2)
        for flag in (False, True)
    )
    assert curve(kept, "loss") == curve(again, "loss")


def test_an_outlier_is_told_and_skipped_and_a_resumed_run_skips_the_same(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "train": {"steps": 90, "skip_grad_z": 1.0, "skip_loss_z": 1.0},
        "checkpoint": {"every": 10},
        "eval": {"every": 200},
    }
    recipe = make_recipe(**sections)
    undisturbed = train(tmp_path / "undisturbed", recipe, ranks=2)
    skipped = [event["step"] for event in events(undisturbed, "update_skipped")]
    assert skipped
    assert min(skipped) > 64  # there is nothing to compare with before
    plain = train(tmp_path / "plain", make_recipe(**sections | {"train": {"steps": 90}}), ranks=2)
    first = min(skipped)
    assert curve(plain, "loss")[:first] == curve(undisturbed, "loss")[:first]
    assert curve(plain, "loss")[first:] != curve(undisturbed, "loss")[first:]

    process, paths = start(tmp_path / "killed", recipe, ranks=2)
    wait_for_step(paths, 75, process)
    process.kill()
    process.communicate(timeout=60)
    paths = train(tmp_path / "killed", recipe, ranks=2)
    assert curve(paths, "loss") == curve(undisturbed, "loss")


def test_a_target_starts_the_cool_down_and_a_killed_run_ends_at_the_same_step(
    tmp_path: Path,
) -> None:
    sections: dict[str, Any] = {
        "train": {"steps": 200, "schedule": "wsd", "cooldown_steps": 40, "warmup_steps": 2},
        "eval": {"every": 4},
        "checkpoint": {"every": 8},
    }
    whole = train(tmp_path / "whole", make_recipe(**sections))
    losses = {line["step"]: line["val_loss"] for line in metrics(whole) if "val_loss" in line}
    sections["eval"]["until_loss"] = losses[20]
    recipe = make_recipe(**sections)
    paths = train(tmp_path / "target", recipe)
    (started,) = events(paths, "cooldown_started")
    (reached,) = events(paths, "target_reached")
    since = started["step"]
    assert since <= 20
    assert (started["last_step"], reached["step"]) == (since + 40, since + 40)
    assert committed_checkpoints(paths.checkpoints)[-1] == since + 40
    rates = [recipe.train.max_lr * lr_factor(recipe.train, s, since) for s in range(since + 40)]
    assert curve(paths, "lr") == pytest.approx(rates)

    process, killed = start(tmp_path / "killed", recipe)
    wait_for_step(killed, since + 15, process)
    process.kill()
    process.communicate(timeout=60)
    killed = train(tmp_path / "killed", recipe)
    assert curve(killed, "loss") == curve(paths, "loss")
    assert events(killed, "target_reached")[-1]["step"] == since + 40
    assert events(killed, "cooldown_started")[-1]["last_step"] == since + 40


def test_a_target_that_was_reached_when_the_run_was_killed_is_still_reached(
    tmp_path: Path,
) -> None:
    sections: dict[str, Any] = {
        "train": {"steps": 12},
        "eval": {"every": 4},
        "checkpoint": {"every": 4},
    }
    paths = train(tmp_path, make_recipe(**sections))
    losses = {line["step"]: line["val_loss"] for line in metrics(paths) if "val_loss" in line}
    for step in committed_checkpoints(paths.checkpoints)[1:]:
        (paths.checkpoint(step) / "manifest.json").unlink()
    assert committed_checkpoints(paths.checkpoints) == [4]
    # As if killed between the evaluation at step 4 and the next step.
    paths = train(
        tmp_path, make_recipe(**sections | {"eval": {"every": 4, "until_loss": losses[4]}})
    )
    assert events(paths, "target_reached")[-1]["step"] == 4
    assert max(line["step"] for line in metrics(paths)) == 4


def test_samples_are_written_at_their_cadence_and_change_nothing(tmp_path: Path) -> None:
    without = train(tmp_path / "without", make_recipe(sample={"max_new_tokens": 20}))
    paths = train(
        tmp_path / "with", make_recipe(sample={"max_new_tokens": 20, "every": 2}), ranks=2
    )
    assert [path.name for path in sorted(paths.samples.iterdir())] == [
        "step-00000002.txt",
        "step-00000004.txt",
    ]
    assert curve(paths, "val_loss") == pytest.approx(curve(without, "val_loss"), rel=1e-5)


MEMORY_LIMITED = """
import resource, sys
from pathlib import Path
import training.train
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
sys.exit(training.train.main(sys.argv[2:]))
"""


def test_a_micro_batch_that_does_not_fit_is_halved_at_the_start(tmp_path: Path) -> None:
    recipe = make_recipe(
        model={"n_embd": 64, "block_size": 64},
        train={"steps": 2, "batch_tokens": 64 * 4096, "micro_batch_size": 4096},
        eval={"every": 2, "tokens": 64},
    )
    paths = make_run(tmp_path, make_record(recipe))
    make_dataset(tmp_path / "data", recipe)
    arguments = [str(1 << 30), str(paths.folder), str(tmp_path / "data")]
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY_LIMITED, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    (chosen,) = events(paths, "batch_chosen")
    assert 1 <= chosen["micro_batch_size"] < 4096
    assert chosen["micro_batch_size"] * chosen["grad_accum_steps"] == 4096
    assert metrics(paths)[-1]["tokens"] == 2 * 64 * 4096


def test_memory_that_runs_out_later_is_told_and_half_of_it_is_tried_next(tmp_path: Path) -> None:
    def recipe(steps: int) -> Recipe:
        return make_recipe(
            model={"n_embd": 64, "block_size": 64},
            train={"steps": steps, "batch_tokens": 64 * 512, "micro_batch_size": 512},
            eval={"every": steps, "tokens": 64},
            checkpoint={"every": steps},
        )

    process, paths = start(tmp_path, recipe(100_000))
    wait_for_step(paths, 2, process)
    hungry = psutil.Process(process.pid)
    hungry.rlimit(psutil.RLIMIT_AS, (hungry.memory_info().vms // 2, psutil.RLIM_INFINITY))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == OUT_OF_MEMORY, errors.decode()
    (told,) = events(paths, "out_of_memory")
    assert (told["rank"], told["micro_batch_size"]) == (0, 512)
    assert "ran out of memory with a micro-batch of 512" in errors.decode()
    train(tmp_path, recipe(2))
    assert events(paths, "batch_chosen")[-1]["micro_batch_size"] == 256


PATCHED = """
import os, sys, time
import training.train
from training.model import GPT
healthy, passes = GPT.forward, 0
def forward(self, *arguments, **options):
    global passes
    passes += 1
    loss = healthy(self, *arguments, **options)
    {patch}
    return loss
GPT.forward = forward
sys.exit(training.train.main(sys.argv[1:]))
"""


def train_with(tmp_path: Path, recipe: Recipe, patch: str) -> tuple[RunPaths, int, str]:
    """(its paths, exit code, log) of two ranks whose forward passes end with `patch`."""
    paths = make_run(tmp_path, make_record(recipe, ranks=2))
    make_dataset(tmp_path / "data", recipe)
    program = tmp_path / "patched.py"
    program.write_text(PATCHED.format(patch=patch))
    ranks = ["--standalone", "--nproc-per-node", "2", str(program)]
    folders = [str(paths.folder), str(tmp_path / "data")]
    ran = subprocess.run(
        [sys.executable, "-m", "training.ranks", *ranks, *folders],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return paths, ran.returncode, ran.stdout


def test_a_rank_that_all_wait_for_is_named_once_until_it_recovers(tmp_path: Path) -> None:
    recipe = make_recipe(train={"steps": 240}, checkpoint={"every": 240}, eval={"every": 240})
    patch = 'time.sleep(0.02 if os.environ["RANK"] == "1" and passes < 160 else 0)'
    paths, exit_code, log = train_with(tmp_path, recipe, patch)
    assert exit_code == 0
    (told,) = events(paths, "slow_rank")
    assert (told["rank"], told["node"]) == (1, 0)
    assert told["seconds"] > 0.02
    assert log.count("rank 1 (device 1 of node 0) is slow") == 1
    (recovered,) = events(paths, "rank_recovered")
    assert recovered["rank"] == 1
    assert log.index("is slow") < log.index("rank 1 is as fast as the others again")


def test_a_rank_that_computes_nonsense_is_named_and_nothing_of_it_is_saved(tmp_path: Path) -> None:
    recipe = make_recipe(
        train={"steps": 100, "log_every": 5}, checkpoint={"every": 3}, eval={"every": 100}
    )
    patch = 'loss = loss * float("nan") if os.environ["RANK"] == "1" and passes > 30 else loss'
    paths, exit_code, _ = train_with(tmp_path, recipe, patch)
    assert exit_code == 1
    told = events(paths, "error")
    assert {event["kind"] for event in told} == {"NotFiniteError"}
    assert "of 2 ranks only rank 1 had such a loss" in told[0]["message"]
    assert "sick GPU" in told[0]["hint"]
    broken = int(told[0]["message"].removeprefix("step ").split(":")[0])
    saved = committed_checkpoints(paths.checkpoints)
    assert saved
    assert saved[-1] < broken
    tensors = read_tensors(paths.checkpoint(saved[-1]))
    assert all(tensor.isfinite().all() for tensor in tensors.values())
