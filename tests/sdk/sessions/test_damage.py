"""Damaged, foreign and hostile files are refused with a typed error; the conversation goes on from its text."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.chat_model import SPEC
from support.session_models import session_model
from wattwise.events import SessionRefused, SessionResumed
from wattwise.model import Model
from wattwise.reply import Reply
from wattwise.sessions.index import RowsIndex, index_bytes, parse_index, read_index
from wattwise.sessions.library import Library
from wattwise.sessions.record import SessionRecord, read_record, write_record
from wattwise_devices.errors import CorruptArtifact, Error, LoadError, SessionError

GREEDY = {"temperature": 0, "max_tokens": 8}
LONG = "The quick brown fox jumps over the lazy dog. " * 4
Damage = Callable[[bytearray], bytes]


def saved(models: Path, policy: str | None = None, text: str = LONG, **options: Any) -> str:
    """A session of one turn."""
    with session_model(models, kv_policy=policy, **options) as model:
        chat = model.conversation("Be brief.", session="new")
        chat.say(text, **GREEDY)
        assert chat.session is not None
        return chat.session.id


def next_turn(model: Model, session: str) -> Reply:
    with model, model.conversation(session=session) as chat:
        return chat.say("Go on.", **GREEDY)


def refusals(reply: Reply) -> list[SessionRefused]:
    return [event for event in reply.events if isinstance(event, SessionRefused)]


def was_read_again(reply: Reply, expected: Reply) -> bool:
    """Whether nothing came from disk, and the answer is what it has to be."""
    resumed = any(isinstance(event, SessionResumed) for event in reply.events)
    return not resumed and reply.stats.cache_n == 0 and reply.ids == expected.ids


@pytest.fixture
def session(models: Path, library: Library) -> str:
    return saved(models)


@pytest.fixture
def expected(models: Path, library: Library, session: str) -> Reply:
    """The next turn as a model says it that has never seen the session's rows."""
    with session_model(models) as model:
        messages = [*library.read(session).messages, {"role": "user", "content": "Go on."}]
        return model.chat(messages, **GREEDY)


def test_every_flipped_byte_of_an_index_is_noticed(library: Library, session: str) -> None:
    path = library.index_path(session)
    good = path.read_bytes()
    read_index(path)
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        with pytest.raises(CorruptArtifact):
            parse_index(bytes(bad), path)
    for length in range(0, len(good), 7):
        with pytest.raises(CorruptArtifact):
            parse_index(good[:length], path)
    with pytest.raises(CorruptArtifact):
        parse_index(good + b"\0", path)


def test_every_flipped_byte_of_a_text_is_noticed(library: Library, session: str) -> None:
    path = library.root / session / "conversation.json"
    good, record = path.read_bytes(), read_record(path)
    for at in range(len(good)):
        for bit in (1, 16, 64):
            bad = bytearray(good)
            bad[at] ^= bit
            path.write_bytes(bad)
            try:
                assert read_record(path) == record, "a blank more or less between two values says nothing else"
            except CorruptArtifact:
                continue
            except LoadError:
                pytest.fail("damage is CorruptArtifact")
    for length in range(0, len(good) - 1, 5):
        path.write_bytes(good[:length])
        with pytest.raises(CorruptArtifact):
            read_record(path)


@pytest.mark.parametrize("policy", [None, "h2o:96:token"])
def test_damaged_rows_are_refused_wherever_the_damage_is(policy: str | None, models: Path, library: Library) -> None:
    session = saved(models, policy)
    index = library.index(session)
    assert index is not None
    with session_model(models, kv_policy=policy) as model:
        messages = [*library.read(session).messages, {"role": "user", "content": "Go on."}]
        expected = model.chat(messages, **GREEDY)
    shutil.copytree(library.root, backup := library.root.parent / "backup")
    draw = random.Random(1)
    for blob in index.blobs:
        places = [0, 5, 9, 20, blob.nbytes // 2, blob.nbytes - 1, *(draw.randrange(blob.nbytes) for _ in range(3))]
        for damage in [*(flip(at) for at in places), cut_to(0), cut_to(blob.nbytes // 2), lengthened]:
            shutil.rmtree(library.root)
            shutil.copytree(backup, library.root)
            path = library.root / "rows" / blob.name
            path.write_bytes(damage(bytearray(path.read_bytes())))
            reply = next_turn(session_model(models, kv_policy=policy), session)
            assert was_read_again(reply, expected)
            (told,) = refusals(reply)
            assert told.session == session and "rows" in told.reason
            again = next_turn(session_model(models, kv_policy=policy), session)
            assert not refusals(again) and again.stats.cache_n > 0, "the damage was written over"


def flip(at: int) -> Damage:
    def damage(data: bytearray) -> bytes:
        data[at] ^= 0x10
        return bytes(data)

    return damage


def cut_to(length: int) -> Damage:
    return lambda data: bytes(data[:length])


def lengthened(data: bytearray) -> bytes:
    return bytes(data) + b"x"


def test_rows_that_have_gone_are_told(models: Path, library: Library, session: str, expected: Reply) -> None:
    index = library.index(session)
    assert index is not None
    library.blobs.remove(index.segments[0].blob.name)
    reply = next_turn(session_model(models), session)
    assert was_read_again(reply, expected) and len(refusals(reply)) == 1


def test_an_index_that_is_gone_or_damaged_is_told(
    models: Path, library: Library, session: str, expected: Reply
) -> None:
    path = library.index_path(session)
    for damage, word in ((None, "evicted"), (b"WWSX", "file size"), (b"x" * 200, "magic")):
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
        with session_model(models) as model, model.conversation(session=session) as chat:
            reply = chat.say("Go on.", **GREEDY)
            chat.undo()
        assert was_read_again(reply, expected)
        assert word in refusals(reply)[0].reason


def test_a_damaged_text_is_an_error_that_names_the_file(models: Path, library: Library, session: str) -> None:
    (library.root / session / "conversation.json").write_text("{")
    with session_model(models) as model, pytest.raises(CorruptArtifact, match=r"conversation\.json"):
        model.conversation(session=session)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"seed": 1}, "another model file"),
        ({"engine": "onnx"}, "onnx"),
        ({"kv_policy": "keydiff:96"}, "eviction"),
        ({"context": 300}, None),  # no part of what a row is
    ],
)
def test_foreign_rows_are_refused_by_name(
    options: dict[str, Any], word: str | None, models: Path, library: Library, session: str
) -> None:
    if "engine" in options:
        pytest.importorskip("onnxruntime")
    reply = next_turn(session_model(models, **options), session)
    if word is None:
        assert not refusals(reply) and reply.stats.cache_n > 0
        return
    (told,) = refusals(reply)
    assert word in told.reason and "read again" in told.message
    assert reply.stats.cache_n == 0
    assert reply.text or reply.ids, "the conversation goes on"


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("tokenizer", "0123", "tokenizer"), ("spec", "0123", "shape"), ("rope", "0123", "angles"),
        ("engine", "reference numpy 0.1", "numpy 0.1"), ("kv_type", "q8_0", "q8_0"), ("eviction", "{}", "eviction"),
        ("model", "0" * 64, "model file"),
    ],
)  # fmt: skip
def test_every_part_of_the_fingerprint_counts(
    field: str, value: str, word: str, models: Path, library: Library, session: str, expected: Reply
) -> None:
    index = library.index(session)
    assert index is not None
    foreign = dataclasses.replace(index, fingerprint=dataclasses.replace(index.fingerprint, **{field: value}))
    library.index_path(session).write_bytes(index_bytes(foreign))
    reply = next_turn(session_model(models), session)
    assert was_read_again(reply, expected)
    assert word in refusals(reply)[0].reason


def test_longrope_remembers_which_factors_the_rows_were_turned_by(models: Path, library: Library) -> None:
    from support.specs import TINY_SPECS

    spec = dataclasses.replace(TINY_SPECS["phi4-mini"], vocab=SPEC.vocab, eos_ids=SPEC.eos_ids, bos_id=None)
    spec = dataclasses.replace(spec, context=512, rope=dataclasses.replace(spec.rope, original_context=300))
    session = saved(models, None, "Hello there.", spec=spec, context=256)
    same = next_turn(session_model(models, spec=spec, context=280), session)
    assert not refusals(same) and same.stats.cache_n > 0
    (told,) = refusals(next_turn(session_model(models, spec=spec, context=400), session))
    assert "angles" in told.reason


def test_a_text_that_is_written_differently_now_is_told(models: Path, library: Library, session: str) -> None:
    record = library.read(session)
    library.write(dataclasses.replace(record, messages=record.messages[1:]))
    (told,) = refusals(next_turn(session_model(models), session))
    assert "differs" in told.reason


def reheaded(index: RowsIndex, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """An index file with another header and a digest that fits it."""
    good = index_bytes(index)
    length = struct.unpack_from("<I", good, 8)[0]
    header = json.loads(good[12 : 12 + length])
    changed = change(header)
    text = changed if isinstance(changed, bytes) else json.dumps(header if changed is None else changed).encode()
    body = good[:8] + struct.pack("<I", len(text)) + text + good[12 + length : -32]
    return body + hashlib.sha256(body).digest()


def put(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header.update(fields)


NAME = "0" * 64
HOSTILE = [
    put(ids=-1), put(ids=1.5), put(ids="9"), put(ids=None), put(ids=True), put(ids=2**62), put(rows=2**63),
    put(rows=-1),
    put(tokens=-1), put(tokens=2**40), put(tokens=[]), put(evicted="no"), put(fingerprint=None), put(fingerprint=[1]),
    put(fingerprint={"model": 1}), put(segments=None), put(segments={}), put(segments=[1]), put(segments=[[NAME, 1]]),
    put(segments=[["../../etc/passwd", 1, 3]]), put(segments=[[NAME, -1, 3]]), put(segments=[[NAME, 1, 2**60]]),
    put(segments=[[NAME.upper().replace("0", "A"), 1, 3]]), put(segments=[]), put(attention=[NAME, 1]),
    put(attention="x"), put(attention=[NAME, 1.0, 1]), put(attention=[NAME, 2**60, -1]),
    lambda header: [header], lambda header: "text", lambda header: 5, lambda header: {},
    lambda header: b"[" * 100_000, lambda header: b"{" + b'"a":1,' * 300_000 + b'"b":1}', lambda header: b"\xff\xfe",
    lambda header: b'{"ids": 1e999}', lambda header: b'{"ids": 1, "ids": 2}', lambda header: b"NaN", lambda header: b"",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_indexes_are_refused_as_such(number: int, library: Library, session: str) -> None:
    index = library.index(session)
    assert index is not None
    data = reheaded(index, HOSTILE[number])
    with pytest.raises(CorruptArtifact):
        parse_index(data, Path("hostile"))


Change = Callable[[RowsIndex], RowsIndex]


def in_state(**fields: Any) -> Change:
    return lambda index: dataclasses.replace(index, state=dataclasses.replace(index.state, **fields))


@pytest.mark.parametrize(
    "change",
    [
        lambda index: dataclasses.replace(index, segments=index.segments * 2),
        lambda index: dataclasses.replace(index, attention=index.segments[0].blob, queries=1),
        lambda index: dataclasses.replace(index, attention=index.segments[0].blob, queries=2**40),
        in_state(tokens=np.arange(3)),
        in_state(evicted=5, tokens=np.arange(2**20)),
    ],
)
def test_sound_files_that_lie_are_refused(
    change: Change, models: Path, library: Library, session: str, expected: Reply
) -> None:
    index = library.index(session)
    assert index is not None
    library.index_path(session).write_bytes(index_bytes(change(index)))
    reply = next_turn(session_model(models), session)
    assert was_read_again(reply, expected)
    assert refusals(reply)


def test_a_segment_much_larger_than_its_rows_is_not_read(models: Path, library: Library, session: str) -> None:
    index = library.index(session)
    assert index is not None
    big = library.blobs.put(b"\0" * (4 << 20))
    lying = dataclasses.replace(index, segments=(dataclasses.replace(index.segments[0], blob=big),))
    library.index_path(session).write_bytes(index_bytes(lying))
    (told,) = refusals(next_turn(session_model(models), session))
    assert "bytes of a segment" in told.reason


def test_random_rows_in_a_sound_envelope_never_get_past_the_engine(
    models: Path, library: Library, session: str, expected: Reply
) -> None:
    """Headers of exported rows, changed and with a checksum that fits."""
    index = library.index(session)
    assert index is not None
    good = library.blobs.get(index.segments[0].blob)
    for change in (
        put(positions=None), put(positions="1"), put(positions=[1.5]), put(positions=[[0], [1, 2]]),
        put(positions=[2**63]), put(positions=[True]), put(positions=[]), put(head_positions=[[[0]]]),
        put(head_positions=5), put(head_positions=[]), put(payload_bytes=-1), lambda header: [],
        lambda header: b"[" * 1000, lambda header: b"{",
    ):  # fmt: skip
        blob = library.blobs.put(rewrapped(good, change))
        lying = dataclasses.replace(index, segments=(dataclasses.replace(index.segments[0], blob=blob),))
        library.index_path(session).write_bytes(index_bytes(lying))
        with session_model(models) as model, model.conversation(session=session) as chat:
            reply = chat.say("Go on.", **GREEDY)
            chat.undo()
        assert was_read_again(reply, expected) and refusals(reply)


def rewrapped(rows: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    import zlib

    length = struct.unpack_from("<I", rows, 8)[0]
    header = json.loads(rows[12 : 12 + length])
    changed = change(header)
    text = changed if isinstance(changed, bytes) else json.dumps(header if changed is None else changed).encode()
    payload = rows[16 + length :]
    crc = zlib.crc32(payload, zlib.crc32(text))
    return rows[:8] + struct.pack("<I", len(text)) + text + struct.pack("<I", crc) + payload


@pytest.mark.parametrize(
    "conversation",
    [
        None, [], {}, 7, {"messages": "x"}, {"messages": [1]}, {"messages": [{}]}, {"messages": [{"role": 5}]},
        {"pinned": [1.5]}, {"pinned": [-1]}, {"pinned": [True]}, {"pinned": [99]}, {"tools": {}}, {"tools": [3]},
        {"title": 5}, {"id": None}, {"origin": 5}, {"extra": 1},
    ],
)  # fmt: skip
def test_texts_of_another_shape_are_refused(conversation: Any, library: Library, session: str) -> None:
    path = library.root / session / "conversation.json"
    is_change = isinstance(conversation, dict) and conversation != {}
    value = {**library.read(session).to_json(), **conversation} if is_change else conversation
    digest = hashlib.sha256(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps({"format": 1, "sha256": digest, "conversation": value}))
    with pytest.raises(CorruptArtifact):
        read_record(path)


def test_a_newer_format_is_refused_by_its_number(library: Library, session: str) -> None:
    path = library.root / session / "conversation.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(CorruptArtifact, match="format is 2"):
        read_record(path)


def test_a_text_under_another_id_is_refused(library: Library, session: str) -> None:
    shutil.copytree(library.root / session, library.root / "0123456789ab")
    with pytest.raises(SessionError, match=session):
        library.read("0123456789ab")


@pytest.mark.parametrize(
    "content", [float("nan"), object(), {1, 2}, b"bytes", 10**30, {"a": float("inf")}, "x" * (17 << 20)]
)
def test_messages_that_no_file_can_hold_are_told_and_write_nothing(content: Any, tmp_path: Path) -> None:
    message = {"role": "user", "content": content}
    record = SessionRecord(id="0" * 12, model="m", created="", updated="", messages=[message])
    with pytest.raises(SessionError):
        write_record(tmp_path / "conversation.json", record)
    assert not list(tmp_path.iterdir())


def test_deep_and_round_messages_too(tmp_path: Path) -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    circle: list[Any] = []
    circle.append(circle)
    for content in (deep, circle):
        record = SessionRecord(
            id="0" * 12, model="m", created="", updated="", messages=[{"role": "user", "content": content}]
        )
        with pytest.raises(SessionError):
            write_record(tmp_path / "conversation.json", record)


def test_half_characters_are_kept_as_the_model_reads_them(tmp_path: Path) -> None:
    record = SessionRecord(
        id="0" * 12, model="m", created="", updated="", messages=[{"role": "user", "content": "a\udc80b"}]
    )
    write_record(tmp_path / "conversation.json", record)
    assert read_record(tmp_path / "conversation.json").messages[0]["content"] == "a?b"


def test_errors_are_of_our_tree() -> None:
    assert issubclass(SessionError, Error)
