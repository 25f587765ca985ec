"""Conversions killed at random moments lose nothing."""

import multiprocessing
import os
import random
import shutil
import signal
import time

import pytest
from repository import TINY

from lsg_xlmr.cli import main


pytestmark = pytest.mark.kill

SOURCE = TINY
KILLS = 50
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def arguments(block_size):
    fields = f"{{'block_size': {block_size}, 'sparse_block_size': {block_size}}}"
    return ["--initial_model", "source", "--model_name", "out", "--model_kwargs", fields, "--overwrite"]


def convert(folder, block_size):
    os.chdir(folder)
    os._exit(main(arguments(block_size)))


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def context():
    """Processes that have everything imported when they start, so that a kill falls into the conversion."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lsg_xlmr.cli", "transformers.models.xlm_roberta.modeling_xlm_roberta"])
    return context


def test_fifty_kills(tmp_path, context, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SOURCE, "source")
    source, whole, rng = content(tmp_path / "source"), {}, random.Random(0)

    def start(block_size):
        process = context.Process(target=convert, args=(str(tmp_path), block_size))
        process.start()
        return process

    for block_size in (64, 128):
        begun = time.perf_counter()
        process = start(block_size)
        process.join()
        seconds = time.perf_counter() - begun
        assert process.exitcode == 0
        whole[block_size] = content(tmp_path / "out")
    now, killed = 128, 0
    for number in range(KILLS):
        other, number = 192 - now, SIGNALS[number % len(SIGNALS)]
        process = start(other)
        time.sleep(rng.uniform(0, 1.1 * seconds))
        if process.is_alive():
            os.kill(process.pid, number)
            killed += 1
        process.join()
        after = content(tmp_path / "out")
        assert after in (whole[now], whole[other])
        now = now if after == whole[now] else other
        assert content(tmp_path / "source") == source
        if number != signal.SIGKILL:
            left = sorted(path.name for path in tmp_path.iterdir())
            assert left == ["out", "source"] or process.exitcode == -number  # killed before it listened
        final = start(now)
        final.join()
        assert final.exitcode == 0 and content(tmp_path / "out") == whole[now]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert killed > KILLS // 2


def test_two_conversions_into_one_folder(tmp_path, context, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SOURCE, "source")
    process = context.Process(target=convert, args=(str(tmp_path), 64))
    process.start()
    while not list(tmp_path.glob(".out-*/new")):
        assert process.is_alive()
    os.kill(process.pid, signal.SIGSTOP)  # in the middle
    assert main(arguments(128)) == 2
    assert "Another process is writing 'out'" in capsys.readouterr().err
    os.kill(process.pid, signal.SIGCONT)
    process.join()
    assert process.exitcode == 0 and sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
