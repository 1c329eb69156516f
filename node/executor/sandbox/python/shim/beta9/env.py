# Copyright gridbeam contributors. SPDX-License-Identifier: Apache-2.0
"""Where the code runs, as Beam's package says it: on a node it is always remote."""
import os


def is_local():
    return False


def is_remote():
    return True


def called_on_import():
    return os.environ.get("BETA9_IMPORTING_USER_CODE") == "true"


def is_notebook_env():
    return False


def local_entrypoint(func):
    """Decorates what runs at home only, at once: here nothing runs."""


def try_env(env, default):
    """The variable BETA9_<env> in the type of default, or default."""
    text = os.environ.get("BETA9_" + env.upper(), "")
    if isinstance(default, bool):
        return text.lower() in ("true", "1", "yes", "on")
    try:
        return type(default)(text) or default
    except (TypeError, ValueError):
        return default
