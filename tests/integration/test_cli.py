"""The command line as its users meet it: JSON documents, tables, and one clear line for bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import Outcome, Run
from tests.tiny_gguf import write_tiny_gguf
from tests.tiny_llama import write_tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("cli") / "tiny-llama")


@pytest.fixture(scope="module")
def corpus(model: Path) -> Path:
    path = model.parent / "corpus.txt"
    path.write_text("".join(f"Sentence {i} says that {i} squared is {i * i}.\n" for i in range(300)))
    return path


def document(outcome: Outcome) -> dict[str, Any]:
    """The one JSON document on stdout."""
    code, out, err = outcome
    assert code == 0, err
    parsed: dict[str, Any] = json.loads(out)
    return parsed


def one_line(outcome: Outcome, code: int = 2) -> str:
    """The one error line on stderr; progress lines may stand before it."""
    found, _, err = outcome
    assert found == code, err
    assert "Traceback" not in err
    lines = [line for line in err.strip().splitlines() if not line.startswith("[")]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


def test_trace_json(dse: Run, model: Path) -> None:
    got = document(dse("trace", model, "--batch", "2", "--prompt", "8", "--context", "12", "--json"))
    assert {"model", "totals", "operators"} <= got.keys()
    assert {"parameters", "prefill_flop", "decode_flop", "kv_bytes_per_token", "weight_bytes"} <= got[
        "totals"
    ].keys()
    first = got["operators"][0]
    assert {"name", "kind", "block", "parameters", "flop", "read_bytes", "write_bytes"} <= first.keys()
    assert sum(op["parameters"] for op in got["operators"]) == got["totals"]["parameters"]
    assert (
        got["totals"]["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 2
    )  # K and V, layers, KV heads, width, bytes


def test_cost_json(dse: Run, model: Path) -> None:
    got = document(dse("cost", model, "--device", "nvidia_h100_sxm", "--weights", "int4_g32", "--json"))
    for phase in ("prefill", "decode"):
        assert {"time_s", "energy_j", "bound_by"} <= got[phase].keys()
    assert {"ttft_s", "tpot_s", "energy_j_per_token", "fits", "operators", "provenance"} <= got.keys()
    memory = got["memory_bytes"]
    assert memory["total"] == pytest.approx(
        sum(memory[part] for part in ("weights", "kv", "activations", "reserve"))
    )


def test_plan_json_and_its_use(dse: Run, model: Path, corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    words = ["--cluster", "edge_pair", "--precisions", "int3_g32_asym,int4_g32_asym,int8_g32_asym,bf16"]
    limits = ["--as-good-as", "int4_g32_asym", "--workload", _workload(tmp_path), "--corpus", corpus]
    sizes = ["--tokens", "64", "--sequence-length", "64"]
    got = document(
        dse("plan", model, *words, *limits, *sizes, "--granularity", "linear", "-o", path, "--json")
    )
    assert {"stages", "assignment", "prefill_micro_batch", "decode_micro_batch"} <= got.keys()
    assert got["stages"][0]["layers"][0] == 0
    assert got["stages"][-1]["layers"][1] == 2
    assert {
        "ttft_s",
        "tpot_s",
        "throughput_tokens_per_s",
        "energy_j_per_token",
        "cost_usd_per_mtok",
        "memory_bytes",
    } <= got["predicted"].keys()
    solver = got["solver"]
    assert {"status", "value", "bound", "gap_frac", "time_s", "binding"} <= solver.keys()
    assert solver["status"] == "optimal"
    assert solver["bound"] <= solver["value"]
    cost = document(dse("cost", model, "--device", "nvidia_jetson_agx_orin_64gb", "--plan", path, "--json"))
    assert cost["tpot_s"] > 0
    quality = ["--corpus", corpus, "--tokens", "128", "--sequence-length", "64"]
    measured = document(dse("evaluate", model, "--plan", path, *quality, "--json"))
    assert measured["linear_effective_bits"] == pytest.approx(got["predicted"]["linear_effective_bits"])
    other = tmp_path / "other.json"
    other.write_text(path.read_text().replace("layers.1.mlp.up_proj", "layers.9.mlp.up_proj"))
    assert "layers.9.mlp.up_proj" in one_line(dse("evaluate", model, "--plan", other, *quality))


def _workload(folder: Path) -> Path:
    path = folder / "workload.yaml"
    path.write_text("batch: 4\nprompt_tokens: 32\noutput_tokens: 8\n")
    return path


def test_evaluate_json(dse: Run, model: Path, corpus: Path) -> None:
    words = ["--corpus", corpus, "--tokens", "256", "--sequence-length", "64", "--dtype", "float32", "--json"]
    got = document(dse("evaluate", model, "--weights", "int8_g32_asym", *words))
    assert {
        "perplexity",
        "kl_nats",
        "top1_agreement_frac",
        "baseline",
        "effective_bits",
        "n_tokens",
        "sequence_length",
        "corpus",
        "time_s",
    } <= got.keys()
    assert got["n_tokens"] == 256
    assert got["corpus"] == "corpus.txt"
    assert got["baseline"]["kl_nats"] == 0
    assert 0 < got["kl_nats"] < 0.1
    exact = document(dse("evaluate", model, *words))
    assert exact["kl_nats"] == 0
    assert exact["effective_bits"] == 16


def test_sensitivity_json(dse: Run, model: Path, corpus: Path) -> None:
    words = ["--corpus", corpus, "--tokens", "64", "--sequence-length", "64", "--json"]
    got = document(dse("sensitivity", model, "--precisions", "int3_g32_asym,int8_g32_asym,bf16", *words))
    assert got["units"] == ["layers.0", "layers.1"]
    for low, high, full in got["penalty"]:
        assert low > high > full == 0


def test_sensitivity_metrics_are_compared_over_a_sample(dse: Run, model: Path, corpus: Path) -> None:
    words = ["--corpus", corpus, "--tokens", "64", "--sequence-length", "64", "--json", "--compare"]
    words += ["--granularity", "linear", "--sample", "6", "--precisions", "int3_g32_asym"]
    got = document(dse("sensitivity", model, *words))
    assert (len(got["units"]), got["n_units_of_model"]) == (6, 14)
    assert got["units"] == document(dse("sensitivity", model, *words))["units"]
    assert {"jsd", "output_mse", "random"} <= got["spearman"].keys()
    assert got["spearman"]["jsd"]["all"] > 0.9


def test_bench_quantizers(dse: Run, model: Path) -> None:
    """Two cheap rows; the second run answers from disk, and an unknown row is one line."""
    words = [model, "--row", "4-bit RTN", "--row", "W8A8 SmoothQuant", "--seed", "1", "--tokens", "128"]
    words += ["--sequence-length", "64", "--json"]
    got = document(dse("bench", "quantizers", *words))
    rows = {(row["row"], row["activations"]): row for row in got["rows"]}
    assert rows["4-bit RTN", "bf16"]["kl_nats"] > 0
    assert rows["W8A8 SmoothQuant", "int8_token"]["linear_bits"] > 8
    assert all(row["seed"] == 1 for row in got["rows"])
    assert document(dse("bench", "quantizers", *words)) == got
    code, out, _ = dse("bench", "quantizers", *words[:-1])
    assert code == 0
    assert "W8A8 SmoothQuant" in out
    assert "no row" in one_line(dse("bench", "quantizers", model, "--row", "5-bit"))


@pytest.mark.parametrize("words", [["devices"], ["models"], ["devices", "nvidia_t4"], ["models", "gpt2"]])
def test_lists_have_tables_and_json(dse: Run, words: list[str]) -> None:
    assert document(dse(*words, "--json"))
    code, out, _ = dse(*words)
    assert code == 0
    assert len(out.splitlines()) > 3


def test_plan_of_an_architecture_without_weights(dse: Run) -> None:
    cluster = ("--cluster", "llmpq_cluster3", "--workload", "offline_batch")
    limit = ("--as-good-as", "int4_g128_asym")
    got = document(dse("plan", "opt-13b", *cluster, "--precisions", "int4_g128_asym,fp16", *limit, "--json"))
    assert got["solver"]["status"] == "optimal"
    assert [stage["layers"] for stage in got["stages"]][-1][1] == 40


BAD = [
    (["cost", "gpt2", "--device", "nvidia_h10_sxm"], 2, "did you mean 'nvidia_h100_sxm'?"),
    (["cost", "gpt3", "--device", "nvidia_t4"], 2, "did you mean 'gpt2'?"),
    (["cost", "gpt2", "--device", "nvidia_t4", "--batch", "-1"], 2, "workload.batch: must be a whole number"),
    (
        ["cost", "gpt2", "--device", "nvidia_t4", "--weights", "int4_g64_asim"],
        2,
        "did you mean 'int4_g64_asym'?",
    ),
    (["cost", "gpt2", "--device", "google_tpu_v5e", "--weights", "mxfp4"], 2, "google_tpu_v5e"),
    (["trace", "gpt2", "--prompt", "0"], 2, "workload.prompt_tokens: must be a whole number"),
    (["trace", "gpt2", "-o", "graph.txt"], 2, "graph.txt: "),
    (["trace", "gpt2", "--device", "nvidia_h100_sxm"], 2, "--device: needs '-o FILE.html'"),
    (["trace", "gpt2", "--source", "64"], 2, "--source: 'gpt2' is no encoder-decoder"),
    (["plan", "gpt2", "--cluster", "edge_pear"], 2, "did you mean 'edge_pair'?"),
    (["plan", "gpt2", "--cluster", "edge_pair", "--workload", "chatt"], 2, "did you mean 'chat'?"),
    (["plan", "gpt2", "--cluster", "edge_pair", "--granularity", "blok"], 2, "did you mean 'block'?"),
    (["plan", "opt-66b", "--cluster", "edge_three_shared"], 3, "opt-66b does not fit edge_three_shared"),
    (["plan", "gpt2", "--cluster", "edge_pair", "--metric", "kl"], 2, "architecture without weights"),
    (["plan", "gpt2", "--cluster", "edge_pair", "--workload", "offline_batch", "--metric", "ql"], 2, "'kl'"),
    (["evaluate", "llama-3.1-8b"], 2, "architecture without weights"),
    (["evaluate", "no/such-model"], 2, "no/such-model"),
    (["run", "dmo"], 2, "did you mean 'demo'?"),
    (["models", "fetch"], 2, "say which model to fetch"),
    (["models", "fetch", "gpt2"], 2, "no checkpoint to fetch for 'gpt2'"),
    (["report", "nowhere.json"], 2, "nowhere.json: cannot be read"),
]


@pytest.mark.parametrize(("words", "code", "text"), BAD, ids=[" ".join(words) for words, _, _ in BAD])
def test_bad_input_is_one_line(dse: Run, words: list[str], code: int, text: str) -> None:
    assert text in one_line(dse(*words), code)


def test_bad_files_are_one_line(dse: Run, model: Path, tmp_path: Path) -> None:
    gguf = tmp_path / "broken.gguf"
    gguf.write_bytes(b"GGUF" + b"\x00" * 40)
    assert "broken.gguf" in one_line(dse("evaluate", gguf))
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    assert "the corpus is empty" in one_line(dse("evaluate", model, "--corpus", empty))
    short = tmp_path / "short.txt"
    short.write_text("too short")
    assert "has 0 tokens" in one_line(dse("evaluate", model, "--corpus", short, "--sequence-length", "64"))
    result = tmp_path / "result.json"
    result.write_text('{"schema_version": 99}')
    assert "schema_version must be 1, but got 99" in one_line(dse("report", result))
    plan = tmp_path / "plan.json"
    plan.write_text('{"model": "x"}')
    assert "is missing" in one_line(dse("cost", model, "--device", "nvidia_t4", "--plan", plan))
    cluster = tmp_path / "c.yaml"
    cluster.write_text(
        "name: c\ndescription: d\nsource: s\nnodes:\n  - {name: a, device: nvidia_t4, cont: 2}\n"
    )
    assert "nodes.0: unknown key 'cont' (did you mean 'count'?" in one_line(
        dse("plan", "gpt2", "--cluster", cluster)
    )


def test_a_cluster_that_is_too_small_is_found_at_once(dse: Run, model: Path, tmp_path: Path) -> None:
    """Exit code 3, before anything is measured, and nothing stands in the way of the next try."""
    cluster = tmp_path / "c.yaml"
    cluster.write_text(
        "name: c\ndescription: d\nsource: made up\nnodes:\n  - name: a\n    device: nvidia_t4\n"
        "    memory_limit: {value: 50, unit: kB, source: made up}\n"
    )
    for _ in range(2):
        words = ("--cluster", cluster, "--workload", _workload(tmp_path), "-o", tmp_path / "run")
        text = one_line(dse("search", model, *words), 3)
        assert "does not fit" in text
        assert not list((tmp_path / "run").glob("unfinished"))


def test_usage_errors_are_typers_own(dse: Run) -> None:
    code, _, err = dse("cost", "gpt2")
    assert code == 2
    assert "--device" in err


def test_debug_shows_the_traceback(dse: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSE_DEBUG", "")
    from dse.errors import ConfigError

    with pytest.raises(ConfigError, match="unknown model"):
        dse("--debug", "cost", "gpt3", "--device", "nvidia_t4")


def test_runtime_policies_change_the_result_and_its_key(dse: Run, model: Path, corpus: Path) -> None:
    words = ("evaluate", model, "--corpus", corpus, "--tokens", "128", "--sequence-length", "64", "--json")
    weights = ("--weights", "int8_row", "--activations", "int8")
    plain = document(dse(*words, *weights))
    assert plain["runtime"] == {}
    assert plain["bos"] is None
    seen = {plain["kl_nats"]}
    for options in (
        ("--static-activations", "--calibration-tokens", "64"),
        ("--at", "32=int2_g32_asym"),
        ("--integer-products",),
        ("--kv", "int2_head_asym"),
        ("--kv", "int2_head_asym", "--kv-window", "8", "--kv-sinks", "2"),
        ("--kv", "int2_head_asym", "--keys-per-channel", "16"),
        ("--softmax-bits", "3"),
        ("--queries", "int4_token", "--probabilities", "int4_token"),
    ):
        found = document(dse(*words, *weights, *options))
        assert found["runtime"] or options[0] == "--kv"
        assert found["kl_nats"] not in seen, options
        seen.add(found["kl_nats"])
    assert "POSITION=WEIGHTS" in one_line(dse(*words[:-1], "--at", "x"))
    assert "no beginning-of-sequence" in one_line(dse(*words[:-1], "--bos"))


def test_quantize_lists_applies_and_writes(dse: Run, model: Path, corpus: Path, tmp_path: Path) -> None:
    code, out, _ = dse("quantize")
    assert code == 0
    assert "gptq-int4" in out
    words = ("--corpus", corpus, "--tokens", "128", "--sequence-length", "64")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\nformats: {weights: int4_g32_asym}\nrange_fit: mse\n")
    whole = document(dse("quantize", model, "-r", recipe, *words, "-o", tmp_path / "a", "--json"))
    blocks = document(dse("quantize", model, "-r", recipe, *words, "--block-by-block", "--json"))
    assert whole["perplexity"] == blocks["perplexity"]
    assert blocks["block_by_block"]
    assert whole["output"]["weights"] == "dequantized, bfloat16"
    assert (tmp_path / "a" / "model.safetensors").is_file()
    assert "did you mean 'gptq-int4'" in one_line(dse("quantize", model, "-r", "gptq-int5"))


def test_a_gguf_file_goes_block_by_block_unexpanded(
    dse: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSE_CACHE", str(tmp_path / "cache"))
    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    words = ("evaluate", file, "--weights", "int4_g64", "--corpus", corpus, "--tokens", "64")
    words = (*words, "--sequence-length", "32", "--json")
    blocks = document(dse(*words, "--block-by-block"))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    whole = document(dse(*words))
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    assert (blocks["block_by_block"], whole["block_by_block"]) == (True, False)
    for key in ("perplexity", "kl_nats", "baseline", "effective_bits", "note"):
        assert blocks[key] == whole[key]


def test_bench_emulation(dse: Run, model: Path) -> None:
    words = ("--tokens", "64", "--sequence-length", "32", "--dtype", "float32", "--json")
    rows = document(dse("bench", "emulation", model, *words))["rows"]
    by_name = {row["name"]: row for row in rows}
    assert by_name["plain"]["ratio"] == 1
    assert by_name["W4A4"]["kind"] == "dse"
    assert by_name["MXFP4, per element"]["time_s"] > 0
    assert by_name["nf4_b64"]["kind"] == "round all weights"
