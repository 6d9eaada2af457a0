"""The engines behind one interface, the model files they read, and the text layer (tokenizers, templates).

Start with `contracts.py` (what an engine is) and `spec.py` (what a model is). Imports `wattwise_devices` only.
"""
