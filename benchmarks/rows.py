"""What is measured: the rows, the cases each one runs side by side, and the ratios it must reach."""

from dataclasses import dataclass, replace

from forms import FORMS


@dataclass(frozen=True)
class Case:
    """
    One model doing one work. `length` in tokens; `attn_implementation` and `sparsity_type` are the model's own
    defaults where they are `None`. `dtype` is a form of forms.py.
    """

    model: str
    work: str = "forward"
    length: int = 4096
    batch_size: int = 1
    num_layers: int = 4
    dtype: str = "float32"
    device: str = "cpu"
    attn_implementation: str | None = None
    sparsity_type: str | None = None
    vocab_size: int = 4096
    sparse_prediction: bool = False
    hidden_size: int = 768
    compiled: bool = False


@dataclass(frozen=True)
class Check:
    """
    A ratio of two cases' medians of `quantity`: `"seconds"`, `"peak_mib"` or `"seconds_per_multiply_add"`; without
    `against` the median itself.

    `"at least"`: `against` over `case`, how many times less `case` takes. `"at most"`: `case` over `against`.
    """

    against: str | None
    sense: str
    target: float
    quantity: str = "seconds"
    case: str = "lsg"


@dataclass(frozen=True)
class Row:
    """
    `cases` measured side by side, `repeats` times in turn; `checks` are the ratios to reach. `beside` is what else the
    machine does meanwhile: `"neighbour"`, a process that keeps one core busy, or `"worker"`, a second process that
    does the same work at the same time (a round then takes as long as the slower of the two).
    """

    name: str
    title: str
    repeats: int
    cases: dict[str, Case]
    checks: tuple[Check, ...] = ()
    needs_bf16: bool = False
    beside: str | None = None


PEERS = ("published", "longformer", "bigbird", "modernbert")
SPARSITY_TYPES = ("none", "pooling", "bos_pooling", "lsh", "stride", "block_stride")


def _cases(models, **changes):
    """A case for each model; stock XLM-RoBERTa on SDPA. `"floor"` is the limit of every ratio; see contenders.py."""
    cases = {model: Case(model, **changes) for model in models}
    if "stock" in cases:
        cases["stock"] = replace(cases["stock"], attn_implementation="sdpa")
    return cases


def _forward(length, repeats, peers, *checks, forms=False):
    """With `forms` also what else a user of the stock model can do: other settings of torch, and ONNX Runtime."""
    cases = _cases(("lsg", "floor", "stock", *peers), length=length)
    if forms:
        cases["stock-medium"] = replace(cases["stock"], dtype="medium")
        cases["stock-frozen"] = replace(cases["stock"], dtype="frozen", compiled=True)
        for model in ("stock", "lsg"):
            cases[f"{model}-onnx"] = Case(model, work="onnx forward", length=length)
    return Row(f"forward-{length}", f"forward, {length} tokens", repeats, cases, checks)


def _sparsity_type(name):
    return Check("norm", "at most", 1.5 if name == "lsh" else 1.15, case=name)


ENCODER_ROWS = (
    Row(
        "checks",
        "forward, 64 tokens, with and without a look at the input",
        101,
        _cases(("lsg", "unchecked"), length=64),
        (Check("unchecked", "at most", 1.02),),
    ),
    _forward(256, 31, (), Check("stock", "at most", 1.05)),
    _forward(512, 15, PEERS, Check("stock", "at most", 0.7), forms=True),
    _forward(1024, 5, PEERS),
    _forward(2048, 7, PEERS, Check("stock", "at least", 2.1), forms=True),
    _forward(
        4096,
        7,
        PEERS,
        Check("stock", "at least", 2.8),
        Check("stock-medium", "at least", 1.6),
        Check("lsg-onnx", "at most", 1.15),
        Check("longformer", "at least", 2.0),
        Check("bigbird", "at least", 2.8),
        Check("modernbert", "at least", 1.6),
        Check("published", "at least", 2.2),
        forms=True,
    ),
    _forward(8192, 3, PEERS),
    # Without BigBird, which takes minutes here, and ModernBERT, so that all rows fit in an hour.
    _forward(
        16384,
        3,
        ("published", "longformer"),
        Check("stock", "at least", 6.0),
        Check("stock", "at most", 1.2, "peak_mib"),
    ),
    Row(
        "product",
        "one attention product, 4096 tokens, per multiply-add",
        15,
        _cases(("lsg", "stock"), work="product"),
        (Check("stock", "at most", 1.6, "seconds_per_multiply_add"),),
    ),
    Row(
        "linear",
        "forward, 16384 tokens over 4096 tokens",
        7,
        {"lsg-4096": Case("lsg", length=4096), "lsg-16384": Case("lsg", length=16384)},
        (Check("lsg-4096", "at most", 4.3, case="lsg-16384"),),
    ),
    Row(
        "training",
        "forward + backward, train mode, dropout 0.1, 4096 tokens",
        3,
        _cases(("lsg", "floor", "stock", "published", "longformer"), work="training"),
        (
            Check("stock", "at least", 8.0),
            Check("published", "at least", 1.6),
            Check("longformer", "at least", 2.5),
            Check("published", "at most", 0.5, "peak_mib"),
            Check("longformer", "at most", 0.6, "peak_mib"),
        ),
    ),
    Row(
        "sparsity-types",
        "other sparsity types, forward, 4096 tokens",
        7,
        {name: Case("lsg", sparsity_type=name) for name in ("norm", *SPARSITY_TYPES)},
        tuple(_sparsity_type(name) for name in SPARSITY_TYPES),
    ),
    Row(
        "bfloat16",
        "forward in bfloat16, 4096 tokens",
        7,
        _cases(("lsg", "stock"), dtype="bfloat16"),
        (Check("stock", "at least", 1.6),),
        needs_bf16=True,
    ),
    Row(
        "padded",
        "forward of a padded batch, 8 texts of 300 to 4000 tokens",
        3,
        _cases(("lsg", "floor", "stock"), work="padded forward", batch_size=8, length=4000),
        (Check("stock", "at least", 1.8),),
    ),
)

# XLM-RoBERTa base as it is; its large size, for loading.
REAL = {"num_layers": 12, "vocab_size": 250002}
LARGE = {"num_layers": 24, "vocab_size": 250002, "hidden_size": 1024}


def _loading(name, shape, weights_mib):
    return (
        Row(
            f"load-{name}",
            f"loading, {name} size",
            31,
            _cases(("lsg", "stock"), work="load", **shape),
            (Check("stock", "at most", 1.05), Check("stock", "at most", 1.05, "peak_mib")),
        ),
        Row(
            f"convert-{name}",
            f"conversion, {name} size, MiB of memory",
            5,
            {"lsg": Case("lsg", work="convert", **shape)},
            (Check(None, "at most", weights_mib, "peak_mib"),),
        ),
    )


def _decoding(length, target):
    return Row(
        f"decoding-{length}",
        f"decoding with a cache, 12 layers, 250,002 words, {length} tokens before",
        7,
        _cases(("lsg", "stock"), work="decoding", length=length, **REAL),
        (Check("stock", "at least", target),),
    )


REAL_ROWS = (
    Row(
        "fill-mask",
        "filling a mask, 12 layers, 250,002 words, 4096 tokens",
        3,
        {
            "lsg": Case("lsg", work="fill mask", sparse_prediction=True, **REAL),
            "lsg-dense": Case("lsg", work="fill mask", **REAL),
            "stock": Case("stock", work="fill mask", attn_implementation="sdpa", **REAL),
            "encoder": Case("lsg", **REAL),
        },
        (Check("stock", "at least", 6.0), Check("encoder", "at most", 1.3)),
    ),
    Row(
        "masked-lm-training",
        "masked-LM training step, 12 layers, 250,002 words, 4096 tokens, one in seven labelled",
        2,
        {
            "lsg": Case("lsg", work="masked-LM training", sparse_prediction=True, **REAL),
            "lsg-dense": Case("lsg", work="masked-LM training", **REAL),
        },
        (Check("lsg-dense", "at least", 4.0), Check(None, "at most", 8192, "peak_mib")),
    ),
    Row(
        "classification-training",
        "classification training step, 2 layers, 4 texts of 4096 tokens, gradient checkpointing",
        2,
        _cases(("lsg", "stock"), work="classification training", batch_size=4, num_layers=2),
        (Check("stock", "at least", 4.0),),
    ),
    Row(
        "causal-training",
        "causal-LM training step, train mode, dropout 0.1, 4096 tokens",
        3,
        _cases(("lsg", "stock"), work="causal-LM training"),
        (Check("stock", "at least", 4.0),),
    ),
    Row(
        "causal-product",
        "one attention product of a decoder and its backward, 4096 tokens, per multiply-add",
        15,
        {"lsg": Case("lsg", work="causal trained product"), "encoder": Case("lsg", work="trained product")},
        (Check("encoder", "at most", 1.25, "seconds_per_multiply_add"),),
    ),
    _decoding(4096, 1.0),
    _decoding(16384, 1.5),
    *_loading("base", REAL, 1.3 * 1059),
    *_loading("large", LARGE, 1.15 * 2132),
    Row(
        "beside-neighbour",
        "forward, 4096 tokens, beside a process that keeps one core busy",
        9,
        _cases(("lsg", "stock")),
        (Check("stock", "at least", 2.5),),
        beside="neighbour",
    ),
    Row(
        "two-workers",
        "forward, 4096 tokens, two processes at a time",
        7,
        _cases(("lsg", "stock")),
        (Check("stock", "at least", 1.55),),
        beside="worker",
    ),
)


def _onnx(name, title, repeats, *checks, work="", **changes):
    """Stock and LSG by ONNX Runtime, in float32 and in 8 bits, and by PyTorch; stock also with fused attention."""
    cases = {}
    for model, case in _cases(("lsg", "stock"), work=f"{work}forward", **changes).items():
        onnx = replace(case, work=f"{work}onnx forward", attn_implementation=None)
        cases |= {f"{model}-torch": case, model: onnx, f"{model}-int8": replace(onnx, dtype="int8")}
    fused = replace(cases["stock"], attn_implementation="fused")
    cases |= {"stock-fused": fused, "stock-fused-int8": replace(fused, dtype="int8")}
    return Row(f"onnx-{name}", f"ONNX Runtime, forward, {title}", repeats, cases, checks)


_INT8 = Check("stock-torch", "at least", 2.5, case="lsg-int8")

ONNX_ROWS = (
    _onnx("64", "64 tokens", 31, length=64),
    _onnx("512", "512 tokens", 15, Check("stock", "at most", 1.08), length=512),
    _onnx("1024", "1024 tokens", 9, length=1024),
    _onnx("2048", "2048 tokens", 7, _INT8, length=2048),
    _onnx(
        "4096",
        "4096 tokens",
        7,
        Check("stock", "at least", 2.3),
        Check("stock-int8", "at least", 3.0, case="lsg-int8"),
        _INT8,
    ),
)
# In two rows: ONNX Runtime keeps the memory of its runs, and that of stock's is gigabytes a text.
_PADDED = _onnx(
    "padded", "a padded batch, 3 texts of 300 to 4000 tokens", 3, work="padded ", batch_size=3, length=4000
)
ONNX_ROWS += (
    replace(
        _PADDED,
        cases={name: case for name, case in _PADDED.cases.items() if case.dtype == "float32"},
        checks=(Check("stock", "at least", 2.3),),
    ),
    replace(
        _PADDED,
        name="onnx-padded-int8",
        title=_PADDED.title + ", 8 bits",
        cases={name: case for name, case in _PADDED.cases.items() if case.dtype == "int8" or name == "stock-torch"},
        checks=(Check("stock-int8", "at least", 3.0, case="lsg-int8"), _INT8),
    ),
)


def _form_cases(length):
    """Every form of forms.py, of LSG and in the first two of stock, without and with `torch.compile`."""
    cases = {}
    for form in FORMS:
        cases[form] = Case("lsg", length=length, dtype=form)
        if form not in ("float16", "int8-weights"):
            cases[f"{form}-compiled"] = replace(cases[form], compiled=True)
    stock = Case("stock", length=length, attn_implementation="sdpa")
    cases |= {"stock": stock, "stock-compiled": replace(stock, compiled=True)}
    return cases | {f"stock-{form}": replace(stock, dtype=form) for form in ("bfloat16", "int8")}


def _form_rows(length, repeats):
    compiling = _cases(("lsg", "stock"), work="compile", length=length, compiled=True)
    return (
        Row(f"compile-{length}", f"first call compiled, {length} tokens", 3, compiling, (_FIRST_CALL,)),
        Row(f"forms-{length}", f"forms of PyTorch, {length} tokens", repeats, _form_cases(length), (_COMPILED,)),
    )


_FIRST_CALL = Check("stock", "at most", 1.5)
_COMPILED = Check("float32", "at most", 1.0, case="float32-compiled")
FORM_ROWS = _form_rows(512, 15) + _form_rows(4096, 5)

CUDA_TARGETS = {
    "forward": {4096: 1.4, 8192: 2.0, 16384: 3.0, 32768: 5.0},
    "training": {4096: 1.3, 8192: 1.8, 16384: 2.7, 32768: 4.5},
}


CPU_ROWS = REAL_ROWS + ENCODER_ROWS + ONNX_ROWS + FORM_ROWS


def cuda_rows(has_flash_attention):
    """The rows of a CUDA device: bfloat16, 12 layers, batch 8, against SDPA and flash attention where it is there."""
    return tuple(
        _cuda_row(work, length, target, has_flash_attention)
        for work, targets in CUDA_TARGETS.items()
        for length, target in targets.items()
    )


def _cuda_row(work, length, target, has_flash_attention):
    shape = {"batch_size": 8, "num_layers": 12, "dtype": "bfloat16", "device": "cuda"}
    cases = _cases(("lsg", "stock"), work=work, length=length, **shape)
    if has_flash_attention:
        cases["stock-flash"] = replace(cases["stock"], attn_implementation="flash_attention_2")
    checks = tuple(Check(name, "at least", target) for name in cases if name != "lsg")
    return Row(f"cuda-{work}-{length}", f"{work}, {length} tokens, CUDA", 5, cases, checks)
