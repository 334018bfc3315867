"""Pools of equal replicas, and which requests go to which of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dse.capacity.load import Load, child_generator
from dse.capacity.replica import Replica
from dse.errors import ConfigError
from hardware_specs.spec import Link

Policy = Literal["round_robin", "shortest_queue", "least_loaded", "pull"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
Shares = tuple[tuple[str, float], ...]
Range = tuple[int, int | None]


@dataclass(frozen=True, eq=False)
class Pool:
    """Equal replicas."""

    name: str
    replica: Replica
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(
                f"must be at least 1, but got {self.count}", path=f"pools.{self.name}", value=self.count
            )


@dataclass(frozen=True)
class Rule:
    """Where some of the requests go; of several rules the first that fits counts.

    Attributes:
        pools: (pool, share of these requests), shares relative to their sum.
        decode_pools: likewise for the decode of requests whose pool only does prefills.
        classes: names of request classes, () for all.
        prompt_tokens, output_tokens: from the first up to and without the second, None for no bound. A router
            that goes by output tokens must predict them; here it knows them.
    """

    pools: Shares
    decode_pools: Shares = ()
    classes: tuple[str, ...] = ()
    prompt_tokens: Range = (1, None)
    output_tokens: Range = (1, None)

    def fits(self, load: Load) -> NDArray[np.bool_]:
        """Return (N,) which requests the rule is for."""
        fits = np.ones(len(load), dtype=bool)
        if self.classes:
            inside = [index for index, entry in enumerate(load.classes) if entry.name in self.classes]
            fits &= np.isin(load.class_index, inside)
        for values, (low, high) in (
            (load.prompt_tokens, self.prompt_tokens),
            (load.output_tokens, self.output_tokens),
        ):
            fits &= values >= low
            if high is not None:
                fits &= values < high
        return fits


@dataclass(frozen=True, eq=False)
class Deployment:
    """What serves a load.

    Attributes:
        pools: of roles "both", or "prefill" and "decode".
        rules: () spreads all requests over all pools that take prompts, and their decodes over all decode
            pools, by the number of replicas.
        policy: how a replica of a pool is picked: in turn; fewest requests; fewest prompt tokens of its
            unfinished requests; or "pull": one queue per pool, from which replicas with room take.
        kv_link: moves caches from prefill to decode replicas, one at a time per prefill replica.
    """

    pools: tuple[Pool, ...]
    rules: tuple[Rule, ...] = ()
    policy: Policy = "shortest_queue"
    kv_link: Link | None = None

    def __post_init__(self) -> None:
        if not self.pools:
            raise ConfigError("needs at least one pool", path="pools")
        names = [pool.name for pool in self.pools]
        if len(set(names)) < len(names):
            raise ConfigError("two pools have one name", path="pools")
        if self.policy not in POLICIES:
            raise ConfigError("unknown policy", path="policy", value=self.policy, allowed=POLICIES)
        roles = {pool.name: pool.replica.role for pool in self.pools}
        if "prefill" in roles.values() and self.kv_link is None:
            raise ConfigError("separate prefill and decode pools need a link for the caches", path="kv_link")
        for rule in self.all_rules:
            self._check(rule, roles)

    @property
    def all_rules(self) -> tuple[Rule, ...]:
        """The rules, or the one that stands for none."""
        if self.rules:
            return self.rules
        shares: dict[bool, Shares] = {
            decode: tuple(
                (pool.name, float(pool.count))
                for pool in self.pools
                if (pool.replica.role == "decode") == decode
            )
            for decode in (False, True)
        }
        return (Rule(shares[False], shares[True]),)

    @property
    def n_replicas(self) -> int:
        """Replicas of all pools."""
        return sum(pool.count for pool in self.pools)

    @property
    def price_usd_per_h(self) -> float | None:
        """Rent of all replicas, None where one is unknown."""
        prices = [pool.replica.price_usd_per_h for pool in self.pools]
        if None in prices:
            return None
        return sum(pool.count * (pool.replica.price_usd_per_h or 0.0) for pool in self.pools)

    def routed(self, load: Load, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return (N,) the pool of each request, and (N,) the pool of its decode (the same where not apart).

        Raises:
            ConfigError: no rule is for some request.
        """
        first = np.full(len(load), -1, dtype=np.intp)
        second = np.full(len(load), -1, dtype=np.intp)
        prefill_only = np.array([pool.replica.role == "prefill" for pool in self.pools])
        for index, rule in enumerate(self.all_rules):
            mine = np.flatnonzero(rule.fits(load) & (first < 0))
            rng = child_generator(seed, f"rule {index}")
            first[mine] = self._drawn(rule.pools, len(mine), rng)
            second[mine] = first[mine]
            apart = mine[prefill_only[first[mine]]]
            if len(apart):
                second[apart] = self._drawn(rule.decode_pools, len(apart), rng)
        left = np.flatnonzero(first < 0)
        if len(left):
            i = int(left[0])
            what = (
                f"{load.classes[load.class_index[i]].name}, {load.prompt_tokens[i]} + {load.output_tokens[i]}"
            )
            raise ConfigError(f"no rule is for request {i} ({what} tokens)", path="rules")
        return first, second

    def _drawn(self, shares: Shares, n: int, rng: np.random.Generator) -> NDArray[np.intp]:
        """Return (n,) pools in the proportion of their shares; one pool needs no draw."""
        place = {pool.name: index for index, pool in enumerate(self.pools)}
        pools = np.array([place[name] for name, _ in shares], dtype=np.intp)
        if len(pools) == 1:
            return np.full(n, pools[0])
        weights = np.array([share for _, share in shares])
        return pools[rng.choice(len(pools), n, p=weights / weights.sum())]

    @staticmethod
    def _check(rule: Rule, roles: Mapping[str, str]) -> None:
        groups: Sequence[tuple[str, Shares, tuple[str, ...]]] = (
            ("pools", rule.pools, ("both", "prefill")),
            ("decode_pools", rule.decode_pools, ("decode",)),
        )
        for key, shares, fitting in groups:
            for name, share in shares:
                if name not in roles:
                    raise ConfigError("unknown pool", path=f"rules.{key}", value=name, allowed=roles)
                if roles[name] not in fitting:
                    raise ConfigError(
                        f"pool '{name}' has the role {roles[name]}", path=f"rules.{key}", value=name
                    )
                if not share >= 0:
                    raise ConfigError(f"must be at least 0, but got {share!r}", path=f"rules.{key}.{name}")
        if not sum(share for _, share in rule.pools) > 0:
            raise ConfigError("needs a pool with a share above 0", path="rules.pools")
        apart = any(roles[name] == "prefill" for name, _ in rule.pools)
        if apart and not sum(share for _, share in rule.decode_pools) > 0:
            raise ConfigError("prefill pools need a decode pool", path="rules.decode_pools")
