"""Work shared out among threads gives what one thread gives, and leaves to the caller what only it can do."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
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
