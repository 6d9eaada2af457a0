"""Devices of the engines' libraries, asked in children that may crash, hang, or print what they like."""

from __future__ import annotations

import importlib.util
import sys
import time

import pytest

from wattwise_runtimes import accelerators
from wattwise_runtimes.accelerators import Accelerators, find_accelerators

_DEVICE = '{"name": "X", "description": "d", "kind": "gpu", "total_bytes": 8, "free_bytes": 5}'
_ANSWER = f'{{"devices": [{_DEVICE}], "problems": [], "version": "lib 1"}}'


def ask(code: str, timeout_s: float = 20.0) -> Accelerators:
    """Both libraries answered by the same Python program."""
    return find_accelerators(timeout_s, command=(sys.executable, "-c", code))


def test_this_machine_lists_its_processor() -> None:
    found = find_accelerators()
    by_library = {device.library: device for device in found.devices if device.kind == "cpu"}
    assert "onnxruntime" in by_library and by_library["onnxruntime"].name == "CPUExecutionProvider"
    if importlib.util.find_spec("llama_cpp") is not None:
        assert by_library["ggml"].total_bytes and by_library["ggml"].description
    assert found.problems == () and found.versions["onnxruntime"].startswith("onnxruntime ")
    assert all(device.name != "AzureExecutionProvider" for device in found.devices), "a web service is no device"


def test_noise_around_the_answer_is_passed_over() -> None:
    found = ask(f"print('driver 1.2\\n{accelerators._MARK}' + {_ANSWER!r} + '\\nbye')")
    assert [(d.library, d.name, d.kind, d.total_bytes, d.free_bytes) for d in found.devices] == [
        ("ggml", "X", "gpu", 8, 5), ("onnxruntime", "X", "gpu", 8, 5),
    ]  # fmt: skip
    assert found.problems == () and found.versions == {"ggml": "lib 1", "onnxruntime": "lib 1"}


def test_a_plugin_that_fails_is_a_problem_beside_the_devices() -> None:
    text = _ANSWER.replace('"problems": []', '"problems": ["plugin x cannot be used: no driver"]')
    found = ask(f"print('{accelerators._MARK}' + {text!r})")
    assert len(found.devices) == 2
    assert found.problems[0] == "ggml: plugin x cannot be used: no driver"


def test_no_memory_is_unknown_not_zero() -> None:
    text = _ANSWER.replace('"total_bytes": 8, "free_bytes": 5', '"total_bytes": 0, "free_bytes": 0')
    found = ask(f"print('{accelerators._MARK}' + {text!r})")
    assert {(d.total_bytes, d.free_bytes) for d in found.devices} == {(None, None)}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.abort()", "signal 6"),
        ("raise SystemExit('no driver today')", "no driver today"),
        ("pass", "exit code 0"),
        (f"print('{accelerators._MARK}' + '{{')", "cannot be read"),
        (f"print('{accelerators._MARK}' + '[]')", "cannot be read"),
    ],
)
def test_a_broken_driver_is_a_line_not_an_error(code: str, words: str) -> None:
    found = ask(code)
    assert found.devices == () and len(found.problems) == 2
    assert all(words in problem for problem in found.problems)
    assert [problem.split()[0].rstrip(":") for problem in found.problems] == ["ggml", "onnxruntime"]


def test_a_hanging_driver_is_left() -> None:
    began = time.monotonic()
    found = ask("import time; time.sleep(60)", timeout_s=0.5)
    assert time.monotonic() - began < 10
    assert len(found.problems) == 2 and "within 0.5 s" in found.problems[0]


def test_a_command_that_is_not_there() -> None:
    found = find_accelerators(command=("/nonexistent/program",))
    assert found.devices == () and len(found.problems) == 2


def test_json_has_every_field() -> None:
    found = ask(f"print('{accelerators._MARK}' + {_ANSWER!r})").to_json()
    assert set(found) == {"devices", "problems", "versions"}
    assert set(found["devices"][0]) == {"library", "name", "description", "kind", "total_bytes", "free_bytes"}
