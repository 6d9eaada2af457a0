"""Step 10: how much of what the base says its draft would have said too.

    python -m models.acceptance --target model.gguf --draft draft.gguf --config CONFIG --prepared PREPARED \\
        --out FILE.json

Held-out conversations of the config's sources up to their last assistant's turn; the target replies greedily. A
token of the reply counts as accepted if the draft's first choice after the same prefix is that token; the ending
token is one of them. A run is what speculative decoding would see: the draft proposes k tokens, those up to the
first wrong one are accepted, the target adds one of its own. Measured on the files that are shipped, through
wattwise's engines.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.configuration import Config, load_config
from models.dialogues import Asked, installed_engines, open_model, room_in, spread
from models.files import write_atomically
from wattwise.model import Model
from wattwise_runtimes.contracts import Batch

LENGTHS = (2, 4, 8)


@dataclass(slots=True)
class Tally:
    """Sums over replies. rounds, run_tokens: by length of the draft."""

    dialogues: int = 0
    tokens: int = 0
    accepted: int = 0
    rounds: dict[int, int] = field(default_factory=lambda: dict.fromkeys(LENGTHS, 0))
    run_tokens: dict[int, int] = field(default_factory=lambda: dict.fromkeys(LENGTHS, 0))

    def add(self, hits: Sequence[bool]) -> None:
        self.dialogues += 1
        self.tokens += len(hits)
        self.accepted += sum(hits)
        for length in LENGTHS:
            rounds, accepted = rounds_of(hits, length)
            self.rounds[length] += rounds
            self.run_tokens[length] += accepted

    def to_json(self) -> dict[str, object]:
        runs = {str(k): round(self.run_tokens[k] / max(1, self.rounds[k]), 3) for k in LENGTHS}
        return {
            "dialogues": self.dialogues,
            "tokens": self.tokens,
            "accepted": round(self.accepted / max(1, self.tokens), 4),
            "mean_accepted_run": runs,
        }


def rounds_of(hits: Sequence[bool], length: int) -> tuple[int, int]:
    """How many verifications a reply takes with drafts of `length`, and how many drafted tokens they accept."""
    at, rounds, accepted = 0, 0, 0
    while at < len(hits):
        run = 0
        while run < length and at + run < len(hits) and hits[at + run]:
            run += 1
        rounds, accepted = rounds + 1, accepted + run
        at += run + 1  # the target's own token: the correction, or the one after a run that was right
    return rounds, accepted


def hits_of(draft: Model, prompt: Sequence[int], reply: Sequence[int]) -> list[bool]:
    """For each token of the reply, whether the draft puts it first."""
    ids = [*prompt, *reply[:-1]]
    draft.forget()
    logits = draft.engine.forward(Batch(ids, logits=range(len(prompt) - 1, len(ids))))
    first = logits.argmax(axis=1).tolist()
    draft.forget()
    return [guess == token for guess, token in zip(first, reply, strict=True)]


def acceptance(
    target: Model, draft: Model, questions: Sequence[Asked], *, reply_tokens: int
) -> tuple[Tally, dict[str, Tally]]:
    total, sources = Tally(), dict[str, Tally]()
    for question in questions:
        tools = question.tools or None
        prompt = target.prompt_ids(question.messages, tools=tools)
        reply = target.chat(question.messages, tools=tools, temperature=0, seed=0, max_tokens=reply_tokens)
        hits = hits_of(draft, prompt, reply.ids)
        for tally in (total, sources.setdefault(question.source, Tally())):
            tally.add(hits)
    return total, sources


def measure(
    target_path: Path,
    draft_path: Path,
    prepared: Path,
    sources_of: Config,
    *,
    engines: Sequence[str],
    dialogues: int,
    reply_tokens: int,
) -> dict[str, object]:
    result: dict[str, object] = {"reply_tokens": reply_tokens, "engines": {}}
    by_engine: dict[str, object] = {}
    for engine in engines:
        with open_model(target_path, engine) as target, open_model(draft_path, engine) as draft:
            if target.tokenizer.vocabulary.tokens != draft.tokenizer.vocabulary.tokens:
                raise SystemExit(f"{target_path.name} and {draft_path.name} have different vocabularies")
            questions = spread(prepared, sorted(sources_of.shares), dialogues, room_in(target, reply_tokens))
            if not questions:
                return {**result, "skipped": "the data has no held-out conversation that fits the context"}
            total, sources = acceptance(target, draft, questions, reply_tokens=reply_tokens)
        by_engine[engine] = {
            "total": total.to_json(),
            "sources": {name: tally.to_json() for name, tally in sorted(sources.items())},
        }
        print(json.dumps({engine: total.to_json()}), flush=True)
    return {**result, "engines": by_engine}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True, help="the target's config, for its sources")
    parser.add_argument("--prepared", type=Path, required=True, help="folder with the held-out documents")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--dialogues", type=int, default=100)
    parser.add_argument("--reply-tokens", type=int, default=128)
    options = parser.parse_args(arguments)
    result = measure(
        options.target,
        options.draft,
        options.prepared,
        load_config(options.config),
        engines=installed_engines(),
        dialogues=options.dialogues,
        reply_tokens=options.reply_tokens,
    )
    write_atomically(options.out, json.dumps(result, indent=1).encode("utf-8"))


if __name__ == "__main__":
    main()
