from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training import head
from training.head import IGNORED, head_loss

VOCAB, PADDED, WIDTH, ROWS = 61, 64, 16, 37


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rows of float32 at most: 37 go in chunks of 10, 10, 10 and 7, scored in two parts."""
    monkeypatch.setitem(head.BYTES_AT_ONCE, "cpu", 10 * PADDED * 4)
    monkeypatch.setitem(head.NUMBERS_AT_ONCE, "cpu", 6 * PADDED)


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(PADDED, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(0, VOCAB, (ROWS,), generator=generator)
    targets[[3, 12, ROWS - 1]] = IGNORED
    return x, weight, targets


def whole(x: Tensor, weight: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """What it must equal: all logits at once, by torch."""
    logits = F.linear(x, weight)[:, :VOCAB]
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction=reduction)


def bfloat16() -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_and_gradients_equal_those_of_all_logits_at_once(
    reduction: str, dtype: torch.dtype
) -> None:
    x, weight, targets = problem(dtype)
    loss = head_loss(x, weight, targets, vocab_size=VOCAB, reduction=reduction)
    found = torch.autograd.grad(3 * loss, (x, weight))
    expected_loss = whole(x, weight, targets, reduction)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(found, torch.autograd.grad(3 * expected_loss, (x, weight)))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_gradients_the_loss_is_the_same(reduction: str) -> None:
    x, weight, targets = problem()
    with torch.no_grad():
        loss = head_loss(x, weight, targets, vocab_size=VOCAB, reduction=reduction)
    torch.testing.assert_close(loss, whole(x, weight, targets, reduction).detach())


def test_without_gradients_ignored_targets_alone_have_no_loss() -> None:
    x, weight, targets = problem()
    with torch.no_grad():
        losses = head_loss(x, weight, targets.fill_(IGNORED), vocab_size=VOCAB, reduction="none")
    assert torch.equal(losses, torch.zeros(ROWS))


def test_losses_of_single_targets_refuse_a_backward_pass() -> None:
    x, weight, targets = problem()
    losses = head_loss(x, weight, targets, vocab_size=VOCAB, reduction="none")
    assert not losses.requires_grad


def test_padding_and_ignored_rows_get_no_gradient() -> None:
    x, weight, targets = problem()
    head_loss(x, weight, targets, vocab_size=VOCAB).backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert not weight.grad[VOCAB:].any()
    assert not x.grad[targets == IGNORED].any()
    assert x.grad[targets != IGNORED].any(1).all()


def test_a_batch_of_ignored_targets_alone_adds_nothing_to_a_sum() -> None:
    x, weight, targets = problem()
    loss = head_loss(x, weight, targets.fill_(IGNORED), vocab_size=VOCAB, reduction="sum")
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_under_autocast_gradients_err_no_more_than_those_of_all_logits_at_once() -> None:
    x, weight, targets = problem()
    exact = torch.autograd.grad(whole(x, weight, targets), (x, weight))
    with bfloat16():
        ours = head_loss(x, weight, targets, vocab_size=VOCAB)
        theirs = whole(x, weight, targets)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    found = torch.autograd.grad(ours, (x, weight))
    usual = torch.autograd.grad(theirs, (x, weight))
    for grad, other, truth in zip(found, usual, exact, strict=True):
        assert grad.dtype == torch.float32
        assert (grad - truth).norm() < 1.1 * (other - truth).norm()


def test_a_likely_target_keeps_its_small_gradient_under_autocast() -> None:
    """1 - p is 2e-4 here: p alone, rounded to bfloat16, is 1, and no gradient would be left."""
    x = torch.tensor([[8.5, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    with bfloat16():
        head_loss(x, weight, torch.tensor([0]), vocab_size=2).backward()
    assert x.grad is not None
    assert x.grad[0, 0].item() == pytest.approx(-1 / (1 + torch.e**8.5), rel=0.01)


def test_a_tied_weight_gathers_the_gradients_of_both_ends() -> None:
    _, weight, targets = problem()
    ids = torch.randint(0, VOCAB, (ROWS,), generator=torch.Generator().manual_seed(2))
    loss = head_loss(F.embedding(ids, weight), weight, targets, vocab_size=VOCAB)
    (found,) = torch.autograd.grad(loss, weight)
    (expected,) = torch.autograd.grad(whole(F.embedding(ids, weight), weight, targets), weight)
    torch.testing.assert_close(found, expected)


def test_a_second_backward_pass_is_refused() -> None:
    """The first has scaled the gradients in place."""
    x, weight, targets = problem()
    loss = head_loss(x, weight, targets, vocab_size=VOCAB)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_tensor_of_all_logits_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    count_rows = head._logits

    def watch(x: Tensor, weight: Tensor, vocab_size: int, **out: Any) -> Tensor:
        seen.append(len(x))
        return count_rows(x, weight, vocab_size, **out)

    monkeypatch.setattr(head, "_logits", watch)
    x, weight, targets = problem()
    head_loss(x, weight, targets, vocab_size=VOCAB).backward()
    with torch.no_grad():
        head_loss(x, weight, targets, vocab_size=VOCAB, reduction="none")
    assert seen == [10, 10, 10, 7, 9, 9, 9, 7]  # without gradients none of ignored rows


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [(10, [10]), (22, [8, 8, 6]), (24, [8] * 3), (33, [9, 9, 9, 6]), (35, [7] * 5)],
)
def test_chunks_are_equal_where_a_few_more_make_them_so(rows: int, sizes: list[int]) -> None:
    assert [part.stop - part.start for part in head._equal_slices(rows, at_most=10)] == sizes
