"""Intents and groups against a dictionary: lost answers, repeats and concurrency change nothing.

Any schedule of clients that send, lose the answer, and send again, ends where the distinct intents
end; each is answered alike every time; a group happens as a whole; numbers have no holes. And what
is hidden is hidden, whatever the value.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.host import Host
from actors.host_settings import HostSettings
from edge.auth import Principal
from edge.client.para import PASSTHROUGH
from edge.dialects.para.authority import SyncedAuthority
from edge.dialects.para.fields import Visibility
from edge.dialects.para.frames import JSON, MSGPACK, BadFrame
from edge.dialects.para.intents import Wish, decide
from edge.dialects.para.kinds import IntentRejected, Kinds, SyncedKind
from infra.errors import HoldfastError

KEYS = ("n:a", "n:b", "n:c")


class Env:
    """Fits what an authority needs of a runtime."""

    def __init__(self, host: Host) -> None:
        self.port: Any = host


class Sent:
    """One intent or group of one client, sent `times` times."""

    def __init__(self, user: str, op: str, adds: dict[str, int], times: int) -> None:
        self.user, self.op, self.adds, self.times = user, op, adds, times

    def __repr__(self) -> str:
        return f"Sent({self.user!r}, {self.op!r}, {self.adds!r}, {self.times})"


@st.composite
def schedules(draw: st.DrawFn) -> list[Sent]:
    count = draw(st.integers(1, 12))
    return [
        Sent(
            draw(st.sampled_from(["ada", "bob"])), f"op{number}",
            draw(st.dictionaries(st.sampled_from(KEYS), st.integers(-5, 9), min_size=1)),
            draw(st.integers(1, 3)),
        )
        for number in range(count)
    ]  # fmt: skip


def add(current: Any, given: Any, user: Any) -> Any:
    made = (current or 0) + given
    if made < 0:
        raise IntentRejected("below_zero", "no")
    return made


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedules(), st.integers(1, 5))
def test_repeats_and_lost_answers_change_nothing(schedule: list[Sent], at_once: int) -> None:
    asyncio.run(_run(schedule, at_once))


async def _run(schedule: list[Sent], at_once: int) -> None:
    kinds = Kinds([SyncedKind("n", PASSTHROUGH, named={"add": add})])
    with tempfile.TemporaryDirectory() as directory:
        answers: dict[str, list[Any]] = {}
        for life in range(2):  # the second is a restart: everything is sent once more
            async with Host(Path(directory), HostSettings()) as host:
                authority = SyncedAuthority(
                    Env(host), kinds, authorize=lambda user, key, action: True
                )
                gate = asyncio.Semaphore(at_once)
                async with asyncio.TaskGroup() as group:
                    for sent in schedule:
                        for _ in range(sent.times if life == 0 else 1):
                            group.create_task(_send(authority, sent, gate, answers))
                envelopes = await authority.read(KEYS)
        values: dict[str, int] = dict.fromkeys(KEYS, 0)
        changes: dict[str, int] = dict.fromkeys(KEYS, 0)
        for sent in schedule:
            first, *rest = answers[sent.op]
            assert all(other == first for other in rest), sent
            if isinstance(first, dict):
                assert first.keys() <= sent.adds.keys()
                for key, number in sent.adds.items():
                    values[key] += number
                    # 0 onto what is there changes nothing; onto nothing it makes the object.
                    changes[key] += number != 0 or first.get(key) == 1
            else:
                assert first == "below_zero"
        for key, envelope in zip(KEYS, envelopes, strict=True):
            assert (0 if envelope is None else envelope.value) == values[key]
            sequence = 0 if envelope is None else envelope.sequence
            assert sequence <= changes[key] + 1 and (sequence > 0) >= (changes[key] > 0)
            assert envelope is None or sequence >= max(
                (a[key] for found in answers.values() for a in found
                 if isinstance(a, dict) and key in a), default=0,
            )  # fmt: skip


async def _send(
    authority: SyncedAuthority, sent: Sent, gate: asyncio.Semaphore, answers: dict[str, list[Any]]
) -> None:
    from msgspec import UNSET

    wishes = [Wish(key, 1, UNSET, "add", number, None) for key, number in sent.adds.items()]
    async with gate:
        try:
            answer: Any = await decide(authority, Principal(id=sent.user), "c", sent.op, wishes)
        except HoldfastError as error:
            answer = error.code
    answers.setdefault(sent.op, []).append(answer)


members = st.dictionaries(
    st.sampled_from(
        ["type", "key", "clientId", "opId", "groupOpId", "intents", "value", "name", "t", "qid"]
    ),
    st.sampled_from(["sub", "intent", "tx", "ping", "presence", "fetch"])
    | st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text()
        | st.binary(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
)  # fmt: skip


@given(st.binary(max_size=64) | members.map(msgspec.msgpack.encode))
def test_any_message_is_a_frame_or_a_bad_one(data: bytes) -> None:
    for codec in (JSON, MSGPACK):
        with contextlib.suppress(BadFrame):
            codec.decode(data)


@given(members)
def test_any_text_is_a_frame_or_a_bad_one(given: dict[str, Any]) -> None:
    with contextlib.suppress(BadFrame, UnicodeEncodeError):
        JSON.decode(msgspec.json.encode(given))


names = st.sampled_from(["a", "b", "c"])
values = st.recursive(
    st.integers() | st.text(max_size=3) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)
paths = st.lists(names, min_size=1, max_size=3).map(".".join)


@given(values, st.dictionaries(paths, st.sampled_from(["yes", "no", "raises", "unknown"])))
def test_hidden_fields_never_show(value: Any, tags: dict[str, str]) -> None:
    def raises(*_: Any) -> bool:
        raise RuntimeError("user code")

    rules = Visibility(tags, {"yes": lambda *_: True, "no": lambda *_: False, "raises": raises})
    hidden = rules.hidden(None, "k", value)
    assert set(hidden) == {path for path, tag in tags.items() if tag != "yes"}
    shown = rules.strip(value, hidden)
    for path in hidden:
        assert not _reaches(shown, path.split("."))
    if not hidden:
        assert shown == value


def _reaches(value: Any, path: list[str]) -> bool:
    if isinstance(value, list):
        return any(_reaches(inner, path) for inner in value)
    if not isinstance(value, dict) or path[0] not in value:
        return False
    return len(path) == 1 or _reaches(value[path[0]], path[1:])
