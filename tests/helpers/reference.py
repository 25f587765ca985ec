"""
LSG attention by brute force: every query against a boolean mask over all keys, sparse tokens made in Python loops, in
float64. Written from the paper's definitions, with nothing of `lsg_xlmr` in it.
"""

import math

import torch


def dense_lsg_attention(
    query, key, value, mask, config, projections=None, causal=False, num_prefix=0, prefix_mask=None
):
    """
    Args:
        query, key, value (`torch.Tensor` of shape `n h G+t d`): globals first; keys and values of a prefix after
            those of the globals.
        mask (`torch.BoolTensor` of shape `n t`): `True` where a token is not padding.
        config: with the fields of an `LSGConfig`.
        projections (list of `torch.Tensor` of shape `h d p`): for `lsh`, one per round.
        causal (`bool`): of a decoder, where `t` may be any length.
        num_prefix (`int`): how long a prefix is, whose keys every query sees.
        prefix_mask (`torch.BoolTensor` of shape `n num_prefix`, *optional*): `False` where none does.

    Returns:
        the context `n h G+t d` and the attention weights over globals, prefix and tokens `n h G+t G+num_prefix+t`, in
        float64.
    """
    query, key, value = query.double(), key.double(), value.double()
    n, h, num_queries, d = query.shape
    first = config.num_global_tokens  # the first token's query
    t = num_queries - first
    num_globals = first + num_prefix  # as keys
    positions = num_globals + t
    context, weights = torch.zeros_like(query), query.new_zeros(n, h, num_queries, positions)
    for i in range(n):
        for j in range(h):
            head = [None if p is None else p[j].double() for p in projections or []]
            whole = t // config.block_size * config.block_size if t > 2 * config.block_size else 0
            spread, visible_sparse = sparse_weights(
                key[i, j, num_globals : num_globals + whole],
                mask[i, :whole],
                query[i, j, first],
                j,
                config,
                head,
            )
            spread = torch.nn.functional.pad(spread, (0, t - whole))  # m t
            full = torch.cat([torch.eye(positions).double(), torch.nn.functional.pad(spread, (num_globals, 0))])
            keys = full @ key[i, j]  # G+t+m d
            allowed = torch.zeros(num_queries, len(full), dtype=torch.bool)
            allowed[:, :num_globals] = True
            allowed[:first, num_globals:positions] = not causal
            row = causal_token_row if causal else token_row
            for q in range(t):
                allowed[first + q] = row(q, t, len(spread), num_globals, config)
            allowed[:, num_globals:positions] &= mask[i]
            if prefix_mask is not None:
                allowed[:, first:num_globals] &= prefix_mask[i]
            allowed[:, positions:] &= visible_sparse
            allowed |= ~allowed.any(1, keepdim=True)  # of no meaning, and to be a number in gradients
            scores = (query[i, j] @ keys.T) / math.sqrt(d)
            probabilities = scores.masked_fill(~allowed, -math.inf).softmax(-1) @ full
            weights[i, j] = probabilities
            context[i, j] = probabilities @ value[i, j]
    return context, weights


def token_row(q, t, m, num_globals, config):
    """The keys of `[globals | tokens | sparse tokens]` the token query `q` sees, before masking."""
    b, s = config.block_size, config.sparse_block_size
    row = torch.zeros(num_globals + t + m, dtype=torch.bool)
    row[:num_globals] = True
    if t <= 2 * b:
        row[num_globals : num_globals + t] = True
        return row
    block = q // b
    row[num_globals + max(0, (block - 1) * b) : num_globals + min(t, (block + 2) * b)] = True
    for sparse in range(m):
        step = b // config.sparsity_factor
        just_before = (block - 1) * step - s <= sparse < (block - 1) * step
        just_after = (block + 2) * step <= sparse < (block + 2) * step + s
        row[num_globals + t + sparse] = just_before or just_after
    return row


def causal_token_row(q, t, m, num_globals, config):
    """[`token_row`] of a decoder: nothing after the query, and no sparse token of its block or the one before."""
    b, s, step = config.block_size, config.sparse_block_size, config.block_size // (config.sparsity_factor or 1)
    block = q // b
    row = torch.zeros(num_globals + t + m, dtype=torch.bool)
    row[:num_globals] = True
    row[num_globals + max(0, (block - 1) * b) : num_globals + q + 1] = True
    for sparse in range(m):
        row[num_globals + t + sparse] = (block - 1) * step - s <= sparse < (block - 1) * step
    return row


def sparse_weights(key, mask, first_query, head, config, projections):
    """
    For one head: what each sparse token takes of each token (`m t`, float64), and whether it is seen (`m`, bool).
    """
    t, d = key.shape
    b, s, f = config.block_size, config.sparse_block_size, config.sparsity_factor
    kind = config.sparsity_type
    rows, visible = [], []

    def add(weights_by_token, seen):
        row = torch.zeros(t, dtype=torch.float64)
        for token, weight in weights_by_token.items():
            row[token] = weight
        rows.append(row)
        visible.append(seen)

    if kind == "none" or s == 0 or t == 0:
        return torch.zeros(0, t, dtype=torch.float64), torch.zeros(0, dtype=torch.bool)
    if f == 1:
        return torch.eye(t, dtype=torch.float64), mask.clone()
    if kind == "lsh" and f == s:
        kind = "bos_pooling"
    if kind in ("norm", "lsh"):
        chunk = min(b, s)
        for start in range(0, t, chunk):
            tokens = list(range(start, start + chunk))
            if kind == "norm":
                norms = {i: key[i].norm().item() if mask[i] else 0.0 for i in tokens}
                for i in sorted(tokens, key=lambda i: norms[i])[-(chunk // f) :]:
                    add({i: 1.0}, bool(mask[i]))
            else:
                for members in hash_clusters(key, mask, tokens, chunk, f, config, projections):
                    add({i: 1 / len(members) for i in members}, len(members) > 0)
    elif kind == "stride":
        for start in range(0, t, f):
            add({start + head % f: 1.0}, bool(mask[start + head % f]))
    elif kind == "block_stride":
        step = b // f
        for start in range(0, t, b):
            for i in range(step):
                token = start + head * step % b + i
                add({token: 1.0}, bool(mask[token]))
    else:
        for start in range(0, t, f):
            tokens = [i for i in range(start, start + f) if mask[i]]
            if kind == "pooling":
                add({i: 1 / len(tokens) for i in tokens}, len(tokens) > 0)
            else:  # bos_pooling: a run of padding is the plain mean of it, and seen
                members = tokens or list(range(start, start + f))
                scores = torch.stack([first_query @ key[i] / math.sqrt(d) for i in members])
                scores = scores.softmax(0) if tokens else torch.full_like(scores, 1 / f)
                add(dict(zip(members, scores)), True)
    return torch.stack(rows), torch.tensor(visible)


def hash_clusters(key, mask, tokens, chunk, f, config, projections):
    """The unmasked tokens of each of a chunk's `chunk/f` clusters."""
    clusters = [[i] if mask[i] else [] for i in tokens]
    for size, projection in zip([chunk] * config.lsh_num_pre_rounds + [chunk // f], projections):
        merged = [[] for _ in range(size)]
        for members in clusters:
            if members:
                products = sum(key[i] for i in members) @ projection
                merged[int(torch.cat([products, -products])[:size].argmax())] += members
        clusters = merged
    return clusters
