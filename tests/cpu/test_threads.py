"""Work shared out among threads gives what one thread gives, and leaves to the caller what only it can do."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from repository import ROOT
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from lsg_xlmr import LSGXLMRobertaModel
from lsg_xlmr.cpu import threads as own_threads
from lsg_xlmr.cpu.threads import in_pieces, num_parallel, run_in_parallel, run_on_own_threads


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    """Two threads whatever the machine has, and pieces small enough for the small models here."""
    monkeypatch.setattr(own_threads, "POSITIONS", 5)
    monkeypatch.setattr(own_threads, "POSITIONS_SHARED", 7)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(tiny_config):
    return LSGXLMRobertaModel(tiny_config()).eval()


@pytest.mark.parametrize("length", [1, 12, 43, 128])
@pytest.mark.parametrize("num_threads", [1, 3, 50])
def test_any_number_of_threads(model, token_ids, length, num_threads):
    ids = token_ids(2, length)
    with torch.no_grad():
        expected = model(ids).last_hidden_state
        torch.set_num_threads(num_threads)
        found = model(ids).last_hidden_state
    assert torch.get_num_threads() == num_threads
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_gradients_and_dropout_do_not_depend_on_the_threads(tiny_config, token_ids, num_threads):
    model = LSGXLMRobertaModel(tiny_config(attention_probs_dropout_prob=0.3)).train()
    ids = token_ids(2, 43)

    def gradients():
        torch.manual_seed(0)
        model.zero_grad()
        model(ids).last_hidden_state[..., 0].sum().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    expected = [grad.clone() for grad in gradients()]
    torch.set_num_threads(num_threads)
    for found, wanted in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_every_piece_is_done_once_on_threads_of_one_thread():
    done, seen = [], set()

    def function(piece):
        done.append(piece)
        seen.add((torch.get_num_threads(), torch.is_grad_enabled()))

    with torch.no_grad():
        assert run_on_own_threads(lambda: (run_in_parallel(function, list(range(100))), num_parallel())[1]) == 2
    assert sorted(done) == list(range(100))
    assert seen == {(1, False)} and torch.get_num_threads() == 2 and num_parallel() == 1


def test_more_callers_than_threads(model, token_ids):
    """Every one gets its own answer, and none waits for another for ever."""
    inputs = [token_ids(1, 43) for _ in range(8)]
    with torch.no_grad():
        expected = [model(ids).last_hidden_state for ids in inputs]
        with ThreadPoolExecutor(8) as callers:
            found = list(callers.map(torch.no_grad()(lambda ids: model(ids).last_hidden_state), inputs * 5))
    for one, wanted in zip(found, expected * 5, strict=True):
        torch.testing.assert_close(one, wanted, rtol=0, atol=1e-5)


def test_an_error_in_a_piece_is_raised():
    def function(piece):
        raise ValueError(f"piece {piece}")

    for route in (run_in_parallel, lambda *piece: run_on_own_threads(run_in_parallel, *piece)):
        with pytest.raises(ValueError, match="piece"):
            route(function, list(range(4)))


def test_inference_mode(model, token_ids):
    ids = token_ids(1, 43)
    expected = model(ids).last_hidden_state
    with torch.inference_mode():
        found = model(ids).last_hidden_state
    assert found.is_inference()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_autocast_holds_in_every_piece(model, token_ids):
    ids = token_ids(1, 43)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(ids).last_hidden_state
        with torch.no_grad():
            found = model(ids).last_hidden_state
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


def test_hooks_see_the_whole(model, token_ids):
    seen = []
    layer = model.encoder.layer[0]
    layer.intermediate.dense.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    layer.attention.output.LayerNorm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    with torch.no_grad():
        model(token_ids(1, 40))
    assert seen == [(1, 41, 32), (1, 41, 37)]


def test_dispatch_modes_see_every_operation(model, token_ids):
    """One that counts multiply-adds must count those in pieces too."""
    ids = token_ids(1, 40)

    def count():
        with FlopCounterMode(display=False) as counter:
            model(ids)
        return counter.get_total_flops()

    expected = count()
    with torch.no_grad():
        assert count() == expected


def test_function_modes_see_every_operation(model, token_ids):
    class Names(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            names.append(func.__name__)
            return func(*args, **(kwargs or {}))

    names = []
    with torch.no_grad(), Names():
        model(token_ids(1, 40))
    assert names.count("layer_norm") >= 4


def test_tensors_of_a_subclass_stay_whole(model):
    class Tagged(torch.Tensor):
        pass

    states = torch.randn(1, 40, 32).as_subclass(Tagged)
    seen = []
    with torch.no_grad():
        (found,) = in_pieces(lambda x: (seen.append(x.shape), x)[1:], [model.encoder.layer[0].output.dense], states)
    assert type(found) is Tagged and seen == [(1, 40, 32)]


def test_a_function_of_torch_func_sees_every_operation(model):
    states = torch.randn(3, 20, 32)
    linear = torch.nn.Linear(32, 32).eval()
    with torch.no_grad():
        found = torch.func.vmap(lambda x: in_pieces(lambda x: (linear(x),), [linear], x[None])[0][0])(states)
        torch.testing.assert_close(found, linear(states), rtol=0, atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore")
def test_a_forked_process_has_threads_of_its_own():
    run_on_own_threads(int)
    process = os.fork()
    if process == 0:
        done = []
        run_on_own_threads(run_in_parallel, done.append, [0, 1, 2])
        os._exit(0 if sorted(done) == [0, 1, 2] else 1)
    assert os.waitpid(process, 0)[1] == 0


# Ctrl-C in the midst of some minutes of work; printed is how many seconds of a processor one second after it takes.
INTERRUPTED = """
import os, signal, threading, time
import torch
from lsg_xlmr import LSGConfig, LSGXLMRobertaModel

signal.signal(signal.SIGINT, signal.default_int_handler)  # of what a shell runs in the background it is ignored
torch.set_num_threads(2)
config = LSGConfig(vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                   max_position_embeddings=4098)
model = LSGXLMRobertaModel(config).eval()
model.encoder.layer.extend([model.encoder.layer[1]] * 5000)
ids = torch.randint(5, 99, (2, 4096))
text = ids[:1, :400]
with torch.no_grad():
    shallow = LSGXLMRobertaModel(config).eval()
    expected = shallow(text).last_hidden_state
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        model(ids)
    except KeyboardInterrupt:
        pass
    else:
        raise SystemExit("not interrupted")
    before = time.process_time()
    time.sleep(1)
    print(time.process_time() - before)
    torch.testing.assert_close(shallow(text).last_hidden_state, expected, rtol=0, atol=1e-5)
"""


def test_an_interrupt_ends_the_work():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], env=environment, capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 0.3


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no alarms on this system")
def test_whatever_ends_the_waiting_ends_the_work():
    """Here the handler of an alarm, which raises an exception of its own."""

    class Alarm(BaseException):
        pass

    def ring(*args):
        raise Alarm

    def piece(number):
        done.append(number)
        time.sleep(0.005)

    done, before = [], signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(Alarm):
            run_on_own_threads(run_in_parallel, piece, list(range(20_000)))
    finally:
        signal.signal(signal.SIGALRM, before)
    number = len(done)
    time.sleep(0.1)
    assert 0 < number == len(done) < 20_000


# A long text beside another greenlet; printed is how many threads of ours there were, and what the other one has done.
BESIDE_GREENLETS = """
import sys
import {package}
{patch}
import torch
from lsg_xlmr import LSGConfig, LSGXLMRobertaModel
from lsg_xlmr.cpu.threads import num_parallel, run_on_own_threads

torch.set_num_threads(2)
config = LSGConfig(vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                   max_position_embeddings=4098)
model, ids = LSGXLMRobertaModel(config).eval(), torch.randint(5, 99, (2, 1000))
expected = model(ids).last_hidden_state.detach()
found = []
def answer():
    with torch.no_grad():
        found.append(model(ids).last_hidden_state)
for greenlet in [{package}.spawn(answer) for _ in range(3)]:
    greenlet.{wait}()
for one in found:
    torch.testing.assert_close(one, expected, rtol=0, atol=1e-5)
print(len(found), torch.no_grad()(run_on_own_threads)(num_parallel), torch.get_num_threads())
"""


@pytest.mark.parametrize(
    "package, patch, wait",
    [
        ("gevent", "from gevent import monkey; monkey.patch_all()", "join"),
        ("eventlet", "eventlet.monkey_patch()", "wait"),
    ],
)
def test_greenlets_are_no_threads(package, patch, wait):
    pytest.importorskip(package)
    code = BESIDE_GREENLETS.format(package=package, patch=patch, wait=wait)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["3", "1", "2"]


FIRST_CALLS = """
import threading
import torch
from lsg_xlmr.cpu.threads import num_parallel, run_on_own_threads

class FewThreads(threading.Thread):
    def start(self):
        if FAILING and self.name.startswith("lsg") and self.name.endswith("1"):
            raise RuntimeError("can't start new thread")
        super().start()

threading.Thread, FAILING = FewThreads, {failing}
torch.set_num_threads(2)
together, found = threading.Barrier(16), []

def call():
    torch.get_num_threads()
    together.wait()
    found.append((run_on_own_threads(num_parallel), torch.get_num_threads()))

callers = [threading.Thread(target=call) for _ in range(16)]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
print(set(found), sum(thread.name.startswith("lsg") for thread in threading.enumerate()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("failing, printed", [(False, "{(2, 2)} 2"), (True, "{(1, 2)} 0")])
def test_first_calls_at_the_same_time_start_one_set_of_threads(failing, printed):
    """And where the system gives no second thread, the work is done on the callers', and the process ends."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FIRST_CALLS.replace("{failing}", str(failing))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == printed, done.stdout + done.stderr[-2000:]


AT_THE_END = """
import atexit, sys
import torch
from lsg_xlmr import LSGConfig, LSGXLMRobertaModel

torch.set_num_threads(2)
config = LSGConfig(vocab_size=99, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
                   max_position_embeddings=4098)
model, ids = LSGXLMRobertaModel(config).eval(), torch.randint(5, 99, (1, 600))

@atexit.register
@torch.no_grad()
def last():
    print(model(ids).last_hidden_state.shape[1])

if sys.argv[1] == "again":
    torch.no_grad()(last)()
"""


@pytest.mark.slow
@pytest.mark.parametrize("call, printed", [("first", ["600"]), ("again", ["600", "600"])])
def test_at_the_interpreters_end_there_are_no_threads(call, printed):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", AT_THE_END, call]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.split() == printed, done.stderr[-2000:]
