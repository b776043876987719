"""Read the schema of a configuration: names of settings and descriptions of their values."""

from collections.abc import Iterator
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ehrr1.config.types import Function, Instance, Place


@cache
def keys(config: type[BaseModel]) -> tuple[str, ...]:
    """Return the full name of every setting, of all choices."""
    return tuple(dict.fromkeys(name for name, _ in _walk(config, "")))


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        models = [one for one in _members(field.annotation) if _is_model(one)]
        if not models:
            yield prefix + name, field
        for one in models:
            yield from _walk(one, f"{prefix}{name}.")


def fields(config: type[BaseModel], key: str) -> list[FieldInfo]:
    """Return the fields of a setting, one for each choice that has it."""
    found: list[FieldInfo] = []
    models: list[Any] = [config]
    for part in key.split("."):
        found = [m.model_fields[part] for m in models if part in m.model_fields]
        models = [one for f in found for one in _members(f.annotation) if _is_model(one)]
    return found


def describe_values(field: FieldInfo) -> str | None:
    """Describe the values of a setting that is a mapping; returns None for other settings."""
    kind = get_args(field.annotation)
    return _describe(kind[1], []) if get_origin(field.annotation) is dict else None


def owners(config: type[BaseModel], key: str) -> list[str]:
    """Return the choices of a group that have a setting: `engine=server` for `engine.url`."""
    section, _, name = key.partition(".")
    field = config.model_fields.get(section)
    if field is None or field.discriminator is None:
        return []
    tag = str(field.discriminator)
    models = [one for one in _members(field.annotation) if name in one.model_fields]
    return [f"{section}={get_args(one.model_fields[tag].annotation)[0]}" for one in models]


def describe(field: FieldInfo) -> str:
    """Describe the valid values of a setting: `a whole number >= 1 or null`."""
    return _describe(field.annotation, list(field.metadata))


def _describe(kind: Any, metadata: list[Any]) -> str:
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        return _describe(inner, [*metadata, *more])
    if get_origin(kind) in (Union, UnionType):
        words = [_describe(one, metadata) for one in get_args(kind) if one is not NoneType]
        null = NoneType in get_args(kind)
        return " or ".join([*dict.fromkeys(words), *(["null"] if null else [])])
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is list:
        sizes = [one.min_length for one in _flat(metadata) if isinstance(one, MinLen)]
        of = _describe(get_args(kind)[0], [])
        return f"a list of {sizes[0] if sizes else 'values'}: [{of}, ...]"
    if Instance() in metadata:
        return "a class with its arguments: {_target_: module.Class, ARGUMENT: VALUE}"
    if Function() in metadata:
        return "a function of yours: module.function"
    if get_origin(kind) is dict:
        return "settings by name: {NAME: VALUE}"
    if kind is bool:
        return "true or false"
    if kind is int or kind is float:
        return f"a {'whole ' * (kind is int)}number{_bounds(metadata)}"
    if kind is str:
        filled = any(isinstance(one, MinLen) for one in _flat(metadata))
        what = "a file or a folder" if Place() in metadata else "a text"
        return what + " that is not empty" * (filled and what == "a text")
    return "a section of settings" if _is_model(kind) else "another value"


def _bounds(metadata: list[Any]) -> str:
    words = []
    for one in _flat(metadata):
        if isinstance(one, Ge):
            words.append(f">= {one.ge}")
        if isinstance(one, Gt):
            words.append(f"> {one.gt}")
        if isinstance(one, Le):
            words.append(f"<= {one.le}")
        if isinstance(one, Lt):
            words.append(f"< {one.lt}")
    return f" {' and '.join(words)}" if words else ""


def _flat(metadata: list[Any]) -> list[Any]:
    """Return the constraints, including those inside pydantic's own Field(...)."""
    return [m for one in metadata for m in (one.metadata if isinstance(one, FieldInfo) else [one])]


def _members(kind: Any) -> list[Any]:
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [one for part in get_args(kind) for one in _members(part)]
    return [kind]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


@cache
def places(config: type[BaseModel]) -> frozenset[str]:
    """Return the settings that are a file or a folder, or a list of them."""
    return frozenset(
        name for name, field in _walk(config, "") if _is_place(field.annotation, field.metadata)
    )


def _is_place(kind: Any, metadata: list[Any]) -> bool:
    inner: list[tuple[Any, list[Any]]] = [
        (one, []) for one in get_args(kind) if get_origin(kind) is not Annotated
    ]
    if get_origin(kind) is Annotated:
        inner = [(get_args(kind)[0], list(get_args(kind)[1:]))]
    return any(isinstance(one, Place) for one in metadata) or any(
        _is_place(one, more) for one, more in inner if one is not NoneType
    )
