"""What the numbers were taken on."""

import os
import platform
import re
from pathlib import Path

import torch
import transformers


def describe_machine(device, threads):
    """The machine and the software, as a JSON-ready dict; memory in GiB."""
    machine = {
        "cpu": _cpu_field("model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "bf16_instructions": has_bf16_instructions(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    return machine


def has_bf16_instructions():
    """Whether the CPU multiplies bfloat16 in hardware."""
    flags = (_cpu_field("flags") or _cpu_field("Features") or "").split()  # x86, Arm
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def _cpu_field(name):
    found = re.search(rf"^{name}\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else None
