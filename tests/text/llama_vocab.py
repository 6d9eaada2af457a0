"""A vocabulary as llama.cpp sees it: written to a vocabulary-only GGUF with the gguf package, loaded and asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from wattwise_runtimes.text.gguf_vocab import gguf_fields
from wattwise_runtimes.text.vocabulary import Vocabulary


def write_vocabulary(vocabulary: Vocabulary, path: Path, name: str = "") -> Path:
    """A GGUF file with this vocabulary and no tensors."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    if name:
        writer.add_name(name)
    for key, value in gguf_fields(vocabulary).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value.tolist() if isinstance(value, np.ndarray) else value)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_feed_forward_length(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


class LlamaVocabulary:
    """llama.cpp's tokenizer."""

    def __init__(self, lib: Any, model: Any) -> None:
        self.lib = lib
        self.vocab = lib.llama_model_get_vocab(model)

    def encode(self, text: str, *, parse_special: bool = False, bos: bool = False) -> list[int]:
        """Ids of a text."""
        data = text.encode()
        room = len(data) + 8
        ids = (self.lib.llama_token * room)()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), ids, room, bos, parse_special)
        assert count >= 0
        return list(ids[:count])

    def piece(self, token: int, special: bool = False) -> bytes:
        """Bytes of a token."""
        import ctypes

        buffer = ctypes.create_string_buffer(1024)
        count = self.lib.llama_token_to_piece(self.vocab, token, buffer, 1024, 0, special)
        assert count >= 0
        return buffer.raw[:count]

    def ends(self, count: int) -> set[int]:
        """Ids that end a reply."""
        return {i for i in range(count) if self.lib.llama_vocab_is_eog(self.vocab, i)}


@contextmanager
def llama_vocabulary(path: Path) -> Iterator[LlamaVocabulary]:
    """llama.cpp's view of the vocabulary in a GGUF file."""
    import llama_cpp.llama_cpp as lib

    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, None)
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    assert model, f"llama.cpp does not load {path}"
    try:
        yield LlamaVocabulary(lib, model)
    finally:
        lib.llama_model_free(model)
        lib.llama_log_set(lib.llama_log_callback(0), None)
