"""K-nearest neighbours on handwritten digits, in plain Python, spread over nodes.

The data is a volume: gridbeam volume import digits examples/sweep/data
Each call classifies one shard of the test rows against all training rows and returns how many it got right.
"""

import csv
import gzip

from beam import Volume, function

DATA = "./digits/digits.csv.gz"
SHARDS = 16
NEIGHBOURS = 3


def rows():
    """All rows as (pixels, digit): 64 values of 0 to 16 and the digit."""
    with gzip.open(DATA, "rt", newline="") as f:
        return [([int(v) for v in row[:-1]], int(row[-1])) for row in csv.reader(f)]


@function(cpu=1, memory=512, volumes=[Volume(name="digits", mount_path="./digits")])
def classify(shard):
    """Takes each fifth row for testing, of those every SHARDS-th from shard on; all others are there to learn from."""
    everything = rows()
    train = [r for i, r in enumerate(everything) if i % 5 != 0]
    test = [r for i, r in enumerate(everything) if i % 5 == 0][shard::SHARDS]
    correct = 0
    for pixels, digit in test:
        near = sorted((sum((a - b) ** 2 for a, b in zip(pixels, other)), label) for other, label in train)[:NEIGHBOURS]
        votes = [label for _, label in near]
        correct += max(votes, key=lambda v: (votes.count(v), -votes.index(v))) == digit
    print("shard %d: %d of %d" % (shard, correct, len(test)))
    return [correct, len(test)]


if __name__ == "__main__":
    results = [r for r in classify.map(range(SHARDS)) if r is not None]
    correct, total = sum(r[0] for r in results), sum(r[1] for r in results)
    print("%d of %d right: %.2f %%" % (correct, total, 100 * correct / total))
