"""Everything that touches tensors also runs where they are not on the processor; see ``tests.other_device``.

Oracle: the same work on the processor, to the last bit. What this cannot show is arithmetic of real hardware.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import dse.sensitivity.measure  # noqa: F401  (registers the metrics)
from dse.emulate.compensate import WeightRecipe, apply_recipe
from dse.emulate.corpus import TokenSample
from dse.emulate.device import chosen_device
from dse.emulate.model import EmulatedModel
from dse.emulate.one_weight import OutlierStore
from dse.emulate.streamed import StreamedModel
from dse.errors import ConfigError
from dse.evaluate.block_by_block import quantize_block_by_block
from dse.evaluate.quality import Quality, QualityEvaluator
from dse.formats.grammar import parse_format, parse_precision
from dse.graph.units import units_of
from dse.plan import Assignment
from dse.policy import CachePolicy, PhaseStep, RuntimePolicy
from dse.quantize import dequantize, fake_quantize, quantize_codes
from dse.quantize.fit import FITS, fitted_fake_quantize
from dse.quantize.gptq import Order, gptq
from dse.quantize.pack import pack, unpack
from dse.sensitivity.measure import measure_sensitivity
from dse.sensitivity.measure_sampled import measure_sampled
from dse.sensitivity.metric import METRICS
from studies.emulation_speed import LEARNED_FORMATS, SCALAR_FORMATS
from tests.other_device import Elsewhere, other_device
from tests.tiny_llama import tiny_graph, write_tiny_llama

GRAPH = tiny_graph()
UNITS = units_of(GRAPH, "sublayer")
FORMATS = (*SCALAR_FORMATS, *LEARNED_FORMATS, "int3_g16_asym_s3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def _plain_attention() -> Iterator[None]:
    with sdpa_kernel(SDPBackend.MATH):
        yield


def _tensor(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _sample(seed: int, split: str = "calibration") -> TokenSample:
    ids = np.random.default_rng(seed).integers(0, 256, (4, 32)).astype(np.int32)
    return TokenSample(ids, "random", "0", split, seed, str(seed))  # type: ignore[arg-type]


def test_mixing_devices_fails_here_as_on_hardware() -> None:
    with other_device() as there:
        x = torch.ones(3, device=there)
        assert isinstance(x, Elsewhere)
        assert x.device == there
        assert float(x.sum() + torch.tensor(1.0)) == 4.0
        with pytest.raises(RuntimeError, match="two devices"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError):
            x.numpy()


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str) -> None:
    fmt, x = parse_format(name), _tensor(0, 64, 192)
    with other_device() as there:
        y = x.to(there)
        rounded, codes = fake_quantize(y, fmt), quantize_codes(y, fmt)
        assert rounded.device == dequantize(codes).device == there
        assert torch.equal(rounded.cpu(), fake_quantize(x, fmt))
        packed = pack(codes)
        assert packed == pack(quantize_codes(x, fmt))
        assert torch.equal(dequantize(unpack(packed, fmt, (64, 192))), dequantize(codes).cpu())


@pytest.mark.parametrize("fit", [name for name in FITS.names() if "salience_x" not in name])
def test_range_fits_and_gptq(fit: str) -> None:
    w, x, importance = _tensor(0, 8, 64), _tensor(1, 128, 64), _tensor(2, 8, 64).abs()
    fmt, h = parse_format("int3_g32_asym"), x.t() @ x
    with other_device() as there:
        on = [part.to(there) for part in (w, h, importance)]
        moved = fitted_fake_quantize(on[0], fmt, fit, moments=on[1], importance=on[2])
        assert torch.equal(moved.cpu(), fitted_fake_quantize(w, fmt, fit, moments=h, importance=importance))
        orders: tuple[Order, ...] = ("natural", "activation")
        for order in orders:
            moved_result = gptq(on[0], on[1], fmt, fit=fit, order=order, keep=[3, 9], importance=on[2])
            here = gptq(w, h, fmt, fit=fit, order=order, keep=[3, 9], importance=importance)
            assert torch.equal(moved_result.weight.cpu(), here.weight)


def _measured(
    folder: Path, device: torch.device, precision: str, recipe: WeightRecipe, policy: RuntimePolicy
) -> Quality:
    model = EmulatedModel.load(folder, GRAPH, UNITS, dtype="float32", device=device)
    assert model.linear(model.path(0, "mlp.up_proj"))[0].weight.device == device
    evaluator = QualityEvaluator(model, _sample(0, "evaluation"), policy=policy, calibration=_sample(1))
    assignment = Assignment.uniform(tuple(unit.name for unit in UNITS), parse_precision(precision))
    evaluator.hold_reference()
    apply_recipe(model, model.formats_of(assignment), recipe, _sample(1))
    return evaluator.evaluate(assignment)


WEIGHTS, BOTH, ALL = "int3_g32_asym", "int4_row/int8/bf16", "int4_g32/int8_token/int4_head"
CACHE = CachePolicy(
    keys_per_channel=True,
    key_group=16,
    window=4,
    sinks=2,
    queries=parse_format("int8_head"),
    probabilities=parse_format("int8_token"),
    softmax_bits=4,
)
CASES = {
    "everything rounded": (ALL, WeightRecipe(), RuntimePolicy()),
    "cache policy": (ALL, WeightRecipe(), RuntimePolicy(cache=CACHE)),
    "static": (BOTH, WeightRecipe(), RuntimePolicy(static_activations=True)),
    "integer products": ("int4_row/int8_token/bf16", WeightRecipe(), RuntimePolicy(integer_products=True)),
    "phases": (ALL, WeightRecipe(), RuntimePolicy(phases=(PhaseStep(8, parse_format("int3_g32")),))),
    "awq, clipped": (WEIGHTS, WeightRecipe(transform="awq", fit="act_clip"), RuntimePolicy()),
    "smooth": (BOTH, WeightRecipe(transform="smooth"), RuntimePolicy()),
    "rotated": (WEIGHTS, WeightRecipe(transform="rotate", quantizer="gptq"), RuntimePolicy()),
    "quarot": (ALL, WeightRecipe(transform="quarot"), RuntimePolicy()),
    "columns": (
        ALL,
        WeightRecipe(outliers=OutlierStore("columns", 0.1, "activation", exact_inputs=True)),
        RuntimePolicy(),
    ),
    "principal, kept columns": (
        ALL,
        WeightRecipe(
            transform="principal", quantizer="gptq", outliers=OutlierStore("columns", 0.1, "sensitivity")
        ),
        RuntimePolicy(),
    ),
    "elements": (
        WEIGHTS,
        WeightRecipe(quantizer="gptq", fit="importance", outliers=OutlierStore("csr", 0.01, "obs")),
        RuntimePolicy(),
    ),
    "bitmap, low rank": (
        WEIGHTS,
        WeightRecipe(outliers=OutlierStore("bitmap", 0.01), low_rank=2),
        RuntimePolicy(),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_recipes_and_policies_in_a_model(folder: Path, case: str) -> None:
    with other_device() as there:
        moved = _measured(folder, there, *CASES[case])
    assert moved == _measured(folder, torch.device("cpu"), *CASES[case])


@pytest.mark.parametrize(
    "case", ["everything rounded", "static", "phases", "awq, clipped", "smooth", "rotated"]
)
def test_block_by_block(folder: Path, case: str) -> None:
    precision, recipe, policy = CASES[case]

    def measured(device: torch.device) -> tuple[Quality, Quality]:
        model = StreamedModel.open(folder, GRAPH, UNITS, dtype="float32", device=device)
        names = tuple(unit.name for unit in UNITS)
        formats = model.formats_of(Assignment.uniform(names, parse_precision(precision)))
        done = quantize_block_by_block(
            model, formats, recipe, _sample(0, "evaluation"), calibration=_sample(1), policy=policy
        )
        return done.measured, done.baseline

    with other_device() as there:
        moved = measured(there)
    assert moved == measured(torch.device("cpu"))


def test_sensitivity_metrics(folder: Path) -> None:
    def tables(device: torch.device) -> dict[str, float]:
        model = EmulatedModel.load(folder, GRAPH, UNITS, dtype="float32", device=device)
        evaluator = QualityEvaluator(model, _sample(0), keep_prefix=True)
        precisions = (parse_precision("int4_g32/int8_token/bf16"),)
        found = {name: measure_sensitivity(name, evaluator, UNITS[-1:], precisions) for name in METRICS}
        found["sampled"] = measure_sampled(evaluator, UNITS[-1:], precisions, 0.5)
        return {name: float(table.penalty[0, 0]) for name, table in found.items()}

    with other_device() as there:
        moved = tables(there)
    # Backward passes of the two kinds of tensors add in another order.
    assert moved == pytest.approx(tables(torch.device("cpu")), rel=1e-6)


def test_the_device_is_named_where_results_could_differ(folder: Path) -> None:
    with other_device() as there:
        identities = [
            QualityEvaluator(
                EmulatedModel.load(folder, GRAPH, UNITS, dtype="float32", device=device), _sample(0)
            ).identity()
            for device in (torch.device("cpu"), there)
        ]
    assert "device" not in identities[0]
    assert identities[1] == identities[0] | {"device": there.type}


def test_chosen_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSE_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device() == torch.device("cpu")
    with pytest.raises(ConfigError, match="no CUDA device"):
        chosen_device("cuda")
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        chosen_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert chosen_device() == torch.device("cuda", 0)
    assert chosen_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="no cuda:2, but 2"):
        chosen_device("cuda:2")
    monkeypatch.setenv("DSE_DEVICE", "cpu")
    assert chosen_device() == torch.device("cpu")
