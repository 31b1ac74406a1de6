"""Which messages are undone, and the fold that leaves them out. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from actors.dialects.vuer.message import Message
from actors.dialects.vuer.otypes import apply_ops
from actors.dialects.vuer.scene import Scene


def undone_at_end(messages: Iterable[Message]) -> set[str]:
    """Ids of those undone after the last of the messages: the last word on each counts."""
    undone: set[str] = set()
    for message in messages:
        if message.is_meta:
            for target, gone in message.targets:
                (undone.add if gone else undone.discard)(target)
    return undone


def fold(scene: Scene, messages: Sequence[Message], undone: set[str]) -> None:
    """Apply the messages in order, those of `undone` as undone."""
    for message in messages:
        apply_ops(scene, message, undone=message.id in undone)
