"""A checkpoint as a folder that transformers loads: `python -m training.export`.

`AutoModelForCausalLM.from_pretrained(folder)` then gives the same logits: the padding of the
vocabulary is dropped, and linear layers are transposed, since OpenAI's release (and so
transformers) stores them as 1x1 convolutions. `AutoTokenizer` gives the same ids; there is none
for a recipe whose tokens are bytes, of which transformers has no tokenizer.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from training import manifest
from training.checkpoint import read_parameters, read_state
from training.config import ModelConfig
from training.errors import TrainingError
from training.export_tokenizer import write_json, write_tokenizer
from training.tokenizer import Gpt2Tokenizer, open_tokenizer

_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def export_transformers(checkpoint: Path, folder: Path) -> bool:
    """Write the model (fp32), its configuration and its tokenizer; whether it has one.

    Raises CheckpointError, DataError where the tokenizer's vocabulary cannot be had.
    """
    manifest.verify(checkpoint)
    recipe = read_state(checkpoint).recipe
    tokenizer = open_tokenizer(recipe.data.tokenizer)
    tensors = rename_for_transformers(read_parameters(checkpoint), recipe.model)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = transformers_config(recipe.model, end_of_text=tokenizer.end_of_text)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation_config(tokenizer.end_of_text))
    if not isinstance(tokenizer, Gpt2Tokenizer):
        return False
    write_tokenizer(tokenizer, folder, block_size=recipe.model.block_size)
    return True


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


def transformers_config(model: ModelConfig, *, end_of_text: int) -> dict[str, Any]:
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


def generation_config(end_of_text: int) -> dict[str, Any]:
    """What `generate` begins, ends and pads with; how it samples is left to the caller."""
    return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end_of_text)


def main(argv: list[str]) -> str | int:
    parser = argparse.ArgumentParser(prog="training.export", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args(argv)
    try:
        if not export_transformers(arguments.checkpoint, arguments.to):
            print("the model alone: transformers has no tokenizer whose tokens are bytes")
    except TrainingError as error:
        return error.report
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
