"""The training sources: where each lies in the data folder, its licence, and how it is read into documents.

Only sources whose licence lets a trained model be passed on with credit are listed: public domain, MIT, BSD,
CDLA, CC BY and CC BY-SA (which is why the weights are passed on under CC BY-SA). A data folder that has none of
these files may hold plain `*.txt` files instead (documents divided by a line `<|endoftext|>`); they become one
source named `text`.
"""

from __future__ import annotations

import json
import lzma
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from models.copying import copying
from models.documents import DOCUMENT_END, Document, Turn, conversation, fraction_of
from models.question_sources import read_command_help, read_school_problems, read_trivia
from models.sums import sums
from models.talk import SYSTEM_PROMPTS, talk
from models.tidy import is_coarse, tidy_turn
from models.tool_dialogues import read_tool_dialogues
from models.tool_requests import tool_requests

TALK_CONVERSATIONS = 40_000
PASSAGE_CHARS = 1600  # books are cut into passages, so that the held-out split is fine-grained


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    name: str
    file: str  # inside the data folder; "" for lines that come with this recipe
    licence: str
    credit: str
    read: Callable[[Path], Iterator[Document]]


def _json_lines(path: Path) -> Iterator[dict]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _system_for(text: str) -> str:
    """A system prompt on a tenth of the conversations, chosen by their content."""
    draw = fraction_of(text)
    return SYSTEM_PROMPTS[int(draw * 10 * len(SYSTEM_PROMPTS))] if draw < 0.1 else ""


def _chat(turns: list[str]) -> Document | None:
    tidied = [tidy_turn(turn) for turn in turns]
    joined = " ".join(tidied)
    if len(tidied) < 2 or not all(tidied) or is_coarse(joined):
        return None
    return conversation(tidied, system=_system_for(joined))


_TOPICS = {
    "music": "music",
    "movies": "movies",
    "nfl_football": "football",
    "disney": "Disney movies",
    "star_wars": "Star Wars",
    "thriller": "thrillers",
    "beatles": "the Beatles",
    "pop": "pop music",
    "rap_hiphop": "hip hop",
    "rock": "rock music",
    "lady_gaga": "Lady Gaga",
    "baseball": "baseball",
    "basketball": "basketball",
    "action": "action movies",
    "comedy": "comedies",
    "harry_potter": "Harry Potter",
    "horror": "horror movies",
    "superhero": "superhero movies",
    "fast_furious": "the Fast and Furious movies",
    "music_and_movies": "music and movies",
    "fashion": "fashion",
    "icehockey": "ice hockey",
}
_TOPIC_OPENINGS = (
    "Let's talk about {}.",
    "Can we talk about {}?",
    "I want to talk about {}.",
    "Do you know anything about {}?",
    "Tell me something about {}.",
    "What do you think about {}?",
)


def read_self_dialogue(path: Path) -> Iterator[Document]:
    """Chats about films, music and sport; in a fifth of them the user first names the topic."""
    for row in _json_lines(path):
        turns, topic = list(row["turns"]), _TOPICS.get(row["topic"])
        draw = fraction_of("topic" + turns[0] + turns[-1])
        if topic is not None and draw < 0.2:
            opening = _TOPIC_OPENINGS[int(draw * 5 * len(_TOPIC_OPENINGS))]
            turns.insert(0, opening.format(topic))
        document = _chat(turns)
        if document is not None:
            yield document


def read_topical_chat(path: Path) -> Iterator[Document]:
    """Lines `A: ...` and `B: ...`; a speaker's lines in a row are one turn."""
    for row in _json_lines(path):
        turns: list[str] = []
        speaker = ""
        for line in row["text"].split("\n"):
            if line[:3] in ("A: ", "B: ") and line[0] != speaker:
                speaker = line[0]
                turns.append(line[3:])
            elif turns:
                turns[-1] += " " + line.removeprefix(f"{speaker}: ")
        document = _chat(turns)
        if document is not None:
            yield document


_CHATTERBOT_TOPICS = ("greetings", "emotion", "food", "health", "humor", "science", "trivia", "money", "history")


def read_chatterbot(path: Path) -> Iterator[Document]:
    """Question and answer pairs of the topics that suit any model (not those about the bot it came from)."""
    with tarfile.open(path, "r:gz") as archive:
        for member in archive.getmembers():
            if Path(member.name).stem not in _CHATTERBOT_TOPICS or not member.isfile():
                continue
            stream = archive.extractfile(member)
            text = stream.read().decode("utf-8") if stream is not None else ""
            for turns in _yaml_conversations(text):
                document = _chat(turns)
                if document is not None:
                    yield document


def _yaml_conversations(text: str) -> Iterator[list[str]]:
    """The one shape these files have: `- - first`, then `  - next`; deeper lines continue the last."""
    turns: list[str] = []
    for line in text.split("\n"):
        if line.startswith("- - "):
            if turns:
                yield turns
            turns = [line[4:]]
        elif line.startswith("  - ") and turns:
            turns.append(line[4:])
        elif line.startswith("    ") and turns:
            turns[-1] += " " + line.strip()
    if turns:
        yield turns


def read_stories(path: Path) -> Iterator[Document]:
    """TinyStories as running text, and a part of the short ones again as an answer to a request for a story."""
    for story in path.read_text(encoding="utf-8").split(DOCUMENT_END):
        story = re.sub(r"\s*\n\s*", "\n", story.strip()).translate(str.maketrans("“”‘’", "\"\"''"))
        if len(story) < 200 or not story.isascii() or is_coarse(story) or story[-1] not in '.!?"':
            continue
        yield Document(text=story)
        if len(story) < 1100:
            yield Document(
                turns=(Turn(role="user", content=_request_for(story)), Turn(role="assistant", content=story))
            )


_HERO = re.compile(r"\b(?:an?|the) ((?:[a-z]+ ){0,2}[a-z]+) (?:named|called) ([A-Z][a-z]+)")
_ANY_STORY = (
    "Tell me a story.",
    "Tell me a short story.",
    "Can you tell me a story?",
    "Please tell me a story!",
    "Write a short story.",
)
_STORY_ABOUT = (
    "Tell me a story about {}.",
    "Can you tell me a story about {}?",
    "Write a short story about {}.",
    "I want to hear a story about {}.",
)


def _request_for(story: str) -> str:
    draw = fraction_of(story)
    hero = _HERO.search(story)
    if hero is None or draw < 0.25:
        return _ANY_STORY[int(draw * 1000) % len(_ANY_STORY)]
    kind, name = hero.groups()
    article = "an" if kind[0] in "aeiou" else "a"
    subject = (f"{article} {kind}", f"{article} {kind} named {name}", f"{article} {kind.split()[-1]}")[
        int(draw * 3001) % 3
    ]
    return _STORY_ABOUT[int(draw * 1000) % len(_STORY_ABOUT)].format(subject)


def read_books(path: Path) -> Iterator[Document]:
    """Books in passages of whole paragraphs."""
    for row in _json_lines(path):
        passage = ""
        for paragraph in row["text"].translate(str.maketrans({"—": " - "})).split("\n\n"):
            if len(passage) + len(paragraph) > PASSAGE_CHARS and passage:
                yield Document(text=passage)
                passage = ""
            passage = f"{passage}\n{paragraph}" if passage else paragraph
        if passage:
            yield Document(text=passage)


def read_talk_files(path: Path) -> Iterator[Document]:
    yield from talk(TALK_CONVERSATIONS, seed=20)


def read_tool_requests(path: Path) -> Iterator[Document]:
    yield from tool_requests(24_000, seed=20)


def read_sums(path: Path) -> Iterator[Document]:
    yield from sums(24_000, seed=20)


def read_copying(path: Path) -> Iterator[Document]:
    yield from copying(24_000, seed=20)


def read_plain_text(path: Path) -> Iterator[Document]:
    """Every `*.txt` of the folder."""
    for file in sorted(path.glob("*.txt")):
        for text in file.read_text(encoding="utf-8").split(DOCUMENT_END):
            if text.strip():
                yield Document(text=text.strip())


SOURCES = (
    Source(
        name="talk",
        file="",
        licence="Apache-2.0",
        credit="written for wattwise (models/talk)",
        read=read_talk_files,
    ),
    Source(
        name="tool_requests",
        file="",
        licence="Apache-2.0",
        credit="written for wattwise (models/tool_requests.py)",
        read=read_tool_requests,
    ),
    Source(
        name="sums",
        file="",
        licence="Apache-2.0",
        credit="written for wattwise (models/sums.py)",
        read=read_sums,
    ),
    Source(
        name="copying",
        file="",
        licence="Apache-2.0",
        credit="written for wattwise (models/copying.py)",
        read=read_copying,
    ),
    Source(
        name="self_dialogue",
        file="train/self_dialogue.jsonl.xz",
        licence="BSD-3-Clause",
        credit="Self-dialogue Corpus (Fainberg et al., 2018), jfainberg/self_dialogue_corpus at 113a1b0ff103",
        read=read_self_dialogue,
    ),
    Source(
        name="topical_chat",
        file="train/dialogues_topical.jsonl.xz",
        licence="CDLA-Sharing-1.0 (results such as models are free of it)",
        credit="Topical-Chat (Gopalakrishnan et al., 2019), alexa/Topical-Chat at 7c939229cbcf",
        read=read_topical_chat,
    ),
    Source(
        name="chatterbot",
        file="train/chatterbot_english.tar.gz",
        licence="BSD-3-Clause",
        credit="ChatterBot corpus (Gunther Cox and contributors), gunthercox/chatterbot-corpus at a01efece2666",
        read=read_chatterbot,
    ),
    Source(
        name="stories",
        file="text/tinystories_sample.txt",
        licence="CDLA-Sharing-1.0 (results such as models are free of it)",
        credit="TinyStories (Eldan and Li, 2023), first 2 MiB, as in gusjengis/toy-RNN at e4c7ff8bba4f",
        read=read_stories,
    ),
    Source(
        name="children",
        file="train/books_children.jsonl.xz",
        licence="public domain in the United States",
        credit="105 children's books of Project Gutenberg, from the GITenberg repositories",
        read=read_books,
    ),
    Source(
        name="tools",
        file="train/sgd_train.jsonl.xz",
        licence="CC BY-SA 4.0",
        credit=(
            "Schema-Guided Dialogue (Rastogi et al., 2020), google-research-datasets/dstc8-schema-guided-dialogue "
            "at e852981ae349"
        ),
        read=read_tool_dialogues,
    ),
    Source(
        name="trivia",
        file="train/opentriviaqa.jsonl.xz",
        licence="CC BY-SA 4.0",
        credit="OpenTriviaQA, uberspot/OpenTriviaQA at dd31530bfbb1",
        read=read_trivia,
    ),
    Source(
        name="school_problems",
        file="train/gsm8k.train.jsonl.xz",
        licence="MIT",
        credit="GSM8K, training part (Cobbe et al., 2021), openai/grade-school-math at 3101c7d50724",
        read=read_school_problems,
    ),
    Source(
        name="command_help",
        file="train/tldr_en.jsonl.xz",
        licence="CC BY 4.0",
        credit="tldr pages and their contributors, tldr-pages/tldr at 08e345f42639",
        read=read_command_help,
    ),
    Source(
        name="classics",
        file="train/books_classics.jsonl.xz",
        licence="public domain in the United States",
        credit="71 novels of Project Gutenberg, from the GITenberg repositories",
        read=read_books,
    ),
    Source(
        name="nonfiction",
        file="train/books_nonfiction.jsonl.xz",
        licence="public domain in the United States",
        credit="27 books of history, science and manners of Project Gutenberg, from the GITenberg repositories",
        read=read_books,
    ),
    Source(
        name="news",
        file="train/news_levels.jsonl.xz",
        licence="CC BY-SA 4.0",
        credit="OneStopEnglish corpus (Vajjala and Lucic, 2018): news at three reading levels",
        read=read_books,
    ),
)


def sources_in(folder: Path) -> list[tuple[Source, Path]]:
    """The sources whose files lie in `folder`; its plain text files if there are none."""
    found = [(source, folder / source.file) for source in SOURCES if source.file and (folder / source.file).is_file()]
    if found:
        return [*((source, folder) for source in SOURCES if not source.file), *found]
    if any(folder.glob("*.txt")):
        plain = Source(name="text", file=".", licence="your own", credit=str(folder), read=read_plain_text)
        return [(plain, folder)]
    raise FileNotFoundError(f"{folder} holds none of the sources of this recipe and no *.txt file")
