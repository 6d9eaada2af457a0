"""Recipe of the built-in models: data, tokenizer, training, tuning, export, evaluation.

Run from a clone (`python -m models.train ...`); it needs the extra `train`. Not part of the wheel, and
nothing of wattwise imports it. `models/README.md` says which command comes after which.
"""
