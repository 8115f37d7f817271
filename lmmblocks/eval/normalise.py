"""The answer normaliser of VQA accuracy, quirks included: scores are comparable only if this is the same to the character.

VQAv2, VizWiz and TextVQA answers go through it before they are compared. Reference: LLaVA ``eval/m4c_evaluator.py``, itself
from facebookresearch/mmf. Kept on purpose:

* commas and question marks vanish before any number is looked at, so ``1,000`` is ``1000`` and ``a,b`` is ``ab``;
* ``'s`` becomes a word of its own: ``it's`` is ``it 's``;
* a period goes unless a digit follows it (the original's look-after has a typo and never matches), and only the first 32
  do (the original passes a regex flag where the count belongs);
* punctuation next to a space anywhere in the answer is deleted everywhere, else it becomes a space.
"""

from __future__ import annotations

import re

_NUMBERS = {word: str(value) for value, word in enumerate("zero one two three four five six seven eight nine ten".split())} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_REMOVED = 32

# A word that lost exactly one of its apostrophes gets it back. The original's table also holds capitalised keys and keys
# with 's; answers are lower-cased and split at 's before the look-up, so those never match and are left out. Two are irregular.
_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's "
    "how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock "
    "oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've "
    "someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've "
    "they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've "
    "who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've "
    "you'd you'd've you'll you're you've"
)
_CONTRACTIONS = {
    word[:position] + word[position + 1 :]: word for word in _CONTRACTED.split() for position, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd", "'ows'at": "'ow's'at"}


def normalise_answer(text: str) -> str:
    """Return an answer as VQA accuracy compares it.

    Args:
        text: answer of a person or a model.

    Returns:
        Lower case, single spaces, digits for the number words up to ten, without articles and punctuation.

    Source: facebookresearch/mmf ``EvalAIAnswerProcessor`` as in LLaVA ``eval/m4c_evaluator.py``.

    >>> normalise_answer("The Cat."), normalise_answer("two dogs"), normalise_answer("dont")
    ('cat', '2 dogs', "don't")
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = _without_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Delete marks that touch a space anywhere in the answer, turn the others into spaces, then strip periods."""
    cleaned = text
    for mark in _PUNCTUATION:
        touches_space = mark + " " in text or " " + mark in text
        cleaned = cleaned.replace(mark, "" if touches_space else " ")
    return _PERIOD.sub("", cleaned, count=_PERIODS_REMOVED)
