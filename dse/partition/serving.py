"""The serving flags that a plan stands for."""

from __future__ import annotations

from collections.abc import Sequence

from dse.plan import Plan


def serving_flags(plan: Plan, prompt_tokens: int | None = None) -> list[str]:
    """Return one line per serving tool that can serve the plan's layout.

    vLLM: layers per pipeline rank, in the order of the stages, with one tensor-parallel size for all ranks
    (so a plan that mixes sizes has no line). llama.cpp: ``--tensor-split`` takes the shares of layers per
    device; the devices must be listed in the order of the stages, one device per stage. ``prompt_tokens`` are
    needed for a plan with chunks. Neither tool streams the weights of chosen layers, so a plan with offloaded
    ones has no line.
    """
    if plan.offloaded_layers:
        return []
    if plan.prefill_chunks > 1 and prompt_tokens is None:
        raise ValueError("chunks need the length of the prompt")
    chunked = ""
    if plan.prefill_chunks > 1 and prompt_tokens is not None:
        tokens = -(-prompt_tokens // plan.prefill_chunks) * plan.prefill_micro_batch
        chunked = f" --enable-chunked-prefill --max-num-batched-tokens {tokens}"
    counts = ",".join(str(end - first) for first, end in (stage.layers for stage in plan.stages))
    sizes = {stage.tensor_parallel for stage in plan.stages}
    lines: list[str] = []
    if len(sizes) == 1:
        lines.append(
            f"VLLM_PP_LAYER_PARTITION={counts} vllm serve MODEL --pipeline-parallel-size {len(plan.stages)} "
            f"--tensor-parallel-size {sizes.pop()}{chunked}"
        )
    if all(len(stage.devices) == 1 for stage in plan.stages):
        lines.append(f"llama-server -m MODEL.gguf --split-mode layer --tensor-split {counts} -ngl 999")
    return lines


def deployment_flags(
    plans: Sequence[Plan], roles: Sequence[str], prompt_tokens: int | None = None
) -> list[str]:
    """Return the lines for replicas and pools: one command for each, or one for equal replicas.

    vLLM replicates equal layouts itself (``--data-parallel-size``); unlike ones are servers of their own
    behind a router that shares requests out as the plan says. Separate pools are servers with a KV connector.
    """
    each = [serving_flags(plan, prompt_tokens) for plan in plans]
    layouts = {
        (plan.assignment.hash, *((stage.tensor_parallel, stage.layers) for stage in plan.stages))
        for plan in plans
    }
    if len(plans) > 1 and len(layouts) == 1 and set(roles) == {"both"}:
        vllm = [line for line in each[0] if "vllm serve" in line]
        return [f"{line} --data-parallel-size {len(plans)}" for line in vllm]
    kv_roles = {"prefill": "kv_producer", "decode": "kv_consumer"}
    lines: list[str] = []
    for index, (found, role) in enumerate(zip(each, roles, strict=True), start=1):
        for line in found:
            connector = ""
            if role in kv_roles:
                if "vllm serve" not in line:
                    continue
                config = f'{{"kv_connector": "NixlConnector", "kv_role": "{kv_roles[role]}"}}'
                connector = f" --kv-transfer-config '{config}'"
            lines.append(f"[{role} {index}] {line}{connector}" if len(plans) > 1 else f"{line}{connector}")
    return lines
