"""
Runs an ONNX file in ONNX Runtime or OpenVINO, by a Python that has only these:

    python by_python.py onnxruntime|openvino model.onnx inputs.npz outputs.npz [repeats]

The arrays in `inputs.npz` are named `batch/input`; those in `outputs.npz` `batch/0`, `batch/1` and so on, and
`batch/seconds`, the shortest of `repeats` runs after the first.
"""

import sys
from collections import defaultdict
from time import perf_counter

import numpy as np


def onnxruntime(path):
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def openvino(path):
    from openvino import Core

    # Or it would compute in bfloat16 where the CPU has that.
    compiled = Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(inputs):
        results = compiled(inputs)
        return [results[output] for output in compiled.outputs]

    return run


if __name__ == "__main__":
    runtime, model, inputs_file, outputs_file, *repeats = sys.argv[1:]
    run = {"onnxruntime": onnxruntime, "openvino": openvino}[runtime](model)
    batches = defaultdict(dict)
    for name, array in np.load(inputs_file).items():
        batch, _, name = name.partition("/")
        batches[batch][name] = array
    found = {}
    for batch, inputs in batches.items():
        found |= {f"{batch}/{i}": output for i, output in enumerate(run(inputs))}
        seconds = []
        for _ in range(int(*repeats)):
            start = perf_counter()
            run(inputs)
            seconds.append(perf_counter() - start)
        found[f"{batch}/seconds"] = min(seconds, default=float("nan"))
    np.savez(outputs_file, **found)
