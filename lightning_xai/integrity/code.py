"""What a model runs, by its bytes: the code of its modules, of its hooks, and of what they call."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

_FAMILIAR = {"torch", "torchvision", "timm", "numpy", "lightning", "pytorch_lightning", *sys.stdlib_module_names}
"""Packages whose code changes with every release; they are named, not read."""
_OF_MODULE = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_OF_TENSOR = ("_backward_hooks", "_post_accumulate_grad_hooks")


def hooks_of(model: nn.Module) -> list[tuple[str, Any]]:
    """Hooks on a model's modules and parameters, and those that run with every module of the process.

    Each with where it is, in words. Hooks that watch a pass of ours are not there outside of it.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1))
        >>> _ = model[0].register_forward_hook(print)
        >>> hooks_of(model)
        [("forward hook of '0'", <built-in function print>)]
    """
    places: list[tuple[str, Any]] = [
        (f"{kind.strip('_').replace('_', ' ').removesuffix('s')} of {name!r}", getattr(module, kind))
        for name, module in model.named_modules()
        for kind in _OF_MODULE
    ]
    places += [
        (f"hook of the parameter {name!r}", getattr(parameter, kind, None))
        for name, parameter in model.named_parameters()
        for kind in _OF_TENSOR
    ]
    places += [(f"{kind[1:].replace('_', ' ').removesuffix('s')}", getattr(of_all_modules, kind)) for kind in _GLOBAL]
    return [(place, hook) for place, hooks in places for hook in (hooks or {}).values() if not _is_ours(hook)]


_GLOBAL = tuple(f"_global{kind}" for kind in _OF_MODULE)


def code_of_modules(model: nn.Module) -> Iterator[bytes]:
    """The code of every method of a model's classes, and of functions that stand on its modules themselves.

    All methods: a ``forward`` calls others, and ``__call__`` comes before it. torch's own classes are named in the tree
    of modules; where one of their methods was replaced, by a function of another package, it is read, and one that was
    added if code of the model names it: other packages add some of their own to every module.

    Yields:
        Bytes, in an order of their own; equal for equal code.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> list(code_of_modules(layer))
        []
        >>> layer.forward = lambda x: x
        >>> next(code_of_modules(layer))
        b'.forward'
    """
    seen: set[int] = set()
    named = _called(model)
    for name, module in model.named_modules():
        for kind in type(module).__mro__:
            for attribute, value in sorted(vars(kind).items()):
                if not _is_familiar(kind) or (attribute in named and not _is_familiar(_function(value))):
                    yield from _read(attribute, value, seen)
        for attribute, value in sorted(vars(module).items()):
            if callable(value) and not isinstance(value, (nn.Module, type, Tensor)) and not _is_ours(value):
                yield from _read(f"{name}.{attribute}", value, seen)


def _called(model: nn.Module) -> set[str]:
    """Names of methods that Python calls of itself, and those that other code of a model's classes or modules names."""
    owners = {id(one): vars(one) for module in model.modules() for one in (module, *type(module).__mro__)}
    methods = [(name, _function(value)) for owned in owners.values() for name, value in owned.items()]
    codes = [(name, one.__code__) for name, one in methods if isinstance(one, FunctionType)]
    special = {name for name, _ in methods if name.startswith("__")}
    return special.union(*(set(_names(code)) - {name} for name, code in codes))


def code_of_hooks(model: nn.Module) -> Iterator[bytes]:
    """Where the hooks of a model are, and what they do.

    Yields:
        Bytes; none where there is no hook.

    Example:
        >>> list(code_of_hooks(nn.Linear(1, 1)))
        []
    """
    for place, hook in hooks_of(model):
        yield from _read(place, hook, set())


def autograd_functions(nodes: Iterable[Any]) -> tuple[str, ...]:
    """Functions of a pass whose backward somebody wrote in Python, each with a hash of its code, sorted.

    A backward that is not that of the forward moves maps and no logit.

    Example:
        >>> autograd_functions([torch.ones(1, requires_grad=True).exp().grad_fn])
        ()
    """
    written = {type(node)._forward_cls for node in nodes if hasattr(type(node), "_forward_cls")}
    kinds = {kind for kind in written if not _is_familiar(kind)}
    return tuple(
        sorted(f"{kind.__qualname__} {hashlib.sha256(b''.join(_class(kind))).hexdigest()[:16]}" for kind in kinds)
    )


def _class(kind: type) -> Iterator[bytes]:
    for attribute, value in sorted(vars(kind).items()):
        yield from _read(attribute, value, set())


def _function(value: Any) -> Any:
    """What a method is made of: behind static and class methods, properties, partial functions and callable objects."""
    if isinstance(value, (staticmethod, classmethod, MethodType)):
        return _function(value.__func__)
    if isinstance(value, property):
        return _function(value.fget)
    if isinstance(value, functools.partial):
        return _function(value.func)
    if callable(value) and not isinstance(value, (FunctionType, type)):
        called = vars(type(value)).get("__call__")
        return called if isinstance(called, FunctionType) else value
    return value


def _is_familiar(value: Any) -> bool:
    package = (getattr(value, "__module__", None) or "builtins").partition(".")[0]
    code = getattr(value, "__code__", None)
    return package in _FAMILIAR and (code is None or _is_of(code, package))


def _is_of(code: CodeType, package: str) -> bool:
    """Whether code lies where its package does: a name can be put on anything."""
    home = getattr(sys.modules.get(package), "__file__", None)
    return home is None or code.co_filename.startswith(home.rpartition("/")[0])


def _is_ours(value: Any) -> bool:
    """Whether it is a trace that is listening just now."""
    packages = {getattr(one, "__module__", None) or "" for one in (type(value), _function(value))}
    code = getattr(_function(value), "__code__", None)
    ours = any(package.startswith("lightning_xai.") for package in packages)
    return ours and (code is None or _is_of(code, "lightning_xai"))


def _read(name: str, value: Any, seen: set[int]) -> Iterator[bytes]:
    """The code of a function, of the functions it names, and what it encloses."""
    function = _function(value)
    code = getattr(function, "__code__", None)
    if code is None or _is_familiar(function):
        if callable(value):
            yield f"{name} {getattr(value, '__module__', '')} {getattr(value, '__qualname__', type(value))}".encode()
        return
    yield name.encode()
    if id(code) in seen:
        return
    seen.add(id(code))
    yield from _bytes(code)
    for bound in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *_cells(function)):
        yield from _value(bound, seen)
    if isinstance(value, functools.partial):
        for bound in (*value.args, *value.keywords.values()):
            yield from _value(bound, seen)
    for named in sorted(set(_names(code))):
        known = function.__globals__.get(named)
        if isinstance(known, FunctionType) and not _is_familiar(known):
            yield from _read(named, known, seen)


def _bytes(code: CodeType) -> Iterator[bytes]:
    yield code.co_code
    yield " ".join((*code.co_names, *code.co_varnames, *code.co_freevars)).encode()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _bytes(constant)
        elif constant is not code.co_consts[0] or not isinstance(constant, str):  # not the docstring
            yield repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant).encode()


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _cells(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue


def _value(value: Any, seen: set[int]) -> Iterator[bytes]:
    """A default or an enclosed value: functions by their code, tensors and plain values by what they hold."""
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        yield repr(value).encode()
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _value(one, seen)
    elif callable(value) and not isinstance(value, (type, nn.Module, ModuleType)) and not inspect.isbuiltin(value):
        yield from _read("", value, seen)
