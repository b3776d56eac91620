"""Outputs and what counts of them: `ours` by hand, `released` by Python's `re` with the patterns of the released scripts.

python extraction.py writes extraction.json beside it.
"""

import json
import re
from pathlib import Path

NUMBER, LETTER = "gsm8k", "aqua"
WORDS = {
    "boolq": ["true", "false"],
    "piqa": ["solution1", "solution2"],
    "siqa": ["answer1", "answer2", "answer3"],
    "hellaswag": ["ending1", "ending2", "ending3", "ending4"],
    "winogrande": ["option1", "option2"],
    "arc-easy": ["answer1", "answer2", "answer3", "answer4", "answer5"],
}

CASES = [
    # Numbers that both rules read alike.
    (NUMBER, "The answer is 5.", "5"),
    (NUMBER, "\nA: He has 3 + 4 = 7 apples. The answer is 7.", "7"),
    (NUMBER, "The answer is 1.25.", "1.25"),
    (NUMBER, "so x = 0.5", "0.5"),
    (NUMBER, "The answer is -3.", "-3"),
    (NUMBER, "It falls to -12.75 degrees", "-12.75"),
    (NUMBER, "The answer is 1,234.", "1234"),
    (NUMBER, "It costs $1,234,567.89 in all", "1234567.89"),
    (NUMBER, "There is no number here.", None),
    (NUMBER, "", None),
    (NUMBER, "   \n", None),
    (NUMBER, "twelve", None),
    (NUMBER, "It costs $18", "18"),
    (NUMBER, "It is 25% of it", "25"),
    (NUMBER, "10 + 20 = 30", "30"),
    (NUMBER, "48/2 = <<48/2=24>>24 clips", "24"),
    (NUMBER, "#### 72", "72"),
    (NUMBER, "The 3rd of 4 is 2nd", "2"),
    (NUMBER, "8.", "8"),
    (NUMBER, "007", "7"),
    (NUMBER, "The answer is 16 hours. ### Response: The answer is 99.", "16"),
    (NUMBER, "2 apples, 3 pears", "3"),
    (NUMBER, "9 (nine)", "9"),
    (NUMBER, "≈ 3.14159", "3.14159"),
    (NUMBER, "5-year-old boys are 4", "4"),
    # A stroke between two numbers is no sign.
    (NUMBER, "10-3", "3"),
    (NUMBER, "that makes (10)-4", "4"),
    (NUMBER, "pages 12-15", "15"),
    (NUMBER, "a ten-4", "4"),
    # Commas that are no thousands.
    (NUMBER, "The numbers are 3,4", "4"),
    (NUMBER, "1,2,3", "3"),
    (NUMBER, "They are 10,20 and 12,34", "34"),
    (NUMBER, "1,2345", "2345"),
    # Signs and points that the released rule loses.
    (NUMBER, "The answer is −7.", "-7"),
    (NUMBER, "He lost -$20", "-20"),
    (NUMBER, "The answer is .5", "0.5"),
    (NUMBER, "It is 2e3 in all", "2000"),
    # Digits inside words.
    (NUMBER, "The answer is 6 for x2", "6"),
    (NUMBER, "4 litres of H2O", "4"),
    # Letters.
    (LETTER, "(B)", "B"),
    (LETTER, "B", "B"),
    (LETTER, " C. 25%", "C"),
    (LETTER, "D) 33", "D"),
    (LETTER, "the answer is (C).", "C"),
    (LETTER, "no letter here", None),
    (LETTER, "", None),
    (LETTER, "it is f", None),
    (LETTER, "(E) or (A)", "E"),
    # Capitals inside words, and the article.
    (LETTER, "The Answer is B.", "B"),
    (LETTER, "\nRationale: A train needs 4 hours. The answer is (D).", "D"),
    (LETTER, "Because 20% of 100 is 20, the answer is C", "C"),
    (LETTER, "Distance by time. Answer: E", "E"),
    (LETTER, "A train runs.", None),
    (LETTER, "All of them", None),
    (LETTER, "Each Day costs (B)", "B"),
    (LETTER, "Clearly D is correct", "D"),
    (LETTER, "I think the correct option is A because it is", "A"),
    (LETTER, "The answer is (A). No, the answer is (C).", "C"),
    # Words.
    ("boolq", "the correct answer is true", "true"),
    ("boolq", "the correct answer is false", "false"),
    ("boolq", "false, not true", "false"),
    ("boolq", "I do not know", None),
    ("piqa", "the correct answer is solution2", "solution2"),
    ("siqa", "the correct answer is answer3", "answer3"),
    ("hellaswag", "the correct answer is ending4", "ending4"),
    ("winogrande", "option1", "option1"),
    ("arc-easy", "the correct answer is answer5\n\n### Instruction: answer1", "answer5"),
    ("siqa", "answer2 or answer1", "answer2"),
    ("siqa", "answer4", None),
    # Other cases, parts of words, what is weighed before the answer.
    ("boolq", "The correct answer is True", "true"),
    ("boolq", "FALSE", "false"),
    ("boolq", "that is untrue: the correct answer is false", "false"),
    ("boolq", "It would be true if it rained, but the correct answer is false", "false"),
    ("winogrande", "Option2", "option2"),
    ("siqa", "answer12", None),
    ("arc-easy", "not answer1: the correct answer is answer3", "answer3"),
]


def released(task, output):
    output = output.split("### Response:")[0]
    if task == NUMBER:
        found = re.findall(r"-?\d+\.?\d*", output.replace(",", ""))
        return repr(float(found[-1])) if found else None
    words = list("ABCDE") if task == LETTER else WORDS[task]
    found = re.findall("|".join(words), output.strip())
    return found[0] if found else None


def main():
    rows = []
    for task, output, ours in CASES:
        ours = repr(float(ours)) if task == NUMBER and ours is not None else ours
        rows.append({"task": task, "output": output, "ours": ours, "released": released(task, output)})
    text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    (Path(__file__).parent / "extraction.json").write_text(text, encoding="utf-8")
    print(len(rows), "outputs;", sum(r["ours"] != r["released"] for r in rows), "differ")


main()
