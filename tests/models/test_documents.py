"""Documents, their rendering and split; the repairs of chat lines."""

from __future__ import annotations

import jinja2
import pytest
from models.documents import CHAT_TEMPLATE, Document, conversation, is_held_out
from models.sources import SOURCES, _request_for, _yaml_conversations, sources_in
from models.tidy import is_coarse, tidy_turn


def test_a_conversation_is_rendered_as_the_shipped_template_renders_it() -> None:
    document = conversation(["Hi!", "Hello!", "Bye.", "See you."], system="Be brief.")
    messages = [{"role": turn.role, "content": turn.content} for turn in document.turns]
    template = jinja2.Environment().from_string(CHAT_TEMPLATE)
    assert document.rendered() == template.render(messages=messages, add_generation_prompt=False)
    # What a runtime sends before the reply is exactly what stood before it in training.
    prompt = template.render(messages=messages[:2], add_generation_prompt=True)
    assert document.rendered().startswith(prompt)
    assert document.rendered()[len(prompt) :].startswith("Hello!<|im_end|>\n")


def test_only_what_the_assistant_wrote_is_marked() -> None:
    marked = [piece for piece, own in conversation(["Hi!", "Hello!", "Bye."], system="S").pieces() if own]
    assert marked == ["Hello!<|im_end|>"]
    assert [own for _, own in Document(text="A story.").pieces()] == [False]


def test_documents_survive_json() -> None:
    for document in (Document(text="A story."), conversation(["Hi!", "Hello!"], system="S")):
        assert Document.from_json(document.to_json()) == document


def test_the_held_out_share_is_near_what_was_asked_and_depends_on_content_alone() -> None:
    texts = [f"text number {i}" for i in range(20_000)]
    held = [text for text in texts if is_held_out(text, permille=20)]
    assert 300 < len(held) < 500
    assert held == [text for text in reversed(texts) if is_held_out(text, permille=20)][::-1]


@pytest.mark.parametrize(
    ("typed", "tidied"),
    [
        ("have you heard of the new movie", "Have you heard of the new movie?"),
        ("i dont know. im not sure", "I don't know. I'm not sure."),
        ("THAT WAS A GREAT GAME", "That was a great game."),
        ("I agree!. it is  good .", "I agree! It is good."),
        ("well, who won", "Well, who won?"),
        ("It\u2019s fine\u2026 really", "It's fine... Really."),
        ("caf\u00e9", ""),
        ("   ", ""),
    ],
)
def test_tidy_turn(typed: str, tidied: str) -> None:
    assert tidy_turn(typed) == tidied


def test_tidying_twice_changes_nothing() -> None:
    for typed in ("i like it", "OK THEN LET US GO", "so what is it", "No... i mean yes!!"):
        assert tidy_turn(tidy_turn(typed)) == tidy_turn(typed)


def test_coarse_words_are_found_inside_sentences_but_not_inside_words() -> None:
    assert is_coarse("What the fuck is that?")
    assert not is_coarse("We ate grapes in Essex and watched a Hitchcock film.")


def test_yaml_conversations() -> None:
    text = "categories:\n- food\nconversations:\n- - What is it?\n  - A cake\n    with sugar.\n- - Hi\n  - Hello\n"
    assert list(_yaml_conversations(text)) == [["What is it?", "A cake with sugar."], ["Hi", "Hello"]]


def test_a_request_for_a_story_names_somebody_in_it() -> None:
    stories = [f"Once upon a time, there was a little car named Beep{i}. Beep{i} was red." for i in range(60)]
    requests = {_request_for(story.replace(str(i), "x" * (i % 7))) for i, story in enumerate(stories)}
    assert any("car" in request for request in requests)
    assert all(request[-1] in ".?!" for request in requests)


def test_every_source_has_a_licence_that_lets_a_model_be_passed_on() -> None:
    allowed = ("Apache-2.0", "BSD", "MIT", "CC BY 4.0", "CC BY-SA 4.0", "CDLA", "public domain")
    for source in SOURCES:
        assert source.licence.startswith(allowed), source.name
        assert source.credit


def test_an_empty_folder_is_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="none of the sources"):
        sources_in(tmp_path)
