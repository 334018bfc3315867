"""Transforms of a model that is never in memory as a whole: what changes a block is done while it is there.

They are the same edits as those of the whole model (``transforms.py``, ``scaling.py``, ``principal.py``), in
the same order on every tensor, so that the numbers are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dse.emulate.anatomy import anatomy_of
from dse.emulate.calibrate import BATCH_TOKENS, HiddenStream, observed
from dse.emulate.compensate import WeightRecipe, paths_by_block
from dse.emulate.principal import HIGH_FRAC, add_residual_moments, principal_basis
from dse.emulate.scaling import first_calls, owners_of, site_scales
from dse.emulate.streamed import StreamedModel
from dse.emulate.transforms import (
    fuse_block,
    fuse_head,
    residual_rotation,
    rotate_block,
    rotate_embedding,
    rotate_head,
    scale_site,
    turn_across_heads,
    turn_ffn,
    turn_queries_keys,
    turn_within_heads,
)
from dse.formats.precision import NumberFormat


class BlockTransform(Protocol):
    """Changes the parts of a model, each while it is in memory."""

    def inputs(self) -> None:
        """Change what comes before the blocks."""

    def block(self, index: int) -> AbstractContextManager[None]:
        """Change a block for as long as it is in memory; online steps end with the context."""

    def outputs(self) -> None:
        """Change what comes after the blocks."""


def transform_of(
    model: StreamedModel, recipe: WeightRecipe, fmt_of: Mapping[str, NumberFormat], ids: Tensor | None
) -> BlockTransform:
    """Return the transform of a recipe.

    Args:
        model: of which nothing is in memory; recipe: names the transform.
        fmt_of: weight formats by path; ids: (n_sequences, length) calibration tokens, where it needs some.

    Raises:
        ConfigError: an architecture that the transform cannot take.
    """
    paths = paths_by_block(model, dict(fmt_of))
    if recipe.transform in ("awq", "smooth"):
        assert ids is not None
        return Scaled(model, fmt_of, paths, ids, recipe.alpha if recipe.transform == "smooth" else None)
    if recipe.transform == "principal":
        assert ids is not None
        return Rotated(
            model, principal_basis(_moments(model, paths, ids), recipe.seed, HIGH_FRAC), online=False
        )
    if recipe.transform in ("rotate", "quarot"):
        basis = residual_rotation(anatomy_of(model).width, recipe.seed)
        return Rotated(model, basis, online=recipe.transform == "quarot")
    return Unchanged()


class Unchanged:
    """No transform."""

    def inputs(self) -> None:
        """Change nothing."""

    def block(self, _: int) -> AbstractContextManager[None]:
        """Change nothing."""
        return nullcontext()

    def outputs(self) -> None:
        """Change nothing."""


@dataclass(frozen=True)
class Rotated:
    """Fused norms and a turned residual stream; with ``online`` all other rotations of QuaRot too.

    Attributes:
        model: the model; basis: (width, width) float64, orthogonal.
    """

    model: StreamedModel
    basis: Tensor
    online: bool

    def inputs(self) -> None:
        """Turn the embedding."""
        rotate_embedding(anatomy_of(self.model), self.basis)

    @contextmanager
    def block(self, index: int) -> Iterator[None]:
        """Fuse and turn one block."""
        anatomy = anatomy_of(self.model)
        block = anatomy.blocks[index]
        fuse_block(block)
        rotate_block(block, self.basis)
        with ExitStack() as undo:
            if self.online:
                undo.callback(turn_ffn(block).remove)
                turn_within_heads(block, anatomy)
                undo.callback(turn_across_heads(block, anatomy).remove)
                turn_queries_keys(block, anatomy)
                undo.callback(setattr, block.attention, "dse_rotation", None)
            yield

    def outputs(self) -> None:
        """Fuse and turn the head, which has weights of its own from now on."""
        anatomy = anatomy_of(self.model)
        self.model.module.config.tie_word_embeddings = False
        fuse_head(anatomy)
        rotate_head(anatomy, self.basis)


class Scaled:
    """AWQ's or SmoothQuant's scales, from a stream of calibration tokens through full-precision blocks."""

    def __init__(
        self,
        model: StreamedModel,
        fmt_of: Mapping[str, NumberFormat],
        paths: list[list[str]],
        ids: Tensor,
        smooth_alpha: float | None,
    ) -> None:
        """Prepare; see ``scale_channels`` for the arguments."""
        self._model, self._fmt_of, self._paths = model, fmt_of, paths
        self._ids, self._alpha = ids, smooth_alpha
        self._blocks = anatomy_of(model).blocks
        self._stream: HiddenStream | None = None

    def inputs(self) -> None:
        """Begin the stream."""
        self._stream = HiddenStream.of(self._model, self._ids, BATCH_TOKENS)

    @contextmanager
    def block(self, index: int) -> Iterator[None]:
        """Look at the block as it is, then fold its scales."""
        assert self._stream is not None
        block = self._blocks[index]
        owners = owners_of(block) if self._alpha is None else []
        with first_calls(owners) as calls, observed(self._model, self._paths[index]) as statistics:
            outputs = self._stream.through(self._model.layers[index])
        for source, linears, scale in site_scales(
            self._model, block, self._fmt_of, statistics, calls, self._alpha
        ):
            scale_site(source, linears, scale)
        self._stream.hidden = outputs
        yield

    def outputs(self) -> None:
        """Change nothing."""


def _moments(model: StreamedModel, paths: list[list[str]], ids: Tensor) -> Tensor:
    """Return the moments of the principal basis, from a pass over the disk with fused norms."""
    width = anatomy_of(model).width
    total = torch.zeros(width, width, dtype=torch.float64, device=model.device)
    with torch.inference_mode():
        with model.resident(model.before_blocks()):
            stream = HiddenStream.of(model, ids, BATCH_TOKENS)
        for index, layer in enumerate(model.layers):
            with model.resident([model.block_path(index)]):
                fuse_block(anatomy_of(model).blocks[index])
                with observed(model, paths[index]) as statistics:
                    stream.hidden = stream.through(layer)
            add_residual_moments(total, model, statistics)
    return total.cpu()
