"""Which members there are at a place of a shape: what somebody who misspelt one wants to read. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import inspect


def members_at(shape: object, steps: Sequence[str]) -> tuple[str, ...]:
    """Return the names that the object at `steps` below `shape` may have; `*` is any entry. Empty where it has none."""
    found: inspect.Type | None = inspect.type_info(shape)
    for step in steps:
        found = None if found is None else _below(_only(found), step)
    found = None if found is None else _only(found)
    return tuple(field.encode_name for field in found.fields) if isinstance(found, inspect.StructType) else ()


def _only(kind: inspect.Type) -> inspect.Type:
    """Look through metadata and through unions to the one of their kinds that has places below."""
    while True:
        if isinstance(kind, inspect.Metadata):
            kind = kind.type
        elif isinstance(kind, inspect.UnionType):
            deep = [each for each in kind.types if isinstance(_only(each), _DEEP)]
            if len(deep) != 1:
                return kind
            kind = deep[0]
        else:
            return kind


def _below(kind: inspect.Type, step: str) -> inspect.Type | None:
    if isinstance(kind, inspect.StructType):
        return next((field.type for field in kind.fields if field.encode_name == step), None)
    if isinstance(kind, inspect.DictType):
        return kind.value_type
    return kind.item_type if isinstance(kind, inspect.ListType | inspect.VarTupleType) else None


_DEEP = (inspect.StructType, inspect.DictType, inspect.ListType, inspect.VarTupleType)
