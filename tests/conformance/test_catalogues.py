"""Every packaged catalogue can be priced, says where its numbers come from, and bad ones get one line."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import yaml

from dse.errors import ConfigError
from hardware_specs.catalogue import catalogue_names, load_catalogue

names = pytest.mark.parametrize("name", catalogue_names())


def test_required_entries_exist() -> None:
    assert {"cloud_six", "owned_a100"} <= set(catalogue_names())
    assert len(load_catalogue("cloud_six").nodes) == 6


@names
def test_every_offer_has_a_price_a_number_and_a_place(name: str) -> None:
    catalogue = load_catalogue(name)
    assert catalogue.name == name
    for offer in catalogue.nodes:
        price = catalogue.usd_per_h(offer)
        assert price is not None
        assert 0.05 < price / offer.n_devices < 20
        spot = catalogue.usd_per_h(offer, spot=True)
        assert spot is None or spot <= price
        assert offer.n_available is None or offer.n_available >= 1
        assert offer.price_date or offer.purchase
        assert offer.n_devices == 1 or offer.intra_link is not None
        cluster = catalogue.cluster(offer, 2)
        assert len(cluster.devices) == 2 * offer.n_devices
        assert cluster.link_between(f"{offer.name}-0/0", f"{offer.name}-1/0") == catalogue.network


@names
def test_every_number_has_a_source(name: str) -> None:
    text = resources.files("hardware_specs").joinpath(f"catalogues/{name}.yaml").read_text("utf-8")
    content = yaml.safe_load(text)
    used = str(content)
    for key in content["sources"]:
        assert f"'source': '{key}'" in used, f"source '{key}' is not used"
    for entry in load_catalogue(name).sources:
        assert entry.source.strip()


def test_owning_costs_depreciation_and_electricity() -> None:
    """Oracle: by hand."""
    catalogue = load_catalogue("owned_a100")
    (offer,) = catalogue.nodes
    idle_w = 8 * (offer.spec.power.static_w or 0.0) + 660
    assert offer.static_w == pytest.approx(idle_w)
    assert catalogue.usd_per_h(offer) == pytest.approx(199000 / (5 * 8766) + idle_w / 1000 * 0.08)
    assert offer.peak_w == pytest.approx(6500)


GOOD = {
    "name": "mine",
    "description": "one",
    "source": "an example",
    "nodes": [
        {
            "name": "a",
            "device": "nvidia_l4",
            "available": {"value": 2, "unit": "count", "source": "an example"},
            "price": {"on_demand": {"value": 0.7, "unit": "USD/h", "source": "an example"}},
        }
    ],
}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("nodes", 0, "available", "value"), 0, "nodes.0.available: must be above 0"),
        (("nodes", 0, "available", "value"), 1.5, "whole number"),
        (("nodes", 0, "device"), "nvidia_l44", "did you mean 'nvidia_l4'"),
        (("nodes", 0, "device"), "etched_sohu", "incomplete"),
        (("nodes", 0, "price", "on_demand", "unit"), "EUR/h", "unknown unit 'EUR/h'"),
        (("nodes", 0, "price", "on_demand", "unit"), "W", "measures watt, not usd_per_h"),
        (("nodes", 0, "price", "on_demand", "value"), -1, "must be above 0"),
        (("nodes", 0, "price", "on_demand"), {"value": 1, "unit": "USD/h"}, "has no source"),
        (("nodes", 0, "prise"), {}, "unknown key 'prise'"),
        (("nodes",), [], "at least one"),
        (("nodes", 0), {"name": "a", "device": "rockchip_rk3588_npu"}, "no price is known"),
        (("nodes",), [GOOD["nodes"][0], GOOD["nodes"][0]], "there twice"),  # type: ignore[index]
        (
            ("nodes", 0, "purchase"),
            {
                "price": {"value": 1, "unit": "USD", "source": "an example"},
                "lifetime": {"value": 1, "unit": "year", "source": "an example"},
            },
            "both rented",
        ),
    ],
)
def test_bad_input_gets_one_line(
    tmp_path: Path, path: tuple[str | int, ...], value: object, words: str
) -> None:
    content = yaml.safe_load(yaml.safe_dump(GOOD))
    here = content
    for part in path[:-1]:
        here = here[part]
    here[path[-1]] = value
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        load_catalogue(file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="did you mean 'cloud_six'"):
        load_catalogue("cloud_sik")
