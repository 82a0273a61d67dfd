"""Options of a command line, declared once as fields of dataclasses: names, types, defaults and what they mean."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch

Options = TypeVar("Options")


def option(default: Any, text: str, **more: Any) -> Any:
    """A field with its default, its line of ``--help``, and what else ``add_argument`` gets (``choices``, say)."""
    return field(default=default, metadata={"help": text, **more})


def device_option() -> Any:
    """The field ``device``: the GPU where there is one."""
    return option("cuda" if torch.cuda.is_available() else "cpu", "where to compute")


@dataclass(frozen=True)
class DataOptions:
    """Images."""

    data: str | None = option(None, "folder, cifar10, imagenette, or shards; nothing: images drawn here")
    val_data: str | None = option(None, "validation shards, where --data names training shards")
    image_size: int = option(224, "side of the images in pixels")
    batch_size: int = option(8, "images in a batch of one device")
    workers: int = option(0, "processes that load images")


@dataclass(frozen=True)
class ModelOptions:
    """The classifier."""

    model: str | None = option(None, "name in timm or torchvision, or package.module:function")
    model_options: tuple[str, ...] = option((), "for the constructor", metavar="NAME=VALUE")
    weights: Path | None = option(None, "safetensors file or checkpoint; pickled code is not executed")
    pretrained: bool = option(False, "download the library's weights")
    layer: str | None = option(None, "dotted name of the explained layer; default: the last spatial one")
    mean: tuple[float, float, float] | None = option(None, "mean of the channels; default: the model's")
    std: tuple[float, float, float] | None = option(None, "standard deviation of the channels; default: the model's")


@dataclass(frozen=True)
class RunOptions:
    """The run."""

    run: Path = option(Path("runs/trial"), "folder of the results")
    resume: bool = option(False, "go on with the run in that folder")
    seed: int = option(0, "of whatever is drawn")
    fast_dev_run: bool = option(False, "two small batches of everything, to try the script")
    numbers: Path | None = option(None, "file for what the tables say, as recipes/results keeps it for the texts")


def require_both(data: DataOptions, model: ModelOptions, *, layer: bool = False, others: Sequence[Any] = ()) -> None:
    """Refuse photographs without a classifier, and options of either without photographs."""
    if data.data is not None and not (model.model and (model.layer or not layer)):
        raise ValueError(f"--data expected --model{' and --layer' if layer else ''} beside it.")
    if data.data is None and any((model.model, model.weights, model.pretrained, *others)):
        raise ValueError("Options of a classifier or of photographs expected --data beside them.")


def add_options(parser: argparse.ArgumentParser, *groups: Any) -> None:
    """Add the fields of dataclasses, nested ones too, to a parser: of an instance, its values are the defaults.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_options(parser, DataOptions(image_size=64))
        >>> built(DataOptions, parser.parse_args(["--data", "DIR"])).image_size
        64
    """
    for group in groups:
        kind = group if isinstance(group, type) else type(group)
        hints, shown = get_type_hints(kind), parser.add_argument_group(str(kind.__doc__).splitlines()[0].rstrip("."))
        for one in fields(kind):
            value = one.default if group is kind else getattr(group, one.name)
            if is_dataclass(value):
                add_options(parser, value)
                continue
            told = {"flag": f"--{one.name.replace('_', '-')}", **_argument(hints[one.name], value), **one.metadata}
            shown.add_argument(told.pop("flag"), dest=one.name, default=value, **told)


def _argument(hint: Any, default: Any) -> dict[str, Any]:
    """What ``add_argument`` makes of a type: a switch, one of some words, several values, or one."""
    known = [one for one in get_args(hint) if one is not NoneType] if NoneType in get_args(hint) else [hint]
    kind = known[0]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction if default else "store_true"}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if get_origin(kind) is tuple:
        values = get_args(kind)
        return {"type": values[0], "nargs": "*" if values[-1] is Ellipsis else len(values)}
    return {"type": kind}


def built(kind: type[Options], args: argparse.Namespace) -> Options:
    """The options of a dataclass, and of those nested in it, from a parsed command line."""
    hints = get_type_hints(kind)
    values = {
        one.name: built(hints[one.name], args) if is_dataclass(hints[one.name]) else _plain(getattr(args, one.name))
        for one in fields(kind)  # type: ignore[arg-type]
    }
    return kind(**values)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def parser_of(kind: Any, text: str | None) -> argparse.ArgumentParser:
    """A parser of the fields of a dataclass; the text is what ``--help`` begins with."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, kind)
    return parser


def parsed(
    kind: type[Options],
    text: str | None,
    argv: Sequence[str] | None = None,
    usual: Callable[[argparse.Namespace], dict[str, Any]] = lambda known: {},
) -> Options:
    """Read a command line whose options are the fields of a dataclass; what it refuses ends with one line.

    Args:
        kind: The dataclass; its ``ValueError`` is told as argparse tells a wrong option.
        text: What ``--help`` begins with.
        argv: The words; None for those of the process.
        usual: From what is said there to other defaults, of a preset say.
    """
    parser = parser_of(kind, text)
    parser.set_defaults(**usual(parser.parse_known_args(argv)[0]))
    args = parser.parse_args(argv)
    try:
        return built(kind, args)
    except ValueError as error:
        parser.error(str(error))


def settings_of(options: Any) -> dict[str, Any]:
    """All options by name, without the groups they are in, in a form that JSON takes.

    Example:
        >>> settings_of(RunOptions(seed=3))
        {'run': 'runs/trial', 'resume': False, 'seed': 3, 'fast_dev_run': False, 'numbers': None}
    """
    named = options if isinstance(options, dict) else {one.name: getattr(options, one.name) for one in fields(options)}
    found: dict[str, Any] = {}
    for name, value in named.items():
        if is_dataclass(value):
            found |= settings_of(value)
        else:
            found[name] = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    return found


def adapted(options: Options, **changes: Any) -> Options:
    """The options with some replaced, wherever in nested groups they are.

    Example:
        >>> @dataclass(frozen=True)
        ... class Settings:
        ...     data: DataOptions = DataOptions()
        >>> adapted(Settings(), batch_size=2).data.batch_size
        2
    """
    values = {one.name: getattr(options, one.name) for one in fields(options)}  # type: ignore[arg-type]
    own = {name: value for name, value in changes.items() if name in values}
    inner = {name: adapted(value, **changes) for name, value in values.items() if is_dataclass(value)}
    return dataclasses.replace(options, **inner, **own)  # type: ignore[type-var]
