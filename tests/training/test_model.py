import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from training.config import ModelConfig
from training.export import rename_for_transformers, transformers_config
from training.model import GPT, IGNORED

TINY = ModelConfig(n_layer=3, n_head=2, n_embd=32, block_size=16, vocab_size=257)


def random_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, TINY.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def test_logits_equal_those_of_transformers(tmp_path: Path) -> None:
    model = GPT(TINY, seed=3)
    with torch.no_grad():  # zero biases and unit norms would hide a misplaced one
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    reference = GPT2LMHeadModel._from_config(
        GPT2LMHeadModel.config_class(**transformers_config(TINY, end_of_text=256)),
        attn_implementation="eager",
    ).eval()
    save_file(rename_for_transformers(model.state_dict(), TINY), tmp_path / "m.safetensors")
    missing = reference.load_state_dict(load_file(tmp_path / "m.safetensors"), strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"])
    assert missing.unexpected_keys == []
    reference.tie_weights()

    tokens = random_tokens(4, 16)
    torch.testing.assert_close(model.logits(tokens), reference(tokens).logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.logits(tokens, last=1), model.logits(tokens)[:, -1:])


def test_parameter_count_is_what_the_formula_says() -> None:
    assert sum(p.numel() for p in GPT(TINY).parameters()) == TINY.parameters


def test_reference_sizes_have_the_published_parameter_counts() -> None:
    # llm.c, vocabulary padded to 50304.
    sizes = {(12, 12, 768): 124_475_904, (24, 16, 1024): 354_871_296, (48, 25, 1600): 1_557_686_400}
    for (n_layer, n_head, n_embd), parameters in sizes.items():
        config = ModelConfig(
            n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=1024, vocab_size=50257
        )
        assert config.parameters == parameters


def test_loss_at_initialization_is_that_of_a_uniform_guess_over_the_true_vocabulary() -> None:
    tokens = random_tokens(8, 17)
    loss = GPT(TINY)(tokens[:, :-1], tokens[:, 1:])
    assert loss.item() == pytest.approx(math.log(TINY.vocab_size), abs=0.05)


def test_initialization_scales_the_residual_projections() -> None:
    config = ModelConfig(n_layer=8, n_head=4, n_embd=128, block_size=16, vocab_size=257)
    block = GPT(config).h[0]
    assert block.mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)
    assert block.attn.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)
    assert not block.attn.c_attn.bias.any()


def test_the_seed_alone_decides_the_initial_weights() -> None:
    torch.manual_seed(0)
    first = GPT(TINY, seed=7).state_dict()
    torch.manual_seed(1)
    again, other = GPT(TINY, seed=7).state_dict(), GPT(TINY, seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["wte.weight"], other["wte.weight"])


def test_padded_ids_get_no_logit_and_no_gradient() -> None:
    model = GPT(TINY)
    tokens = random_tokens(2, 17)
    assert model.logits(tokens[:, :-1]).shape == (2, 16, 257)
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    assert model.wte.weight.grad is not None
    assert model.wte.weight.shape[0] == 384
    assert not model.wte.weight.grad[257:].any()


def test_ignored_targets_add_nothing_to_a_summed_loss() -> None:
    model = GPT(TINY)
    tokens = random_tokens(3, 17)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    two_rows = model(inputs[:2], targets[:2], reduction="sum")
    targets[2:] = IGNORED
    torch.testing.assert_close(model(inputs, targets, reduction="sum"), two_rows)


@pytest.mark.parametrize("autocast", [False, True])
def test_recomputed_activations_change_no_number(autocast: bool) -> None:
    tokens = random_tokens(2, 17)
    gradients = []
    for recompute in (False, True):
        model = GPT(TINY, checkpoint_activations=recompute)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert all(map(torch.equal, *gradients))


def test_recomputed_activations_are_not_kept() -> None:
    kept = {}
    for recompute in (False, True):
        model = GPT(TINY, checkpoint_activations=recompute)
        sizes: list[int] = []
        tokens = random_tokens(8, 17)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            model(tokens[:, :-1], tokens[:, 1:])
        kept[recompute] = sum(sizes)
    assert kept[True] < kept[False] / 2
