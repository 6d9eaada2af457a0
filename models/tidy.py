"""Small repairs of chat lines typed in a hurry: capitals, apostrophes, a mark at the end.

Crowd workers write "i dont know" and "I don't know." side by side. A model of a few million parameters has
no room for both, so the recipe keeps one spelling. Nothing here changes words, their order or their meaning.
"""

from __future__ import annotations

import re

_STRAIGHT = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "\u00a0": " "})
_APOSTROPHES = {
    "im": "I'm",
    "i'm": "I'm",
    "ive": "I've",
    "i've": "I've",
    "i'll": "I'll",
    "i'd": "I'd",
    "i": "I",
    "dont": "don't",
    "doesnt": "doesn't",
    "didnt": "didn't",
    "cant": "can't",
    "isnt": "isn't",
    "wasnt": "wasn't",
    "wouldnt": "wouldn't",
    "couldnt": "couldn't",
    "havent": "haven't",
    "arent": "aren't",
    "thats": "that's",
    "whats": "what's",
    "youre": "you're",
    "theyre": "they're",
    "ok": "okay",
}
_WORD = re.compile(r"(?<![\w'])(" + "|".join(map(re.escape, _APOSTROPHES)) + r")(?![\w'])", re.IGNORECASE)
_SENTENCE_START = re.compile(r"([.!?]\s+)([a-z])")
_QUESTION = re.compile(
    r"^(?:(?:hi|hey|hello|so|and|but|oh|well|yes|no|yeah),?\s+)?"
    r"(?:what|who|whose|which|where|when|why|how|do|does|did|is|are|was|were|have|has|had|can|could|would|will|"
    r"should)\b",
    re.IGNORECASE,
)
_COARSE = re.compile(
    r"\b(?:fuck|shit|bitch|cunt|porn|slut|whore|rape|rapist|boob|penis|vagina|pussy|horny|naked|sexy|sex|drug|"
    r"suicid|nigg|fag|retard)\w*|\bnazi",
    re.IGNORECASE,
)


def is_coarse(text: str) -> bool:
    """Words a small model should not learn to answer with."""
    return _COARSE.search(text) is not None


def _capitalise(match: re.Match[str]) -> str:
    return match.group(1) + match.group(2).upper()


def _spell(match: re.Match[str]) -> str:
    word = match.group(0)
    fixed = _APOSTROPHES[word.lower()]
    return fixed[0].upper() + fixed[1:] if word[0].isupper() else fixed


def tidy_turn(text: str) -> str:
    """One chat line in the recipe's spelling; empty if it cannot be put into plain ASCII."""
    text = " ".join(text.translate(_STRAIGHT).split())
    if not text or not text.isascii():
        return ""
    letters = [char for char in text if char.isalpha()]
    if len(letters) > 8 and sum(char.isupper() for char in letters) > 0.7 * len(letters):
        text = text.lower()
    text = re.sub(r"\s+([?.!,])", r"\1", text)
    text = re.sub(r"([!?])[.!?]+", r"\1", text)
    text = re.sub(r"\.{2,}", "...", text)
    text = _WORD.sub(_spell, text)
    text = _SENTENCE_START.sub(_capitalise, text[0].upper() + text[1:])
    if text[-1].isalnum():
        last_sentence = re.split(r"[.!?]\s+", text)[-1]
        text += "?" if _QUESTION.match(last_sentence) else "."
    return text
