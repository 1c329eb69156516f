"""Beam's Python SDK, unchanged, against a bridge: TestBeamsPythonSDK starts this with one word for what to do."""

import sys
import time

from beta9 import function


@function(cpu=1, memory=256)
def square(n):
    print("squaring", n)
    return n * n


@function(retries=3)
def work(n):
    time.sleep(0.1)
    return n * n


@function()
def fails(n):
    values = [1, 2, 3]
    return values[n]


@function()
def echo(text):
    return text[::-1]


@function(retries=3)
def double(n):
    return 2 * n


@function()
def sleeper(n):
    print("begins", flush=True)
    time.sleep(n)


def main(what):
    if what == "remote":
        print("RESULT", square.remote(7))
    elif what == "map":
        print("RESULT", sum(work.map(range(100))) == sum(n * n for n in range(100)))
    elif what == "fails":
        print("RESULT", fails.remote(7))
    elif what == "large":
        text = "0123456789" * 524288  # 5 MiB
        print("RESULT", echo.remote(text) == text[::-1])
    elif what == "many":
        print("RESULT", sorted(double.map(range(600))) == [2 * n for n in range(600)])
    elif what == "sleep":
        sleeper.remote(300)


if __name__ == "__main__":
    main(sys.argv[1])
