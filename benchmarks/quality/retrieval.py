"""Vectors of documents from what was read of them, the rank of the right document, and what is chance in it."""

import numpy as np


ROUNDS = 2000  # of the bootstrap


def normalized(vectors):
    """Rows of length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def row_vectors(document):
    """
    The vector of each row that was read, as the embedder pools it: the mean of all tokens.

    Args:
        document: `means` `(n, hidden_size)`, the `tokens` and the `row` of each, as `reading.read_document` gives it.

    Returns:
        `(rows, hidden_size)` float32, of length 1.
    """
    sums = document["means"].astype(np.float32) * document["tokens"][:, None]
    starts = np.flatnonzero(np.diff(document["row"], prepend=-1))
    return normalized(np.add.reduceat(sums, starts))


def first(document):
    """The first row's vector alone: `(1, hidden_size)`."""
    return row_vectors(document)[:1]


def averaged(document):
    """The mean of all tokens of all rows, so that a short last row counts less: `(1, hidden_size)`."""
    sums = document["means"].astype(np.float32) * document["tokens"][:, None]
    return normalized(sums.sum(0, keepdims=True))


def windows(document, size):
    """
    Late chunks: the tokens of each row in as few windows as hold `size` of them at most, alike in size (to the tokens
    of a mean); what stands before and behind the content belongs to the first and the last. As
    `lsg_xlmr.late_chunks` cuts, but for the size's rounding.

    Returns:
        `(windows, hidden_size)` float32, of length 1.
    """
    found = []
    for row in range(document["row"][-1] + 1):
        chosen = document["row"] == row
        tokens = document["tokens"][chosen]
        sums = document["means"][chosen].astype(np.float32) * tokens[:, None]
        ends = np.cumsum(tokens[1:-1])
        count = -(-ends[-1] // size)
        starts = {0} | {2 + int(np.abs(ends - ends[-1] * i / count).argmin()) for i in range(1, count)}
        found.append(np.add.reduceat(sums, sorted(starts)))
    return normalized(np.concatenate(found))


def nearness(queries, documents):
    """
    How near each document is to each query: the mean, over the vectors of the query, of the cosine of the document's
    nearest.

    Args:
        queries, documents: lists of `(vectors, hidden_size)`, of length 1.

    Returns:
        `(queries, documents)`.
    """
    (query_starts, counts), (starts, _) = (
        (np.cumsum([0, *map(len, texts[:-1])]), np.array([*map(len, texts)])) for texts in (queries, documents)
    )
    near = np.maximum.reduceat(np.concatenate(queries) @ np.concatenate(documents).T, starts, axis=1)
    return np.add.reduceat(near, query_starts) / counts[:, None]


def ranks(near, right, candidates=True):
    """
    The rank of the right document for each query, 1 the best.

    Args:
        near: `(queries, documents)`, as `nearness` gives it.
        right: the place of each query's document.
        candidates: `(queries, documents)` bool, among which documents each is looked for.
    """
    near = np.where(candidates, near, -np.inf)
    return 1 + (near > near[np.arange(len(right)), right][:, None]).sum(1)


def interval(values, groups, seed=0):
    """
    The 95 % interval of the mean of `values` by the bootstrap: `groups`, the documents, are drawn anew with all that
    was asked of them.

    Returns:
        `(low, high)`
    """
    names, place = np.unique(groups, return_inverse=True)
    sums, counts = (np.bincount(place, weights) for weights in (np.asarray(values, float), None))
    drawn = np.random.default_rng(seed).integers(len(names), size=(ROUNDS, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return tuple(np.quantile(means, (0.025, 0.975)))


def probe(vectors, labels, groups, folds=5, penalty=1.0):
    """
    Which `vectors` a linear classifier (ridge regression to +1 and -1) labels right that was fitted to the others, by
    cross-validation: documents of one group are in one fold.

    Returns:
        `(n,)` bool.
    """
    names, place = np.unique(labels, return_inverse=True)
    targets = np.where(place[:, None] == np.arange(len(names)), 1.0, -1.0)
    fold = np.unique(groups, return_inverse=True)[1] % folds
    right = np.zeros(len(labels), bool)
    for held_out in range(folds):
        train, test = fold != held_out, fold == held_out
        mean, scale = vectors[train].mean(0), vectors[train].std(0)
        x, y = (vectors[train] - mean) / scale, targets[train]
        weights = np.linalg.solve(x.T @ x + penalty * len(x) * np.eye(x.shape[1]), x.T @ (y - y.mean(0)))
        scores = (vectors[test] - mean) / scale @ weights + y.mean(0)
        right[test] = scores.argmax(1) == place[test]
    return right
