# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What an embedder makes of its tokens' states, as sentence-transformers does by what its folder says."""

from dataclasses import dataclass

from torch.nn.functional import normalize

from ..conversion.files import read_json


POOLINGS = {"mean": lambda states: states.mean(-2), "cls": lambda states: states[..., 0, :]}
OLD_NAMES = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


@dataclass(frozen=True)
class Embedding:
    """The pooling of an embedder and what stands behind it."""

    pooling: str = "mean"
    takes_prompt: bool = True  # whether the tokens of a prompt, and the `<s>` before it, are pooled with the others
    is_normalized: bool = False
    size: int | None = None  # to which vectors are cut

    def pooled(self, states, prefix=0):
        """
        Args:
            states (`torch.Tensor` of shape `(..., tokens, hidden_size)`): of texts.
            prefix (`int`): how many of the tokens are a prompt's, with the `<s>` before it; 0 where there is none.

        Returns:
            `torch.Tensor` of shape `(..., hidden_size)`: a vector of each text, not cut yet.
        """
        return self.normalized(POOLINGS[self.pooling](states[..., self.first(prefix) :, :]))

    def first(self, prefix):
        """The first token that is pooled."""
        return 0 if self.takes_prompt else prefix

    def normalized(self, vectors):
        return normalize(vectors, dim=-1) if self.is_normalized else vectors

    def finished(self, vectors):
        """Pooled vectors, `(..., hidden_size)`, as they go into an index: `(..., size)`."""
        return self.normalized(vectors)[..., : self.size]

    def __str__(self):
        parts = [f"by {self.pooling}", *["without the prompt"] * (not self.takes_prompt)]
        parts += ["normalized"] * self.is_normalized + [f"cut to {self.size} numbers"] * (self.size is not None)
        return ", ".join(parts)


def embedding_of(source, pooling=None):
    """
    Args:
        source ([`Source`]): whose modules say it; the mean of all tokens where it is no sentence-transformers folder.
        pooling (`str`, *optional*): one of `POOLINGS`, in the place of the folder's.

    Returns:
        [`Embedding`].

    Raises:
        ValueError: a module or a pooling that is not known here.
    """
    if not source.is_embedder:
        return Embedding(pooling or "mean")
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in source.modules[1:]]
    others = [kind for kind in kinds if kind not in ("Pooling", "Normalize")]
    if others and not pooling:
        raise ValueError(
            f"{source.name!r} has the module {others[0]} behind its encoder, and what is known here are Pooling and "
            "Normalize: --pooling mean evaluates its encoder without it."
        )
    settings = {}
    if "Pooling" in kinds:
        settings = read_json(source.root / source.modules[1 + kinds.index("Pooling")]["path"] / "config.json", dict)
    return Embedding(
        pooling or _pooling_of(settings, source.name),
        settings.get("include_prompt", True),
        "Normalize" in kinds,
        source.embedder_config.get("truncate_dim"),
    )


def _pooling_of(settings, name):
    """The one of `POOLINGS` that the settings of a `Pooling` say, today's or old ones."""
    old = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value]
    said = settings.get("pooling_mode") or old
    modes = [OLD_NAMES.get(mode, mode) for mode in ([said] if isinstance(said, str) else said)] or ["mean"]
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise ValueError(
            f"The pooling of {name!r} is {' and '.join(map(repr, modes))}, and what is known here are "
            f"{' and '.join(POOLINGS)}, one alone: --pooling takes one of them in its place."
        )
    return modes[0]
