"""Readers for model files, which validate every count, offset and size before native code sees the file."""
