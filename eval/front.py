"""The front of a sweep from its points.csv alone, with nothing of mote-quant: a check on the report.

    python eval/front.py DIR/points.csv --size stored_bytes --score accuracy

Prints the contenders that no other beats, smallest first. `--lower` where less of the score is better.
"""

import argparse
import csv
from collections import defaultdict
from statistics import fmean

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("points")
parser.add_argument("--size", default="stored_bytes")
parser.add_argument("--score", default="accuracy")
parser.add_argument("--lower", action="store_true", help="less of the score is better")
arguments = parser.parse_args()

sizes, scores = {}, defaultdict(list)
with open(arguments.points, newline="") as file:
    for row in csv.DictReader(file):
        if row[arguments.score] not in ("", "nan", "inf", "-inf"):
            sizes[row["contender"]] = float(row[arguments.size])
            scores[row["contender"]].append(float(row[arguments.score]) * (-1 if arguments.lower else 1))
means = {name: fmean(values) for name, values in scores.items()}


def beats(one: str, other: str) -> bool:
    """Whether `one` is no larger and no worse, and better in one of the two."""
    no_worse = sizes[one] <= sizes[other] and means[one] >= means[other]
    return no_worse and (sizes[one] < sizes[other] or means[one] > means[other])


for name in sorted(means, key=sizes.get):
    if not any(beats(other, name) for other in means):
        print(name)
