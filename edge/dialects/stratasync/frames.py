"""Sync actions, socket frames and error bodies as JSON text (stratasync.md sections 3, 4, 8).
Pure.

Ids are strings of digits everywhere; clients throw on numbers. Bodies of entries are spliced in as
they are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from actors.types import Entry

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
BOOTSTRAP_REQUIRED: Final = "BOOTSTRAP_REQUIRED"
_encode = msgspec.json.encode


def text(value: Any) -> str:
    """The value as JSON."""
    return _encode(value).decode()


def iso(at_ms: int) -> str:
    """ISO 8601, UTC, with milliseconds."""
    moment = _EPOCH + timedelta(milliseconds=at_ms)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"


def cause_of(client_id: str, client_tx_id: str) -> str:
    """The dedupe id of a client's transaction: reversible, whatever the two contain."""
    return client_id.replace("~", "~0").replace("/", "~1") + "/" + client_tx_id


def parts_of(cause: str) -> tuple[str, str]:
    """(clientId, clientTxId) of a dedupe id."""
    client, _, transaction = cause.partition("/")
    return client.replace("~1", "/").replace("~0", "~"), transaction


def action(entry: Entry) -> str:
    """One sync action as clients read it."""
    model, _, id = (entry.ref or "").partition(":")
    author = ""
    # Entries of the server's own have a cause, too, but no client that waits for it.
    if entry.cause is not None and entry.origin is not None:
        client, transaction = parts_of(entry.cause)
        author = f'"clientId":{text(client)},"clientTxId":{text(transaction)},'
    group = "" if entry.grp is None else f'"groupId":{text(entry.grp)},'
    return (
        f'{{"action":"{entry.kind}",{author}"createdAt":"{iso(entry.at)}","data":{entry.body},'
        f'{group}"modelId":{text(id)},"modelName":{text(model)},"syncId":"{entry.seq}"}}'
    )


def delta(entry: Entry) -> str:
    """The frame of one action; never more than one (a client defect, stratasync.md C1)."""
    packet = f'{{"actions":[{action(entry)}],"lastSyncId":"{entry.seq}"}}'
    return f'{{"packet":{packet},"type":"delta"}}'


def page(entries: Iterable[Entry], *, more: bool, last: int) -> str:
    """The answer of `GET deltas`."""
    actions = ",".join([action(entry) for entry in entries])
    return f'{{"actions":[{actions}],"hasMore":{text(more)},"lastSyncId":"{last}"}}'


def subscribed(cursor: int, groups: Sequence[str]) -> str:
    """Replay is over and the socket is live."""
    return f'{{"afterSyncId":"{cursor}","groups":{text(list(groups))},"type":"subscribed"}}'


def error(message: str, code: str | None = None) -> str:
    """An error frame: clients subscribe anew, or bootstrap where the code says so."""
    coded = "" if code is None else f'"code":{text(code)},'
    return f'{{{coded}"message":{text(message)},"type":"error"}}'
