"""8-bit floats to float32 by table: E4M3 (no infinities, the "fn" kind) and E5M2.

Micikevicius et al. 2022, "FP8 Formats for Deep Learning", table 1, https://arxiv.org/abs/2209.05433
"""

from __future__ import annotations

from functools import cache

import numpy as np


def decode_e4m3(codes: np.ndarray) -> np.ndarray:
    """uint8 codes as float32: bias 7, 0x7f and 0xff are not a number."""
    return _e4m3()[codes]


def decode_e5m2(codes: np.ndarray) -> np.ndarray:
    """uint8 codes as float32: the upper byte of a float16."""
    return _e5m2()[codes]


@cache
def _e4m3() -> np.ndarray:
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    values[codes & 0x7F == 0x7F] = np.nan
    return np.where(codes >= 128, -values, values).astype(np.float32)


@cache
def _e5m2() -> np.ndarray:
    return (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)
