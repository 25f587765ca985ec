# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Every way on the same documents, a few at a time, until the time is up; what is there already is not done again."""

import logging
import re
import time
from functools import partial
from itertools import pairwise

import torch
from tqdm import tqdm

from .cost import peak, timed
from .results import Lines


FIRST, ROUND = 2, 8  # documents, then the next way, whose model is loaded anew; few first, so that all have some
SHORT = (64, 128, 256, 512)  # tokens of the texts whose answers should stay as they were
clock = time.monotonic


def measure(head, items, folder, seconds):
    """
    Args:
        head ([`Head`]).
        items (`list[LongText]`): what is read, the most important first.
        folder (`Path`): of a JSONL file for each way, which it adds to.
        seconds (`float`): after which nothing more is begun.

    Yields:
        `dict[str, dict[str, dict]]`: by way and by item what was measured and kept, each time that there is more.
    """
    ways = list(head.ways())
    folder.mkdir(parents=True, exist_ok=True)
    files = {way.name: Lines(folder / f"{re.sub('[^A-Za-z0-9]+', '-', way.name)}.jsonl") for way in ways}
    wanted = {item.id for item in items}
    measured = {name: {i: x for i, x in file.records.items() if i in wanted} for name, file in files.items()}
    yield measured
    end, loaded = clock() + seconds, set()
    done = sum(item.id in records for records in measured.values() for item in items)
    with tqdm(total=len(ways) * len(items), initial=done, unit=" readings", leave=False) as bar:
        for first, last in pairwise([0, *range(FIRST, len(items), ROUND), len(items)]):
            for way in ways:
                missing = [item for item in items[first:last] if item.id not in measured[way.name]]
                if not missing or clock() >= end:
                    continue
                bar.set_description(way.name)
                model = _load(way, told=way.name not in loaded)
                loaded.add(way.name)
                # Before the clock runs: the first reading of a model is slower than the others.
                longest = max(missing, key=lambda item: len(item.input_ids))
                mib = {longest.id: _peak(head, model, way, longest)}
                for item in missing:
                    if clock() >= end:
                        break
                    record = {**_read(head, model, way, item, way is ways[0]), "mib": mib.get(item.id)}
                    files[way.name].add(record)
                    measured[way.name][item.id] = record
                    bar.update()
                    yield measured
                del model  # one at a time in memory


def short_lengths(subject):
    """Tokens of the short texts, all of which the source reads."""
    return sorted({min(length, subject.short) for length in SHORT})


@torch.inference_mode()
def _read(head, model, way, item, is_reference):
    found, seconds = timed(partial(head.read, model, way, item))
    record = {"id": item.id, "seconds": seconds, **found, **head.beside(model, item)}
    if is_reference or way.length is None:  # the source's own, and those of the converted models
        record["short"] = {str(n): head.short(model, item, n) for n in short_lengths(head.subject)}
    return record


@torch.inference_mode()
def _peak(head, model, way, item):
    return peak(partial(head.read, model, way, item))


def _load(way, told):
    """The model; what the converter warns of is told once."""
    logger = logging.getLogger("lsg_xlmr")
    level = logger.level
    if not told:
        logger.setLevel(logging.ERROR)
    try:
        model = way.load()
    finally:
        logger.setLevel(level)
    return model
