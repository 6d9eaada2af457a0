"""Everyday tools and requests for them, written for this recipe: timers, weather, lights, notes, messages.

The public tool dialogues are all about bookings. These short ones show that the list of tools decides: the same
request is a call where a fitting tool is offered, and an honest answer where none is.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.documents import Document, Turn, tool_call


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


CITIES = _listed(
    "Paris, London, Berlin, Rome, Madrid, Tokyo, Oslo, Cairo, Lima, Delhi, Boston, Chicago, Seattle, "
    "Denver, Austin, Toronto, Sydney, Vienna, Prague, Dublin, Lisbon, Athens, Warsaw, Helsinki, Nairobi, "
    "Bangkok, Seoul, Munich"
)
NAMES = _listed(
    "Anna, Ben, Maria, Tom, Lucy, Sam, David, Emma, Paul, Nina, Omar, Lena, Mark, Sara, Leo, Grace, Ivan, Mia"
)
THINGS = _listed(
    "buy milk, call the dentist, water the plants, pay the rent, feed the cat, pick up the parcel, "
    "book the tickets, take out the trash, send the report, wash the car, bake a cake, "
    "renew the passport, charge the bike"
)
ROOMS = _listed("kitchen, bedroom, living room, bathroom, hallway, office, garage, garden")
SONGS = _listed("Yellow Submarine, Moon River, Imagine, Hallelujah, Blue Moon, Summertime, Let It Be, Clair de Lune")
WORDS = _listed("house, water, bread, friend, morning, winter, garden, music, mountain, letter, river, teacher")
LANGUAGES = _listed("French, Spanish, German, Italian, Portuguese, Dutch, Swedish, Polish")
SUBJECTS = _listed("volcanoes, the moon, honey bees, solar power, Mozart, chess rules, Roman roads, sourdough bread")
CUISINES = _listed("Italian, Indian, Mexican, Thai, Greek, Chinese, Japanese, Turkish")
_TIMES = [f"{hour:02}:{minute:02}" for hour in range(6, 23) for minute in (0, 15, 30, 45)]

Values = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """requests: what a user says, with the arguments in braces. result, done: what the tool returns, what is said."""

    name: str
    about: str
    arguments: dict[str, str]  # name -> JSON type, "?" in front where it may be left out
    draw: Callable[[random.Random], Values]
    requests: tuple[str, ...]
    result: Callable[[Values, random.Random], Values]
    done: tuple[str, ...]
    without: tuple[str, ...]  # said where this tool is not offered


# Other words for parts of names. A name that is always the same is learnt by heart, and then said instead of the one
# that the list of tools really has.
_VERBS = {
    "get": ("get", "fetch", "show", "check", "find", "look_up"),
    "set": ("set", "start", "create", "add", "make"),
    "find": ("find", "search", "search_for", "look_for", "list", "get"),
    "check": ("check", "get", "show", "query", "read"),
    "search": ("search", "web_search", "search_web", "look_up", "find_pages"),
    "add": ("add", "create", "save", "new", "set"),
    "send": ("send", "write", "text", "deliver"),
}
_NOUNS = {
    "restaurant": ("restaurant", "restaurants", "place_to_eat", "dining"),
    "weather": ("weather", "forecast", "current_weather", "weather_report"),
    "balance": ("balance", "account_balance", "bank_balance", "money"),
    "timer": ("timer", "countdown", "kitchen_timer"),
    "alarm": ("alarm", "alarm_clock", "wake_up_call"),
    "message": ("message", "text_message", "sms", "note_to"),
    "reminder": ("reminder", "task", "todo", "reminder_note"),
}
_ARGUMENTS = {
    "city": ("city", "location", "town", "place", "city_name"),
    "cuisine": ("cuisine", "food", "kind", "type_of_food"),
    "account": ("account", "account_type", "account_name", "kind"),
    "minutes": ("minutes", "duration", "duration_minutes", "length"),
    "time": ("time", "at", "alarm_time", "when"),
    "query": ("query", "q", "topic", "text", "question"),
    "text": ("text", "content", "message", "what", "body"),
    "to": ("to", "recipient", "person", "name"),
    "room": ("room", "where", "area", "room_name"),
    "language": ("language", "target", "target_language", "into"),
    "expression": ("expression", "formula", "input", "calculation"),
}
_CHOICES = {"account": ("checking", "savings")}  # values of arguments that may be listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """A tool as one conversation lists it. spelling: what each of its arguments is called there, in the order there."""

    tool: Tool
    name: str
    spelling: dict[str, str]

    def call(self, values: Values) -> str:
        """The assistant's turn that calls it."""
        given = {spelt: values[name] for name, spelt in self.spelling.items() if name in values}
        return tool_call(self.name, given)

    def schema(self, rng: random.Random) -> dict[str, Any]:
        properties: dict[str, dict[str, Any]] = {}
        for name in self.spelling:
            kind = self.tool.arguments[name]
            properties[self.spelling[name]] = {"type": kind.lstrip("?")}
            if name in _CHOICES and rng.random() < 0.5:
                properties[self.spelling[name]]["enum"] = list(_CHOICES[name])
        required = [spelt for name, spelt in self.spelling.items() if not self.tool.arguments[name].startswith("?")]
        function: dict[str, Any] = {"name": self.name}
        if rng.random() < 0.8:
            function["description"] = self.tool.about
        function["parameters"] = {"type": "object", "properties": properties, "required": required}
        return {"type": "function", "function": function}


def offer(tool: Tool, rng: random.Random) -> Offered:
    """The tool under its own name, or, two times in three, with other words for it and its arguments, in any order."""
    order = rng.sample(list(tool.arguments), len(tool.arguments))
    if rng.random() < 1 / 3:
        return Offered(tool=tool, name=tool.name, spelling={name: name for name in order})
    words = [rng.choice(_VERBS.get(word, _NOUNS.get(word, (word,)))) for word in tool.name.split("_")]
    parts = "_".join(words).split("_")
    if rng.random() < 0.3:  # camel case
        parts = [parts[0], *(part.capitalize() for part in parts[1:])]
        name = "".join(parts)
    else:
        name = "_".join(parts)
    spelling: dict[str, str] = {}
    for argument in order:
        free = [word for word in _ARGUMENTS.get(argument, (argument,)) if word not in spelling.values()]
        spelling[argument] = rng.choice(free or [argument])
    return Offered(tool=tool, name=name, spelling=spelling)


def _weather(values: Values, rng: random.Random) -> Values:
    sky = rng.choice(("sunny", "cloudy", "rainy", "windy", "clear", "foggy", "snowy"))
    return {"temperature": rng.randint(-5, 34), "sky": sky}


def _ok(values: Values, rng: random.Random) -> Values:
    return {"status": "ok"}


def _sum(rng: random.Random) -> Values:
    a, b, sign = rng.randint(2, 999), rng.randint(2, 99), rng.choice("+-*")
    return {"expression": f"{a} {sign} {b}"}


def _sum_result(values: Values, rng: random.Random) -> Values:
    a, sign, b = values["expression"].split()
    left, right = int(a), int(b)
    return {"result": {"+": left + right, "-": left - right, "*": left * right}[sign]}


TOOLS = (
    Tool(
        name="get_weather",
        about="Get the weather in a city",
        arguments={"city": "string"},
        draw=lambda rng: {"city": rng.choice(CITIES)},
        requests=(
            "What is the weather in {city}?",
            "What's the weather like in {city} today?",
            "How is the weather in {city}?",
            "Is it raining in {city}?",
            "Do I need an umbrella in {city}?",
            "How warm is it in {city}?",
            "Tell me the weather in {city}, please.",
        ),
        result=_weather,
        done=(
            "It is {sky} in {city}, with {temperature} degrees.",
            "In {city} it is {sky} and {temperature} degrees.",
        ),
        without=("I cannot look up the weather here.", "I have no tool for the weather, sorry."),
    ),
    Tool(
        name="set_timer",
        about="Start a timer",
        arguments={"minutes": "integer"},
        draw=lambda rng: {"minutes": rng.choice((1, 2, 3, 5, 7, 8, 10, 12, 15, 20, 25, 30, 40, 45, 60, 90))},
        requests=(
            "Set a timer for {minutes} minutes.",
            "Start a {minutes} minute timer.",
            "Can you set a timer for {minutes} minutes?",
            "Wake me in {minutes} minutes.",
            "Timer, {minutes} minutes please.",
        ),
        result=_ok,
        done=("Your timer is set for {minutes} minutes.", "Done. The timer runs for {minutes} minutes."),
        without=("I cannot set timers here.", "I have no timer, sorry."),
    ),
    Tool(
        name="set_alarm",
        about="Set an alarm",
        arguments={"time": "string"},
        draw=lambda rng: {"time": rng.choice(_TIMES)},
        requests=(
            "Set an alarm for {time}.",
            "Wake me up at {time}.",
            "Can you wake me at {time}?",
            "I need an alarm at {time}.",
        ),
        result=_ok,
        done=("Your alarm is set for {time}.", "Okay, I will wake you at {time}."),
        without=("I cannot set an alarm here.", "I have no alarm clock, sorry."),
    ),
    Tool(
        name="add_reminder",
        about="Remind the user of something",
        arguments={"text": "string", "time": "?string"},
        draw=lambda rng: {"text": rng.choice(THINGS)} | ({"time": rng.choice(_TIMES)} if rng.random() < 0.6 else {}),
        requests=("Remind me to {text}{at}.", "Please remind me to {text}{at}.", "Don't let me forget to {text}{at}."),
        result=_ok,
        done=("I will remind you to {text}.", "Okay, the reminder to {text} is saved."),
        without=("I cannot save reminders here.", "I have no way to remind you, sorry."),
    ),
    Tool(
        name="send_message",
        about="Send a text message to a person",
        arguments={"to": "string", "text": "string"},
        draw=lambda rng: {
            "to": rng.choice(NAMES),
            "text": rng.choice(
                ("I am late", "I am on my way", "happy birthday", "see you soon", "call me", "thank you", "good luck")
            ),
        },
        requests=(
            "Send {to} a message: {text}.",
            "Tell {to}: {text}.",
            'Text {to} "{text}".',
            "Write to {to} that {text}.",
        ),
        result=_ok,
        done=("I sent your message to {to}.", "Done. {to} will get your message."),
        without=("I cannot send messages here.", "I have no way to send messages, sorry."),
    ),
    Tool(
        name="switch_light",
        about="Switch the light in a room on or off",
        arguments={"room": "string", "on": "boolean"},
        draw=lambda rng: {"room": rng.choice(ROOMS), "on": rng.random() < 0.5},
        requests=(
            "Turn {onoff} the light in the {room}.",
            "Switch {onoff} the {room} light.",
            "Please turn the {room} light {onoff}.",
            "{room} light {onoff}.",
        ),
        result=_ok,
        done=("The light in the {room} is {onoff}.", "Done, the {room} light is {onoff}."),
        without=("I cannot switch lights here.", "I have no control over your lights, sorry."),
    ),
    Tool(
        name="play_music",
        about="Play a song",
        arguments={"song": "string"},
        draw=lambda rng: {"song": rng.choice(SONGS)},
        requests=("Play {song}.", "Can you play {song}?", "I want to hear {song}.", "Please put on {song}."),
        result=_ok,
        done=("Now playing {song}.", "Here is {song}. Enjoy!"),
        without=("I cannot play music here.", "I have no music player, sorry."),
    ),
    Tool(
        name="calculate",
        about="Work out an expression",
        arguments={"expression": "string"},
        draw=_sum,
        requests=("What is {expression}?", "Calculate {expression}.", "How much is {expression}?", "{expression} = ?"),
        result=_sum_result,
        done=("{expression} is {result}.", "The result is {result}."),
        without=("I should not guess such a number. A calculator is better at it.",),
    ),
    Tool(
        name="translate",
        about="Translate a text into a language",
        arguments={"text": "string", "language": "string"},
        draw=lambda rng: {"text": rng.choice(WORDS), "language": rng.choice(LANGUAGES)},
        requests=(
            "Translate {text} into {language}.",
            "How do you say {text} in {language}?",
            "What is {text} in {language}?",
        ),
        result=lambda values, rng: {"translation": values["text"][::-1]},
        done=("In {language} it is {translation}.", "{text} is {translation} in {language}."),
        without=("I cannot translate that here.", "I am not sure about that word in {language}."),
    ),
    Tool(
        name="search",
        about="Search the web",
        arguments={"query": "string"},
        draw=lambda rng: {"query": rng.choice(SUBJECTS)},
        requests=(
            "Search for {query}.",
            "Look up {query}.",
            "Find something about {query}.",
            "Can you search the web for {query}?",
        ),
        result=lambda values, rng: {"results": rng.randint(2, 40)},
        done=("I found {results} pages about {query}.", "There are {results} results for {query}."),
        without=("I cannot search the web here.", "I have no internet here, sorry."),
    ),
    Tool(
        name="find_restaurant",
        about="Find a restaurant in a city",
        arguments={"city": "string", "cuisine": "?string"},
        draw=lambda rng: (
            {"city": rng.choice(CITIES)} | ({"cuisine": rng.choice(CUISINES)} if rng.random() < 0.7 else {})
        ),
        requests=(
            "Find me {a_cuisine} restaurant in {city}.",
            "Where can I eat in {city}? I want {a_cuisine} restaurant.",
            "I need {a_cuisine} restaurant in {city}, please.",
        ),
        result=lambda values, rng: {
            "name": rng.choice(("The Blue Door", "Golden Spoon", "Green Table", "Little Star", "Old Mill"))
        },
        done=("{name} in {city} looks good.", "How about {name}? It is in {city}."),
        without=("I cannot look up restaurants here.", "I have no list of restaurants, sorry."),
    ),
    Tool(
        name="check_balance",
        about="Check the balance of a bank account",
        arguments={"account": "string"},
        draw=lambda rng: {"account": rng.choice(("checking", "savings"))},
        requests=(
            "How much money is in my {account} account?",
            "What is the balance of my {account} account?",
            "Check my {account} account, please.",
        ),
        result=lambda values, rng: {"balance": rng.randint(20, 9000)},
        done=(
            "Your {account} account holds {balance} dollars.",
            "You have {balance} dollars in your {account} account.",
        ),
        without=("I cannot see your accounts here.", "I have no access to your bank, and that is a good thing."),
    ),
)

CHATTER = (
    ("Hi!", "Hello! What can I do for you?"),
    ("Hello there!", "Hi! How can I help?"),
    ("Thank you.", "You are welcome!"),
    ("How are you?", "I am doing well, thank you. What do you need?"),
    ("What can you do?", "I can chat with you and use the tools that are listed here."),
    ("Never mind.", "All right. Tell me when you need something."),
)


def _wordings(values: Values) -> Values:
    """The arguments and the forms of them that sentences need."""
    words = dict(values)
    words["at"] = f" at {values['time']}" if "time" in values else ""
    words["onoff"] = "on" if values.get("on") else "off"
    cuisine = values.get("cuisine")
    words["a_cuisine"] = f"{'an' if cuisine and cuisine[0] in 'AEIOU' else 'a'} {cuisine}" if cuisine else "a"
    return words


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _exchange(tool: Tool, offered: Offered | None, rng: random.Random) -> list[Turn]:
    """A request for what the tool does, and the call of it as it is offered; None: there is no such tool."""
    values = tool.draw(rng)
    words = _wordings(values)
    said = _sentence(rng.choice(tool.requests).format(**words))
    if rng.random() < 0.3:
        said = said.rstrip(".?") if rng.random() < 0.5 else said.lower() if tool.name == "set_timer" else said
    turns = [Turn(role="user", content=said)]
    if offered is None:
        return [*turns, Turn(role="assistant", content=_sentence(rng.choice(tool.without).format(**words)))]
    result = tool.result(values, rng)
    reply = _sentence(rng.choice(tool.done).format(**words, **result))
    return [
        *turns,
        Turn(role="assistant", content=offered.call(values)),
        Turn(role="tool", content=json.dumps(result)),
        Turn(role="assistant", content=reply),
    ]


def tool_requests(count: int, *, seed: int) -> list[Document]:
    """`count` short conversations with one to four tools offered."""
    rng = random.Random(seed)
    documents = []
    for _ in range(count):
        offered = [offer(tool, rng) for tool in rng.sample(TOOLS, rng.choice((1, 1, 2, 2, 3, 4)))]
        known = [one.tool for one in offered]
        turns: list[Turn] = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            draw = rng.random()
            if draw < 0.15:
                user, reply = rng.choice(CHATTER)
                turns += [Turn(role="user", content=user), Turn(role="assistant", content=reply)]
            elif draw < 0.27:
                turns += _exchange(rng.choice([tool for tool in TOOLS if tool not in known]), None, rng)
            else:
                one = rng.choice(offered)
                turns += _exchange(one.tool, one, rng)
        documents.append(Document(turns=tuple(turns), tools=tuple(one.schema(rng) for one in offered)))
    return documents
