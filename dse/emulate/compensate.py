"""From formats to weights: round to nearest or GPTQ, with a range fit, over the whole model.

The values are given to the model (``EmulatedModel.prepare``), which then uses them wherever the formats are
applied.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from dse.emulate.calibrate import InputStatistics, Progress, walk_blocks
from dse.emulate.corpus import TokenSample
from dse.emulate.model import EmulatedModel, TensorFormats
from dse.emulate.scaling import scale_channels
from dse.emulate.transforms import quarot
from dse.errors import ConfigError
from dse.formats.precision import NumberFormat
from dse.quantize.fit import FITS, NEEDS_IMPORTANCE, NEEDS_MOMENTS, fitted_fake_quantize
from dse.quantize.gptq import DAMPING_FRAC, Order, gptq, obs_saliency

Quantizer = Literal["rtn", "gptq"]
QUANTIZER_NAMES: tuple[Quantizer, ...] = ("rtn", "gptq")
TRANSFORM_NAMES = ("none", "awq", "smooth", "rotate", "quarot")
SMOOTH_ALPHA = 0.5  # SmoothQuant's default, arXiv 2211.10438


@dataclass(frozen=True)
class WeightRecipe:
    """How weights are quantized.

    Attributes:
        transform: "none", "awq", "smooth", "rotate" (offline rotation of the residual stream) or "quarot".
        quantizer: "rtn" or "gptq"; fit: range fit; order, damping_frac: of GPTQ.
        seed: of random rotations.
    """

    transform: str = "none"
    quantizer: str = "rtn"
    fit: str = "minmax"
    order: Order = "natural"
    damping_frac: float = DAMPING_FRAC
    seed: int = 0

    def __post_init__(self) -> None:
        if self.quantizer not in QUANTIZER_NAMES:
            raise ConfigError(
                f"unknown quantizer '{self.quantizer}'", value=self.quantizer, allowed=QUANTIZER_NAMES
            )
        if self.transform not in TRANSFORM_NAMES:
            raise ConfigError(
                f"unknown transform '{self.transform}'", value=self.transform, allowed=TRANSFORM_NAMES
            )
        FITS.get(self.fit)

    @property
    def is_plain(self) -> bool:
        """Whether this is round to nearest with min-max scales, which needs no preparation."""
        return self.transform == "none" and self.quantizer == "rtn" and self.fit == "minmax"

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration tokens are used."""
        scaled = self.transform in ("awq", "smooth")
        return scaled or self.quantizer == "gptq" or self.fit in NEEDS_MOMENTS | NEEDS_IMPORTANCE


def apply_recipe(
    model: EmulatedModel,
    formats: TensorFormats,
    recipe: WeightRecipe,
    sample: TokenSample,
    progress: Progress | None = None,
) -> None:
    """Transform the model and prepare its quantized weights.

    Args:
        model: changed in place where the recipe has a transform.
        formats: of the weights (activation and cache formats are left to ``EmulatedModel.applied``).
        recipe: what to do; sample: calibration tokens.
        progress: called with (blocks done, blocks in all) of the last walk.

    Raises:
        ConfigError: a format or an architecture that a step of the recipe cannot take.
    """
    if recipe.is_plain:
        return
    ids = torch.from_numpy(sample.ids).long()
    if recipe.transform in ("awq", "smooth"):
        fmt_of = dict(formats.weights)
        alpha = SMOOTH_ALPHA if recipe.transform == "smooth" else None
        scale_channels(model, fmt_of, paths_by_block(model, fmt_of), ids, smooth_alpha=alpha)
    elif recipe.transform in ("rotate", "quarot"):
        quarot(model, recipe.seed, online=recipe.transform == "quarot")
    weights = quantized_weights(model, formats, recipe, ids, progress)
    calibration = sample.hash if recipe.needs_calibration else None
    model.prepare(weights, ["recipe", asdict(recipe), calibration])


def quantized_weights(
    model: EmulatedModel,
    formats: TensorFormats,
    recipe: WeightRecipe,
    ids: Tensor,
    progress: Progress | None = None,
) -> dict[tuple[str, str], Tensor]:
    """Return {(path, format name): values in the module's layout and dtype}, without any transform."""
    made: dict[tuple[str, str], Tensor] = {}
    fmt_of = dict(formats.weights)

    def quantize(_: int, statistics: dict[str, InputStatistics]) -> dict[str, Tensor]:
        replaced = {}
        for path, entry in statistics.items():
            linear, inputs_first = model.linear(path)
            weight = linear.weight.t() if inputs_first else linear.weight
            value = quantize_one(weight.detach().float(), fmt_of[path], recipe, entry)
            value = (value.t() if inputs_first else value).to(linear.weight.dtype).contiguous()
            made[path, fmt_of[path].name] = replaced[path] = value
        return replaced

    if recipe.quantizer == "rtn" and not recipe.needs_calibration:
        for path, fmt in formats.weights:
            linear, inputs_first = model.linear(path)
            weight = linear.weight.t() if inputs_first else linear.weight
            value = fitted_fake_quantize(weight.detach().float(), fmt, recipe.fit)
            made[path, fmt.name] = (value.t() if inputs_first else value).to(linear.weight.dtype).contiguous()
        return made
    walk_blocks(model, paths_by_block(model, fmt_of), ids, quantize, progress)
    return made


def quantize_one(weight: Tensor, fmt: NumberFormat, recipe: WeightRecipe, inputs: InputStatistics) -> Tensor:
    """Return the values (R, C) of one weight under a recipe's quantizer and fit."""
    hessian = inputs.hessian
    importance = obs_saliency(weight, hessian) if recipe.fit in NEEDS_IMPORTANCE else None
    if recipe.quantizer == "rtn":
        moments = hessian if recipe.fit in NEEDS_MOMENTS else None
        return fitted_fake_quantize(weight, fmt, recipe.fit, moments=moments, importance=importance)
    return gptq(
        weight,
        hessian,
        fmt,
        fit=recipe.fit,
        order=recipe.order,
        damping_frac=recipe.damping_frac,
        importance=importance,
    ).weight


def paths_by_block(model: EmulatedModel, wanted: dict[str, NumberFormat]) -> list[list[str]]:
    """Return the wanted paths of each block, in the order of the model's linears."""
    prefixes = [
        block.prefix.format(layer=layer) + "." for layer, block in enumerate(model.graph.block_of_layer)
    ]
    return [[path for path in wanted if path.startswith(prefix)] for prefix in prefixes]
