"""`wattwise bench [MODEL]`: llama-bench's rows and formats, with memory, bandwidth and energy columns."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from wattwise.cli import common
from wattwise.units import format_bytes

HELP = "speed of reading and generating, in llama-bench's rows and formats"
FORMATS = ("md", "csv", "json", "jsonl", "sql")


def arguments(parser: argparse.ArgumentParser) -> None:
    """llama-bench's -p -n -d -r -o."""
    common.add_model_argument(parser)
    parser.add_argument("-p", "--n-prompt", type=_numbers, default=[512], metavar="N,..", help="tokens to read")
    parser.add_argument("-n", "--n-gen", type=_numbers, default=[128], metavar="N,..", help="tokens to generate")
    parser.add_argument("-d", "--n-depth", type=_numbers, default=[0], metavar="N,..", help="after so many tokens")
    parser.add_argument("-r", "--repetitions", type=int, default=5, metavar="N")
    parser.add_argument("-o", "--output", choices=FORMATS, default="md")
    common.add_load_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    import wattwise
    from wattwise.bench import Test, run_tests

    if options.repetitions < 1:
        raise ValueError("repetitions must be at least 1")
    tests = [Test(n_prompt=p, n_depth=d) for d in options.n_depth for p in options.n_prompt if p]
    tests += [Test(n_gen=n, n_depth=d) for d in options.n_depth for n in options.n_gen if n]
    load = common.load_arguments(options)
    if load["kv_policy"] is not None or load["overflow"] is not None:
        raise ValueError("bench fills the cache as far as its rows say and evicts nothing; leave the KV policy away")
    if load["context"] is None:  # as much as the rows need, not the default
        load["context"] = max([16, *(t.n_prompt + t.n_gen + t.n_depth + 1 for t in tests)])
    with wattwise.load(options.model, **load) as model:
        rows = []
        for row in run_tests(model, tests, repetitions=options.repetitions):
            rows.append(row.to_json())
            if options.output == "jsonl" and not options.json:
                print(json.dumps(rows[-1]), flush=True)
        report = model.report().to_json()
    if options.json:
        common.print_json({"rows": rows, "report": report})
    elif options.output != "jsonl":
        print(_WRITERS[options.output](rows))
    return 0


def _numbers(text: str) -> list[int]:
    try:
        values = [int(word) for word in text.split(",")]
    except ValueError:
        values = [-1]
    if any(v < 0 for v in values):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of counts such as 512 or 128,256")
    return values


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    names = "model size params engine device threads kv draft test t/s W_avg J/tok peak_mem read_GB/s"
    head = " | ".join(name.replace("_", " ") for name in names.split())
    lines = [f"| {head} |", "|---|---:|---:|---|---|---:|---|---|---:|---:|---:|---:|---:|---:|"]
    for r in rows:
        energy = "n/a" if r["j_per_token"] is None else f"{r['j_per_token']:.3g}"
        watts = "n/a" if r["avg_w"] is None else f"{r['avg_w']:.1f}"
        lines.append(
            f"| {r['architecture']} {r['quant']} | {format_bytes(r['model_size'])} | {r['model_n_params'] / 1e6:.2f} M "
            f"| {r['engine']} | {r['device']} | {r['n_threads']} | {r['type_kv']} | – | {r['test']} "
            f"| {r['avg_ts']:.2f} ± {r['stddev_ts']:.2f} | {watts} | {energy} | {format_bytes(r['peak_bytes'])} "
            f"| {r['read_bandwidth_gb_s']:.1f} |"
        )
    sources = sorted({r["energy_source"] for r in rows if r["energy_source"]})
    lines.append(
        "\nTimed: the engine's forward calls; not tokenizing, sampling or text. "
        f"Energy, idle included: {', '.join(sources) or 'no meter'}."
    )
    return "\n".join(lines)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    flat = [{k: v for k, v in r.items() if not isinstance(v, (list, dict))} for r in rows]
    writer = csv.DictWriter(text, fieldnames=list(flat[0]) if flat else [])
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue().rstrip()


def _sql(rows: Sequence[dict[str, Any]]) -> str:
    flat = [{k: v for k, v in r.items() if not isinstance(v, (list, dict))} for r in rows]
    if not flat:
        return ""
    columns = ", ".join(f"{name} {_sql_type(value)}" for name, value in flat[0].items())
    lines = [f"CREATE TABLE IF NOT EXISTS wattwise_bench ({columns});"]
    for row in flat:
        names, values = ", ".join(row), ", ".join(_sql_value(v) for v in row.values())
        lines.append(f"INSERT INTO wattwise_bench ({names}) VALUES ({values});")
    return "\n".join(lines)


def _sql_type(value: Any) -> str:
    return "INTEGER" if isinstance(value, int) else "REAL" if isinstance(value, float) else "TEXT"


def _sql_value(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, (int, float)):
        return repr(value)
    return "'" + str(value).replace("'", "''") + "'"


_WRITERS = {"md": _markdown, "csv": _csv, "json": lambda rows: json.dumps(rows, indent=2), "sql": _sql}
