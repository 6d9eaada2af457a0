"""The KV cache above the engines: what to keep of it, what must stay, and how that is carried out.

policy.py what a policy is; policies/ one file each; selection.py from scores to positions; sight.py what a policy sees.
eviction.py what was asked for and what it comes to; spans.py whose a token is; guard.py looks whether it still says the
same. All but the guard are pure: numpy in, numpy out. `wattwise.prefix` carries an eviction out.
"""
