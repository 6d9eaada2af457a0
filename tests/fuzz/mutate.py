"""Mutations of files: bit flips, boundary numbers, cuts, copies, splices of two files. Deterministic under a seed."""

from __future__ import annotations

import random
import re

_NUMBERS = (
    0, 1, 2, 3, 4, 7, 8, 9, 10, 12, 13, 31, 32, 33, 63, 64, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 40) + 1, (1 << 61) - 1, 1 << 61, (1 << 62) - 1, 1 << 62,
    (1 << 63) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1,
)  # fmt: skip
_TEXTS = (
    b"-1", b"0", b"1e999", b"-1e999", b"NaN", b"18446744073709551616", b"9223372036854775807", b"1" * 400, b"0.5",
    b'""', b'"\\ud800"', b"null", b"true", b"[]", b"{}", b"[[[[[[[[[[", b"[" * 90 + b"]" * 90, b'{"a":1,"a":2}',
    b'"../x"', b'"/etc/passwd"', b'"\\u0000"', b"\xff", b"\xc0\x80", b"]", b"}", b",", b":",
)  # fmt: skip
_TOKEN = re.compile(rb'-?[0-9][0-9.eE+-]*|"[^"]{0,200}"|[\[\]{},:]')


def number_places(data: bytes, limit: int = 4000) -> list[int]:
    """Offsets that look like little-endian counts, lengths or offsets: small 32-bit numbers."""
    places = []
    for i in range(min(len(data), limit) - 4):
        if data[i + 2] == 0 == data[i + 3] and (data[i] or data[i + 1]):
            places.append(i)
    return places


class Mutator:
    """Makes inputs from seeds; every input follows from the random state alone."""

    def __init__(self, seeds: list[bytes], rng: random.Random, *, text: bool = False, head: int = 4000) -> None:
        self.seeds, self.rng, self.text, self.head = seeds, rng, text, head
        self.places = [number_places(seed, head) for seed in seeds]

    def make(self) -> bytes:
        """One input: a seed with one to four mutations."""
        index = self.rng.randrange(len(self.seeds))
        data = bytearray(self.seeds[index])
        for _ in range(self.rng.choice((1, 1, 1, 2, 2, 3, 4))):
            if not data:
                break
            self._change(data, self.places[index])
        return bytes(data)

    def _change(self, data: bytearray, places: list[int]) -> None:
        rng = self.rng
        kind = rng.random()
        at = rng.randrange(min(len(data), self.head)) if rng.random() < 0.9 else rng.randrange(len(data))
        if self.text and kind < 0.6:
            self._swap_token(data)
        elif kind < 0.25:
            data[at] ^= 1 << rng.randrange(8)
        elif kind < 0.35:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind < 0.75:
            place = rng.choice(places) if places and rng.random() < 0.8 else at
            width = rng.choice((1, 4, 4, 8, 8))
            value = rng.choice(_NUMBERS)
            if rng.random() < 0.3:
                value = int.from_bytes(data[place : place + width], "little") + rng.choice((-1, 1, -8, 8, 32))
            data[place : place + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        elif kind < 0.82:
            del data[at:]
        elif kind < 0.88:
            del data[at : at + rng.choice((1, 4, 8, 32, rng.randrange(1, 200)))]
        elif kind < 0.95:
            length = rng.choice((1, 4, 8, 32, rng.randrange(1, 200)))
            data[at:at] = data[(start := rng.randrange(len(data))) : start + length]
        else:
            other = rng.choice(self.seeds)
            start = rng.randrange(min(len(other), self.head))
            data[at:] = other[start:]

    def _swap_token(self, data: bytearray) -> None:
        tokens = list(_TOKEN.finditer(data[: self.head]))
        if tokens:
            token = self.rng.choice(tokens)
            new = self.rng.choice(_TEXTS) if self.rng.random() < 0.7 else self.rng.choice(tokens).group()
            data[token.start() : token.end()] = new
