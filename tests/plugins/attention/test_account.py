"""What a run's attention is said to be: counted pairs, measured times, words and a table."""

import dataclasses
import json

import pytest
import torch

from skipstep.plugins.attention.account import AttentionLayer, sentences, table
from skipstep.plugins.attention.tally import Tally, moment
from skipstep.testing import run, tiny_pipeline

LAYER = AttentionLayer("transformer", 1, 4096, 10, 8, 0.25, 0.9, 100.0, 0.6, seconds=0.01)


def test_the_gain_is_the_time_of_a_dense_call_over_that_of_a_sparse_one() -> None:
    tally = Tally("sparge", "transformer")
    for start, end in ((0.0, 0.04), (1.0, 1.05), (2.0, 2.9)):
        tally.dense(3, 4096, 1.0, "first steps")
        tally.took(3, start, end, is_dense=True)
    tally.sparse(3, 4096, 1.0, torch.tensor(0.25), None)
    tally.took(3, 4.0, 4.02, is_dense=False)
    tally.took(3, None, 5.0, is_dense=False)
    tally.took(9, 0.0, 1.0, is_dense=True)  # of a call that nobody counted
    (line,) = tally.lines()
    assert line.dense_seconds == pytest.approx(0.05) and line.seconds == pytest.approx(0.02)
    assert line.gain == pytest.approx(2.5)


def test_a_layer_that_was_never_dense_has_no_gain() -> None:
    assert LAYER.gain is None
    assert "as fast" not in sentences([LAYER])[0]
    assert table([LAYER]).splitlines()[1].split()[-2:] == ["60%", "-"]


def test_the_sentence_weighs_layers_by_their_sparse_calls() -> None:
    slow = dataclasses.replace(LAYER, dense_seconds=0.03)
    fast = dataclasses.replace(LAYER, layer=2, sparse=4, dense_seconds=0.01, seconds=0.005)
    (said,) = sentences([slow, fast])
    # 8 x 30 ms + 4 x 10 ms dense, 8 x 10 ms + 4 x 5 ms sparse.
    assert said.endswith("a sparse call was 2.8x as fast as a dense one.")


def test_a_run_measures_both_kinds_of_calls() -> None:
    tiny = tiny_pipeline("pixart")
    small = {"block_q": 32, "block_k": 32, "force": True, "dense_layers": 0, "dense_steps": 1}
    tiny.pipe.enable_plugin("sparge", keep=0.25, **small)
    run(tiny, steps=3)
    report = tiny.pipe.plugin_report()
    assert all(layer.gain is not None and layer.gain > 0 for layer in report.attention)
    assert "as fast as a dense one" in report.verdict
    json.dumps(report.to_dict(), allow_nan=False)
    assert isinstance(moment(torch.device("cpu")), float)
