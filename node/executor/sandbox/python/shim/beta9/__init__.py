# Copyright gridbeam contributors. SPDX-License-Identifier: Apache-2.0
"""What stands for Beam's package inside a gridbeam node.

User code that was decorated for Beam runs here as it is: a decorated function is called inline, what describes images,
volumes, pools or scaling is inert, and what needs a service of the bridge can be made at import but raises
NotAvailable when it is used. Any other name of the package or below it can be imported and behaves like the latter.
"""
import enum
import importlib.abc
import importlib.machinery
import os
import sys


class NotAvailable(RuntimeError):
    """Something that needs the bridge was used on a node."""


def _refuse(name):
    raise NotAvailable("beta9.%s is not available on a node" % name)


# ---- functions ----


class _Stub:
    """A user's function as a decorator leaves it: calls run inline, in this process."""

    _gridbeam_stub = True

    def __init__(self, func, parent):
        self.func = func
        self.parent = parent
        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            try:
                setattr(self, name, getattr(func, name))
            except AttributeError:
                pass

    def __call__(self, *args, **kwargs):
        if _importing():  # a call at the top of the user's file: the program at home makes it, not its copy here
            return None
        return self.func(*args, **kwargs)

    remote = __call__

    def local(self, *args, **kwargs):
        return self.func(*args, **kwargs)

    async def async_remote(self, *args, **kwargs):
        value = self(*args, **kwargs)
        return await value if hasattr(value, "__await__") else value

    def map(self, inputs):
        """Yields the results in the order of the inputs; a list or tuple holds the arguments of one call."""
        if _importing():
            return
        for args in inputs:
            yield self.func(*(args if isinstance(args, (list, tuple)) else (args,)))

    def put(self, *args, **kwargs):
        return None if _importing() else _refuse("%s.put" % self._name())

    def deploy(self, *args, **kwargs):
        return ({}, False) if _importing() else _refuse("%s.deploy" % self._name())

    def serve(self, *args, **kwargs):
        return None if _importing() else _refuse("%s.serve" % self._name())

    def shell(self, *args, **kwargs):
        return None if _importing() else _refuse("%s.shell" % self._name())

    def _name(self):
        return getattr(self, "__name__", "function")


def _importing():
    return os.environ.get("BETA9_IMPORTING_USER_CODE") == "true"


class _Inert:
    """A description: keeps what it was given as attributes, and does nothing."""

    def __init__(self, *args, **kwargs):
        self.args = args
        self.__dict__.update(kwargs)


class _Decorator(_Inert):
    def __call__(self, func):
        return _Stub(func, self)


class function(_Decorator):
    pass


class schedule(_Decorator):
    pass


class task_queue(_Decorator):
    pass


class endpoint(_Decorator):
    pass


class asgi(_Decorator):
    pass


class realtime(_Decorator):
    pass


# ---- descriptions ----


class Image(_Inert):
    """An image: each of its methods returns it."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self

    @classmethod
    def from_registry(cls, *args, **kwargs):
        return cls()

    from_dockerfile = from_id = from_registry


class Volume(_Inert):
    def __init__(self, name="", mount_path="", **kwargs):
        super().__init__(name=name, mount_path=mount_path, **kwargs)

    def get_or_create(self):
        return True


class CloudBucket(Volume):
    def __init__(self, name="", mount_path="", config=None, **kwargs):
        super().__init__(name, mount_path, config=config, **kwargs)


class CloudBucketConfig(_Inert):
    pass


class Pool(_Inert):
    pass


class TaskPolicy(_Inert):
    pass


class Autoscaler(_Inert):
    pass


class QueueDepthAutoscaler(Autoscaler):
    pass


class LLMTokenPressureAutoscaler(Autoscaler):
    pass


class LLMConfig(_Inert):
    pass


class DatabaseServingConfig(_Inert):
    pass


class ServingConfig(_Inert):
    pass


class DurableDisk(_Inert):
    pass


class PricingPolicy(_Inert):
    pass


def _strings(name, values):
    """A str enum as Beam has it: the member's name is the value with what no name may hold replaced."""
    return enum.Enum(name, values, type=str, module=__name__)


_GPUS = (
    "T4 L4 L40 L40S A10 A10G A16 A30 A40 A100 A100-40 A100-80 A4000 A5000 A6000 H100 H200 GH200 B200 B300 GAUDI2 "
    "RTX4000Ada RTX4090 RTX5090 RTX6000 RTX6000Ada RTXPro6000 V100 V100-32"
).split()

GpuType = _strings("GpuType", [("NoGPU", ""), ("Any", "any")] + [(g.replace("-", "_"), g) for g in _GPUS])
PythonVersion = _strings(
    "PythonVersion", [("Python3", "python3")] + [("Python3%d" % m, "python3.%d" % m) for m in range(8, 14)]
)
PricingPolicyCostModel = _strings("PricingPolicyCostModel", [("Task", "task"), ("Duration", "duration")])


# ---- the rest ----


class _Away(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        _refuse("%s.%s" % (cls.__name__, name))


class _Unavailable(metaclass=_Away):
    """Something of the bridge's: it can be made and subclassed, and raises when it is used."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        _refuse("%s.%s" % (self.__class__.__name__, name))

    def _use(self, *args, **kwargs):
        _refuse(self.__class__.__name__)

    __call__ = __getitem__ = __setitem__ = __delitem__ = __len__ = __iter__ = __contains__ = __enter__ = _use


_REFUSED = (
    "Map Queue Output Container experimental integrations Bot BotLocation BotEventType BotContext Pod Service Client Task "
    "Deployment schema Sandbox SandboxInstance SandboxProcess SandboxProcessStream SandboxProcessManager "
    "SandboxProcessResponse SandboxConnectionError SandboxProcessError SandboxFileSystemError SandboxFilePosition "
    "SandboxFileSearchRange SandboxFileSearchMatch SandboxFileInfo SandboxFileSystem SandboxFileSearchResult"
).split()

_MODULES = ("env", "experimental", "integrations", "schema", "type", "abstractions")

__all__ = [
    "function", "schedule", "task_queue", "endpoint", "asgi", "realtime", "env", "Image", "Volume", "CloudBucket",
    "CloudBucketConfig", "Pool", "TaskPolicy", "QueueDepthAutoscaler", "LLMTokenPressureAutoscaler", "LLMConfig",
    "DatabaseServingConfig", "ServingConfig", "DurableDisk", "PricingPolicy", "PricingPolicyCostModel", "GpuType",
    "PythonVersion", *_REFUSED,
]


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    if name in _MODULES:
        return importlib.import_module("beta9." + name)
    bases = (_Unavailable, Exception) if name.endswith("Error") else (_Unavailable,)
    value = _Away(name, bases, {"__module__": "beta9"})
    globals()[name] = value
    return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes each module below beta9 and beam importable: its names are the package's."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.startswith(("beta9.", "beam.")) and fullname != "beta9.env":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        me = sys.modules["beta9"]
        if module.__name__ == "beam.env":
            from beta9 import env

            me = env
        module.__getattr__ = lambda name: getattr(me, name)


sys.meta_path.insert(0, _Finder())
