"""The text layer: vocabularies, tokenizers, incremental decoding, chat templates.

A vocabulary is read from any file into plain data (`sources`, `vocabulary`), run on the `tokenizers` library
(`tokenizer`, `backend`), and written to GGUF or tokenizer.json (`gguf_vocab`, `Tokenizer.to_json`). `stream` turns
tokens into text as they come, `template` turns messages into prompts.
"""
