"""A small vocabulary of tiktoken, learned here as byte-pair encoding learns one, and the files of Qwen-VL's tokenizer with it."""

import base64
import json
from collections import Counter

import regex
import tiktoken

PATTERN = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
ROLES = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>")
CORPUS = """\
Picture 1: <img>a</img>\nWhat is in the picture? It's the dog's ball, isn't it?  I'll say: 12,345.67!\r\n\r\n
The quick brown fox jumps over the lazy dog. aaaaaaaa abababab mississippi banana banana
一只猫在垫子上。图中的狗是什么品种？拉布拉多。 你好，世界！ café naïve Ångström 한국어 हिन्दी\tdef f(x):\n        return x\n
one\n\ntwo\n\n\nthree \n\nfour  \n\n"""


def learned(corpus, merges):
    """A vocabulary as byte-pair encoding learns it: the most frequent pair of neighbours, joined everywhere, again and again."""
    words = Counter(word.encode() for word in regex.findall(PATTERN, corpus))
    parts = {word: [word[i : i + 1] for i in range(len(word))] for word in words}
    ranks = {bytes([byte]): byte for byte in range(256)}
    for _ in range(merges):
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(parts[word], parts[word][1:]):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        ranks.setdefault(best[0] + best[1], len(ranks))
        parts = {word: joined(tokens, best) for word, tokens in parts.items()}
    return ranks


def joined(tokens, pair):
    out, i = [], 0
    while i < len(tokens):
        both = tuple(tokens[i : i + 2]) == pair
        out.append(tokens[i] + tokens[i + 1] if both else tokens[i])
        i += 1 + both
    return out


RANKS = learned(CORPUS, 300)


def write_tokenizer_files(folder, ranks=RANKS):
    """As they lie on the hub, without the code."""
    lines = [base64.b64encode(token) + b" " + str(rank).encode() + b"\n" for token, rank in ranks.items()]
    (folder / "qwen.tiktoken").write_bytes(b"".join(lines))
    names = {"tokenizer_class": "QWenTokenizer", "model_max_length": 8192}
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}}))
    return folder


def original(ranks=RANKS, tags=TAGS):
    """The tokenizer that the original's code makes of a vocabulary."""
    tokens = (*ROLES, *(f"<|extra_{number}|>" for number in range(205)), *tags)
    special = {token: len(ranks) + index for index, token in enumerate(tokens)}
    return tiktoken.Encoding("Qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
