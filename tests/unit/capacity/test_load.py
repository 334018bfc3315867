"""Loads: traces under many headers, generated arrivals and lengths, scaling, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dse.capacity.arrivals import YEAR_S, ClassLoad, RateProfile, generate, scale_to_rate
from dse.capacity.lengths import Fixed, Histogram, Independent, LikeTrace, Lognormal
from dse.capacity.load import Load, RequestClass, ServiceLevel, child_generator, mixed
from dse.capacity.traces import read_trace
from dse.errors import ConfigError

CHAT = RequestClass("chat", (ServiceLevel("ttft", 95.0, 2.0),), 0.9)


def written(tmp_path: Path, text: str, name: str = "trace.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n5.0,374,44\n6.5,396,109\n", "vidur.csv"),
        ("Timestamp,Model,Request tokens,Response tokens\n5,GPT-4,374,44\n6.5,GPT-4,396,109\n", "burst.csv"),
        (
            (
                "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
                "2023-11-16 18:15:48.1805900,396,109\n"
            ),
            "azure.csv",
        ),
        ("timestamp,input_length,output_length\n5000,374,44\n6500,396,109\n", "mooncake.csv"),
        (
            "\n".join(
                json.dumps({"timestamp": t, "input_length": p, "output_length": o, "hash_ids": []})
                for t, p, o in ((0, 374, 44), (1500, 396, 109))
            ),
            "mooncake.jsonl",
        ),
        ("timestamp_ms,input_tokens,output_tokens\n100,374,44\n1600,396,109\n", "other.csv"),
    ],
)
def test_every_public_layout_reads_the_same(tmp_path: Path, text: str, name: str) -> None:
    load = read_trace(written(tmp_path, text, name))
    assert load.arrival_s.tolist() == pytest.approx([0.0, 1.5], abs=1e-6)
    assert load.prompt_tokens.tolist() == [374, 396]
    assert load.output_tokens.tolist() == [44, 109]


HEADER = "arrived_at,num_prefill_tokens,num_decode_tokens\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        (HEADER, "holds no requests"),
        (HEADER + "1,5,5\n0,5,5\n", "row 3.arrived_at: arrives before the row above"),
        (HEADER + "1,-5,5\n", "row 2.num_prefill_tokens: must not be negative, but is -5"),
        (HEADER + "1,5,0\n", "row 2.num_decode_tokens: must be at least 1, but is 0"),
        (HEADER + "1,5.5,5\n", "must be a whole number"),
        (HEADER + "nan,5,5\n", "row 2.arrived_at: must be finite"),
        (HEADER + "soon,5,5\n", "must be seconds or a date"),
        (HEADER + "1,5\n", "row 2.num_decode_tokens: must be a whole number, but is None"),
        ("arrived_at,num_prefill_tokens\n1,5\n", "no column of output tokens"),
    ],
)
def test_bad_traces_get_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_trace(written(tmp_path, text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_failed_requests_can_be_dropped(tmp_path: Path) -> None:
    load = read_trace(written(tmp_path, HEADER + "1,5,0\n3,6,7\n"), drop_failed=True)
    assert len(load) == 1


def test_classes_come_from_a_column(tmp_path: Path) -> None:
    text = "arrival_s,prompt_tokens,output_tokens,class\n0,5,5,code\n1,6,6,chat\n"
    load = read_trace(written(tmp_path, text), (CHAT, RequestClass("code")))
    assert load.class_index.tolist() == [1, 0]
    with pytest.raises(ConfigError, match="did you mean 'chat'"):
        read_trace(written(tmp_path, text.replace(",chat", ",chta")), (CHAT, RequestClass("code")))


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_arrivals_have_the_asked_rate_and_burstiness(cv: float) -> None:
    entry = ClassLoad(CHAT, 10.0, Independent(Fixed(8), Fixed(4)), cv)
    load = generate([entry], 4000.0, 1)
    gaps = np.diff(load.arrival_s)
    assert load.rate_per_s == pytest.approx(10.0, rel=4 * cv / np.sqrt(40000))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_day_and_growth_shape_the_rate() -> None:
    """Counts of a Poisson process in each quarter of a day against the integral of its rate."""
    profile = RateProfile((1.0, 3.0, 0.0, 4.0), growth_per_year_frac=1.0)
    load = generate([ClassLoad(CHAT, 0.5, Independent(Fixed(8), Fixed(4)), 1.0, profile)], 86400.0, 3)
    counts = np.histogram(load.arrival_s, 4, (0.0, 86400.0))[0]
    expected = 0.5 * 21600 * np.array([0.5, 1.5, 0.0, 2.0])
    assert counts[2] == 0
    assert counts[[0, 1, 3]] == pytest.approx(expected[[0, 1, 3]], rel=0.04)
    edges, cumulative = profile.cumulative(2 * YEAR_S)
    last_day = np.diff(np.interp([2 * YEAR_S - 86400, 2 * YEAR_S], edges, cumulative))
    assert last_day == pytest.approx(4 * 86400, rel=0.01)


def test_lognormal_lengths_have_their_moments() -> None:
    drawn = Lognormal(300.0, 1.2, 100_000).draw(child_generator(0, "x"), 200_000)
    assert drawn.mean() == pytest.approx(300.0, rel=0.02)
    assert drawn.std() / drawn.mean() == pytest.approx(1.2, rel=0.05)
    assert Lognormal(300.0, 1.2, 400).draw(child_generator(0, "x"), 1000).max() == 400


def test_histogram_lengths_follow_their_weights() -> None:
    drawn = Histogram((1, 11, 101), (3.0, 1.0)).draw(child_generator(0, "x"), 40_000)
    assert (drawn <= 10).mean() == pytest.approx(0.75, abs=0.01)
    assert (drawn.min(), drawn.max()) == (1, 100)


def test_like_trace_keeps_pairs(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, HEADER + "0,5,50\n1,6,60\n"))
    prompt, output = LikeTrace(trace).draw(child_generator(0, "x"), 500)
    assert (output == 10 * prompt).all()


def test_seeds_decide_everything_and_classes_do_not_disturb_each_other() -> None:
    one = ClassLoad(CHAT, 2.0, Independent(Fixed(8), Lognormal(50, 1.0, 500)))
    two = ClassLoad(RequestClass("code"), 3.0, Independent(Fixed(9), Fixed(2)))
    both = generate([one, two], 500.0, 7)
    assert both.hash == generate([one, two], 500.0, 7).hash
    assert both.hash != generate([one, two], 500.0, 8).hash
    alone = generate([one], 500.0, 7)
    assert both.arrival_s[both.class_index == 0].tolist() == alone.arrival_s.tolist()


def test_scaling_a_trace(shared_data: Path) -> None:
    trace = read_trace(shared_data / "traces" / "splitwise_conv.csv")
    assert len(trace) == 19366
    assert trace.prompt_tokens.mean() == pytest.approx(1154.70, abs=0.01)
    fast = scale_to_rate(trace, 20.0)
    assert fast.rate_per_s == pytest.approx(20.0)
    assert fast.prompt_tokens.tolist() == trace.prompt_tokens.tolist()
    for rate in (2.0, 20.0):
        other = scale_to_rate(trace, rate, "resample", seed=1)
        assert other.rate_per_s == pytest.approx(rate, rel=0.05)
        assert other.duration_s == trace.duration_s
        assert other.output_tokens.mean() == pytest.approx(trace.output_tokens.mean(), rel=0.03)


def test_mixing_joins_classes_by_name() -> None:
    entry = ClassLoad(CHAT, 2.0, Independent(Fixed(8), Fixed(4)))
    load = generate([entry], 100.0, 0)
    assert len(mixed([load, load], "twice").classes) == 1
    other = load.with_classes([RequestClass("chat")])
    with pytest.raises(ConfigError, match="two sets of levels"):
        mixed([load, other], "twice")


def test_unsound_loads_are_refused() -> None:
    good = Load("l", np.array([0.0, 1.0]), np.array([1, 2]), np.array([1, 2]), np.array([0, 0]), (CHAT,), 1.0)
    for change, said in (
        ({"arrival_s": np.array([1.0, 0.5])}, "request 1 arrives before request 0"),
        ({"prompt_tokens": np.array([1, 0])}, "request 1 has 0"),
        ({"class_index": np.array([0, 1])}, "belongs to no class"),
        ({"duration_s": 0.5}, "at least the last arrival"),
        ({"arrival_s": np.array([0.0, np.nan])}, "finite"),
    ):
        with pytest.raises(ConfigError, match=said):
            replace(good, **change)
    with pytest.raises(ValueError, match="read-only"):
        good.arrival_s[0] = 3.0


def test_unsound_levels_are_refused() -> None:
    for metric, percentile, limit_s in (
        ("ttlt", 95, 1.0),
        ("ttft", 0, 1.0),
        ("ttft", 101, 1.0),
        ("ttft", 9, 0.0),
    ):
        with pytest.raises(ConfigError):
            ServiceLevel(metric, percentile, limit_s)  # type: ignore[arg-type]
