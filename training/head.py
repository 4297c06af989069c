"""The loss over a large vocabulary, without ever holding all logits.

GPT-2's logits are 50,257 numbers a token: of a batch they are larger than everything else.
Here rows go through in chunks, and each chunk's logits become, in place of a saved
activation, the gradients of `x` and `weight` at once (as in Liger's kernel, Hsu et al. 2024).
In memory there are the logits of one chunk only, and no logit is computed twice.

torch's own `linear_cross_entropy` (2.13) does as much in its chunked form, but it is not in torch
2.11, knows no ids that only pad the vocabulary, and does not compile.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -1
"""A target with this value adds nothing to the loss: padding of a batch that is not full."""

BYTES_AT_ONCE = {"cpu": 2**27, "cuda": 2**29}
"""Of a chunk's logits: enough for products of a good size, few beside a model's activations."""
NUMBERS_AT_ONCE = {"cpu": 2**20, "cuda": 2**26}
"""Of a chunk, worked on together: on a CPU as many as its cache holds."""

Scoring = Callable[[Tensor, Tensor], Tensor]


def score(logits: Tensor, targets: Tensor) -> Tensor:
    """(n, V), (n,) → losses (n,) in float32; in place of `logits` stands their sum's gradient."""
    is_counted = (targets != IGNORED)[:, None]
    at = targets.clamp(min=0)[:, None]
    work = logits.to(_summing_dtype(logits.dtype))  # `logits` themselves where they have it
    work -= work.amax(1, keepdim=True)
    of_target = work.gather(1, at)
    total = work.exp_().sum(1, keepdim=True)
    work *= is_counted / total
    work.scatter_(1, at, (of_target.exp() / total - 1) * is_counted)  # less one at the target
    if work is not logits:
        logits.copy_(work)
    return ((total.log() - of_target) * is_counted)[:, 0]


# Compiled into a whole model, its gradients are wrong in torch 2.11. `scoring` may be compiled.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def head_loss(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocab_size: int,
    reduction: str = "mean",
    scoring: Scoring = score,
) -> Tensor:
    """Cross-entropy in nats of `x @ weight.T`, (N, C) and (V, C), at targets (N,).

    Rows of `weight` from `vocab_size` on only pad it: they have no logits and no gradient. The
    products are those of autocast, sums are of float32. `reduction`: mean or sum over the targets
    that are not IGNORED, or none: (N,), which has no gradient. `scoring`: `score`, compiled.
    """
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    wants_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if reduction != "none" and wants_gradient:
        arguments = x, weight, targets, vocab_size, dtype, scoring
        total: Tensor = _SummedLoss.apply(*arguments)  # type: ignore[no-untyped-call]
    else:
        with torch.no_grad():
            losses = _losses(x.to(dtype), weight.to(dtype), targets, vocab_size)
        if reduction == "none":
            return losses
        total = losses.sum()
    return total / (targets != IGNORED).sum() if reduction == "mean" else total


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        vocab_size: int,
        dtype: torch.dtype,
        scoring: Scoring,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            w = weight.to(dtype)
            total = torch.zeros((), dtype=_summing_dtype(x.dtype), device=x.device)
            grad_x, grad_w = torch.empty_like(x), torch.empty_like(weight)
            # Written over by each chunk: new memory is what a CPU waits for the longest.
            chunks = _chunks(x.shape[0], w)
            logits = w.new_empty((chunks[0].stop, w.shape[0]))
            for rows in chunks:
                x_chunk = x[rows].to(dtype)
                grad = logits[: x_chunk.shape[0]]
                _logits(x_chunk, w, vocab_size, out=grad)
                for part in _parts(grad):
                    total += scoring(grad[part], targets[rows][part]).sum()
                grad_x[rows] = grad @ w
                if dtype == weight.dtype:
                    grad_w.addmm_(grad.T, x_chunk, beta=int(rows.start > 0))
                elif rows.start == 0:
                    grad_w.copy_(grad.T @ x_chunk)
                else:
                    product = grad.T @ x_chunk
                    for part in _parts(product):
                        grad_w[part] += product[part]
        ctx.save_for_backward(grad_x, grad_w)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # In place: autograd refuses a second pass, which would find them changed.
        grad_x, grad_w = (grad.mul_(grads[0]) for grad in ctx.saved_tensors)
        return grad_x, grad_w, None, None, None, None


def _losses(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """(N,): logits are made only where a target counts, which in HellaSwag is a small part."""
    losses = torch.zeros(targets.shape, dtype=_summing_dtype(x.dtype), device=x.device)
    (counted,) = (targets != IGNORED).nonzero(as_tuple=True)
    chunks = _chunks(counted.shape[0], weight)
    with torch.autocast(x.device.type, enabled=False):
        space = weight.new_empty((chunks[0].stop if chunks else 0, weight.shape[0]))
        for rows in chunks:
            at = counted[rows]
            logits = _logits(x[at], weight, vocab_size, out=space[: at.shape[0]])
            for part in _parts(logits):
                log_p = torch.log_softmax(logits[part], 1, dtype=losses.dtype)
                losses[at[part]] = F.nll_loss(log_p, targets[at[part]], reduction="none")
    return losses


def _chunks(rows: int, weight: Tensor) -> list[slice]:
    """Of rows whose logits are in memory together."""
    at_most = BYTES_AT_ONCE[weight.device.type] // (weight.shape[0] * weight.itemsize)
    return _equal_slices(rows, at_most)


def _parts(matrix: Tensor) -> list[slice]:
    """Of rows that are worked on together."""
    return _equal_slices(matrix.shape[0], NUMBERS_AT_ONCE[matrix.device.type] // matrix.shape[1])


def _equal_slices(rows: int, at_most: int) -> list[slice]:
    """As few as can be, or somewhat more that are equal: each shape compiles."""
    if rows == 0:
        return []
    fewest = -(-rows // max(1, at_most))
    count = next((c for c in range(fewest, 2 * fewest) if rows % c == 0), fewest)
    size = -(-rows // count)
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def _logits(x: Tensor, weight: Tensor, vocab_size: int, *, out: Tensor | None = None) -> Tensor:
    logits = torch.mm(x, weight.T, out=out)
    logits[:, vocab_size:] = -torch.inf
    return logits


def _summing_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
