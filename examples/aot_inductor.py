"""
A model compiled ahead of time: `python examples/aot_inductor.py tiny-lsg-4096 model.pt2`.

Writes a package of machine code and weights (AOTInductor) for every batch size and length. It opens with torch alone,
without transformers and the model's code: `torch._inductor.aoti_load_package("model.pt2")(input_ids=...,
attention_mask=...)`; what it returns is a tuple. Making it needs a C++ compiler and a minute or two.
"""

import sys

import torch
from transformers import AutoModel


def main(folder, package):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, return_dict=False).eval()
    input_ids = torch.full((2, 100), model.config.eos_token_id)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    sizes = dict.fromkeys(inputs, {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC})
    with torch.no_grad():
        program = torch.export.export(model, (), inputs, dynamic_shapes=sizes)
        torch._inductor.aoti_compile_and_package(program, package_path=package)
        compiled = torch._inductor.aoti_load_package(package)
        for length in (10, 1000):
            inputs = {name: x[:1, :1].expand(1, length).contiguous() for name, x in inputs.items()}
            difference = compiled(**inputs)[0] - model(**inputs)[0]
            print(f"{package}: of {length} tokens differs by {difference.abs().max():.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
