"""Which tokens the KV store holds, and how much of a new prompt they spare."""

from __future__ import annotations

from collections.abc import Sequence

from wattwise_runtimes.contracts import Engine


class HeldPrefix:
    """The ids behind the rows of one engine's KV store, kept in step with it.

    Every change of the store goes through here, so that a prompt is only ever continued from its own beginning.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ids: list[int] = []

    @property
    def ids(self) -> Sequence[int]:
        """Ids of the rows held, in order."""
        return self._ids

    def rewind_to(self, prompt: Sequence[int]) -> int:
        """Forget what does not begin `prompt`; how many of its tokens need not be computed.

        At least the last token is left to compute, because its logits are wanted.
        """
        common = 0
        for held, wanted in zip(self._ids, prompt[:-1], strict=False):
            if held != wanted:
                break
            common += 1
        if common < len(self._ids):
            self._engine.kv.truncate(common)
            del self._ids[common:]
        return common

    def extend(self, ids: Sequence[int]) -> None:
        """Note tokens that the engine has just appended."""
        self._ids.extend(ids)

    def clear(self) -> None:
        """Forget everything, after a failure that may have left the store half-written."""
        self._engine.kv.clear()
        self._ids.clear()
