import errno
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.checkpoints import tensor_files
from tests.tiny import make_recipe
from training import checkpoint_contents, manifest
from training.checkpoint import (
    STATE,
    CheckpointWriter,
    TrainerState,
    load_model,
    load_newest,
    read_parameters,
    read_state,
)
from training.checkpoint_files import explain
from training.errors import CheckpointError, NoSpaceError
from training.layout import MANIFEST, checkpoint_name, committed_checkpoints
from training.model import GPT
from training.optimizer import Optimizers

RECIPE = make_recipe()


def make_trained(seed: int = 1) -> tuple[GPT, Optimizers]:
    model = GPT(RECIPE.model, seed=seed)
    optimizers = Optimizers(model, RECIPE.train)
    tokens = torch.randint(0, 257, (4, 9), generator=torch.Generator().manual_seed(seed))
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    optimizers.step(1.0)
    return model, optimizers


def save(checkpoints: Path, step: int, model: GPT, optimizers: Optimizers) -> None:
    writer = CheckpointWriter(checkpoints, on_commit=lambda *_: None)
    writer.save(model, optimizers, TrainerState(
        step=step, tokens=step * 64, best_val_loss=5.0, recipe=RECIPE
    ))  # fmt: skip
    writer.wait()


def load(checkpoints: Path) -> tuple[GPT, Optimizers, TrainerState | None, list[str]]:
    model = GPT(RECIPE.model, seed=99)
    optimizers = Optimizers(model, RECIPE.train)
    skipped: list[str] = []
    state = load_newest(checkpoints, model, optimizers, on_skip=skipped.append)
    return model, optimizers, state, skipped


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model, optimizers = make_trained()
    save(tmp_path, 4, model, optimizers)
    copy, copied, state, skipped = load(tmp_path)
    assert state == TrainerState(step=4, tokens=256, best_val_loss=5.0, recipe=RECIPE)
    assert skipped == []
    for name, value in model.state_dict().items():
        assert torch.equal(value, copy.state_dict()[name])
    for name, value in optimizers.state().items():
        assert torch.equal(value, copied.state()[name])


def test_weights_are_saved_as_they_were_however_training_goes_on(tmp_path: Path) -> None:
    model, optimizers = make_trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    writer = CheckpointWriter(tmp_path, on_commit=lambda *_: None)
    writer.save(
        model, optimizers, TrainerState(step=4, tokens=1, best_val_loss=None, recipe=RECIPE)
    )
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    writer.wait()
    copy, *_ = load(tmp_path)
    assert all(torch.equal(before[name], copy.state_dict()[name]) for name in before)


def test_without_a_checkpoint_training_starts_afresh(tmp_path: Path) -> None:
    assert load(tmp_path / "nowhere")[2] is None


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(
    tmp_path: Path, damage: str
) -> None:
    for step in (2, 4):
        save(tmp_path, step, *make_trained(seed=step))
    newest = tmp_path / checkpoint_name(4)
    (tensors,) = tensor_files(newest)
    data = bytearray(tensors.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        tensors.write_bytes(data)
    elif damage == "cut":
        tensors.write_bytes(data[:-10])
    elif damage == "remove":
        tensors.unlink()
    else:
        (newest / MANIFEST).write_bytes(b'{"step": 4')
    _, _, state, skipped = load(tmp_path)
    assert state is not None
    assert state.step == 2
    assert len(skipped) == 1
    assert "step-00000004" in skipped[0]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 2, *make_trained())
    other = make_recipe(model={"n_embd": 32})
    model = GPT(other.model)
    with pytest.raises(CheckpointError, match="step-00000002 holds another model"):
        load_newest(tmp_path, model, Optimizers(model, other.train), on_skip=print)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"n_embd": 32}, "wte.weight is 384×16, not 384×32"),
        ({"n_layer": 3}, "no h.2.ln_1.weight"),
        ({"n_layer": 1}, "h.1.attn.c_attn.bias too many"),
    ],
)
def test_a_refusal_names_what_differs(
    tmp_path: Path, change: dict[str, int], difference: str
) -> None:
    save(tmp_path, 2, *make_trained())
    other = make_recipe(model=change)
    model = GPT(other.model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=difference):
        load_newest(tmp_path, model, Optimizers(model, other.train), on_skip=print)
    with pytest.raises(CheckpointError, match=difference):
        load_model(tmp_path / checkpoint_name(2), model)
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in before)


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 2, *make_trained())
    other = make_recipe(train={"optimizer": "muon"})
    model = GPT(other.model)
    with pytest.raises(CheckpointError, match=r"another optimizer.*no h\.0.*momentum_buffer"):
        load_newest(tmp_path, model, Optimizers(model, other.train), on_skip=print)


@pytest.mark.parametrize(("written", "age"), [(3, "a newer"), (1, "an older"), (None, "an older")])
def test_a_checkpoint_of_another_format_is_refused(
    tmp_path: Path, written: int | None, age: str
) -> None:
    save(tmp_path, 2, *make_trained())
    folder = tmp_path / checkpoint_name(2)
    state = json.loads((folder / STATE).read_bytes())
    del state["format"]
    if written is not None:
        state["format"] = written
    (folder / STATE).write_text(json.dumps(state))
    (folder / MANIFEST).unlink()
    manifest.commit(folder, step=2, tokens=128)
    for reader in (read_state, read_parameters, lambda folder: load(folder.parent)):
        with pytest.raises(CheckpointError, match=f"was written by {age} gptctl"):
            reader(folder)


def test_before_the_first_step_there_is_no_optimizer_state_to_load(tmp_path: Path) -> None:
    model = GPT(RECIPE.model, seed=3)
    save(tmp_path, 0, model, Optimizers(model, RECIPE.train))
    copy, copied, state, _ = load(tmp_path)
    assert state is not None
    assert copied.state() == {}
    assert torch.equal(copy.wte.weight, model.wte.weight)


def test_parameters_are_read_from_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_contents, "FILE_BYTES", 8192)
    model, optimizers = make_trained()
    save(tmp_path, 2, model, optimizers)
    assert len(tensor_files(tmp_path / checkpoint_name(2))) > 3
    parameters = read_parameters(tmp_path / checkpoint_name(2))
    assert parameters.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(p, parameters[name]) for name, p in model.named_parameters())
    copied = load(tmp_path)[1].state()
    assert all(torch.equal(value, copied[key]) for key, value in optimizers.state().items())


def test_what_a_save_failed_with_is_raised_by_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    model, optimizers = make_trained()
    writer = CheckpointWriter(tmp_path / "checkpoints", on_commit=lambda *_: None)
    state = TrainerState(step=4, tokens=1, best_val_loss=None, recipe=RECIPE)
    writer.save(model, optimizers, state)
    with pytest.raises(NotADirectoryError):
        writer.save(model, optimizers, state)
    writer.wait()


def test_a_process_killed_while_it_saves_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    save(tmp_path, 2, *make_trained())
    program = (
        "import os, sys; from pathlib import Path; from training import manifest;"
        "from tests.training.test_checkpoint import make_trained, save;"
        "manifest.commit = lambda *_, **__: os.kill(os.getpid(), 9);"
        "save(Path(sys.argv[1]), 4, *make_trained())"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / f".{checkpoint_name(4)}.partial").is_dir()
    state = load(tmp_path)[2]
    assert state is not None
    assert state.step == 2
    CheckpointWriter(tmp_path, on_commit=lambda *_: None)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint_name(2)]


def test_a_full_disk_leaves_the_checkpoint_before_it_intact(small_disk: Path) -> None:
    checkpoints = small_disk / "checkpoints"
    save(checkpoints, 2, *make_trained())
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free - 40_000))
    with pytest.raises(NoSpaceError, match="no space left on the disk to save step-00000004"):
        save(checkpoints, 4, *make_trained())
    assert committed_checkpoints(checkpoints) == [2]
    manifest.verify(checkpoints / checkpoint_name(2))
    assert [p.name for p in checkpoints.iterdir()] == [checkpoint_name(2)]


def test_saving_a_step_again_replaces_what_did_not_verify(tmp_path: Path) -> None:
    save(tmp_path, 2, *make_trained())
    (tensors,) = tensor_files(tmp_path / checkpoint_name(2))
    tensors.write_bytes(b"rubbish")
    save(tmp_path, 2, *make_trained())
    manifest.verify(tmp_path / checkpoint_name(2))


def test_dropping_takes_the_manifest_first(tmp_path: Path) -> None:
    save(tmp_path, 2, *make_trained())
    manifest.drop(tmp_path, 2)
    manifest.drop(tmp_path, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_has_no_room_for_the_first_folder_is_told_as_full(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    told = explain(full, tmp_path / "checkpoints" / checkpoint_name(2), tmp_path / "checkpoints")
    assert isinstance(told, NoSpaceError)


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    save(tmp_path, 2, *make_trained())
    (tmp_path / f".{checkpoint_name(4)}.partial").mkdir()
    save(tmp_path, 6, *make_trained())
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [checkpoint_name(2), checkpoint_name(6)]


def test_a_folder_without_a_state_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_state(tmp_path / "nowhere")
