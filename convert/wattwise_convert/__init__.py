"""The converter: source -> Checkpoint -> lower -> verify.

`sources/` read a model into a `Checkpoint` (see `checkpoint.py`), `archs/` know one Hugging Face architecture
each, `gguf/` and `onnx/` lower a checkpoint to a file, `verify.py` compares what was written with its source.
No torch anywhere. Imports `wattwise_runtimes` for file formats, the ModelSpec and verification.
"""
