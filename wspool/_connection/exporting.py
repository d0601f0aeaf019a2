"""What is public belongs to `wspool`, in whatever file it is defined."""

from __future__ import annotations

from inspect import get_annotations
from typing import TypeVar, get_type_hints

T = TypeVar("T")


def exported(kind: type[T]) -> type[T]:
    """Name `wspool` as the module of a class: in its repr, in pickles and for documentation.

    Its attributes' types are looked up here and now, since names of its own file are not to be
    found in that module.
    """
    if own := get_annotations(kind):
        hints = get_type_hints(kind)
        kind.__annotations__ = {name: hints[name] for name in own}
    kind.__module__ = "wspool"
    return kind
