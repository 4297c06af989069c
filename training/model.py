"""GPT-2, exactly: pre-norm blocks, learned positions, tied embeddings, tanh-GELU, biases.

Parameter names are those of OpenAI's release and of transformers, so that an export is a
rename-free copy. Radford et al. 2019; initialization as in their code: N(0, 0.02), and the
projections that write to the residual stream scaled by 1/√(2·n_layer).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from training.config import ModelConfig
from training.head import IGNORED as IGNORED
from training.head import head_loss, score


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.c_attn(x).view(b, t, 3, self.n_head, c // self.n_head).unbind(2)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        out: Tensor = self.c_proj(y.transpose(1, 2).reshape(b, t, c))
        return out


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return out


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class GPT(nn.Module):
    def __init__(
        self, config: ModelConfig, *, seed: int = 0, checkpoint_activations: bool = False
    ) -> None:
        """The seed fixes the initial weights: every rank, on any machine, starts the same.

        `checkpoint_activations`: of each block only the input is kept for the backward pass,
        which computes the rest again: the same numbers, less memory, a third more work.
        """
        super().__init__()
        self.config = config
        self.checkpoint_activations = checkpoint_activations
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self._score = score
        self._initialize(torch.Generator().manual_seed(seed))

    def compile_blocks(self) -> None:
        """From now on blocks run compiled, and what the loss does to logits, too.

        All layers share one code, so a start compiles one block, not a model. Each shape is
        compiled once, forward alone (evaluation) and with its backward; sizes never turn
        dynamic. What must not compile runs under `torch.compiler.set_stance("force_eager")`.
        """
        for block in self.h:
            block.compile(dynamic=False)
        self._score = torch.compile(score, dynamic=False)

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith("c_proj.weight")
                std = 0.02 / (2 * self.config.n_layer) ** 0.5 if residual else 0.02
                parameter.normal_(0.0, std, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()

    def logits(self, tokens: Tensor, *, last: int = 0) -> Tensor:
        """(B, T) int64 → (B, T, vocab_size): ids that only pad the embedding have no logit.

        Of the `last` positions alone, where that is not 0.
        """
        hidden = self._hidden(tokens)[:, -last:]
        return F.linear(hidden, self.wte.weight)[..., : self.config.vocab_size]

    def forward(self, tokens: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats, mean or sum over the targets that are not IGNORED.

        `reduction="none"`: (B·T,), for scoring: it has no gradient.
        """
        loss: Tensor = head_loss(
            self._hidden(tokens).flatten(0, 1),
            self.wte.weight,
            targets.flatten(),
            vocab_size=self.config.vocab_size,
            reduction=reduction,
            scoring=self._score,
        )
        return loss

    def _hidden(self, tokens: Tensor) -> Tensor:
        """(B, T) → (B, T, n_embd), as the head multiplies it."""
        x: Tensor = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            if self.checkpoint_activations and torch.is_grad_enabled():
                # Nothing is drawn at random, so no generator's state needs to be kept.
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x)
        out: Tensor = self.ln_f(x)
        return out
