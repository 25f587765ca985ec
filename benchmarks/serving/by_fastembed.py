"""
Embeds texts by fastembed, to which a folder with ONNX files is made known, from and to JSON:

    python by_fastembed.py < question.json

The question has `folder`, `file`, the vectors' size `dim`, `texts` (one batch) and how often to `repeat` it. Prints
`answers`, the normalized means, and the shortest `seconds` of the repeats after the first.
"""

import json
import sys
from time import perf_counter

from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType


question = json.load(sys.stdin)
TextEmbedding.add_custom_model(
    "lsg",
    pooling=PoolingType.MEAN,
    normalization=True,
    sources=ModelSource(hf="lsg"),  # it must be said, and nothing is fetched
    dim=question["dim"],
    model_file=question["file"],
)
model = TextEmbedding("lsg", specific_model_path=question["folder"])
answers = [vector.tolist() for vector in model.embed(question["texts"])]
seconds = []
for _ in range(question.get("repeat", 0)):
    start = perf_counter()
    list(model.embed(question["texts"]))
    seconds.append(perf_counter() - start)
print(json.dumps({"answers": answers, "seconds": min(seconds, default=None)}))
