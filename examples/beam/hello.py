"""An ordinary Beam script: it runs on gridbeam because BETA9_GATEWAY_HOST, _PORT and _TOKEN name a gridbeam bridge."""

import platform

from beam import function


@function(cpu=1, memory=256)
def square(n):
    print("squaring", n, "on", platform.node())
    return n * n


if __name__ == "__main__":
    print("one:", square.remote(7))
    print("many:", sum(square.map(range(100))))  # results come as they are ready; the sum does not care
