# Copyright gridbeam contributors. SPDX-License-Identifier: Apache-2.0
"""The name under which Beam's product re-exports beta9."""
import beta9
from beta9 import *  # noqa: F401,F403
from beta9 import __all__  # noqa: F401


def __getattr__(name):
    return getattr(beta9, name)
