"""Stream: a reply as it is made. A context manager whose exit cancels; iterable; the reply is there in every case."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import TypeVar

from wattwise.generation import Generation
from wattwise.planning import Plan
from wattwise.reply import Piece, Reply
from wattwise.report import Report
from wattwise.stats import Stats
from wattwise.tool_calls import find_tool_calls
from wattwise_devices.errors import Error

T = TypeVar("T")


class Stream:
    """Iterate for pieces. `reply` is the finished reply, or after a cancellation what there was of it.

    The engine works only while somebody iterates: no thread of our own, nothing computed in advance. Cancelled by
    leaving the `with`, by `cancel()` from any thread, and by Ctrl-C, which goes on as KeyboardInterrupt.
    """

    def __init__(
        self,
        generation: Generation,
        on_start: Callable[[], None],
        on_end: Callable[[Reply], None],
        plan: Plan | None = None,
        has_tools: bool = False,
        report: Callable[[Stats], Report] | None = None,
    ) -> None:
        self._generation = generation
        self._plan = plan
        self._has_tools = has_tools
        self._make_report = report
        self._report: Report | None = None
        self._pieces = iter(generation)
        self._on_start, self._on_end = on_start, on_end
        self._state = "new"  # new -> running -> done

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        if self._state == "done":
            raise StopIteration
        if self._state == "new":
            self._on_start()
            self._state = "running"
        try:
            return next(self._pieces)
        except BaseException:  # the end (StopIteration), a failure, or Ctrl-C: in each case nothing follows
            self._end()
            raise

    def cancel(self) -> None:
        """Stop within one chunk of the prompt or one token. Any thread; idempotent; no error."""
        self._generation.cancel()

    def close(self) -> None:
        """Cancel and give the model free. Idempotent."""
        self.cancel()
        if self._state == "running":
            self._pieces.close()  # type: ignore[attr-defined] - a generator
            self._end()
        self._state = "done"

    def run(self) -> Reply:
        """Iterate to the end and return the reply."""
        with self:
            for _ in self:
                pass
        return self.reply

    @property
    def reply(self) -> Reply:
        """The reply so far; complete once iteration has ended."""
        reply = self._generation.reply()
        reply.plan, reply.report = self._plan, self._report
        if self._has_tools:
            reply.tool_calls = find_tool_calls(reply.text)
            if reply.tool_calls and reply.finish_reason == "stop":
                reply.finish_reason = "tool_calls"
        return reply

    def _end(self) -> None:
        if self._state == "running":
            self._state = "done"
            if self._make_report is not None:
                with contextlib.suppress(Error):  # the model was closed meanwhile: nothing is held any more
                    self._report = self._make_report(self._generation.stats)
            self._on_end(self.reply)


class AsyncStream:
    """`async with model.astream(...) as stream: async for piece in stream`. The same stream, run in one thread."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._thread = _OneThread()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.cancel()
        with contextlib.suppress(RuntimeError):  # the loop is closing: the thread still ends by itself
            await self._thread.call(self._stream.close)
        self._thread.stop()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        def step() -> Piece | None:
            return next(self._stream, None)

        while True:
            try:
                piece = await self._thread.call(step)
            except asyncio.CancelledError:
                self._stream.cancel()
                raise
            if piece is None:
                return
            yield piece

    def cancel(self) -> None:
        """As `Stream.cancel`."""
        self._stream.cancel()

    @property
    def reply(self) -> Reply:
        """As `Stream.reply`."""
        return self._stream.reply


class _OneThread:
    """Runs calls one after another in one daemon thread (engines and locks want one caller)."""

    def __init__(self) -> None:
        import queue

        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="wattwise-stream", daemon=True).start()

    async def call(self, function: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def set_result(value: T) -> None:
            if not future.done():
                future.set_result(value)

        def set_error(error: BaseException) -> None:
            if not future.done():
                future.set_exception(error)

        def work() -> None:
            try:
                value = function()
            except BaseException as error:
                loop.call_soon_threadsafe(set_error, error)
            else:
                loop.call_soon_threadsafe(set_result, value)

        self._calls.put(work)
        return await future

    def stop(self) -> None:
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            with contextlib.suppress(RuntimeError):  # a closed loop wants no more answers
                call()
