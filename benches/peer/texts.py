"""Prints texts, one a line: the questions of a GSM8K file, or made-up problems where there is no such file.

    python texts.py data/gsm8k/train.jsonl 500
"""

import json
import random
import sys
from pathlib import Path


def questions(path, count):
    with path.open(encoding="utf-8") as lines:
        for _, line in zip(range(count), lines):
            yield " ".join(json.loads(line)["question"].split())


def problems(count):
    """Of GSM8K's length: one to five sentences, about 50 tokens."""
    rng = random.Random(0)
    people, things = ("Lily", "Tom", "Anna", "Ben", "Mia", "Sam"), ("apples", "books", "marbles", "stamps", "coins")
    for _ in range(count):
        a, b = rng.sample(people, 2)
        thing, number = rng.choice(things), lambda: rng.randint(2, 90)
        events = (
            f"{a} gives {b} {number()} of the {thing} on the way to school.",
            f"Then {b} buys {number()} more {thing} for {number()} dollars each.",
            f"In the evening {a} finds {number()} {thing} in an old box under the bed.",
            f"{b} loses {number()} {thing} and looks for them until it is dark.",
        )
        chosen = rng.sample(events, rng.randint(1, 4))
        yield f"{a} has {number()} {thing}. {' '.join(chosen)} How many {thing} has {rng.choice((a, b))} now?"


def main():
    path, count = Path(sys.argv[1]), int(sys.argv[2])
    for text in questions(path, count) if path.is_file() else problems(count):
        print(text)


if __name__ == "__main__":
    main()
