"""Memory while converting: below 1.5 x the largest tensor plus 300 MB, whatever the model's size.

The model is a Hugging Face folder of a gigabyte in a file of holes: it reads as zeros and takes no room on the disk.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

HIDDEN, FFN, LAYERS, VOCAB, KV = 2048, 5632, 4, 64000, 512
LARGEST_BYTES = 2 * VOCAB * HIDDEN  # as stored, in bf16: 262 MB
CHILD = """
import resource, sys
from wattwise_convert.api import convert
convert(sys.argv[1], sys.argv[2], quant=sys.argv[3])
own = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(1024 * own, 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def big_folder(folder: Path) -> Path:
    folder.mkdir()
    config = {
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": VOCAB, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)
    }  # fmt: skip
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        shapes |= {p + "input_layernorm.weight": (HIDDEN,), p + "post_attention_layernorm.weight": (HIDDEN,)}
        shapes |= {p + f"self_attn.{x}_proj.weight": (KV if x in "kv" else HIDDEN, HIDDEN) for x in "qkvo"}
        shapes |= {p + f"mlp.{x}_proj.weight": (FFN, HIDDEN) for x in ("gate", "up")}
        shapes[p + "mlp.down_proj.weight"] = (HIDDEN, FFN)
    offset, header = 0, {}
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "quant"), [("m.gguf", "q4_0"), pytest.param("m.gguf", "q4_k_m", marks=pytest.mark.llama), ("m", "int4")]
)
def test_peak_memory_stays_below_the_bound(name: str, quant: str, tmp_path: Path) -> None:
    if quant == "q4_k_m":
        pytest.importorskip("llama_cpp")
    source = big_folder(tmp_path / "source")
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, str(source), str(tmp_path / name), quant],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    shutil.rmtree(tmp_path)  # hundreds of megabytes that nobody needs to see
    own, child = (int(value) for value in ran.stdout.split())
    assert own + child < 1.5 * LARGEST_BYTES + 300e6
    if name.endswith(".gguf"):  # stricter: our own writer never holds a whole tensor
        assert own < 160e6
