"""Names become paths: safe, bounded, unique on any file system."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from infra.paths import ledger_path

ROOT = Path("/data")
names = st.text(min_size=1, max_size=200)
SAFE = re.compile(r"[a-z0-9._-]{1,77}")


@given(names, names)
def test_any_name_stays_below_the_root_and_fits(tenant: str, scope: str) -> None:
    path = ledger_path(ROOT, tenant, scope)
    parts = path.relative_to(ROOT).parts
    assert len(parts) == 3 and path.resolve() == path
    assert all(SAFE.fullmatch(part) and not part.startswith(".") for part in parts), parts
    assert len(path.name + "-wal") <= 81 and path.suffix == ".db"


@given(names, names, names, names)
def test_different_addresses_have_different_files(a: str, b: str, c: str, d: str) -> None:
    if (a, b) != (c, d):
        one, two = str(ledger_path(ROOT, a, b)), str(ledger_path(ROOT, c, d))
        assert one.casefold() != two.casefold()


def test_names_that_look_alike_are_told_apart() -> None:
    look_alike = ["../x", "..", ".", "/", "x", "X", "x ", "x/", "..\\x", "\x00", "con", "é",
                  "e\u0301", "\ud800", "n" * 200, "n" * 199, "run:1", "run_1", "-"]  # fmt: skip
    paths = {str(ledger_path(ROOT, "default", name)).lower() for name in look_alike}
    assert len(paths) == len(look_alike)


def test_the_border_between_tenant_and_scope_counts() -> None:
    assert ledger_path(ROOT, "a", "bc").name[-35:] != ledger_path(ROOT, "ab", "c").name[-35:]


def test_a_person_can_read_the_name() -> None:
    path = ledger_path(ROOT, "Acme Corp", "Run:R1")
    assert path.name.startswith("run-r1-") and path.parts[2].startswith("acme-corp-")


def test_the_path_of_a_name_never_changes() -> None:
    # Files out there are named so.
    assert ledger_path(ROOT, "default", "run:r1").relative_to(ROOT).as_posix() == (
        "default-3214a48d5aff/a1/run-r1-a19fe6c4a3a6f88f1bfac328a5213602.db"
    )
