"""The text layer: tokenizers, incremental decoding, chat templates."""
