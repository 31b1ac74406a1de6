"""Starkeep's plan: what an exchange, a declaration or an upload changes in a space. Pure.

One request is one draft, so one transaction. Of every author items are taken in ascending stamps;
the first that cannot be applied halts the author for this request and is parked with what follows.
An entry holds the whole new state of one thing, so folding is setting it (fold.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from actors.clocks import HLC
from actors.dialects.starkeep.blobs import BlobChange, changed
from actors.dialects.starkeep.channels import (
    BLOBS,
    CHANNELS,
    META,
    NAMESPACES,
    PARKED,
    RECORDS,
    Channel,
    channel_of,
    rows_of,
)
from actors.dialects.starkeep.fold import covered_up_to, fold, value_of
from actors.dialects.starkeep.merge import RowState, key_of, merge_row, wins
from actors.dialects.starkeep.namespaces import Namespace, extend, row_id
from actors.dialects.starkeep.parking import AUTHORS_MAX, Item, Parked, name_of, stamp_of
from actors.dialects.starkeep.watermarks import by_author
from actors.dialects.starkeep.wire import Exchange, Record, RowEntry, decode_exchange, encode
from actors.rows import Key, Overlay, Row
from actors.types import Draft, Entry, Refusal

INDEX = "CREATE INDEX rows_stamp ON rows(coll, origin, stamp1, stamp2) WHERE stamp1 IS NOT NULL"
_KEPT = ""  # the row of PARKED that lists the others


class Space(msgspec.Struct):
    """What a draft of this dialect asks, decoded: one of the four."""

    channel: Channel | None = None
    exchange: Exchange | None = None
    declare: Namespace | None = None
    withdraw: str | None = None  # an app id
    blobs: list[BlobChange] | None = None


class StarkeepDialect:
    """See actors/dialects/__init__.py for the contract."""

    name = "starkeep"
    whole_entries = True
    needs_rows = True
    contents = BLOBS

    @property
    def schema(self) -> Any:
        """The index that unseen items are found by."""
        return lambda found: [] if "rows_stamp" in found else [INDEX]

    def plan(self, draft: Draft, seq: int, at: int, rows: Overlay) -> Sequence[Entry]:
        """The entries the draft becomes, none for one that changes nothing. Raises Refusal."""
        asked: Space = decode_draft(draft) if draft.data is None else draft.data
        plan = _Plan(rows, seq, at)
        if asked.exchange is not None and asked.channel is not None:
            plan.exchange(asked.channel, asked.exchange)
        elif asked.declare is not None:
            plan.declare(asked.declare)
        elif asked.withdraw is not None:
            plan.withdraw(asked.withdraw)
        for change in asked.blobs or ():
            plan.blob(change)
        return plan.entries

    def renumber(self, body: str, seq: int) -> str:
        """Bodies of this dialect hold no seq."""
        return body

    def apply(self, overlay: Overlay, entry: Entry, only: frozenset[Key] | None = None) -> None:
        """Set what the entry says."""
        fold(overlay, entry, only)


# -- drafts ----------------------------------------------------------------------------------------


def exchange_draft(channel: Channel, exchange: Exchange, body: str) -> Draft:
    """The draft of a request; `body` is its text."""
    text = f"{channel}\n{body}"
    return Draft("", "exchange", text, len(text), Space(channel, exchange))


def declare_draft(namespace: Namespace) -> Draft:
    """The draft of a declaration."""
    text = encode(namespace).decode()
    return Draft("", "declare", text, len(text), Space(declare=namespace))


def withdraw_draft(app_id: str) -> Draft:
    """The draft that takes a declaration back."""
    return Draft("", "withdraw", app_id, len(app_id), Space(withdraw=app_id))


def blob_draft(changes: list[BlobChange]) -> Draft:
    """The draft of uploads and removals."""
    text = encode(changes).decode()
    return Draft("", "blobs", text, len(text), Space(blobs=changes))


def decode_draft(draft: Draft) -> Space:
    """What a draft asks that came from another process."""
    if draft.kind == "exchange":
        channel, _, body = draft.body.partition("\n")
        return Space(channel_of(channel), decode_exchange(body))
    if draft.kind == "declare":
        return Space(declare=msgspec.json.decode(draft.body, type=Namespace))
    if draft.kind == "withdraw":
        return Space(withdraw=draft.body)
    if draft.kind == "blobs":
        return Space(blobs=msgspec.json.decode(draft.body, type=list[BlobChange]))
    raise Refusal(f"a Starkeep scope takes no {draft.kind!r}", code="bad_frame")


# -- planning --------------------------------------------------------------------------------------


class _Plan:
    """One draft at work: entries so far, and rows as they will be after them."""

    def __init__(self, rows: Overlay, seq: int, at: int) -> None:
        self.entries: list[Entry] = []
        self._first = seq
        self._at = at
        self._rows = rows
        self._made: dict[Key, tuple[HLC, RowState | None]] = {}
        self._covered: dict[Key, tuple[int, int]] = {}
        self._names: dict[str, Namespace | None] = {}
        self._authors: list[str] | None = None  # with parked items, as they will be

    # -- what is held ------------------------------------------------------------------------------

    def _held(self, coll: str, id: str) -> HLC | None:
        made = self._made.get((coll, id))
        if made is not None:
            return made[0]
        row = self._rows.get(coll, id)
        return None if row is None else stamp_of_row(row)

    def _held_row(self, coll: str, id: str) -> RowState | None:
        made = self._made.get((coll, id))
        if made is not None:
            return made[1]
        row = self._rows.get(coll, id)
        return None if row is None else RowState(value_of(row), stamp_of_row(row), row.deleted)

    def _namespace(self, app_id: str) -> Namespace | None:
        """Declared and not withdrawn."""
        if app_id not in self._names:
            found = self._stored_namespace(app_id)
            self._names[app_id] = None if found is None or found.withdrawn else found
        return self._names[app_id]

    def _stored_namespace(self, app_id: str) -> Namespace | None:
        row = self._rows.get(NAMESPACES, app_id)
        return None if row is None else msgspec.convert(value_of(row), Namespace)

    def _parked(self, channel: Channel, node_id: str) -> Parked | None:
        row = self._rows.get(PARKED, _author(channel, node_id))
        return None if row is None else Parked.load(row.value)

    # -- what is asked -----------------------------------------------------------------------------

    def exchange(self, channel: Channel, exchange: Exchange) -> None:
        """Take the items, author by author. Raises Refusal on a space of the other mode."""
        self._check_mode(channel, bool(len(exchange)))
        records = exchange.records if channel.records else []
        items: list[Item] = [*records, *exchange.rows]
        for node_id, group in by_author(items, stamp_of):
            parked = self._resume(channel, node_id, group)
            halted = parked is not None
            waiting: list[Item] = []
            for item in group:
                if not halted and self._take(channel, item):
                    continue
                halted = True
                waiting.append(item)
            if waiting:
                self._park(channel, node_id, parked or Parked([]), waiting)

    def declare(self, wanted: Namespace) -> None:
        """Have the app's tables synced, and take what was parked for want of them."""
        whole = extend(self._stored_namespace(wanted.app_id), wanted)
        self._set("ns", NAMESPACES, whole.app_id, encode(whole))
        self._names[whole.app_id] = whole
        before = self._parked_authors()
        kept = [author for author in before if self._unpark(author)]
        if kept != before:
            self._keep_authors(kept)

    def withdraw(self, app_id: str) -> None:
        """Sync the app no longer; its rows and key columns stay for a later declaration."""
        held = self._stored_namespace(app_id)
        if held is not None and not held.withdrawn:
            gone = msgspec.structs.replace(held, withdrawn=True)
            self._set("ns", NAMESPACES, app_id, encode(gone))

    def blob(self, change: BlobChange) -> None:
        """Let the key map to bytes, to other ones or to none."""
        held = self._rows.get(BLOBS, change.key)
        state = changed(None if held is None else value_of(held), change, self._at)
        if state is not None:
            self._set("blob", BLOBS, change.key, encode(state))

    # -- items -------------------------------------------------------------------------------------

    def _check_mode(self, channel: Channel, writes: bool) -> None:
        row = self._rows.get(META, CHANNELS)
        if row is None:
            if writes:
                self._set("meta", META, CHANNELS, encode(channel.mode))
        elif value_of(row) != channel.mode:
            raise wrong_mode(value_of(row))

    def _take(self, channel: Channel, item: Item) -> bool:
        """False where the item cannot be applied (yet)."""
        if isinstance(item, Record):
            if wins(item.stamp, self._held(RECORDS, item.id)):
                self._made[RECORDS, item.id] = item.stamp, None
                self._write("rec", RECORDS, item.id, item.stamp, item.text, item)
            else:
                self._note(RECORDS, item.stamp)
            return True
        namespace = self._namespace(item.app_id) if channel.takes(item.app_id) else None
        table = None if namespace is None else namespace.table(item.table)
        key = None if table is None else key_of(table, item)
        if table is None or key is None:
            return False
        coll, id = rows_of(item.app_id, table.name), row_id(key)
        merged = merge_row(self._held_row(coll, id), item, key)
        if merged is None:
            self._note(coll, item.timestamp)
            return True
        self._made[coll, id] = merged.stamp, merged
        kind = "del" if merged.deleted else "row"
        self._write(kind, coll, id, merged.stamp, encode(merged.columns), merged)
        return True

    def _write(
        self, kind: str, coll: str, id: str, stamp: HLC, body: bytes, data: Record | RowState
    ) -> None:
        self._covered[coll, stamp.node_id] = stamp.position
        self._add(kind, f"{coll}:{id}", body, stamp, data)

    def _note(self, coll: str, stamp: HLC) -> None:
        """The item lost against a later one: it is covered all the same, or it would come again."""
        held = self._covered.get((coll, stamp.node_id))
        if held is None:
            held = covered_up_to(self._rows, coll, stamp.node_id)
        if stamp.position > held:
            self._covered[coll, stamp.node_id] = stamp.position
            self._add("seen", coll, b"null", stamp)

    # -- parking -----------------------------------------------------------------------------------

    def _parked_authors(self) -> list[str]:
        if self._authors is None:
            row = self._rows.get(PARKED, _KEPT)
            self._authors = [] if row is None else list(value_of(row))
        return self._authors

    def _keep_authors(self, authors: list[str]) -> None:
        self._authors = authors
        self._set("park", PARKED, _KEPT, encode(authors))

    def _park(
        self, channel: Channel, node_id: str, parked: Parked, waiting: Sequence[Item]
    ) -> None:
        """Keep what may become applicable: not rows on the drive, nor another app's rows."""
        authors, author = self._parked_authors(), _author(channel, node_id)
        new = author not in authors
        first = waiting[0]
        foreign = isinstance(first, RowEntry) and not channel.takes(first.app_id)
        if (new and len(authors) >= AUTHORS_MAX) or (foreign and not parked.items):
            return
        changed = [parked.add(item) for item in waiting]
        if any(changed):
            if new:
                self._keep_authors([*authors, author])
            self._set("park", PARKED, author, parked.dump())

    def _resume(self, channel: Channel, node_id: str, sent: Sequence[Item]) -> Parked | None:
        """What stays parked of an author, if anything: one that has mended a row without key
        values does not send it again, and what waited behind it can be taken.
        """
        parked = self._parked(channel, node_id)
        if parked is None or not parked.items:  # none: the first was beyond the bound
            return parked
        if not self._is_hopeless(channel, parked.items[0]):
            return parked
        again = {name_of(item) for item in sent}
        done = 0
        for item in parked.items:
            given_up = self._is_hopeless(channel, item) and name_of(item) not in again
            if not given_up and not self._take(channel, item):
                break
            done += 1
        if not done:
            return parked
        author = _author(channel, node_id)
        rest = Parked(parked.items[done:], parked.overflow) if parked.items[done:] else None
        self._set("park", PARKED, author, b"null" if rest is None else rest.dump())
        if rest is None:
            self._keep_authors([held for held in self._parked_authors() if held != author])
        return rest

    def _is_hopeless(self, channel: Channel, item: Item) -> bool:
        """A row of a declared table that names no row: its key columns never change."""
        if isinstance(item, Record) or not channel.takes(item.app_id):
            return False
        namespace = self._namespace(item.app_id)
        table = None if namespace is None else namespace.table(item.table)
        return table is not None and key_of(table, item) is None

    def _unpark(self, author: str) -> bool:
        """Take parked items in order up to the first that still cannot be; whether some stay."""
        name, _, node_id = author.partition("\n")
        channel = channel_of(name)
        parked = self._parked(channel, node_id)
        if parked is None:
            return False
        taken = 0
        for item in parked.items:
            if not self._take(channel, item):
                break
            taken += 1
        rest = parked.items[taken:]
        if taken or not rest:
            text = Parked(rest, parked.overflow).dump() if rest else b"null"
            self._set("park", PARKED, author, text)
        return bool(rest)

    # -- entries -----------------------------------------------------------------------------------

    def _set(self, kind: str, coll: str, id: str, body: bytes) -> None:
        self._add(kind, f"{coll}:{id}", body, None)

    def _add(
        self, kind: str, ref: str, body: bytes, stamp: HLC | None, data: object = None
    ) -> None:
        seq = self._first + len(self.entries)
        entry = Entry(seq, self._at, kind, None, body.decode(), len(body), data, ref=ref)
        if stamp is not None:
            entry.origin, entry.stamp1, entry.stamp2 = stamp.node_id, stamp.wall_ms, stamp.counter
        self.entries.append(entry)


def stamp_of_row(row: Row) -> HLC:
    """Who wrote the row when."""
    assert row.stamp1 is not None and row.stamp2 is not None and row.origin is not None
    return HLC(row.stamp1, row.stamp2, row.origin)


def wrong_mode(mode: str) -> Refusal:
    """The refusal of a channel that the space cannot have."""
    told = (
        "this space is combined: exchange at its base"
        if mode == "combined"
        else "this space is split: exchange at …/apps/starkeep-drive and …/apps/{appId}"
    )
    return Refusal(told, code="wrong_channel")


def _author(channel: Channel, node_id: str) -> str:
    return f"{channel}\n{node_id}"
