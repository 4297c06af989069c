import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import ModelConfig, split_batch


def test_flops_per_token_are_those_of_the_two_published_formulas() -> None:
    gpt2 = ModelConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257)
    assert gpt2.padded_vocab_size == 50304
    assert gpt2.flops_per_token / 1e9 == pytest.approx(0.8035, abs=5e-5)  # llm.c
    assert gpt2.flops_per_token_palm / 1e9 == pytest.approx(0.8601, abs=5e-5)  # PaLM, appendix B


def test_the_reference_batch_splits_as_the_reference_does() -> None:
    split = {"batch_tokens": 524_288, "block_size": 1024, "micro_batch_size": 64}
    assert split_batch(**split, ranks=8) == (64, 1)
    assert split_batch(**split, ranks=1) == (64, 8)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 16), st.integers(1, 8))
def test_a_step_is_exactly_its_tokens_on_any_number_of_ranks(
    sequences: int, micro_batch_size: int, ranks: int, block_size: int
) -> None:
    batch_tokens = sequences * ranks * block_size
    micro, accum = split_batch(
        batch_tokens=batch_tokens,
        block_size=block_size,
        micro_batch_size=micro_batch_size,
        ranks=ranks,
    )
    assert micro * accum * ranks * block_size == batch_tokens
    assert micro <= micro_batch_size


def test_sequences_that_ranks_cannot_share_are_refused() -> None:
    with pytest.raises(ValueError, match="which 3 ranks cannot share evenly"):
        split_batch(batch_tokens=1024, block_size=128, micro_batch_size=4, ranks=3)


def test_heads_must_divide_the_embedding() -> None:
    with pytest.raises(ValueError, match="multiple of n_head"):
        ModelConfig(n_layer=1, n_head=3, n_embd=64, block_size=8, vocab_size=257)
