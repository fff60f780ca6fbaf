"""The parts of a block, of both kinds of tower."""

import torch

from clipself_d2.clip.towers.attention import Heads, global_attention, merge_heads


@torch.no_grad()
def test_the_parts_together_are_the_block(tower, images):
    tokens, rotary = tower.embed(images)
    block = tower.block_modules[0]
    heads = tower.heads(block, tokens, rotary)
    added = tower.attended(block, merge_heads(global_attention(heads)))
    expected = tower.run_block(block, tokens, rotary)
    assert torch.equal(tower.feed_forward(block, tokens + added), expected)
    torch.testing.assert_close(merge_heads(heads.value), tower.value(block, tokens))


def test_every_parameter_of_a_block_has_one_owner(tower):
    block = tower.block_modules[-1]
    own = [p for part in tower.own_parameters(block).values() for p in part]
    named = [id(p) for p in (*own, *tower.shared_parameters(block))]
    assert len(named) == len(set(named))
    rest = {name for name, p in block.named_parameters() if id(p) not in named}
    # The first norm, value and output projection with the norm of values.
    parts = ("ln_1.", "norm1.", "attn.out_proj.", "attn.proj.", "attn.v_proj.", "attn.norm.")
    assert rest
    assert all(name.startswith(parts) for name in rest)
    assert set(tower.own_parameters(block)) == {*Heads._fields[:2], "mlp"}
