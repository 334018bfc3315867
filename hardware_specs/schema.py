"""From a parsed YAML document to the frozen types of ``hardware_specs.spec``, in SI units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dse.content import content_hash
from dse.documents import validate
from dse.errors import ConfigError
from hardware_specs import families
from hardware_specs.calibrated import kernel_of
from hardware_specs.document import ClusterDocument, DeviceDocument, RuntimeDocument
from hardware_specs.parts import (
    check_widths,
    compute_paths,
    flop_per_cycle,
    link_of,
    memory_tier,
    memory_tiers,
    operand_pairs,
    power_of,
    sparsity_of,
    with_family_energy,
)
from hardware_specs.reader import Reader
from hardware_specs.sanity import RULES
from hardware_specs.spec import Cluster, ClusterNode, HardwareSpec, RuntimeProfile


def parse_device(content: object, file: str) -> HardwareSpec:
    """Return the device of a parsed YAML document.

    Kernel profiles and energies that the file does not state come from ``hardware_specs.families``; they say
    so. Everything else that the file does not state stays unknown.

    Args:
        content: what the YAML file holds.
        file: its name, for messages.

    Raises:
        ConfigError: one line with file, dotted path, value, what is allowed and the nearest match.
    """
    document = validate(DeviceDocument, content, file)
    read = Reader(file, document.sources)
    process_nm = read.maybe(document.process, "process", "nanometre")
    n_cores = read.count(document.cores, "cores")
    clock_hz = read.maybe(document.clock, "clock", "hertz")
    compute = compute_paths(document.compute, read)
    memory = memory_tiers(document.memory, document.missing, read)
    pairs = operand_pairs(document.pairs, compute, read)
    arithmetic = flop_per_cycle(document.arithmetic, read)
    sparsity = sparsity_of(document.sparsity, read)
    for name in document.exceptions:
        read.known_key(name, "exceptions", tuple(RULES))
    if document.availability == "incomplete" and not document.missing:
        raise ConfigError("an incomplete device needs 'missing': what lacks, and why", file=file)
    reserve_bytes = read.maybe(document.reserve, "reserve", "bytes", zero=True) or 0.0
    links = tuple(link_of(link, f"links.{index}", read) for index, link in enumerate(document.links))
    power = power_of(document.power, read)
    price = read.maybe(document.price, "price", "usd_per_h", zero=True)
    own = tuple(kernel_of(name, entry, read) for name, entry in document.kernels.items())
    read.source(document.weight_only.source, "weight_only.source")
    check_widths(document.weight_only.bits, document.weight_only.reason, read)
    device_class = document.device_class
    main = next((tier for tier in memory if tier.main), None)
    return HardwareSpec(
        name=document.name,
        vendor=document.vendor,
        device_class=device_class,
        description=document.description,
        compute=compute,
        memory=memory,
        links=links,
        power=with_family_energy(power, document, compute, main, read),
        kernels=families.fill_kernels(device_class, own),
        weight_only_bits=tuple(sorted(document.weight_only.bits)),
        weight_only_reason=document.weight_only.reason,
        n_cores=n_cores,
        clock_hz=clock_hz,
        process_nm=process_nm,
        reserve_bytes=reserve_bytes,
        price_usd_per_h=price,
        year=document.year,
        sources=tuple(read.sourced),
        content_hash=_hash(content, file),
        availability=document.availability,
        missing=document.missing,
        exceptions=document.exceptions,
        pairs=pairs,
        sparsity=sparsity,
        flop_per_cycle=arithmetic,
        price_date="" if document.price is None else document.price.date,
    )


def parse_cluster(content: object, file: str, device: Callable[[str], HardwareSpec]) -> Cluster:
    """Return the cluster of a parsed YAML document.

    Args:
        content: what the YAML file holds.
        file: its name, for messages.
        device: loads a device by the name or path that the file gives.

    Devices of one node without an ``intra_link`` use their own scale-up link, else their host link.

    Raises:
        ConfigError: as for devices; also a repeated node name, and several nodes without ``inter_link``.
    """
    document = validate(ClusterDocument, content, file)
    read = Reader(file, document.sources)
    nodes: list[ClusterNode] = []
    specs: dict[str, HardwareSpec] = {}
    for index, entry in enumerate(document.nodes):
        path = f"nodes.{index}"
        if "/" in entry.name or entry.name in {node.name for node in nodes}:
            raise ConfigError(
                f"node names must be unique and without '/', but got '{entry.name}'",
                file=file,
                path=f"{path}.name",
            )
        try:
            spec = device(entry.device)
        except ConfigError as error:
            raise ConfigError(str(error), file=file, path=f"{path}.device") from error
        specs[spec.name] = spec
        link = (spec.link("scale_up") or spec.link("host")) if entry.count > 1 else None
        if entry.intra_link is not None:
            link = link_of(entry.intra_link, f"{path}.intra_link", read)
        limit = read.maybe(entry.memory_limit, f"{path}.memory_limit", "bytes")
        host = tuple(memory_tier(tier, f"{path}.host_memory.{tier.name}", read) for tier in entry.host_memory)
        nodes.append(ClusterNode(entry.name, spec.name, entry.count, link, limit, host))
    intensity = read.maybe(document.grid_intensity, "grid_intensity", "g_per_kwh", zero=True)
    inter_link = None if document.inter_link is None else link_of(document.inter_link, "inter_link", read)
    if inter_link is None and len(nodes) > 1:
        raise ConfigError("several nodes need a link between them", file=file, path="inter_link")
    return Cluster(
        name=document.name,
        description=document.description,
        nodes=tuple(nodes),
        inter_link=inter_link,
        specs=specs,
        source=read.source(document.source, "source"),
        content_hash=_hash([content, {name: spec.content_hash for name, spec in specs.items()}], file),
        sources=tuple(read.sourced),
        grid_g_per_kwh=intensity,
    )


def parse_runtime(content: object, file: str) -> RuntimeProfile:
    """Return the runtime profile of a parsed YAML document.

    Raises:
        ConfigError: as for devices; also a role in two ties.
    """
    document = validate(RuntimeDocument, content, file)
    tied = [role for group in document.ties for role in group]
    for role in tied:
        if tied.count(role) > 1:
            raise ConfigError(f"'{role}' is tied twice", file=file, path="ties", value=role)
    overhead_s = Reader(file, {}).maybe(document.step_overhead, "step_overhead", "second", zero=True) or 0.0
    own = dict(document)
    del own["step_overhead"]
    return RuntimeProfile(**own, step_overhead_s=overhead_s, content_hash=_hash(content, file))


def _hash(content: Any, file: str) -> str:
    try:
        return content_hash(content)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"holds a value that is no JSON: {error}", file=file) from error
