"""One file per policy, each with a `POLICY`; `policy.py` says what that is, `tests/sdk/kv/` what it must do."""
