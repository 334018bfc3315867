"""The serving flags that a plan stands for."""

from __future__ import annotations

from dse.plan import Plan


def serving_flags(plan: Plan) -> list[str]:
    """Return one line per serving tool that can serve the plan's layout.

    vLLM: layers per pipeline rank, in the order of the stages, with one tensor-parallel size for all ranks
    (so a plan that mixes sizes has no line). llama.cpp: ``--tensor-split`` takes the shares of layers per
    device; the devices must be listed in the order of the stages, one device per stage.
    """
    counts = ",".join(str(end - first) for first, end in (stage.layers for stage in plan.stages))
    sizes = {stage.tensor_parallel for stage in plan.stages}
    lines: list[str] = []
    if len(sizes) == 1:
        lines.append(
            f"VLLM_PP_LAYER_PARTITION={counts} vllm serve MODEL --pipeline-parallel-size {len(plan.stages)} "
            f"--tensor-parallel-size {sizes.pop()}"
        )
    if all(len(stage.devices) == 1 for stage in plan.stages):
        lines.append(f"llama-server -m MODEL.gguf --split-mode layer --tensor-split {counts} -ngl 999")
    return lines
