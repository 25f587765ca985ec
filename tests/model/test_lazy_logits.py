"""Lazy logits are, in everything done with them, the logits: or an error says how to get those."""

import contextlib
import copy
import pickle
import threading
import weakref

import numpy
import pytest
import torch
import torch.nn.utils.prune
from accelerate.utils import pad_across_processes
from safetensors.torch import load_file, save_file
from torch.overrides import get_testing_overrides, resolve_name
from transformers.trainer_pt_utils import nested_concat, nested_numpify

from lsg_xlmr import LSGXLMRobertaForMaskedLM
from lsg_xlmr.model.lazy_logits import LazyLogits, lazy_logits


SHAPE = (2, 7, 99)


@pytest.fixture
def model(tiny_config):
    model = LSGXLMRobertaForMaskedLM(tiny_config(num_hidden_layers=1, sparse_prediction=True)).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    return model


@pytest.fixture
def features():
    return torch.randn(*SHAPE[:-1], 32)


@pytest.fixture
def twins(model, features):
    """A function that makes lazy logits and the same as an ordinary tensor."""

    def make():
        with torch.no_grad():
            lazy, dense = lazy_logits(model, features), model.lm_head(features)
        assert type(lazy) is LazyLogits
        return lazy, dense

    return make


def assert_same(found, expected, name=""):
    """The same values to 1e-5, of the same types."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor) and found.requires_grad == expected.requires_grad, name
        assert (found.shape, found.dtype, found.layout) == (expected.shape, expected.dtype, expected.layout), name
        if expected.layout == torch.strided and not expected.is_quantized:
            found, expected = found.detach().clone(), expected.detach().clone()
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected) and len(found) == len(expected), name
        for one, other in zip(found, expected):
            assert_same(one, other, name)
    elif isinstance(expected, (float, numpy.ndarray)):
        numpy.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)
    elif isinstance(expected, (bool, int, str, torch.dtype, torch.device)):
        assert found == expected, name
    else:
        assert type(found) is type(expected), name


WORDS = torch.arange(2 * 7 * 99).view(SHAPE)
ARGUMENTS = [  # what the operators of torch may be given beside logits
    (),
    (-1,),
    (0.5,),
    (1, 0),
    (0, 1),
    (WORDS / 100,),
    (torch.float64,),
    (-1, WORDS % 2),
    (WORDS % 3 == 0, 0.5),
    (WORDS % 3 == 0, WORDS / 100),
    (0, torch.tensor([1, 0])),
    (0, torch.tensor([1, 0]), 1.5),
    (0, torch.tensor([1, 0]), WORDS / 100),
    (1, WORDS % 2, WORDS / 100),
    (WORDS / 100, WORDS / 50),
    (WORDS[0, :, :7].T / 100,),
    ((14, 99),),
    (99, 1, 0),
    (SHAPE,),
    (0.1, 0.3),
    ((1, 1),),
    (3, 3),
    (True,),
]
# What they give is an address, a count of references or memory that was not written to; it need not be the same.
OF_NO_ACCOUNT = (
    *("fbgemm_pack", "data_ptr", "empty", "__hash__", "__reduce", "storage", "grad_fn"),
    *("_base", "_cdata", "_view_func"),
)


def call(function, logits, arguments):
    torch.default_generator.manual_seed(0)
    with contextlib.suppress(Exception):
        return function(logits, *copy.deepcopy(arguments)), True
    return None, False


@pytest.mark.filterwarnings("ignore")
def test_every_operator(twins):
    """What it gives, what it leaves in the logits, and whether it gives the logits themselves."""
    functions = dict.fromkeys(get_testing_overrides())
    functions.update(dict.fromkeys(getattr(torch.Tensor, name) for name in dir(torch.Tensor) if name[:2] != "__"))
    logits, count = twins()[1], 0
    for function in functions:
        if not callable(function):
            continue
        for number, arguments in enumerate(ARGUMENTS):
            with torch.no_grad():
                dense = logits.clone().view(SHAPE)
            expected, works = call(function, dense, arguments)
            if not works:
                continue
            name, count = f"{resolve_name(function) or function}, arguments {number}", count + 1
            lazy = twins()[0]
            found, works = call(function, lazy, arguments)
            if function is torch.Tensor.set_:  # torch asks nobody before it
                assert not works
                break
            assert works, name
            if not any(word in name for word in OF_NO_ACCOUNT):
                assert_same(found, expected, name)
            assert (found is lazy) == (expected is dense), name
            assert_same(lazy, dense, name)
            break
    assert count > 800


def banned(logits):
    logits[..., torch.tensor([3, 5])] = -float("inf")


IN_PLACE = {
    "banned words": banned,
    "augmented": lambda logits: logits.__itruediv__(0.7),
    "div_": lambda logits: logits.div_(torch.tensor(0.7)),
    "masked_fill_": lambda logits: logits.masked_fill_(WORDS % 3 == 0, -1e9),
    "index_fill_": lambda logits: logits.index_fill_(-1, torch.tensor([4, 7]), 2.0),
    "out": lambda logits: torch.div(logits, 2, out=logits),
    "out of another": lambda logits: torch.add(WORDS, 1.5, out=logits),
    "foreach": lambda logits: torch._foreach_mul_([logits, torch.ones(2)], 3.0),
    "data": lambda logits: logits.data.mul_(3),
    "data replaced": lambda logits: setattr(logits, "data", torch.ones(3, 4)),
    "resize_": lambda logits: logits.resize_(3, 4),
    "transpose_": lambda logits: logits.transpose_(1, 2),
    "numpy": lambda logits: numpy.multiply(logits.numpy(), 2, out=logits.numpy()),
    "numpy's dlpack": lambda logits: torch.from_numpy(numpy.from_dlpack(logits)).mul_(2),
    "torch's dlpack": lambda logits: torch.from_dlpack(logits).mul_(2),
    "bits": lambda logits: logits.view(torch.int32).bitwise_and_(0x7FFF0000),
    "storage": lambda logits: logits.untyped_storage().fill_(0),
    "a row": lambda logits: logits[0].fill_(0),
    "a row's row": lambda logits: logits[1][-1].mul_(4),
    "a row's words": lambda logits: logits[1, 2, 5:9].zero_(),
    "words": lambda logits: logits[..., 5:9].zero_(),
    "a row set": lambda logits: logits[0].__setitem__(slice(2, 4), 1.0),
    "a step": lambda logits: logits[:, ::2].sub_(1),
    "a view": lambda logits: logits.view(-1, 99)[3].zero_(),
    "detached": lambda logits: logits.detach().zero_(),
    "a copy": lambda logits: logits[torch.tensor([0, 1])].zero_(),
    "another dtype": lambda logits: logits.double().zero_(),
    "no other dtype": lambda logits: logits.to(torch.float32).zero_(),
    "copied to": lambda logits: logits.copy_(WORDS / 3),
}
VIEWS = {
    "itself": lambda logits: logits,
    "a text": lambda logits: logits[1],
    "a position": lambda logits: logits[0, -1],
    "a slice": lambda logits: logits[:, 2:5],
    "all": lambda logits: logits[...],
    "all words": lambda logits: logits[:1, :, 0:99],
    "unsqueezed": lambda logits: logits.unsqueeze(1)[:, 0],
    "narrowed": lambda logits: logits.narrow(1, 2, 3),
    "detached": lambda logits: logits.detach(),
    "copied": lambda logits: logits[0, torch.tensor([3, 3, 5]), :],
    "best words": lambda logits: torch.argmax(input=logits, dim=-1),
    "by a mask": lambda logits: logits[WORDS[..., 0] % 2 == 0],
    "in double": lambda logits: logits.double(),
}


@pytest.mark.parametrize("write", IN_PLACE)
def test_what_is_written_stays(twins, write):
    """In the logits, in views and copies that were taken before, read before or not, and in those taken after it."""
    for read_first in (False, True):
        logits = twins()
        before = [{name: view(x) for name, view in VIEWS.items()} for x in logits]
        if read_first:
            for views in before:
                views["a position"].sum(), views["copied"].sum()
        for x in logits:
            IN_PLACE[write](x)
        assert_same(*logits)
        assert_same(list(before[0].values()), list(before[1].values()))
        if logits[1].shape == SHAPE:
            for view in VIEWS.values():
                assert_same(view(logits[0]), view(logits[1]))


@pytest.mark.parametrize("view", VIEWS)
def test_what_is_written_to_a_view_is_in_the_logits(twins, view):
    lazy, dense = twins()
    for logits in (lazy, dense):
        VIEWS[view](logits).mul_(-3)
    assert_same(lazy[0, 3].clone(), dense[0, 3].clone())
    assert_same(lazy, dense)


def through_pickle(logits, folder):
    return pickle.loads(pickle.dumps(logits))


def through_torch(logits, folder):
    torch.save({"logits": logits}, folder / "logits.pt")
    return torch.load(folder / "logits.pt", weights_only=True)["logits"]


def through_safetensors(logits, folder):
    save_file({"logits": logits}, folder / "logits.safetensors")
    return load_file(folder / "logits.safetensors")["logits"]


def through_shared_memory(logits, folder):
    assert logits.share_memory_() is logits and logits.is_shared()
    return logits


def through_pinned_memory(logits, folder):
    if not torch.cuda.is_available():
        pytest.skip("pinned memory needs a GPU")
    return logits.pin_memory()


def through_queue(logits, folder):
    context = torch.multiprocessing.get_context("spawn")
    there, back = context.SimpleQueue(), context.SimpleQueue()
    process = context.Process(target=send_back, args=(there, back))
    process.start()
    there.put(logits)
    found = back.get().clone()
    there.put(None)
    process.join()
    return found


def send_back(there, back):
    logits = there.get()
    assert type(logits) is torch.Tensor
    back.put(logits)
    there.get()


def through_fork(logits, folder):
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def read():
        torch.set_num_threads(1)  # the parent's threads are not in its fork, and torch would wait for them
        queue.put(logits[0, 3].tolist())

    process = context.Process(target=read)
    process.start()
    row = queue.get()
    process.join()
    assert_same(row, logits[0, 3].tolist())
    return logits


WAYS = {
    **{f.__name__: f for f in (through_pickle, through_torch, through_safetensors, through_shared_memory)},
    **{f.__name__: f for f in (through_pinned_memory, through_queue, through_fork)},
    "copy": lambda logits, folder: copy.copy(logits),
    "deepcopy": lambda logits, folder: copy.deepcopy({"logits": logits})["logits"],
    "numpy": lambda logits, folder: torch.from_numpy(numpy.asarray(logits)),
    "tolist": lambda logits, folder: torch.tensor(logits.tolist()),
    "numpy's dlpack": lambda logits, folder: torch.from_numpy(numpy.from_dlpack(logits)),
    "torch's dlpack": lambda logits, folder: torch.from_dlpack(logits),
    "tensor": lambda logits, folder: torch.tensor(logits),
    "as_tensor": lambda logits, folder: torch.as_tensor(logits),
    "asarray": lambda logits, folder: torch.asarray(logits),
    "Tensor": lambda logits, folder: torch.Tensor(logits),
    "vmap": lambda logits, folder: torch.func.vmap(lambda row: row * 1)(logits),
    "compiled": lambda logits, folder: torch.compile(lambda x: x * 1, backend="eager")(logits),
    "concatenated": lambda logits, folder: nested_concat(logits[:1], logits[1:]),
    "concatenated and padded": lambda logits, folder: nested_concat(logits[:1, :3], logits[1:], padding_index=-100),
    "numpy, nested": lambda logits, folder: torch.from_numpy(nested_numpify((logits,))[0]),
    "padded across processes": lambda logits, folder: pad_across_processes(logits, dim=1, pad_index=-100),
    "a module": lambda logits, folder: torch.nn.Identity()(logits),
    "autograd's function": lambda logits, folder: Doubled.apply(logits),
    "a dataset": lambda logits, folder: next(iter(torch.utils.data.DataLoader(logits, batch_size=2))),
}


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits):
        return logits * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("view", ["itself", "a text", "copied"])
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.ecosystem if way == "through_queue" else ()) for way in WAYS]
)
def test_out_of_the_process_and_back(twins, tmp_path, way, view):
    if view != "itself" and way in ("through_queue", "through_fork", "compiled"):
        pytest.skip("one is enough of what takes seconds")
    lazy, dense = (VIEWS[view](logits) for logits in twins())
    if way == "through_fork" or "padded" in way and dense.dim() < 3:
        dense_found = dense if way == "through_fork" else None
    else:
        dense_found = WAYS[way](dense, tmp_path)
    if dense_found is not None:
        assert_same(WAYS[way](lazy, tmp_path), dense_found)


def test_code_that_takes_the_memory_fails(twins):
    """There is no way to be asked here, but none to give garbage either."""
    with pytest.raises(RuntimeError):
        torch.utils.dlpack.to_dlpack(twins()[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_cannot_be_says_what_to_do(twins):
    with pytest.raises(RuntimeError, match="logits.clone"):
        torch.jit.trace(lambda x: x.softmax(-1), (twins()[0],))
    with pytest.raises(RuntimeError, match="logits.clone"):
        twins()[0].set_(torch.ones(3, 4))


def test_once_read_they_are_ordinary(twins):
    """The same object, with what hangs on it."""
    lazy, dense = twins()
    reference, lazy.mark = weakref.ref(lazy), "logits"
    views = {lazy: 1}
    assert_same(lazy + 1, dense + 1)
    assert type(lazy) is torch.Tensor and reference() is lazy and lazy.mark == "logits" and views[lazy] == 1


def test_gradients_switched_on_later(twins):
    lazy, dense = twins()
    grads = []
    for logits in (lazy, dense):
        row = logits[0, 3]
        leaf = logits.requires_grad_()
        assert leaf is logits and not row.requires_grad
        (leaf[1].pow(2).sum() + (leaf[0] * row).sum()).backward()
        grads.append(logits.grad)
    assert_same(*grads)
    weight = torch.ones(99, requires_grad=True)
    for logits in twins():
        row = logits[0, 2]
        loss = (row * weight).sum()
        logits.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    for logits in twins():
        row, other = logits[0, 2], logits[0, 3]
        loss = (row * weight).sum()
        loss = loss + (other * weight).sum()
        loss.backward()
        logits = logits.double()
        row = logits[1]
        row.mul_(weight)
        assert logits.requires_grad and row.requires_grad and not other.requires_grad


def test_threads(twins):
    lazy, dense = twins()
    found = [None] * 8
    views = [lambda x: x.softmax(-1), lambda x: x[0, 3] * 1, lambda x: x[:, 2:].exp(), lambda x: x.argmax(-1)]

    def look(i):
        found[i] = views[i % 4](lazy)

    threads = [threading.Thread(target=look, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same(found, [views[i % 4](dense) for i in range(8)])
    assert_same(lazy, dense)


def step(model):
    model.lm_head(torch.ones(1, 32)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def fused_step(model):
    model.lm_head(torch.ones(1, 32)).sum().backward()
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()


def tied(model):
    with torch.no_grad():
        model.roberta.embeddings.word_embeddings.weight.mul_(1.1)


CHANGES_IN_PLACE = {
    "a training step": step,
    "a fused step": fused_step,
    "the word embeddings": tied,
    "data": lambda model: model.lm_head.decoder.weight.data.add_(0.1),
    "numpy": lambda model: numpy.add(x := model.lm_head.layer_norm.weight.detach().numpy(), 1, out=x),
    "a state": lambda model: model.load_state_dict({name: x * 1.1 for name, x in model.state_dict().items()}),
    "initial weights": lambda model: torch.nn.init.normal_(model.lm_head.bias),
    "freed memory": lambda model: model.lm_head.dense.weight.untyped_storage().resize_(0),
}


@pytest.mark.parametrize("change", CHANGES_IN_PLACE)
def test_weights_changed_in_place_are_noticed(model, twins, change):
    logits, _ = twins()
    row, expected = logits[0, 2] * 1, logits[1].clone()
    CHANGES_IN_PLACE[change](model)
    for read in (
        lambda: logits + 1,
        lambda: logits[0, 3].tolist(),
        lambda: logits[:, 3:, 5],
        lambda: logits.argmax(-1),
    ):
        with pytest.raises(RuntimeError, match="`lm_head.* was changed before .*sparse_prediction=False"):
            read()
    assert_same(logits[0, 2], row)
    assert_same(logits[1], expected)


def replace_parameters(model):
    for module in model.lm_head.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(torch.zeros_like(weight)))


def hook(model):
    model.lm_head.decoder.register_forward_hook(lambda module, args, output: output * 0)


REPLACEMENTS = {
    "parameters": replace_parameters,
    "a smaller vocabulary": lambda model: model.resize_token_embeddings(50),
    "half": lambda model: model.half(),
    "assigned state": lambda model: model.load_state_dict(
        {name: x * 1.1 for name, x in model.state_dict().items()}, assign=True
    ),
    "data": lambda model: setattr(model.lm_head.decoder.weight, "data", torch.zeros(99, 32)),
    "a part": lambda model: setattr(model.lm_head, "dense", torch.nn.Linear(32, 32)),
    "the head": lambda model: setattr(model, "lm_head", None),
    "a hook": hook,
}


@pytest.mark.parametrize("change", REPLACEMENTS)
def test_what_is_replaced_later_is_of_no_account(model, twins, change):
    lazy, dense = twins()
    REPLACEMENTS[change](model)
    assert_same(lazy[0, 2] * 1, dense[0, 2])
    assert_same(lazy * 1, dense)


def test_features_changed_later_are_of_no_account(model, token_ids):
    ids = token_ids(1, 20)
    with torch.no_grad():
        outputs = model(ids, output_hidden_states=True)
        expected = model.lm_head(outputs.hidden_states[-1])
        outputs.hidden_states[-1].zero_()
    assert_same(outputs.logits * 1, expected)


class Adapted(torch.nn.Linear):
    """As adapters do: off within a block, in the same module."""

    scale = 2.0

    def forward(self, features):
        return super().forward(features) * self.scale


def adapted(model):
    layer = Adapted(32, 99)
    layer.weight, layer.bias = model.lm_head.decoder.weight, model.lm_head.bias
    model.lm_head.decoder = layer


def parametrized(model):
    torch.nn.utils.parametrize.register_parametrization(model.lm_head.dense, "weight", torch.nn.Tanh())


def quantized(model):
    torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, inplace=True)


HEADS_THAT_ARE_MORE = {
    "adapter": adapted,
    "hook": hook,
    "hook of the model": lambda model: model.register_forward_hook(lambda module, args, output: None),
    "hook before": lambda model: model.lm_head.register_forward_pre_hook(lambda module, args: None),
    "parametrization": parametrized,
    "pruning": lambda model: torch.nn.utils.prune.random_unstructured(model.lm_head.dense, "weight", amount=0.3),
    "another forward": lambda model: setattr(model.lm_head.dense, "forward", lambda x: x),
    "wrapped": lambda model: setattr(model, "lm_head", torch.nn.Sequential(model.lm_head)),
    "quantized": quantized,
    "no bias": lambda model: setattr(model.lm_head, "decoder", torch.nn.Linear(32, 99, bias=False)),
}


@pytest.mark.filterwarnings(
    "ignore:.*quantiz:DeprecationWarning", "ignore:.*quantiz:UserWarning", "ignore:.*quantiz:FutureWarning"
)
@pytest.mark.parametrize("change", HEADS_THAT_ARE_MORE)
def test_a_head_that_is_more_than_its_weights_runs_at_once(model, token_ids, change):
    HEADS_THAT_ARE_MORE[change](model)
    with torch.no_grad():
        logits = model(token_ids(1, 20)).logits
    assert type(logits) is torch.Tensor


def test_global_hooks(model, token_ids):
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    with torch.no_grad():
        logits = model(token_ids(1, 20)).logits
    handle.remove()
    assert type(logits) is torch.Tensor


def test_modes_are_those_of_the_call(model, token_ids):
    """Not of the place where the logits are read, which may be the other way round."""
    ids = token_ids(1, 20)
    modes = {
        "none": contextlib.nullcontext,
        "inference": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "default dtype": lambda: torch.device("cpu"),
    }
    for call_name, call_mode in modes.items():
        for read_name, read_mode in modes.items():
            with torch.no_grad(), call_mode():
                logits = model(ids).logits
                assert type(logits) is LazyLogits
                expected = model.lm_head(model.roberta(ids).last_hidden_state)
            with read_mode():
                name = f"{call_name}, {read_name}"
                assert logits.dtype == expected.dtype and logits[0, 3].clone().is_inference() == (
                    read_name == "inference"
                )
                assert_same(logits.argmax(-1), expected.argmax(-1), name)
                assert_same(logits[0, 3] * 1, expected[0, 3] * 1, name)
                assert_same(logits * 1, expected * 1, name)
                assert logits.is_inference() == expected.is_inference(), name


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_gradients_and_graphs_have_ordinary_logits(model, token_ids):
    logits = model(token_ids(1, 20)).logits
    assert type(logits) is torch.Tensor
    logits.sum().backward()
    with torch.no_grad():
        ids = token_ids(1, 20)
        assert type(torch.jit.trace(model, ids, strict=False, check_trace=False)(ids)["logits"]) is torch.Tensor
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        assert type(torch.func.functional_call(model, weights, ids).logits) is torch.Tensor
