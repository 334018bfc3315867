"""The largest problem of ``dse bench planner``: one model over every group of 64 unlike devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from studies.layouts import PlannedLayout

NAME = "llama-3.1-405b, 64 devices of 5 types in 8 nodes, tensor parallelism"


def solve_largest(time_limit_s: float) -> PlannedLayout:
    """Return the fastest layout of 126 layers on the cluster ``mixed_64``, as good as int8 rows."""
    from dse.cli.progress import ConsoleProgress
    from dse.partition.layout.pipeline import LayoutOptions
    from studies.planning import best_layout
    from studies.schema import Study, load_workload

    study = Study(
        name="bench",
        model="llama-3.1-405b",
        cluster="mixed_64",
        workload=load_workload("offline_batch"),
        precisions=("bf16", "fp8_e4m3", "int8_row", "int4_g64_asym"),
        uniform=("int8_row",),
        runtime="vllm",
        metric="noise",
    )
    with ConsoleProgress() as progress:
        return best_layout(study, progress, LayoutOptions(degrees=None), time_limit_s=time_limit_s)
