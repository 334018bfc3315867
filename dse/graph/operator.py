"""The operator graph: what a transformer computes, with every size a function of the workload."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dse.graph.extent import Extent, total

if TYPE_CHECKING:
    import networkx as nx

OpKind = Literal[
    "linear", "attention", "embedding", "norm", "activation", "elementwise", "rope", "gather", "scan", "other"
]
OP_KINDS: tuple[OpKind, ...] = get_args(OpKind)


@dataclass(frozen=True)
class Attention:
    """Head geometry of an attention operator.

    Attributes:
        n_heads, n_kv_heads: heads of the queries, and of the keys and values that they are multiplied with.
        head_dim: width of queries and keys; ``value_dim``: width of the values where it differs.
        window: bounds the context where attention slides, or comes in chunks.
        latent_dim: elements per token that the cache holds where it holds a compressed form that all heads
            share (multi-head latent attention, DeepSeek-V2, arXiv 2405.04434, section 2.1), else None.
        causal: whether a token sees no later ones; encoders attend in both directions.
        cross: whether it attends to the encoder's output instead of the own sequence.
        source_tokens: positions of the encoder's input where keys and values are made from that, else None.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    window: int | None = None
    value_dim: int | None = None
    latent_dim: int | None = None
    causal: bool = True
    cross: bool = False
    source_tokens: int | None = None

    @property
    def product_dim(self) -> float:
        """Mean width of keys and values: the two products take 4 x heads x this for each pair of tokens."""
        return (self.head_dim + (self.value_dim or self.head_dim)) / 2

    @property
    def once(self) -> bool:
        """Whether it is an encoder's own, which runs in the first pass only."""
        return self.source_tokens is not None and not self.cross

    @property
    def cached_heads(self) -> int:
        """Heads of the cache: one shared by all where it is compressed."""
        return self.n_kv_heads if self.latent_dim is None else 1

    @property
    def cached_dim(self) -> float:
        """Mean width of the cached tensors, so that a token takes 2 x heads x this elements."""
        return self.product_dim if self.latent_dim is None else self.latent_dim / 2


@dataclass(frozen=True)
class Experts:
    """Routing of a grouped product: each token goes to ``top_k`` of ``n_experts`` equal matrices."""

    n_experts: int
    top_k: int

    def expected_active(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """Return how many experts ``tokens`` tokens use on average, if all experts are equally likely.

        Each token misses an expert with probability 1 - k / E, so n tokens use E (1 - (1 - k / E)^n): the
        occupancy of urns by independent draws of k distinct ones.
        """
        missed = (1.0 - self.top_k / self.n_experts) ** np.asarray(tokens, dtype=np.float64)
        return np.asarray(self.n_experts * (1.0 - missed), dtype=np.float64)

    def worst_active(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """Return the most experts that ``tokens`` tokens can use."""
        return np.minimum(float(self.n_experts), self.top_k * np.asarray(tokens, dtype=np.float64))


@dataclass(frozen=True)
class Op:
    """One operator of the graph.

    Attributes:
        name: unique in its block, the module path below the block (``self_attn.q_proj``); operators outside
            the blocks carry their full module path (``model.embed_tokens``, ``lm_head``).
        kind: what it computes.
        parameters: elements of the parameters it owns. A tied matrix is owned by the first operator that
            uses it; the others have 0 here and name it in ``tied_to``.
        weight_shape: (outputs, inputs) of a linear or (rows, width) of an embedding; None otherwise. The
            matrices of all experts are stacked: (experts x outputs, inputs).
        flop: 2 per multiply-add. For linears and attention products this equals what
            ``torch.utils.flop_counter`` counts; element-wise work is in ``vector_flop``.
        vector_flop: element-wise operations, outside the flop counter's view.
        read_elements: activation elements read (without weights and without the KV cache).
        write_elements: activation elements written.
        kv_read_elements: cached key and value elements read; ``kv_write_elements``: appended.
        attention: head geometry for kind "attention".
        tied_to: full name of the operator that owns the shared matrix.
        experts: routing of a linear that multiplies each token with some of its matrices.
        state_elements: recurrent state (scans and convolutions) that a sequence keeps however long it is;
            read and written once in a pass, which the activation traffic includes.
        live_elements: activations that exist while it runs, where the module itself runs its operators one
            after the other and holds what its callers hold; without the cache and an encoder's result.
            ``step_live_elements``: the same in decode steps, where a recurrent state is updated in place
            instead of being handed over; None where they are no special case.
        once: whether it runs in the first pass of a request only (query = context): an encoder, and the
            keys and values that cross-attention makes of the encoder's output.
    """

    name: str
    kind: OpKind
    parameters: int = 0
    weight_shape: tuple[int, int] | None = None
    has_bias: bool = False
    flop: Extent = Extent()
    vector_flop: Extent = Extent()
    read_elements: Extent = Extent()
    write_elements: Extent = Extent()
    kv_read_elements: Extent = Extent()
    kv_write_elements: Extent = Extent()
    input_shapes: tuple[tuple[Extent, ...], ...] = ()
    output_shapes: tuple[tuple[Extent, ...], ...] = ()
    attention: Attention | None = None
    tied_to: str | None = None
    experts: Experts | None = None
    state_elements: Extent = Extent()
    live_elements: Extent = Extent()
    step_live_elements: Extent | None = None
    once: bool = False

    @property
    def role(self) -> str:
        """The last part of the name, which runtimes tie by: ``q_proj``, ``down_proj``, ``lm_head``."""
        return self.name.rsplit(".", 1)[-1]

    def at(self, field: str, batch: ArrayLike, query: ArrayLike, context: ArrayLike) -> NDArray[np.float64]:
        """Evaluate an Extent field; where attention slides, the context is what its cache still holds.

        A sliding cache keeps window - 1 positions, so ``query`` tokens see at most window - 1 + query of
        them: all of a prefill, and the window in decode. What runs once is 0 after the first pass. The
        arguments broadcast.
        """
        extent: Extent = getattr(self, field)
        if self.attention is not None and self.attention.window is not None:
            context = np.minimum(context, np.asarray(query) + (self.attention.window - 1))
        sizes = extent(batch, query, context)
        if field == "live_elements" and self.step_live_elements is not None:
            step = (np.asarray(query) == 1) & (np.asarray(context) > 1)
            sizes = np.where(step, self.step_live_elements(batch, query, context), sizes)
        if self.once:
            return sizes * (np.asarray(query) == np.asarray(context))
        return sizes

    def cached_elements(self, batch: ArrayLike, context: ArrayLike) -> NDArray[np.float64]:
        """Return what the operator keeps of ``batch`` sequences after ``context`` positions."""
        state = self.state_elements(batch, 1, context)
        geometry = self.attention
        if geometry is None or not geometry.causal:
            return state
        kept = np.asarray(context, dtype=np.float64)
        if geometry.window is not None:
            kept = np.minimum(kept, geometry.window - 1)
        return state + np.asarray(batch) * kept * geometry.cached_heads * 2 * geometry.cached_dim


@dataclass(frozen=True)
class Edge:
    """Data flow from one operator to another inside a block; ``elements`` cross it.

    ``source`` or ``target`` is "" where the data enters or leaves the block. Data that enters comes from the
    block before (the residual stream), or where ``origin`` names one, from that operator of the prologue.
    """

    source: str
    target: str
    elements: Extent
    origin: str = ""


@dataclass(frozen=True)
class Block:
    """A repeated part of the model: its operators are stored once, for all the layers in ``layers``.

    ``layers`` is empty for the part before the first and the part after the last transformer block.
    ``prefix`` is the module path with ``{layer}`` for the index, e.g. ``model.layers.{layer}``; the layers of
    a decoder count on from those of its encoder, and ``first_layer`` is the one whose module has index 0.
    """

    prefix: str
    layers: tuple[int, ...]
    ops: tuple[Op, ...]
    edges: tuple[Edge, ...] = ()
    first_layer: int = 0

    def path(self, layer: int) -> str:
        """Return the module path of one of its layers."""
        return self.prefix.format(layer=layer - self.first_layer)

    def full_name(self, op: Op, layer: int | None = None) -> str:
        """Return the module path of ``op`` in one layer, e.g. ``model.layers.3.self_attn.q_proj``."""
        return op.name if layer is None else f"{self.path(layer)}.{op.name}"

    @property
    def repeats(self) -> int:
        """How many times the block occurs."""
        return max(1, len(self.layers))

    def sum(self, field: str) -> Extent:
        """Return the sum of an Extent field over the operators of one occurrence."""
        return total([getattr(op, field) for op in self.ops])


@dataclass(frozen=True)
class OperatorGraph:
    """A traced transformer.

    Attributes:
        model: display name; ``config_hash``: content hash of the configuration it was traced from.
        prologue: operators before the first block (embeddings); epilogue: after the last (norm, lm_head).
        blocks: distinct block templates; together their ``layers`` are 0..n_layers-1.
        hidden_size: width of the residual stream, which is what crosses a pipeline cut.
        source_tokens: of an encoder-decoder, the length of the encoder's input that sizes are for, and
            (batch, query, context) are the decoder's. None otherwise.
        n_encoder_layers: how many of the first layers are the encoder's, 0 without one. What stands between
            it and the decoder (its final norm) is in the prologue.
        parameters: equals the module's own count, shared matrices once.
    """

    model: str
    config_hash: str
    prologue: Block
    blocks: tuple[Block, ...]
    epilogue: Block
    hidden_size: int
    vocab_size: int
    parameters: int
    dtype: str = "bfloat16"
    max_context: int | None = None
    source_tokens: int | None = None
    n_encoder_layers: int = 0

    def __post_init__(self) -> None:
        covered = sorted(layer for block in self.blocks for layer in block.layers)
        if covered != list(range(len(covered))):
            raise ValueError(f"block layers must cover 0..n-1 once each, but got {covered}")

    @cached_property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return sum(len(block.layers) for block in self.blocks)

    @cached_property
    def block_of_layer(self) -> tuple[Block, ...]:
        """The block template of each layer, in order."""
        of = {layer: block for block in self.blocks for layer in block.layers}
        return tuple(of[layer] for layer in range(self.n_layers))

    @cached_property
    def after_encoder(self) -> tuple[str, ...]:
        """Operators of the prologue that read what the encoder's blocks made, in order."""
        found: dict[str, None] = {}
        for op in self.prologue.ops if self.n_encoder_layers else ():
            sources = [edge.source for edge in self.prologue.edges if edge.target == op.name]
            if any(source == "" or source in found for source in sources):
                found[op.name] = None
        return tuple(found)

    @property
    def parts(self) -> tuple[Block, ...]:
        """Prologue, block templates, epilogue."""
        return (self.prologue, *self.blocks, self.epilogue)

    def total(self, field: str) -> Extent:
        """Return the whole-model sum of an Extent field, repeats counted."""
        return total([part.sum(field) * part.repeats for part in self.parts])

    def at(self, field: str, batch: ArrayLike, query: ArrayLike, context: ArrayLike) -> NDArray[np.float64]:
        """Evaluate the whole-model sum of an Extent field, repeats counted and sliding windows respected."""
        parts = [op.at(field, batch, query, context) * p.repeats for p in self.parts for op in p.ops]
        return np.sum(parts, axis=0, dtype=np.float64)

    @cached_property
    def kv_elements_per_token(self) -> int:
        """Key and value elements that one token adds to the cache, over all layers."""
        per_token = self.total("kv_write_elements")(1, 1, 1)
        return round(float(per_token))

    def cache_elements(self, batch: ArrayLike, context: ArrayLike) -> NDArray[np.float64]:
        """Return the cached elements of ``batch`` sequences after ``context`` positions; sizes broadcast.

        Keys and values or their compressed form, and recurrent states. A sliding cache keeps the window - 1
        positions that the next token sees besides itself.
        """
        parts = [op.cached_elements(batch, context) * p.repeats for p in self.parts for op in p.ops]
        return np.sum(parts, axis=0, dtype=np.float64)

    def nx(self) -> nx.DiGraph:
        """Return a networkx view with one node per operator and layer; changing it changes nothing here."""
        from dse.graph.view import to_networkx

        return to_networkx(self)
