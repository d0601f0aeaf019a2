"""What is public belongs to `wspool`, in whatever file it is defined."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def exported(kind: type[T]) -> type[T]:
    """Name `wspool` as the module of a class: in its repr, in pickles and for documentation."""
    kind.__module__ = "wspool"
    return kind
