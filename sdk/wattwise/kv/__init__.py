"""The KV cache above the engines: what to keep of it, what must stay, and how that is carried out.

policy.py what a policy is; policies/ one file each; selection.py from scores to positions; sight.py what a policy sees.
All of these are pure: numpy in, numpy out. Only `keeper.py` asks an engine's KVStore to change.
"""
