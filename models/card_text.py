"""The sentences of the model card, without a number that was measured: those stand in `models/card.py`'s inputs."""

INTRODUCTION = """\
# {name}

The language model that comes inside the package: {parameters:,} parameters, {size_mb:.1f} MB ({quant}), a context of
{context} tokens. It was trained to make small talk in simple English, to answer a few simple questions, to tell very
short stories, to call tools that are described to it, and to stop by itself; the replies below show how well it does.
It is there so that `wattwise run "Hi! How are you today?"` answers on the first try, without a download, and so that
measurements have a subject. It knows nothing reliable about the world.
"""

SMALL_SIZE = """
This is the small size of the recipe: it was trained on {trained_on}, because no GPU was at hand. The full size
({full_millions:.0f} million parameters, with a draft of {draft_millions:.1f} million) is one command on one GPU away:
`models/README.md`.
"""

DRAFT = """\
`builtin-draft` proposes tokens that the base then verifies; alone it is a worse chat model. It shares the base's
tokenizer. After training on the same data it was distilled: the base answered beginnings of training conversations,
half with its likeliest tokens and half by sampling, and the draft learnt the base's distribution on them."""

DATA = """\
The weights are passed on under CC BY-SA 4.0, because some of the sources are; the credit that it and the other
licences ask for is this table. A copy of a model must keep it. About 2.5 % of every source were held out by a hash of
the content. Nothing was trained on the prompts, tools and JSON schemas that measure the project."""

BITS = """\
Held-out bits per byte, lower is better, through wattwise's engines; the ONNX models (fp16, int8, int4) are
lowered from the GGUF files (f16, q8_0, q4_0). Whole conversations count, the users' lines and the marks of the template
too. Sources that this recipe writes itself (talk, tool_requests, sums, copying) are combined from fixed sets of lines,
so their held-out part is not independent of the training part. Chats are split by conversation, not by author."""

ACCEPTANCE = """\
{dialogues} held-out dialogues, up to the last turn of the assistant; the base replies with its likeliest tokens, at
most {reply_tokens}. Accepted: the share of the reply's tokens, the ending one included, that the draft puts first after
the same text. Run of k: how many of k drafted tokens are accepted on average before the first wrong one, as
speculative decoding would see it. Measured on the shipped files."""

TOOL_CALLS = """\
{dialogues} held-out dialogues with tools (Schema-Guided Dialogue), up to a turn in which the data calls a tool;
likeliest tokens, {engine}. Well-formed: the reply is one `<tool_call>` with JSON that names an offered tool, has every
required argument and no unknown one, with the types and values that the tool allows."""

TRANSCRIPTS = """\
The shipped file through `wattwise.load` ({engine}), with the settings that `wattwise run` has by default: temperature
{temperature}, top-k {top_k}, top-p {top_p}, min-p {min_p}. Seeds 0 to 4 of each prompt; none left out."""

REQUESTS = """\
The same with three tools offered in each of these (`Model.chat(prompt, tools=...)`):"""

LIMITS = """\
## Limits

- It is a toy beside any model you can download. Facts, names, numbers and dates in its replies are often invented.
  Do not rely on anything it says.
- English only. Sums beyond small ones, translation, code, long instructions and advice are beyond it.
- It calls tools of the kinds it has seen, and gets arguments wrong: check a call before you act on it.
- It learnt from chats between crowd workers and repeats their opinions on films, bands and teams as if it had
  them. Coarse conversations were left out of training by a word list, which is no guarantee.
- Old children's books carry the views and words of their time.

## A bigger one

Any GGUF file of a supported architecture works in its place, and `wattwise convert` makes one from a Hugging Face
folder: `wattwise plan model.gguf` says whether it fits this machine, `wattwise chat model.gguf` talks to it.
"""
