"""How large the models and inputs are: as they are used, or as small as a CPU can do in two minutes."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


# At the end: `cuda.py` there is not to stand in for a package of that name.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from contenders import MODELS  # noqa: E402


SEED = 0
FIRST_WORD, PAD_TOKEN_ID = 5, 1  # ids below the first word are special tokens


@dataclass(frozen=True)
class Scale:
    """
    Args:
        hidden_size, num_layers, vocab_size (`int`): of the models, whose heads have 64 dimensions.
        lengths (tuple of `int`): tokens of a text, of the rows.
        tokens (`int`): of a batch, whatever its texts' length.
        checked (tuple of `int`): the lengths at which numbers are checked.
        trained_with_dropout (`int`): the length of the training row with dropout of attention.
        requests (`int`): how many requests, and `longest` their longest.
        repeats (`int`): how often a run is timed.
    """

    hidden_size: int
    num_layers: int
    vocab_size: int
    lengths: tuple
    tokens: int
    checked: tuple
    trained_with_dropout: int
    requests: int
    longest: int
    repeats: int

    def model(self, name, dtype, device, attn_implementation):
        """The model `name` of contenders.py with random weights, in eval mode."""
        case = asdict(self) | {"work": "forward", "length": max(*self.lengths, *self.checked, self.longest)}
        case |= {"attn_implementation": attn_implementation, "sparsity_type": None, "sparse_prediction": False}
        torch.manual_seed(SEED)
        with torch.device(device):
            model = MODELS[name](case)
        return model.to(dtype).eval()


REAL = Scale(
    hidden_size=768,
    num_layers=12,
    vocab_size=4096,
    lengths=(512, 1024, 2048, 4096, 8192, 16384),
    tokens=16384,
    checked=(4096, 16384),
    trained_with_dropout=4096,
    requests=200,
    longest=4096,
    repeats=7,
)
TINY = Scale(
    hidden_size=128,
    num_layers=2,
    vocab_size=99,
    lengths=(512, 1024),
    tokens=1024,
    checked=(400,),
    trained_with_dropout=512,
    requests=8,
    longest=1024,
    repeats=2,
)


def texts(scale, batch_size, length, device, is_padded=False):
    """Random tokens `batch_size length`; padded ones have a mask, and each text is shorter than the one before."""
    generator = torch.Generator().manual_seed(SEED)
    input_ids = torch.randint(FIRST_WORD, scale.vocab_size, (batch_size, length), generator=generator)
    inputs = {"input_ids": input_ids}
    if is_padded:
        ends = length - (1 + torch.arange(batch_size)) * length // (2 + batch_size)
        mask = torch.arange(length) < ends[:, None]
        input_ids[~mask] = PAD_TOKEN_ID
        inputs["attention_mask"] = mask.long()
    return {name: x.to(device) for name, x in inputs.items()}
