"""What emulation costs beyond a plain forward pass of the demo model, as ratios measured in one run.

Run by name: ``pytest tests/bench/bench_emulation.py -m slow -s``.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import pytest
import torch

from dse.emulate.corpus import load_corpus, sample_tokens, tokenize
from dse.emulate.model import EmulatedModel
from dse.evaluate.quality import QualityEvaluator
from dse.formats.grammar import parse_precision
from dse.graph.source import load_source
from dse.graph.trace import trace_model
from dse.graph.units import units_of
from dse.plan import Assignment
from tests.demo_model import demo_folder

N_TOKENS = 1024
MAX_OVERHEAD = 1.1


def alternate(n_rounds: int, *functions: Callable[[], object]) -> list[float]:
    """Return the least CPU seconds of each function; they take turns, so that a busy machine is fair."""
    times_s = [[] for _ in functions]
    for _ in range(n_rounds):
        for taken_s, function in zip(times_s, functions, strict=True):
            start_s = time.process_time()
            function()
            taken_s.append(time.process_time() - start_s)
    return [min(taken_s) for taken_s in times_s]


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_weight_only_plan_against_a_plain_forward(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM

    folder = demo_folder()
    graph = trace_model(load_source(folder))
    units = units_of(graph, "block")
    model = EmulatedModel.load(folder, graph, units, dtype=dtype, n_threads=1)
    corpus = load_corpus()
    sample = sample_tokens(corpus, tokenize(corpus, folder), n_tokens=N_TOKENS)
    ids = torch.from_numpy(sample.ids).long()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    evaluator = QualityEvaluator(model, sample)
    precisions = [parse_precision(name) for name in ("int3_g64", "int4_g64", "int8_g64")]
    mixed = model.formats_of(Assignment(tuple((unit.name, precisions[unit.layer % 3]) for unit in units)))

    def forward() -> None:
        with torch.inference_mode():
            plain(input_ids=ids, use_cache=False)

    forward()
    start_s = time.process_time()
    evaluator.measure(mixed)  # makes the reference and the rounded weights, once
    once_s = time.process_time() - start_s
    plain_s, evaluation_s = alternate(5, forward, lambda: evaluator.measure(mixed))
    ratio = evaluation_s / plain_s
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with capsys.disabled():
        sys.stdout.write(
            f"\n{dtype}: plain {plain_s:.2f} s, weight-only plan {evaluation_s:.2f} s (x {ratio:.3f}) per "
            f"{N_TOKENS} tokens on one thread; first plan {once_s:.2f} s with the reference; peak "
            f"{peak_bytes / 1e9:.2f} GB with two models\n"
        )
    assert ratio <= MAX_OVERHEAD
    assert peak_bytes < 3e9
