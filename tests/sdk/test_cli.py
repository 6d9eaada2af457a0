"""The command line as a person or a script meets it: every command runs, JSON keeps its shape, failures have codes."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.chat_model import SPEC, byte_tokenizer
from support.gguf_files import write_tiny_gguf
from support.specs import random_weights
from wattwise.cli import COMMANDS, main
from wattwise_convert import gguf
from wattwise_convert.checkpoint import Checkpoint, TensorSource


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random chat model as a GGUF file."""
    pytest.importorskip("llama_cpp", reason="these runs use the llama.cpp engine")
    folder = tmp_path_factory.mktemp("cli")
    tensors = {name: TensorSource.from_array(name, value) for name, value in random_weights(SPEC).items()}
    checkpoint = Checkpoint(spec=SPEC, tensors=tensors, tokenizer=byte_tokenizer(), origin=folder)
    gguf.export(checkpoint, folder / "tiny.gguf", quant="f16")
    return folder / "tiny.gguf"


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(w) for w in words])
    out = capsys.readouterr()
    return code, out.out, out.err


def run_json(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    code, out, err = run(capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)


PLAN_KEYS = {
    "model", "path", "format", "quant", "architecture", "parameters", "engine", "device", "context", "context_trained",
    "kv_type", "chunk", "threads", "threads_batch", "ledger", "budget_bytes", "budget_source", "fits", "reasons",
    "kv_policy", "kv_eviction", "overflow", "draft", "resident_bytes", "streamed_bytes", "budget", "prediction",
    "speeds", "kv_guard", "kv_spill_bytes",
}  # fmt: skip
LEDGER_KEYS = {"weights_bytes", "kv_bytes", "compute_bytes", "runtime_bytes", "total_bytes"}
STATS_KEYS = {
    "prompt_n", "prompt_ms", "cache_n", "predicted_n", "predicted_ms", "ttft_ms", "load_ms", "kv_tokens", "kv_bytes",
    "weights_bytes", "mem_peak_bytes", "prompt_j", "predicted_j", "energy_source", "seed", "prompt_per_second",
    "predicted_per_second", "prompt_j_per_token", "predicted_j_per_token", "idle_w", "energy_scope",
    "energy_estimated", "energy", "kv_evicted", "kv_policy", "kv_agreement",
}  # fmt: skip


def test_run_prints_what_json_says(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("run", model, "Hello", "--temperature", "0", "--max-tokens", "12")
    told = run_json(capsys, *words)
    assert set(told) == {"text", "ids", "finish_reason", "tool_calls", "stats", "plan", "events", "report"}
    assert set(told["stats"]) == STATS_KEYS
    assert set(told["plan"]) == PLAN_KEYS
    assert set(told["plan"]["ledger"]) == LEDGER_KEYS
    assert set(told["report"]["compared"]) == {"ttft_ms", "predicted_per_second", "predicted_j_per_token"}
    assert told["report"]["compared"]["ttft_ms"]["measured"] == told["stats"]["ttft_ms"]
    assert len(told["ids"]) == told["stats"]["predicted_n"] <= 12
    code, out, _ = run(capsys, *words)
    assert (code, out) == (0, told["text"] + "\n")


def test_run_reads_standard_input(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--max-tokens", "3", "--temperature", "0")
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello"))
    piped = run_json(capsys, "run", model, "-", *options)
    assert piped["ids"] == run_json(capsys, "run", model, "Hello", *options)["ids"]
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello"))
    assert run_json(capsys, "run", model, *options)["ids"] == piped["ids"], (
        "a lone model takes the prompt from the pipe"
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("  \n"))
    assert run(capsys, "run", model, "-")[0] == 2


def test_plan_and_its_exit_code_over_budget(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = run_json(capsys, "plan", model, "--memory", "1GiB")
    assert set(told) == PLAN_KEYS
    assert told["ledger"]["total_bytes"] <= told["budget_bytes"] == 1 << 30
    code, out, err = run(capsys, "plan", model, "--memory", "1MB", "--json")
    error = json.loads(out)["error"]
    assert (code, error["type"], error["allowed"]) == (3, "MemoryBudgetError", 1_000_000)
    assert error["would_fit"] and "Fits:" in err
    code, out, err = run(capsys, "run", model, "x", "--memory", "1MB")
    assert (code, out) == (3, "")


def test_plan_explains_where_settings_come_from(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(os.environ["WATTWISE_HOME"]) / "config"
    home.mkdir(parents=True)
    (home / "config.toml").write_text("context = 64\n")
    monkeypatch.setenv("WATTWISE_MEMORY", "1GiB")
    told = run_json(capsys, "plan", model, "--explain", "--kv", "f32")
    sources = {entry["name"]: entry["source"] for entry in told["settings"]}
    assert (told["context"], told["kv_type"], told["budget_bytes"]) == (64, "f32", 1 << 30)
    assert sources["context"] == str(home / "config.toml")
    assert (sources["memory"], sources["kv_type"]) == ("environment WATTWISE_MEMORY", "argument")
    assert "environment WATTWISE_MEMORY" in run(capsys, "plan", model, "--explain")[1]
    (home / "config.toml").write_text("contxt = 64\n")
    code, _, err = run(capsys, "plan", model)
    assert code == 2 and "'contxt'" in err and "config.toml" in err


@pytest.mark.parametrize("bound", [("--ttft", "1s"), ("--tokens-per-second", "1"), ("--energy", "1J")])
def test_a_bound_without_a_prediction_is_refused(
    model: Path, capsys: pytest.CaptureFixture[str], bound: tuple[str, str]
) -> None:
    code, out, err = run(capsys, "plan", model, *bound)
    assert (code, out) == (2, "")
    assert "prediction" in err and "measure = never" in err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["run", "absent.gguf", "x"], 1, "no model"),
        (["run", "MODEL", "x", "--temperature", "-1"], 2, "temperature"),
        (["run", "MODEL", "x", "--context", "999999"], 2, "context"),
        (["run", "MODEL", "x", "--kv", "nonesuch"], 2, "nonesuch"),
        (["run", "MODEL", "y" * 700], 1, "719"),
        (["run", "word " * 3000], 1, "Nothing was cut"),
        (["run", "a", "b", "c"], 2, "quotes"),
        (["plan", "MODEL", "--memory", "lots"], 2, "lots"),
        (["inspect", "absent.gguf"], 1, "absent.gguf"),
        (["convert", "absent", "out.gguf"], 1, "absent"),
        (["bench", "MODEL", "-p", "600", "-r", "1"], 2, "601"),
    ],
)  # fmt: skip
def test_failures_have_codes_and_words(
    model: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    got, out, err = run(capsys, *[str(model) if w == "MODEL" else w for w in words])
    assert got == code, err
    assert says in err
    assert "Traceback" not in err + out


def test_usage_errors_are_two() -> None:
    for words in (["nonesuch"], [], ["run", "--engine", "abacus", "x"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_inspect_tells_what_is_in_the_file(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = run_json(capsys, "inspect", model)
    assert told["format"] == "gguf" and told["quant"] == "f16"
    assert told["spec"]["layers"] == SPEC.layers
    assert told["parameters"] == SPEC.parameters()
    assert told["metadata"]["tokenizer.ggml.tokens"]["count"] == SPEC.vocab
    code, out, _ = run(capsys, "inspect", model, "--tensors")
    assert code == 0 and "blk.0.attn_q.weight" in out


def test_convert_makes_both_formats(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = run_json(capsys, "convert", model, tmp_path / "q8.gguf", "--quant", "q8_0")
    assert Path(told["path"]).stat().st_size == told["bytes"] > 0
    assert run(capsys, "convert", model, tmp_path / "q8.gguf", "--quant", "q8_0")[0] == 2, "it is there already"
    assert run(capsys, "convert", model, tmp_path / "x.gguf", "--quant", "q9_9")[0] == 2
    run_json(capsys, "convert", model, tmp_path / "folder", "--quant", "fp32")
    options = ("--raw", "--max-tokens", "8", "--temperature", "0")
    ids = [run_json(capsys, "run", place, "abc", *options)["ids"] for place in (model, tmp_path / "folder")]
    assert ids[0] == ids[1], "f16 GGUF on llama.cpp and fp32 ONNX on onnxruntime say the same"


def test_bench_formats_agree(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("bench", model, "-p", "16", "-n", "4", "-r", "2")
    told = run_json(capsys, *words)
    assert [row["test"] for row in told["rows"]] == ["pp16", "tg4"]
    assert all(len(row["samples_ns"]) == 2 and row["j_per_token"] is None for row in told["rows"])
    assert "| pp16 |" in run(capsys, *words, "-o", "md")[1]
    assert [r["test"] for r in csv.DictReader(io.StringIO(run(capsys, *words, "-o", "csv")[1]))] == ["pp16", "tg4"]
    assert [json.loads(line)["test"] for line in run(capsys, *words, "-o", "jsonl")[1].splitlines()] == ["pp16", "tg4"]
    assert len(json.loads(run(capsys, *words, "-o", "json")[1])) == 2
    with sqlite3.connect(":memory:") as database:
        database.executescript(run(capsys, *words, "-o", "sql")[1])
        assert database.execute("SELECT count(*), min(avg_ts) > 0 FROM wattwise_bench").fetchone() == (2, 1)
    database.close()


def test_eval_of_random_weights_is_near_uniform(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("All work and no play makes Jack a dull boy. " * 20)
    told = run_json(capsys, "eval", model, text, "--window", "64")
    assert told["tokens"] > 800
    assert np.isclose(told["perplexity"], np.exp(told["nats_per_token"]))
    assert np.isclose(told["bits_per_byte"] * told["bytes"] * np.log(2), told["nats_per_token"] * told["tokens"])
    assert told["perplexity"] > 100, "an untrained model knows nothing"
    same = run_json(capsys, "eval", model, text, "--window", "64", "--against", model)
    assert same["kl_nats_per_token"] == pytest.approx(0, abs=1e-9)
    assert same["top1_agreement"] == 1.0


def test_kv_names_a_type_a_policy_or_both(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = run_json(capsys, "plan", model, "--kv", "f16,keydiff:64")
    assert (told["kv_type"], told["kv_policy"], told["overflow"]) == ("f16", "keydiff", "error")
    assert told["kv_eviction"]["budget_tokens"] == 64
    assert told["context"] == told["kv_eviction"]["rows"]
    assert run_json(capsys, "plan", model, "--kv", "f32", "--context", "64")["kv_policy"] == "none"
    shifted = run_json(capsys, "plan", model, "--overflow", "shift")
    assert (shifted["kv_policy"], shifted["kv_eviction"]["positions"]) == ("window", "close")
    assert "eviction keydiff, 64 tokens kept" in run(capsys, "plan", model, "--kv", "keydiff:64")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--kv", "keydiff:64,window:64"), "two of kv_policy"),
        (("--kv", "f16,q8_0"), "two of kv_type"),
        (("--kv", "keydiff:lots"), "lots"),
        (("--kv", "keydiff:64:head"), "heads cannot keep different rows"),
        (("--kv", "keydiff:100000"), "keeps up to"),
        (("--kv", "int8,snapkv:64"), "no KV type 'int8'"),
        (("--kv", "keydiff:64", "--overflow", "evict"), "policy of its own"),
        (("--overflow", "hope"), "none of error, evict, shift"),
        (("--kv-guard", "0.9"), "no KV policy is set"),
        (("--kv-spill", "1MB"), "no KV policy is set"),
        (("--kv", "window:64", "--kv-spill", "1MB"), "say ':keep'"),
        (("--kv", "keydiff:64", "--kv-guard", "often"), "no KV guard"),
    ],
)  # fmt: skip
def test_kv_words_that_cannot_be_are_usage_errors(
    model: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    code, _, err = run(capsys, "plan", model, *words)
    assert code == 2
    assert said in err


def test_an_evicting_reply_tells_what_it_lost(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("run", model, "Hello there, " * 20, "--kv", "keydiff:64", "--max-tokens", "8", "--temperature", "0")
    told = run_json(capsys, *words)
    assert told["stats"]["kv_evicted"] > 100
    assert {event["kind"] for event in told["events"]} == {"Evicted"}
    code, _, err = run(capsys, *words)
    assert code == 0 and "keydiff evicted" in err


def test_eval_compares_a_policy_with_the_full_cache(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("All work and no play makes Jack a dull boy. The cat sat on the warm mat. " * 20)
    words = ("eval", model, text, "--window", "128", "--max-tokens", "300")
    told = run_json(capsys, *words, "--kv", "keydiff:50%", "--retrieval", "2")
    assert told["against"] == "the full cache" and told["kl_nats_per_token"] > 0
    assert "64 tokens kept" in told["kv"]
    assert [(row["kind"], row["tasks"]) for row in told["retrieval"]] == [("needle", 2), ("pairs", 2)]
    full = run_json(capsys, *words)
    assert full["against"] is None and full["kl_nats_per_token"] is None
    assert "KL from the full cache" in run(capsys, *words, "--kv", "window:64")[1]


def test_bench_refuses_a_policy_that_it_would_not_carry_out(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "bench", model, "-p", "8", "-n", "0", "--kv", "keydiff:64")
    assert code == 2 and "evicts nothing" in err


def test_chat_over_pipes(model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "Hello\n/stats\n/undo\n/nonesuch\n/help\n/quit\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    code, out, _ = run(capsys, "chat", model, "--plain", "--max-tokens", "4", "--temperature", "0")
    assert code == 0
    for expected in ("4 tok", "took back: Hello", "there is no /nonesuch", "/regen", "memory predicted"):
        assert expected in out


def test_fit_takes_the_finest_type_that_fits(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {}
    for quant in ("f16", "q8_0", "q4_0"):
        sizes[quant] = run_json(capsys, "convert", model, tmp_path / f"{quant}.gguf", "--quant", quant)["bytes"]
    assert sizes["f16"] > sizes["q8_0"] > sizes["q4_0"]
    for i, (quant, size) in enumerate(sizes.items()):
        code, out, err = run(capsys, "convert", model, tmp_path / f"fit{i}.gguf", "--fit", size)
        assert code == 0, err
        assert out.endswith(f" as {quant}\n")
        assert (tmp_path / f"fit{i}.gguf").stat().st_size <= size
    code, _, err = run(capsys, "convert", model, tmp_path / "no.gguf", "--fit", sizes["q4_0"] // 3)
    assert code == 2 and "does not fit" in err
    assert not (tmp_path / "no.gguf").exists()
    assert run(capsys, "convert", model, tmp_path / "x.gguf", "--fit", "1MB", "--quant", "f16")[0] == 2


def test_a_model_without_a_vocabulary_can_be_benchmarked_but_not_spoken_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llama_cpp")
    write_tiny_gguf(tmp_path / "ids.gguf", SPEC, random_weights(SPEC))
    assert run_json(capsys, "bench", tmp_path / "ids.gguf", "-p", "8", "-n", "0", "-r", "1")["rows"][0]["n_prompt"] == 8
    code, _, err = run(capsys, "run", tmp_path / "ids.gguf", "hello")
    assert code == 1 and "no vocabulary" in err


def test_a_closed_pipe_is_no_traceback(model: Path) -> None:
    command = f"'{sys.executable}' -m wattwise inspect '{model}' --tensors | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert "tiny.gguf" in done.stdout
    assert done.stderr == ""


def test_chat_with_json_lines(model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n\nAgain\n"))
    code, out, _ = run(capsys, "chat", model, "--json", "--max-tokens", "4", "--temperature", "0")
    first, second = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert first["stats"]["cache_n"] == 0 < second["stats"]["cache_n"], "the second turn goes on from the first"


def test_notices_are_ours_and_not_native_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import logging

    from wattwise.cli import common

    ours, native = logging.getLogger("wattwise"), logging.getLogger("wattwise.llamacpp")
    monkeypatch.setattr(ours, "handlers", [])
    for logger in (ours, native):
        monkeypatch.setattr(logger, "level", logging.NOTSET)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    common.show_progress("loading")
    ours.info("measuring this machine")
    native.info("sched_reserve: reserve took 1.58 ms")
    for logger in (ours, native):
        logger.setLevel(logging.NOTSET)
    assert capsys.readouterr().err.splitlines() == ["measuring this machine"]
