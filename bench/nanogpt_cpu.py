"""nanoGPT's published CPU configuration for Shakespeare, in plain PyTorch: the reference.

4 layers, 4 heads, 128 wide, context 64, batch 12, 2000 steps, no dropout, no biases, AdamW
with β2 0.99 and weight decay 0.1 on matrices, gradient clip 1, 1e-3 to 1e-4 by cosine after
100 warm-up steps; 20 + 20 batches of estimation every 250 steps. One process, two threads.
Source: the nanoGPT README, "i only have a macbook", and its `config/train_shakespeare_char.py`.

    python bench/nanogpt_cpu.py TEXT      prints the final loss over the last tenth of TEXT
"""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, STEPS = 4, 4, 128, 64, 12, 2000
MAX_LR, MIN_LR, WARMUP = 1e-3, 1e-4, 100
EVAL_EVERY, EVAL_BATCHES = 250, 20


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm_2 = nn.LayerNorm(WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            part.view(b, t, HEADS, c // HEADS).transpose(1, 2)
            for part in self.qkv(self.norm_1(x)).split(WIDTH, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        result: Tensor = x + self.down(F.gelu(self.up(self.norm_2(x))))
        return result


class CharGPT(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS) if residual else 0.02)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.blocks(self.tokens(x) + self.positions.weight[: x.shape[1]])
        logits = F.linear(self.norm(h), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def draw_batch(text: Tensor) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(text) - CONTEXT, (BATCH,))
    windows = torch.stack([text[s : s + CONTEXT + 1] for s in starts.tolist()])
    return windows[:, :-1], windows[:, 1:]


def learning_rate(step: int) -> float:
    if step < WARMUP:
        return MAX_LR * (step + 1) / (WARMUP + 1)
    ratio = (step - WARMUP) / (STEPS - WARMUP)
    return MIN_LR + 0.5 * (1 + math.cos(math.pi * ratio)) * (MAX_LR - MIN_LR)


@torch.no_grad()
def loss_over(model: CharGPT, text: Tensor) -> float:
    """Mean nats per character over all of `text`, in windows that follow on."""
    count = (len(text) - 1) // CONTEXT
    x, y = (text[i : i + count * CONTEXT].view(count, CONTEXT) for i in (0, 1))
    batches = zip(torch.split(x, 64), torch.split(y, 64), strict=True)
    return float(sum(model(a, b).item() * len(a) for a, b in batches)) / count


def main(path: Path) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(1337)
    characters = path.read_text()
    vocabulary = {c: i for i, c in enumerate(sorted(set(characters)))}
    text = torch.tensor([vocabulary[c] for c in characters])
    train, validation = text[: int(0.9 * len(text))], text[int(0.9 * len(text)) :]
    model = CharGPT(len(vocabulary))
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() != 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.99),
    )
    for step in range(STEPS):
        if step % EVAL_EVERY == 0:
            with torch.no_grad():
                for split in (train, validation):
                    for _ in range(EVAL_BATCHES):
                        model(*draw_batch(split))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        loss = model(*draw_batch(train))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # nanoGPT logs every step
    print("trained", flush=True)  # what follows is measurement, not part of the time
    print(f"{loss_over(model, validation):.4f}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
