"""Short children's stories from a small hand-written grammar that knows exactly how surprising each of them is.

A story is made by chance, choice after choice: a name, a toy, a place, one of several ways to say a thing. A choice
that was taken with probability p costs -log2 p bits. No two ways through the grammar lead to the same text, so the bits
of a story's choices are -log2 of the probability of its text, and their mean, `Grammar.entropy`, is the entropy of this
language. It is a yardstick: no model, whatever its size, can do better on average, and the distance to it is what is
left to learn. For a text that people wrote, nobody knows that number.
"""

from __future__ import annotations

import functools
import hashlib
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from slm.data import story_grammar

VERSION = 2  # another number for every change by which a seed gives another text


class Story(NamedTuple):
    """A story, what its choices cost in bits, and how it ends: one of ENDINGS."""

    text: str
    bits: float
    ending: str

    @property
    def translation(self) -> str:
        """The same story in an invented language: see `translate`."""
        return translate(self.text)


ENDINGS = ("happy", "lesson", "proud", "sad")


class Choice(NamedTuple):
    """One of several options, each as probable as its share of the weights."""

    weights: tuple[int, ...]
    options: tuple[Nodes, ...]


class Pick(NamedTuple):
    """A choice made ready for drawing: an option comes as often in `drawn` as its weight says."""

    drawn: tuple[tuple[float, tuple[Step, ...]], ...]  # bits, and the steps last to first


# What a template becomes: text with fields such as %(hero.he)s, values for fields from here on, and choices.
Node = str | dict[str, str] | Choice
Nodes = tuple[Node, ...]
Step = str | dict[str, str] | Pick


class Grammar:
    """A language: its stories by chance, all of its stories one by one, and its entropy."""

    def __init__(self, root: Nodes) -> None:
        self.root = root
        self.entropy = _entropy(root)  # bits per story
        self._steps = _ready(root)

    @classmethod
    def from_rules(cls, rules: Mapping[str, str], tables: Mapping[str, story_grammar.Table]) -> Grammar:
        """The grammar of the rule "story"; `story_grammar` tells how rules are written."""
        return cls(_Templates(rules, tables).rule("story"))

    def sample(self, draw: Callable[[], float]) -> Story:
        """A story whose every choice is made by the next of draw()'s numbers, from 0 up to but not 1."""
        bits = 0.0
        parts: list[str] = []
        values: dict[str, str] = {}
        waiting = list(self._steps)  # a stack: the next step is the last
        while waiting:
            step = waiting.pop()
            if isinstance(step, str):
                parts.append(step)
            elif isinstance(step, Pick):
                drawn = step.drawn
                cost, steps = drawn[int(draw() * len(drawn))]
                bits += cost
                waiting += steps
            else:
                values.update(step)
        return Story("".join(parts) % values, bits, values["ending"])

    def derivations(self) -> Iterator[Story]:
        """Every story of the grammar, one for each way through it."""
        return _derivations(self.root, "", {}, 0.0)


def _ready(sequence: Nodes) -> tuple[Step, ...]:
    return tuple(_ready_choice(node) if isinstance(node, Choice) else node for node in reversed(sequence))


def _ready_choice(choice: Choice) -> Pick:
    total = sum(choice.weights)
    drawn: list[tuple[float, tuple[Step, ...]]] = []
    for weight, option in zip(choice.weights, choice.options, strict=True):
        drawn += [(math.log2(total / weight), _ready(option))] * weight
    return Pick(tuple(drawn))


def _entropy(sequence: Nodes) -> float:
    """The mean bits of a sequence. No choice looks at an earlier one, so the means add up."""
    bits = 0.0
    for node in sequence:
        if isinstance(node, Choice):
            total = sum(node.weights)
            for weight, option in zip(node.weights, node.options, strict=True):
                bits += weight / total * (math.log2(total / weight) + _entropy(option))
    return bits


def _derivations(sequence: Nodes, text: str, values: dict[str, str], bits: float) -> Iterator[Story]:
    for place, node in enumerate(sequence):
        if isinstance(node, str):
            text += node
        elif isinstance(node, Choice):
            rest, total = sequence[place + 1 :], sum(node.weights)
            for weight, option in zip(node.weights, node.options, strict=True):
                yield from _derivations(option + rest, text, values, bits + math.log2(total / weight))
            return
        else:
            values = values | node
    yield Story(text % values, bits, values["ending"])


class _Templates:
    """Rules as sequences."""

    def __init__(self, rules: Mapping[str, str], tables: Mapping[str, story_grammar.Table]) -> None:
        self.rules, self.tables = rules, tables
        self.done: dict[str, Nodes] = {}

    def rule(self, name: str) -> Nodes:
        """The sequence of a rule."""
        if name not in self.done:
            # A line's end is a space, but next to a bar or just inside a bracket it is only layout.
            template = re.sub(r"(?<=[\[|])\s*\n\s*|\s*\n\s*(?=[\]|])", "", self.rules[name].strip())
            template = re.sub(r"\s*\n\s*", " ", template)
            tokens = re.findall(r"[\[\]|]|\*\d+|\{.*?\}|<.*?>|#\w+|[^\[\]|*{<#]+", template)
            self.done[name] = self._sequence(tokens[::-1])
        return self.done[name]

    def _sequence(self, tokens: list[str]) -> Nodes:
        """The nodes up to the end of an option; takes them off the tokens, which come last to first."""
        nodes: list[Node] = []
        while tokens and tokens[-1][0] not in "|]*":
            token = tokens.pop()
            if token == "[":
                nodes.append(self._choice(tokens))
            elif token[0] == "<":
                nodes.extend(self.rule(token[1:-1]))
            elif token[0] == "#":
                nodes.append({"ending": token[1:]})
            elif token[0] == "{":
                nodes.extend(self._field(token[1:-1]))
            else:
                nodes.append(token)
        return _joined(nodes)

    def _choice(self, tokens: list[str]) -> Choice:
        weights, options = [], []
        while True:
            options.append(self._sequence(tokens))
            weights.append(int(tokens.pop()[1:]) if tokens[-1][0] == "*" else 1)
            if tokens.pop() == "]":
                return Choice(tuple(weights), tuple(options))

    def _field(self, field: str) -> list[Node]:
        """The text of {hero.he}; for {hero=girls.he}, a choice of the hero among the girls before it."""
        variable, _, source = field.partition("=")
        if not source:
            return [f"%({variable})s"]
        table, dot, column = source.partition(".")
        rows = [{f"{variable}.{key}".rstrip("."): value for key, value in row.items()} for row in self.tables[table]]
        return [Choice((1,) * len(rows), tuple((row,) for row in rows)), f"%({variable}{dot}{column})s"]


def _joined(nodes: list[Node]) -> Nodes:
    """The nodes with neighbouring texts made one."""
    joined: list[Node] = []
    for node in nodes:
        if joined and isinstance(node, str) and isinstance(joined[-1], str):
            joined[-1] += node
        else:
            joined.append(node)
    return tuple(joined)


@functools.cache
def grammar() -> Grammar:
    """The grammar of all stories here."""
    return Grammar.from_rules(story_grammar.RULES, story_grammar.TABLES)


def story(seed: int, index: int) -> Story:
    """Story number `index` of a seed: the same one everywhere and always."""
    key = hashlib.sha256(f"story {seed} {index}".encode()).digest()
    # Of all that `random` offers, an integer's seeding and random() alone are promised to stay as they are.
    return grammar().sample(random.Random(int.from_bytes(key[:16], "little")).random)


def stories(seed: int, num_bytes: int) -> Iterator[Story]:
    """Stories 0, 1, ... of a seed, until their texts together have num_bytes or more."""
    index = 0
    while num_bytes > 0:
        made = story(seed, index)
        num_bytes -= len(made.text)  # the stories are ASCII
        index += 1
        yield made


_SYLLABLES = [consonant + vowel for vowel in "aeiou" for consonant in "bdfghjklmnprstvz"]
# Words end in a vowel and endings start with one: two vowels in a row show where the endings begin.
_SUFFIXES = {
    "the": "en", "a": "as", "'s": "ir", "to": "ok", "in": "un", "on": "al", "of": "it", "with": "em", "for": "ut",
    "at": "or", "by": "is", "from": "ek", "under": "om", "behind": "ul", "into": "ar", "near": "et",
}  # fmt: skip
_CLAUSE = re.compile(r"[A-Za-z](?:[A-Za-z' ]*[A-Za-z])?")
_BEFORE_SENTENCES = (". ", "! ", "? ", '." ', ' "')
_WORD = re.compile(r"[A-Za-z]+|'s")
_FIELD = re.compile(r"%\(.*?\)s")


def translate(text: str) -> str:
    """A story's text in an invented language with other words, another grammar and the same names.

    A clause's words come last to first, so that the object stands before the verb and the subject behind it. What
    English says by a small word before a noun (the, a, in, to) is an ending here. No two stories share a translation.
    """
    return _CLAUSE.sub(lambda clause: _translated(clause[0], _starts(text, clause.start())), text)


def _starts(text: str, place: int) -> bool:
    """True where a sentence starts at that place of a text."""
    return place == 0 or text.endswith(_BEFORE_SENTENCES, 0, place)


def _translated(clause: str, starts: bool) -> str:
    lexicon = _lexicon()
    words: list[str] = []
    for word in reversed(_WORD.findall(clause)):
        plain = "a" if word == "an" else word.lower()
        if words and plain in _SUFFIXES:
            words[-1] += _SUFFIXES[plain]
        else:
            words.append(lexicon.get(plain, word))  # a name has no entry
    translated = " ".join(words)
    return translated[0].upper() + translated[1:] if starts else translated


@functools.cache
def _lexicon() -> dict[str, str]:
    """The translation of every word but the names; the shortest words have the shortest ones."""
    names = {word for table in story_grammar.PEOPLE for row in story_grammar.TABLES[table] for word in row[""].split()}
    words = {word.lower() for text in _texts(grammar().root) for word in _WORD.findall(_FIELD.sub(" ", text))}
    words -= {name.lower() for name in names}
    ordered = sorted(words, key=lambda word: (len(word), word))
    few, many = len(_SYLLABLES), len(_SYLLABLES) ** 2
    # 1009 has no divisor in common with `many`: neighbours in the list get syllables far apart, each pair once.
    pairs = (divmod(place * 1009 % many, few) for place in range(many))
    spelled = [*_SYLLABLES, *(_SYLLABLES[first] + _SYLLABLES[second] for first, second in pairs)]
    return dict(zip(ordered, (word for word in spelled if word.capitalize() not in names), strict=False))


def _texts(sequence: Nodes) -> Iterator[str]:
    """Every piece of text in a sequence."""
    for node in sequence:
        if isinstance(node, str):
            yield node
        elif isinstance(node, Choice):
            for option in node.options:
                yield from _texts(option)
        else:
            yield from (value for field, value in node.items() if field != "ending")
