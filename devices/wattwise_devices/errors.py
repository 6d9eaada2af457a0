"""Every error that wattwise raises on purpose, in one tree.

    Error
    ├─ LoadError                      a model cannot be opened
    │  ├─ UnsupportedArchitecture     (also ValueError) nobody here knows this kind of model
    │  ├─ CorruptArtifact             (also ValueError) a file contradicts itself or its format
    │  └─ DownloadError               a remote file could not be had
    ├─ ConvertError                   (also ValueError) a conversion that cannot be done as asked
    ├─ PlanError                      (also ValueError) two requests clash; names both
    ├─ BudgetError                    it does not fit; says what would
    │  ├─ MemoryBudgetError           (also MemoryError)
    │  └─ PowerBudgetError
    ├─ BackendError                   (also RuntimeError) an engine failed
    │  └─ BackendUnavailable          it is not installed; says how to install it
    ├─ ContextOverflow                (also ValueError) more tokens than the context holds
    ├─ SessionError                   a saved conversation cannot be found, opened or changed
    ├─ TemplateError                  (also ValueError) a chat template failed or broke its limits
    └─ GenerationError                (also RuntimeError) a reply failed half-way; keeps the part there is

The file sits at the bottom of the import chain so that every layer can raise from it; the SDK re-exports
it as `wattwise.errors`. A message says what happened, the numbers, and what to do. Cancelling is not an
error: see `wattwise_runtimes.contracts.ForwardCancelled`, a signal inside the engine layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "BackendError",
    "BackendUnavailable",
    "BudgetError",
    "ContextOverflow",
    "ConvertError",
    "CorruptArtifact",
    "DownloadError",
    "Error",
    "GenerationError",
    "LoadError",
    "MemoryBudgetError",
    "PlanError",
    "PowerBudgetError",
    "SessionError",
    "TemplateError",
    "UnsupportedArchitecture",
]


class Error(Exception):
    """Base of every error that wattwise raises on purpose."""


class LoadError(Error):
    """A model, or a part of it, cannot be opened."""


class UnsupportedArchitecture(LoadError, ValueError):
    """The file is sound, but its architecture or one of its features is not known here."""


class CorruptArtifact(LoadError, ValueError):
    """A file contradicts itself, its format or a limit.

    path: the file. field: what was read, in the format's own words. value: what stood there.
    limit: what would have been allowed, in words or as a number.
    """

    def __init__(self, path: object, field: str, value: object, limit: object) -> None:
        self.path, self.field, self.value, self.limit = str(path), field, value, limit
        shown = repr(value)
        if len(shown) > 120:  # a hostile value must not flood a terminal or a log
            shown = shown[:117] + "..."
        super().__init__(
            f"{self.path}: {field} is {shown}; allowed: {limit}. The file is damaged or not what it claims to be."
        )


class DownloadError(LoadError):
    """A remote file could not be fetched or failed its checksum."""


class ConvertError(Error, ValueError):
    """A conversion cannot be done as asked; the message names the tensor or option and what would work."""


class PlanError(Error, ValueError):
    """Two requests cannot be honoured together. `clash` names both."""

    def __init__(self, message: str, clash: tuple[str, str] | None = None) -> None:
        self.clash = clash
        super().__init__(message)


class BudgetError(Error):
    """The request does not fit the budget.

    needed and allowed carry the unit of the budget that was broken (bytes, watts, ...);
    would_fit lists, in words, the nearest requests that do fit (empty if nothing does).
    """

    def __init__(
        self, message: str, *, needed: float | None = None, allowed: float | None = None, would_fit: Sequence[str] = ()
    ) -> None:
        self.needed, self.allowed, self.would_fit = needed, allowed, tuple(would_fit)
        super().__init__(message)


class MemoryBudgetError(BudgetError, MemoryError):
    """More bytes are needed than the budget allows."""


class PowerBudgetError(BudgetError):
    """More watts or joules are needed than the budget allows."""


class BackendError(Error, RuntimeError):
    """An engine reported a failure of its own."""


class BackendUnavailable(BackendError):
    """An engine is not installed or cannot run on this machine; the message has the command that installs it."""


class ContextOverflow(Error, ValueError):
    """The prompt (and what is already held) exceeds the context. Nothing was cut."""

    def __init__(self, *, prompt_tokens: int, limit: int, held_tokens: int = 0) -> None:
        self.prompt_tokens, self.limit, self.held_tokens = prompt_tokens, limit, held_tokens
        held = f" after {held_tokens} already in the context" if held_tokens else ""
        super().__init__(
            f"the prompt has {prompt_tokens} tokens{held}, the context holds {limit}. Nothing was cut. "
            "Shorten the prompt, start a new conversation, or load the model with a larger context."
        )


class SessionError(Error):
    """A saved conversation cannot be found, opened or changed, or not be saved as asked; the message says why."""


class TemplateError(Error, ValueError):
    """A chat template failed to compile or render, or went past its limits on time or output."""


class GenerationError(Error, RuntimeError):
    """A reply failed half-way. `partial` is the reply so far, or None."""

    def __init__(self, message: str, partial: Any = None) -> None:
        self.partial = partial
        super().__init__(message)
