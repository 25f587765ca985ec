"""
One case in a process of its own: `python worker.py CASE`, with the case of rows.py as JSON.

The process builds the model and runs the work twice: once short, for what is paid once per process, and once in full,
for the memory. It answers one line of JSON, `{"peak_mib": MiB, "multiply_adds": number or null}`. Then every line on
stdin makes one timed run, answered with `{"seconds": s}`.
"""

import ctypes
import gc
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from contenders import HEAD_DIM, MODELS
from forms import in_form
from torch._inductor.utils import fresh_cache
from transformers import DynamicCache


SEED = 0
WARM_UP_LENGTH = 1024  # tokens
FIRST_WORD, PAD_TOKEN_ID = 5, 1  # ids below the first word are special tokens
PADDED_LENGTHS = (300, 4000)  # tokens
TOKENS_A_RUN = 8


class Forward:
    """A forward pass of a model in eval mode, without gradients."""

    multiply_adds = None

    def __init__(self, case):
        self.case = case
        self.model = in_form(MODELS[case["model"]](case).to(case["device"]).eval(), case["dtype"])
        if case["compiled"]:
            self.model.compile(fullgraph=True)

    def inputs(self, length):
        size = (self.case["batch_size"], length)
        generator = torch.Generator().manual_seed(SEED)
        input_ids = torch.randint(FIRST_WORD, self.case["vocab_size"], size, generator=generator)
        return {"input_ids": input_ids.to(self.case["device"])}

    @torch.no_grad()
    def run(self, inputs):
        self.model(**inputs)

    def clear(self):
        """Drop what a run leaves behind."""


class PaddedForward(Forward):
    """A forward pass of texts of different lengths, padded on the right."""

    def inputs(self, length):
        shortest, longest = PADDED_LENGTHS
        generator = torch.Generator().manual_seed(SEED)
        lengths = torch.randint(shortest, longest + 1, (self.case["batch_size"],), generator=generator)
        lengths = lengths.clamp(max=length)
        inputs = super().inputs(int(lengths.max()))
        attention_mask = torch.arange(int(lengths.max())) < lengths[:, None]
        inputs["input_ids"][~attention_mask] = PAD_TOKEN_ID
        return inputs | {"attention_mask": attention_mask.long()}


class Compile(Forward):
    """The first forward pass of a model that is to be compiled, with nothing kept of earlier ones."""

    def run(self, inputs):
        torch.compiler.reset()
        with fresh_cache():
            super().run(inputs)


class OnnxForward(Forward):
    """A forward pass of the model's ONNX file by ONNX Runtime, with a mask that hides nothing."""

    def __init__(self, case):
        import onnxruntime
        from onnx_files import write_onnx_file

        self.case = case
        with tempfile.TemporaryDirectory(prefix="lsg-benchmark-") as folder:
            model = MODELS[case["model"]](case | {"attn_implementation": None}).eval()
            fused = case["attn_implementation"] == "fused"
            path = write_onnx_file(model, Path(folder), case["dtype"], fused)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = case["threads"]
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def inputs(self, length):
        inputs = super().inputs(length)
        return inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])}

    def run(self, inputs):
        self.session.run(None, {name: x.numpy() for name, x in inputs.items()})


class PaddedOnnxForward(PaddedForward, OnnxForward):
    """[`OnnxForward`] of texts of different lengths."""


class Training(Forward):
    """A forward and a backward pass in train mode, down to the gradients of all weights."""

    def __init__(self, case):
        super().__init__(case)
        self.model.train()

    def inputs(self, length):
        inputs = super().inputs(length)
        generator = torch.Generator().manual_seed(SEED)
        # That of the loss; a sum's would vanish in the last LayerNorm.
        gradient = torch.randn(*inputs["input_ids"].shape, self.case["hidden_size"], generator=generator)
        return inputs, gradient.to(self.case["device"], self.model.dtype)

    def run(self, inputs):
        inputs, gradient = inputs
        self.model(**inputs).last_hidden_state.backward(gradient)

    def clear(self):
        self.model.zero_grad(set_to_none=True)


class FillMask(Forward):
    """What `FillMaskPipeline` does with a model: the logits of the one mask, the best words of them."""

    @torch.no_grad()
    def run(self, inputs):
        masked_index = torch.tensor([inputs["input_ids"].shape[1] // 2])
        self.model(**inputs).logits[0, masked_index, :].softmax(dim=-1).topk(5)


class LabelledTraining(Training):
    """A forward and a backward pass of a head in train mode, from its own loss."""

    def run(self, inputs):
        self.model(**inputs).loss.backward()


class MaskedLMTraining(LabelledTraining):
    """One token in seven has a label."""

    def inputs(self, length):
        inputs = Forward.inputs(self, length)
        is_labelled = torch.arange(length) % 7 == 0
        return inputs | {"labels": inputs["input_ids"].masked_fill(~is_labelled, -100)}


class ClassificationTraining(LabelledTraining):
    """Each layer's activations are computed again in the backward pass."""

    def __init__(self, case):
        super().__init__(case)
        self.model.gradient_checkpointing_enable()

    def inputs(self, length):
        return Forward.inputs(self, length) | {"labels": torch.arange(self.case["batch_size"]) % 2}


class CausalTraining(LabelledTraining):
    """Every token is to be foreseen."""

    def inputs(self, length):
        inputs = Forward.inputs(self, length)
        return inputs | {"labels": inputs["input_ids"]}


class Decoding(Forward):
    """Tokens that are added one by one to a context of `length`, each with the logits of the next."""

    @torch.no_grad()
    def inputs(self, length):
        from lsg_xlmr.model.cache import CACHE

        context = super().inputs(length)["input_ids"]
        cache = DynamicCache(config=self.model.config)
        if self.case["model"] == "lsg":
            self.model(context, **{CACHE: cache}, logits_to_keep=1)
        else:  # its time does not depend on what keys and values are
            shape = 1, self.case["hidden_size"] // HEAD_DIM, context.shape[1], HEAD_DIM
            for layer in range(self.case["num_layers"]):
                cache.update(torch.randn(shape), torch.randn(shape), layer)
        return {"input_ids": context[:, :1], CACHE: cache, "use_cache": True}

    @torch.no_grad()
    def run(self, inputs):
        # What a run adds stays in the cache.
        for _ in range(TOKENS_A_RUN):
            self.model(**inputs)


class Load:
    """`from_pretrained` of a checkpoint with random weights, its files in memory."""

    multiply_adds = None

    def __init__(self, case):
        self.folder = tempfile.TemporaryDirectory(prefix="lsg-benchmark-")
        self.source = Path(self.folder.name, "source")
        model = MODELS[self.built(case)](case)
        self.model_class = type(model)
        model.save_pretrained(self.source)

    def built(self, case):
        return case["model"]

    def inputs(self, length):
        return None

    def run(self, inputs):
        self.model = self.model_class.from_pretrained(self.source)

    def clear(self):
        self.model = None


class Convert(Load):
    """`LSGConverter` on a stock checkpoint of the same size, down to the written folder."""

    def __init__(self, case):
        super().__init__(case | {"work": "load"})
        tokenizer = Path(__file__).parents[1] / "models" / "tiny-xlm-roberta"
        for name in ("tokenizer.json", "tokenizer_config.json", "sentencepiece.bpe.model"):
            shutil.copy(tokenizer / name, self.source)

    def built(self, case):
        return "stock"

    def run(self, inputs):
        from lsg_xlmr.cli import main

        target = Path(self.folder.name, "target")
        if main(["--initial_model", str(self.source), "--model_name", str(target)]):
            raise RuntimeError("the conversion failed")
        shutil.rmtree(target)


class Product:
    """The attention product alone, of queries, keys and values as the projections of a layer lay them out."""

    def __init__(self, case):
        self.case, self.multiply_adds = case, None
        if case["model"] == "lsg":
            from lsg_xlmr.attention.encoder_attention import lsg_attention
            from lsg_xlmr.attention.pattern import AttentionInputs, is_visible
            from lsg_xlmr.configuration_lsg import LSGConfig

            self.lsg_attention, self.attention_inputs, self.is_visible = lsg_attention, AttentionInputs, is_visible
            self.config = LSGConfig(
                hidden_size=case["hidden_size"], num_attention_heads=case["hidden_size"] // HEAD_DIM
            )

    def inputs(self, length):
        num_global_tokens = self.config.num_global_tokens if self.case["model"] == "lsg" else 0
        positions = num_global_tokens + length
        pairs = self._visible_pairs(length) + num_global_tokens * positions if num_global_tokens else length**2
        self.multiply_adds = 2 * self.case["hidden_size"] * pairs  # a score and a weighted value for every head
        generator = torch.Generator().manual_seed(SEED)
        return [
            torch.randn(1, positions, self.case["hidden_size"], generator=generator)
            .unflatten(2, (-1, HEAD_DIM))
            .transpose(1, 2)
            for _ in range(3)
        ]

    def _visible_pairs(self, t):
        """Keys that all token queries see together, the sequence's ends taken into account."""
        b, s = self.config.block_size, self.config.sparse_block_size
        m = t // self.config.sparsity_factor
        index = torch.arange(t + m + self.config.num_global_tokens)
        return int(self.is_visible(index[:t, None], index, t, m, b, s).sum())

    @torch.no_grad()
    def run(self, inputs):
        if self.case["model"] == "stock":
            torch.nn.functional.scaled_dot_product_attention(*inputs)
        else:
            scaling = HEAD_DIM**-0.5
            self.lsg_attention(self.attention_inputs(*inputs, None, self.config, scaling), "sdpa")

    def clear(self):
        """Nothing is left behind."""


class TrainedProduct(Product):
    """The attention product and its backward."""

    def inputs(self, length):
        inputs = [x.requires_grad_() for x in super().inputs(length)]
        self.multiply_adds = self.multiply_adds and 3 * self.multiply_adds  # whatever is computed again
        return inputs

    def attend(self, inputs):
        """The context."""
        return self.lsg_attention(self.attention_inputs(*inputs, None, self.config, HEAD_DIM**-0.5), "sdpa")[0]

    def run(self, inputs):
        context = self.attend(inputs)
        torch.autograd.grad(context, inputs, torch.ones_like(context))


class CausalTrainedProduct(TrainedProduct):
    """That of a decoder."""

    def attend(self, inputs):
        from lsg_xlmr.attention.causal_attention import causal_attention
        from lsg_xlmr.attention.causal_pattern import CausalInputs

        return causal_attention(CausalInputs(*inputs, None, self.config, HEAD_DIM**-0.5), "sdpa")[0]

    def _visible_pairs(self, t):
        from lsg_xlmr.attention.causal_pattern import CausalInputs

        x = torch.zeros(1, 1, self.config.num_global_tokens + t, 1)
        visible = CausalInputs(x, x, x, None, self.config, 1.0).visible()
        return int(visible[0, 0, self.config.num_global_tokens :].sum())


WORKS = {
    "forward": Forward,
    "padded forward": PaddedForward,
    "compile": Compile,
    "onnx forward": OnnxForward,
    "padded onnx forward": PaddedOnnxForward,
    "training": Training,
    "product": Product,
    "trained product": TrainedProduct,
    "causal trained product": CausalTrainedProduct,
    "fill mask": FillMask,
    "masked-LM training": MaskedLMTraining,
    "classification training": ClassificationTraining,
    "causal-LM training": CausalTraining,
    "decoding": Decoding,
    "load": Load,
    "convert": Convert,
}


class HostMemory:
    """Resident memory of this process, from Linux's /proc."""

    def start(self):
        """Forget earlier peaks; returns the memory in use, MiB."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass  # not permitted: the peak before, of building the model, is below that of the work
        return self._read("VmRSS")

    def peak(self):
        return self._read("VmHWM")

    def synchronize(self):
        """The work is done when the call returns."""

    def release(self):
        """Other processes can use what this one has freed."""

    def _read(self, field):
        return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


class CudaMemory:
    """Memory of this process's tensors on the CUDA device."""

    def start(self):
        """Forget earlier peaks; returns the memory in use, MiB."""
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20

    def peak(self):
        return torch.cuda.max_memory_allocated() / 2**20

    def synchronize(self):
        torch.cuda.synchronize()

    def release(self):
        torch.cuda.empty_cache()


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    case = json.loads(sys.argv[1])
    torch.set_num_threads(case["threads"])
    torch.manual_seed(SEED)
    on_cuda = case["device"] == "cuda"
    memory = CudaMemory() if on_cuda else HostMemory()
    work = WORKS[case["work"]](case)

    # At full length where kernels may be compiled for the first length seen.
    work.run(work.inputs(case["length"] if on_cuda or case["compiled"] else min(case["length"], WARM_UP_LENGTH)))
    work.clear()
    inputs = work.inputs(case["length"])
    before = memory.start()
    work.run(inputs)
    memory.synchronize()
    answer = {"peak_mib": memory.peak() - before, "multiply_adds": work.multiply_adds}
    work.clear()
    memory.release()
    print(json.dumps(answer), file=answers)

    for _ in sys.stdin:
        if on_cuda:  # the clock has gone down and the memory was released while the others ran
            work.run(inputs)
            work.clear()
            memory.synchronize()
        start = perf_counter()
        work.run(inputs)
        memory.synchronize()
        seconds = perf_counter() - start
        work.clear()
        memory.release()
        print(json.dumps({"seconds": seconds}), file=answers)


if __name__ == "__main__":
    main()
