"""A checkpoint as a folder that transformers loads: `python -m training.export`.

`GPT2LMHeadModel.from_pretrained(folder)` then gives the same logits: the padding of the
vocabulary is dropped, and linear layers are transposed, since OpenAI's release (and so
transformers) stores them as 1x1 convolutions.
"""

import argparse
import sys
from pathlib import Path

import msgspec
from safetensors.torch import load_file, save_file
from torch import Tensor

from training import manifest
from training.checkpoint import MODEL, read_state
from training.config import ModelConfig
from training.errors import TrainingError
from training.layout import write_atomic
from training.tokenizer import open_tokenizer

_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def export_transformers(checkpoint: Path, folder: Path) -> None:
    """Write `model.safetensors` (fp32) and `config.json`. Raises CheckpointError."""
    manifest.verify(checkpoint)
    recipe = read_state(checkpoint).recipe
    tensors = rename_for_transformers(load_file(checkpoint / MODEL), recipe.model)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / MODEL, metadata={"format": "pt"})
    end_of_text = open_tokenizer(recipe.data.tokenizer).end_of_text
    config = transformers_config(recipe.model, end_of_text=end_of_text)
    write_atomic(folder / "config.json", msgspec.json.format(msgspec.json.encode(config)) + b"\n")


def rename_for_transformers(tensors: dict[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """The model's parameters as GPT2LMHeadModel names and lays them out."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.endswith(_TRANSPOSED):
            tensor = tensor.t()
        elif name == "wte.weight":
            tensor = tensor[: model.vocab_size]
        renamed[f"transformer.{name}"] = tensor.contiguous()
    return renamed


def transformers_config(model: ModelConfig, *, end_of_text: int) -> dict[str, object]:
    """The fields of transformers' GPT2Config that describe this model."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "n_embd": model.n_embd,
        "n_positions": model.block_size,
        "vocab_size": model.vocab_size,
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
    }


def main(argv: list[str]) -> str | int:
    parser = argparse.ArgumentParser(prog="training.export", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args(argv)
    try:
        export_transformers(arguments.checkpoint, arguments.to)
    except TrainingError as error:
        return error.report
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
