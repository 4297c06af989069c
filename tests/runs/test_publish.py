"""From text to a model that others load: a run, its summary, its place on the Hub."""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.hub_server import HubServer, running_hub
from tests.hub_writes import Account
from tests.runs.user import User, leave_nothing_running
from training.checkpoint import load_model, read_state
from training.model import GPT

pytestmark = pytest.mark.slow

REPO, TOKEN = "ann/cats", "hf_ann"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub(tmp_path / "hub", monkeypatch) as server:
        server.sign_up(TOKEN, Account(name="ann"))
        yield server


@pytest.fixture
def user(hub: HubServer, tmp_path: Path, gpt2_vocabulary: Path) -> Iterator[User]:
    somebody = User(
        tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN, TIKTOKEN_CACHE_DIR=str(gpt2_vocabulary)
    )
    yield somebody
    leave_nothing_running(somebody)


def test_a_trained_model_is_published_and_loads_as_it_was_trained(
    user: User, hub: HubServer, tmp_path: Path
) -> None:
    gpt2 = ("--set", "model.vocab_size=50257", "--set", "data.tokenizer=gpt2")
    view = user.launch(*gpt2, "--set", "data.shard_tokens=4000", "--price-per-hour", "3.60")
    run_id = view["run_id"]

    summary = json.loads((user.folder(run_id) / "summary.json").read_bytes())
    assert (summary["state"], summary["reason"]) == ("succeeded", "completed")
    assert summary["reached"]["steps"] == 30
    assert summary["reached"]["val_loss"] == view["val_loss"]
    assert Decimal(summary["reached"]["usd"]) == Decimal(view["spent_usd"])

    published = user.json("publish", run_id, REPO, "--yes", *user.to_store)
    assert published["publication"]["step"] == 30
    assert f"{view['val_loss']:.4f}" in published["publication"]["card"]
    assert str(tmp_path) not in published["publication"]["card"]

    folder = snapshot_download(REPO)
    tokens = AutoTokenizer.from_pretrained(folder)(
        "the cat sat on a mat", return_tensors="pt"
    )["input_ids"]  # fmt: skip
    native = user.folder(run_id) / "checkpoints" / "step-00000030"
    model = GPT(read_state(native).recipe.model)
    load_model(native, model)
    with torch.no_grad():
        torch.testing.assert_close(
            AutoModelForCausalLM.from_pretrained(folder).eval()(tokens).logits,
            model.logits(tokens),
            rtol=1e-5,
            atol=1e-5,
        )
