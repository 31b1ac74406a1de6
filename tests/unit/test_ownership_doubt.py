"""A host that was silent too long answers nothing from what it had open before."""

from __future__ import annotations

from actors.ownership import Ownership
from actors.types import Address
from infra.placement.hosts import HostInfo, View
from infra.placement.rendezvous import Member, owner

HOSTS = tuple(HostInfo(name=name, link=f"tcp:{name}:1") for name in "ab")


def of(name: str) -> Address:
    """A scope that this host owns."""
    members = [Member(host.name) for host in HOSTS]
    scopes = (Address("default", f"run:{number}") for number in range(100))
    return next(scope for scope in scopes if owner(scope, members) == name)


def test_what_was_open_through_a_lapse_is_nobodys_until_it_was_closed() -> None:
    own = Ownership("a")
    own.saw(View(hosts=HOSTS, fresh=True))
    ours, other = of("a"), of("b")
    assert own.place(ours, 0.0, is_open=True) == own.place(other, 0.0, is_open=True) == "a"
    own.lapsed()
    own.doubt([ours, other])
    assert own.place(ours, 0.0, is_open=True) is None
    assert own.place(other, 0.0, is_open=True) == "b"
    # Closed: whoever owns it claims it, which shows what the last is.
    assert own.place(ours, 0.0, is_open=False) == "a"
    own.doubtful.clear()
    assert own.place(ours, 0.0, is_open=True) == "a"
