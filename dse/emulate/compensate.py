"""From formats to weights: round to nearest or GPTQ, with a range fit, over the whole model.

The values are given to the model (``EmulatedModel.prepare``), which then uses them wherever the formats are
applied.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from dse.emulate.calibrate import InputStatistics, Progress, walk_blocks
from dse.emulate.corpus import TokenSample
from dse.emulate.model import EmulatedModel, TensorFormats
from dse.emulate.one_weight import Compressed, OneWeight, compress
from dse.emulate.principal import rotate_to_principal
from dse.emulate.scaling import scale_channels
from dse.emulate.transforms import quarot
from dse.errors import ConfigError
from dse.formats.precision import NumberFormat

TRANSFORM_NAMES = ("none", "awq", "smooth", "rotate", "quarot", "principal")
SMOOTH_ALPHA = 0.5  # SmoothQuant's default, arXiv 2211.10438


@dataclass(frozen=True)
class WeightRecipe(OneWeight):
    """How the weights of a model are quantized.

    Attributes:
        transform: "none", "awq", "smooth", "rotate" (offline rotation of the residual stream), "quarot", or
            "principal" (the residual stream in its principal components).
        alpha: of SmoothQuant.
        seed: of random rotations.
    """

    transform: str = "none"
    alpha: float = SMOOTH_ALPHA
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transform not in TRANSFORM_NAMES:
            raise ConfigError(
                f"unknown transform '{self.transform}'", value=self.transform, allowed=TRANSFORM_NAMES
            )
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"must be between 0 and 1, but is {self.alpha}", path="alpha")

    @property
    def is_plain(self) -> bool:
        """Whether this is round to nearest with min-max scales, which needs no preparation."""
        return self.transform == "none" and super().is_plain

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration tokens are used."""
        return self.transform in ("awq", "smooth", "principal") or self.weights_need_calibration


@dataclass(frozen=True)
class PreparedWeights:
    """Values by (path, format name), and by path what is stored beside and which inputs stay exact."""

    values: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    extra_bits: dict[str, int] = field(default_factory=dict)
    exact_columns: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def add(self, path: str, fmt: NumberFormat, made: Compressed, value: Tensor) -> None:
        """Take in one weight; ``value`` is in the module's layout and dtype."""
        self.values[path, fmt.name] = value
        if made.extra_bits:
            self.extra_bits[path] = made.extra_bits
        if made.exact_columns:
            self.exact_columns[path] = made.exact_columns


def apply_recipe(
    model: EmulatedModel,
    formats: TensorFormats,
    recipe: WeightRecipe,
    sample: TokenSample | None,
    progress: Progress | None = None,
) -> PreparedWeights:
    """Transform the model and prepare its quantized weights.

    Args:
        model: changed in place where the recipe has a transform.
        formats: of the weights (activation and cache formats are left to ``EmulatedModel.applied``).
        recipe: what to do; sample: calibration tokens, None where the recipe needs none.
        progress: called with (blocks done, blocks in all) of the last walk.

    Returns:
        What was prepared; empty for a plain recipe, whose weights the model rounds when they are applied.

    Raises:
        ConfigError: a format or an architecture that a step of the recipe cannot take.
    """
    if recipe.is_plain:
        return PreparedWeights()
    if sample is None and recipe.needs_calibration:
        raise ConfigError("this recipe needs calibration tokens")
    ids = torch.zeros(0, 1, device=model.device) if sample is None else model.tokens(sample)
    fmt_of = dict(formats.weights)
    if recipe.transform in ("awq", "smooth"):
        alpha = recipe.alpha if recipe.transform == "smooth" else None
        scale_channels(model, fmt_of, paths_by_block(model, fmt_of), ids, smooth_alpha=alpha)
    elif recipe.transform == "principal":
        rotate_to_principal(model, paths_by_block(model, fmt_of), ids, seed=recipe.seed)
    elif recipe.transform in ("rotate", "quarot"):
        quarot(model, recipe.seed, online=recipe.transform == "quarot")
    prepared = quantized_weights(model, formats, recipe, ids, progress)
    calibration = sample.hash if sample is not None and recipe.needs_calibration else None
    model.prepare(prepared.values, ["recipe", asdict(recipe), calibration], prepared.exact_columns)
    return prepared


def quantized_weights(
    model: EmulatedModel,
    formats: TensorFormats,
    recipe: WeightRecipe,
    ids: Tensor,
    progress: Progress | None = None,
) -> PreparedWeights:
    """Return the weights of all linears in ``formats``, without any transform."""
    prepared = PreparedWeights()
    fmt_of = dict(formats.weights)

    def quantize(_: int, statistics: dict[str, InputStatistics]) -> dict[str, Tensor]:
        return {
            path: quantize_linear(model, path, fmt_of[path], recipe, entry, prepared)
            for path, entry in statistics.items()
        }

    if not recipe.weights_need_calibration:
        for path, fmt in formats.weights:
            quantize_linear(model, path, fmt, recipe, None, prepared)
        return prepared
    walk_blocks(model, paths_by_block(model, fmt_of), ids, quantize, progress)
    return prepared


def quantize_linear(
    model: EmulatedModel,
    path: str,
    fmt: NumberFormat,
    recipe: OneWeight,
    inputs: InputStatistics | None,
    prepared: PreparedWeights,
) -> Tensor:
    """Quantize the weight of one linear, note it in ``prepared`` and return it in the module's layout."""
    linear, inputs_first = model.linear(path)
    weight = linear.weight.t() if inputs_first else linear.weight
    made = compress(weight.detach().float(), fmt, recipe, inputs)
    value = (made.weight.t() if inputs_first else made.weight).to(linear.weight.dtype).contiguous()
    prepared.add(path, fmt, made, value)
    return value


def paths_by_block(model: EmulatedModel, wanted: dict[str, NumberFormat]) -> list[list[str]]:
    """Return the wanted paths of each block, in the order of the model's linears."""
    prefixes = [
        block.prefix.format(layer=layer) + "." for layer, block in enumerate(model.graph.block_of_layer)
    ]
    return [[path for path in wanted if path.startswith(prefix)] for prefix in prefixes]
