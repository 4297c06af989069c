"""`gptctl publish`, through the command line, against a Hub on this machine."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download
from msgspec.structs import replace
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptctl.cli import main
from tests.gptctl.run_folder import RECIPE, RunFolder
from tests.hub_server import HubServer, running_hub
from tests.hub_writes import MODELS, Account
from training.checkpoint import CheckpointWriter, TrainerState
from training.layout import encode, write_atomic
from training.model import GPT
from training.optimizer import Optimizers

# huggingface_hub's own, as it puts a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

RUN, REPO, TOKEN = "small-3f9a", "ann/small-gpt", "hf_ann"
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub(tmp_path / "hub", monkeypatch) as server:
        server.sign_up(TOKEN, Account(name="ann"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("GPTCTL_STORE", str(tmp_path / "store"))
    return RunFolder(tmp_path / "store", state="succeeded", reason="completed", step=100)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*argv: str) -> tuple[int, str, str]:
        code = main(list(argv))
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert "bug" not in err
        return code, out, err

    return run


def save(run: RunFolder, step: int) -> GPT:
    """A checkpoint such as training writes."""
    recipe = run.record.recipe
    model = GPT(recipe.model, seed=step)
    writer = CheckpointWriter(run.paths.checkpoints, on_commit=lambda *_: None)
    state = TrainerState(step=step, tokens=256 * step, best_val_loss=None, recipe=recipe)
    writer.save(model, Optimizers(model, recipe.train), state)
    writer.wait()
    return model


def test_what_is_published_is_what_others_load(
    hub: HubServer, run: RunFolder, call: Call, gpt2_vocabulary: Path
) -> None:
    model = replace(RECIPE.model, n_embd=8, vocab_size=50257)
    recipe = replace(RECIPE, model=model, data=replace(RECIPE.data, tokenizer="gpt2"))
    run.record = replace(run.record, recipe=recipe)
    write_atomic(run.paths.record, encode(run.record))
    saved = save(run, 100)

    code, out, err = call("publish", RUN, REPO, "--private", "--yes")

    assert (code, "loads it" in err) == (0, True), err
    assert f"{hub.url}/{REPO} (new, private)" in err
    assert TOKEN not in out + err
    folder = snapshot_download(REPO)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)("the cat sat", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(tokens).logits, saved.logits(tokens), rtol=1e-5, atol=1e-5
        )


def test_a_dry_run_tells_what_would_become_of_what_is_there(
    hub: HubServer, run: RunFolder, call: Call, tmp_path: Path
) -> None:
    run.write_status(state="preempted", step=90)
    run.write_metrics({"step": 80, "val_loss": 2.75}, {"step": 90, "val_loss": 2.5})
    save(run, 80)
    hub.commit(MODELS + REPO, {"README.md": b"# mine", "notes.txt": b"mine"})

    code, out, err = call("publish", RUN, REPO, "--checkpoint", "best", "--dry-run", "--json")

    assert (code, "Nothing was sent" in err) == (0, True), err
    assert "warning: the model alone" in err  # bytes have no tokenizer
    told = json.loads(out)
    assert (told["step"], told["is_new"], told["private"]) == (80, False, False)
    assert (told["replaced"], told["kept"]) == (["README.md"], ["notes.txt"])
    names = {file["name"] for file in told["files"]}
    assert names == {
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
    }
    assert "step 80 of 100" in told["card"]
    assert "2.7500" in told["card"]
    assert "it was preempted at step 90" in told["card"]
    assert str(tmp_path) not in told["card"]
    assert not [r for r in hub.requests if r.method != "GET"]


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        ((REPO, "--checkpoint", "17"), 6, "it has step 80"),
        ((REPO, "--checkpoint", "newest"), 2, "`latest` or `best`"),
        (("bob/model",), 8, "owner is one of ann"),
        (("model",), 2, "it has no owner"),
        (("ann/public", "--private"), 2, "seen by all"),
    ],
)
def test_what_cannot_be_published_says_why_and_sends_nothing(
    hub: HubServer, run: RunFolder, call: Call, argv: tuple[str, ...], code: int, told: str
) -> None:
    run.write_checkpoint(80)
    hub.commit(MODELS + "ann/public", {"README.md": b"# mine"})
    found, _, err = call("publish", RUN, *argv, "--yes")
    assert (found, told in err) == (code, True), err
    assert not [r for r in hub.requests if r.method != "GET"]


def test_of_a_run_that_goes_on_the_checkpoint_must_be_named(
    hub: HubServer, run: RunFolder, call: Call
) -> None:
    run.write_status(state="preempted", step=80)
    run.write_checkpoint(80)
    code, _, err = call("publish", RUN, REPO, "--yes")
    assert (code, "`--checkpoint latest`" in err) == (2, True), err
    assert not hub.requests


def test_nobody_there_to_be_asked_means_no(hub: HubServer, run: RunFolder, call: Call) -> None:
    run.write_checkpoint(100)
    code, _, err = call("publish", RUN, REPO)
    assert (code, "`--yes`" in err) == (2, True), err
    assert not hub.requests
