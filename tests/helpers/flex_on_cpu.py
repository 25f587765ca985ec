"""FlexAttention on CPU, where "sdpa" would stand in for it: without compiling it, so that a test is quick."""

from torch.nn.attention.flex_attention import flex_attention

from lsg_xlmr.attention import flex


def use_flex_on_cpu(monkeypatch, module=flex, compiled=False):
    """Let `module`, which is or contains `attention/flex.py`, use FlexAttention for tensors on CPU."""
    monkeypatch.setattr(module, "FLEX_DEVICES", ("cpu",))
    monkeypatch.setattr(module, "MIN_FLEX_HEAD_DIM", 1)
    if not compiled:
        monkeypatch.setattr(module, "compiled_flex_attention", uncompiled_flex_attention)


def uncompiled_flex_attention(query, key, value, block_mask, scale):
    """As `compiled_flex_attention`, on torch's own path of single operations."""
    return flex_attention(query, key, value, block_mask=block_mask, scale=scale)
