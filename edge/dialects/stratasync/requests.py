"""What clients ask over HTTP and in subscribe frames, checked (stratasync.md sections 3 to 5).

A request that breaks the rules becomes one `Invalid` with every problem found, in the words of the
original. Keys nobody declared are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from actors.dialects.stratasync.models import ACTIONS
from actors.dialects.stratasync.reads import Lookup
from infra.errors import ProtocolError

_DIGITS = re.compile(r"[0-9]+")
_WORDS = "|".join(f'"{word}"' for word in ACTIONS)
TRANSACTIONS_MAX: Final = 100
LOOKUPS_MAX: Final = 100
ID_CHARS_MAX: Final = 1000  # clientId, clientTxId, modelId, modelName, batchId
DELTAS_DEFAULT: Final = 1000
DELTAS_MAX: Final = 5000
DETAILS_MAX: Final = 100
DIGITS_MAX: Final = 100
GROUPS_ASKED_MAX: Final = 10_000


class Invalid(ProtocolError):
    """A request that is answered 400. `details` are (field, message); `culprit` the clientTxId of
    the one transaction to drop, so that a client's other transactions are not stuck behind it.
    """

    def __init__(
        self, source: str, details: list[tuple[str, str]], culprit: str | None = None
    ) -> None:
        super().__init__("; ".join(message for _, message in details[:3]))
        self.source = source
        self.details = details[:DETAILS_MAX]
        self.culprit = culprit

    def body(self, request_id: str) -> dict[str, Any]:
        """The answer's JSON."""
        found: dict[str, Any] = {
            "details": [{"field": name, "message": message} for name, message in self.details],
            "error": "Validation failed",
            "requestId": request_id,
            "source": self.source,
        }
        return found if self.culprit is None else {"clientTxId": self.culprit, **found}


class BootstrapAsk(msgspec.Struct, frozen=True):
    """The query of a bootstrap. `only` None: every model."""

    only: tuple[str, ...] | None
    groups: tuple[str, ...]
    schema_hash: str


class DeltasAsk(msgspec.Struct, frozen=True):
    """The query of a page of actions."""

    after: int
    limit: int
    groups: tuple[str, ...]


class Transaction(msgspec.Struct, frozen=True):
    """One write of a batch; `action` is a letter."""

    action: str
    client_id: str
    client_tx_id: str
    model: str
    id: str
    payload: dict[str, Any]


class Subscribe(msgspec.Struct, frozen=True):
    """A valid subscribe frame."""

    token: str
    after: int
    groups: tuple[str, ...]


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _wrong(wanted: str, value: Any, *, absent: bool = False) -> str:
    got = "undefined" if absent else _kind(value)
    return f"Invalid input: expected {wanted}, received {got}"


# -- queries -------------------------------------------------------------------------------------


class _Query:
    """The values of a query; a key that is given twice is an array, as the original has it."""

    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        self._values = values
        self.details: list[tuple[str, str]] = []

    def text(self, name: str) -> str | None:
        given = self._values.get(name, ())
        if len(given) > 1:
            self.details.append((name, "Invalid input: expected string, received array"))
        return given[0] if len(given) == 1 else None

    def digits(self, name: str, message: str) -> int | None:
        given = self.text(name)
        if given is None:
            return None
        if _DIGITS.fullmatch(given) is None:
            self.details.append((name, message))
            return None
        return _number(given)

    def choice(self, name: str, *allowed: str) -> str | None:
        given = self.text(name)
        if given is not None and given not in allowed:
            words = "|".join(f'"{word}"' for word in allowed)
            self.details.append((name, f"Invalid option: expected one of {words}"))
        return given

    def listed(self, name: str) -> tuple[str, ...]:
        return tuple(part for part in (self.text(name) or "").split(",") if part)

    def check(self) -> None:
        if self.details:
            raise Invalid("query", self.details)


def _number(digits: str) -> int:
    """The number, or one beyond every head."""
    return int(digits) if len(digits) <= DIGITS_MAX else 10**DIGITS_MAX


def bootstrap_ask(values: Mapping[str, Sequence[str]]) -> BootstrapAsk:
    """Raises Invalid."""
    query = _Query(values)
    kind = query.choice("type", "full", "partial")
    only = query.text("onlyModels")
    hash_ = query.text("schemaHash")
    first = query.text("firstSyncId")
    if first is not None and _DIGITS.fullmatch(first) is None:
        query.details.append(("firstSyncId", "firstSyncId must be a numeric string"))
    elif first is None and kind == "partial":
        query.details.append(("firstSyncId", "firstSyncId is required for partial bootstrap"))
    groups = query.listed("syncGroups")
    query.choice("noSyncPackets", "true", "false")
    query.check()
    names = None if only is None else tuple(name for name in only.split(",") if name)
    return BootstrapAsk(names, groups, hash_ or "")


def deltas_ask(values: Mapping[str, Sequence[str]]) -> DeltasAsk:
    """Raises Invalid."""
    query = _Query(values)
    after = query.digits("after", "After must be a numeric string")
    limit = query.digits("limit", "Limit must be a numeric string")
    groups = query.listed("syncGroups")
    query.check()
    return DeltasAsk(after or 0, min(limit or DELTAS_DEFAULT, DELTAS_MAX), groups)


# -- bodies --------------------------------------------------------------------------------------


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise Invalid("body", [("root", _wrong("object", body))])
    return body


def lookups_ask(body: Any) -> tuple[Lookup, ...]:
    """The requests of a batch. Raises Invalid."""
    root = _object(body)
    details: list[tuple[str, str]] = []
    first = root.get("firstSyncId")
    if "firstSyncId" in root:
        if not isinstance(first, str):
            details.append(("firstSyncId", _wrong("string", first)))
        elif _DIGITS.fullmatch(first) is None:
            details.append(("firstSyncId", "firstSyncId must be a numeric string"))
    found = _list(root, "requests", "request", LOOKUPS_MAX, details)
    asked = [_lookup(item) for item in found]
    details += [("requests", "Invalid input") for one in asked if one is None]
    if details:
        raise Invalid("body", details)
    return tuple(one for one in asked if one is not None)


def _list(
    root: dict[str, Any], name: str, word: str, most: int, details: list[tuple[str, str]]
) -> list[Any]:
    found = root.get(name)
    if not isinstance(found, list):
        details.append((name, _wrong("array", found, absent=name not in root)))
        return []
    if not found:
        details.append((name, f"At least one {word} is required"))
    if len(found) > most:
        details.append((name, f"At most {most} {word}s are allowed"))
        return []
    return found


def _lookup(item: Any) -> Lookup | None:
    if not isinstance(item, dict):
        return None
    names = ("modelName", "indexedKey", "keyValue", "groupId")
    model, key, value, group = (
        given if isinstance(given := item.get(name), str) and given else None for name in names
    )
    if model is not None and key is not None and value is not None:
        return Lookup(model, key=key, value=value)
    return None if model is None or group is None else Lookup(model, group=group)


_EMPTY = {
    "clientId": "Client ID is required",
    "clientTxId": "Client transaction ID is required",
    "modelId": "Model ID is required",
    "modelName": "Model name is required",
}


def transactions_ask(body: Any) -> list[Transaction]:
    """The transactions of a mutate request, in order. Raises Invalid."""
    root = _object(body)
    details: list[tuple[str, str]] = []
    problem = _string_problem(root, "batchId", "Batch ID is required")
    if problem is not None:
        details.append(("batchId", problem))
    culprit: str | None = None
    asked: list[Transaction] = []
    for item in _list(root, "transactions", "transaction", TRANSACTIONS_MAX, details):
        problems = _transaction_problems(item)
        if problems:
            details += [("transactions", message) for message in problems]
            named = item.get("clientTxId") if isinstance(item, dict) else None
            if culprit is None and isinstance(named, str) and named:
                culprit = named
            continue
        asked.append(
            Transaction(
                ACTIONS[item["action"]], item["clientId"], item["clientTxId"], item["modelName"],
                item["modelId"], item["payload"],
            )
        )  # fmt: skip
    if details:
        raise Invalid("body", details, culprit)
    return asked


def _string_problem(item: dict[str, Any], name: str, empty: str) -> str | None:
    given = item.get(name)
    if not isinstance(given, str):
        return _wrong("string", given, absent=name not in item)
    if not given:
        return empty
    if len(given) > ID_CHARS_MAX:
        return f"{name} has more than {ID_CHARS_MAX} characters"
    return None


def _transaction_problems(item: Any) -> list[str]:
    if not isinstance(item, dict):
        return [_wrong("object", item)]
    found: list[str] = []
    word = item.get("action")
    if not isinstance(word, str) or word not in ACTIONS:
        found.append(f"Invalid option: expected one of {_WORDS}")
    for name, empty in _EMPTY.items():
        problem = _string_problem(item, name, empty)
        if problem is not None:
            found.append(problem)
    payload = item.get("payload")
    if not isinstance(payload, dict):
        found.append(_wrong("record", payload, absent="payload" not in item))
    return found


# -- frames --------------------------------------------------------------------------------------


def subscribe_ask(frame: dict[str, Any]) -> Subscribe | None:
    """The subscribe frame; None where it breaks the rules."""
    token, after = frame.get("token"), frame.get("afterSyncId", "0")
    groups = frame.get("groups", [])
    if not isinstance(token, str) or not isinstance(after, str) or not isinstance(groups, list):
        return None
    if _DIGITS.fullmatch(after) is None or not all(isinstance(group, str) for group in groups):
        return None
    if len(groups) > GROUPS_ASKED_MAX:
        return None
    return Subscribe(token, _number(after), tuple(groups))
