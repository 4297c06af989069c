"""Text from a checkpoint: `python -m training.sample --checkpoint FOLDER --prompt TEXT`.

Prints the samples, a line of dashes between them. Runs on a GPU when there is one.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from training import manifest
from training.checkpoint import load_model, read_state
from training.errors import TrainingError
from training.layout import write_atomic
from training.model import GPT
from training.processes import end_with_parent
from training.tokenizer import Tokenizer, open_tokenizer

SEPARATOR = "-" * 72


@torch.no_grad()
def generate(
    model: GPT,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    generator: torch.Generator,
) -> Tensor:
    """(B, T) int64 → (B, T + max_new_tokens), each new id drawn from the `top_k` likeliest.

    The model sees the last `block_size` tokens; `temperature` divides the logits.
    """
    tokens = prompt
    for _ in range(max_new_tokens):
        logits = model.logits(tokens[:, -model.config.block_size :], last=1)[:, 0]
        logits = logits.float() / temperature
        kept, ids = logits.topk(min(top_k, logits.shape[-1]))
        drawn = torch.multinomial(F.softmax(kept, dim=-1), 1, generator=generator)
        tokens = torch.cat([tokens, ids.gather(1, drawn)], dim=1)
    return tokens


def sample(
    checkpoint: Path,
    *,
    prompt: str,
    count: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
) -> list[str]:
    """`count` texts that begin with `prompt`. Raises CheckpointError for a damaged checkpoint."""
    manifest.verify(checkpoint)
    recipe = read_state(checkpoint).recipe
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPT(recipe.model)
    load_model(checkpoint, model)
    model.to(device).eval()
    return write_texts(
        model,
        open_tokenizer(recipe.data.tokenizer),
        prompt=prompt,
        count=count,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )


def write_texts(
    model: GPT,
    tokenizer: Tokenizer,
    *,
    prompt: str,
    count: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
) -> list[str]:
    """`count` texts that begin with `prompt`, by a model in its evaluation mode, on its device."""
    device = model.wte.weight.device
    # Documents begin with end-of-text, so a text does too.
    ids = [tokenizer.end_of_text, *tokenizer.encode(prompt).tolist()]
    tokens = generate(
        model,
        torch.tensor([ids] * count, device=device),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        generator=torch.Generator(device).manual_seed(seed),
    )
    return [tokenizer.decode(row[1:]) for row in tokens.cpu().numpy()]


def main(argv: list[str]) -> str | int:
    parser = argparse.ArgumentParser(prog="training.sample", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--prompt")
    parser.add_argument("--count", type=int)
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--to", type=Path, help="write to this file instead of printing")
    arguments = vars(parser.parse_args(argv))
    checkpoint: Path = arguments.pop("checkpoint")
    output: Path | None = arguments.pop("to")
    try:
        defaults = read_state(checkpoint).recipe.sample
        chosen = {
            name: getattr(defaults, name) if value is None else value
            for name, value in arguments.items()
        }
        texts = sample(checkpoint, **chosen)
    except TrainingError as error:
        return error.report
    text = f"\n{SEPARATOR}\n".join(texts) + "\n"
    if output is None:
        print(text, end="")
    else:
        write_atomic(output, text.encode())
    return 0


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(sys.argv[1:]))
