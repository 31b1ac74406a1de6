"""The documents are whole and lead somewhere: links, commands, keys, codes, frames, examples.

What docs/cli.md and docs/configuration.md say is compared with the code elsewhere; here it is that
nothing is left out, and that every pointer between documents has something at its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.dialects.asterql.plan import COLL
from actors.schema import TABLES
from edge.cli.program import COMMANDS
from edge.config import keys
from edge.problems import CLOSE_CODES, HTTP_STATUS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in DOCUMENTS}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
# Paths of the repository that a document names in running text.
NAMED = re.compile(
    r"`((?:actors|bench|docs|edge|examples|infra|tests)/[\w./-]+|holdfast\.py|Makefile)`"
)
# Paths and hosts of one machine (more of them in tests/test_tidy.py), and words that sell.
FORBIDDEN = re.compile(
    r"/tmp/|/opt/|\blocalhost\.localdomain\b|(?:\d+\.){3}(?!1\b|0\b)\d+"
    r"|\b(?:blazing|seamless|cutting-edge|world-class|effortless|revolutionary)",
)
SYMBOLS = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]")


def prose(text: str) -> str:
    """Without code blocks, whose brackets are no links."""
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """The fragments a Markdown page offers, made of its headings as code forges make them."""
    found = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


def broken_links(name: str, text: str) -> Iterator[str]:
    for target in LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        there = (ROOT / name).parent / path if path else ROOT / name
        if not there.exists():
            yield f"{name}: {target}: no such file"
        elif fragment and fragment not in anchors(there.read_text(encoding="utf-8")):
            yield f"{name}: {target}: no such heading"


@pytest.mark.parametrize("name", TEXT)
def test_links_resolve(name: str) -> None:
    assert list(broken_links(name, TEXT[name])) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("[a](docs/errors.md)", 0),
        ("[a](docs/nothing.md)", 1),
        ("[a](docs/operations.md#backup)", 0),
        ("[a](docs/operations.md#no-such)", 1),
        ("[a](https://example.org/x)", 0),
        ("```\n[a](nothing)\n```", 0),
    ],
)
def test_a_broken_link_is_found(text: str, count: int) -> None:
    assert len(list(broken_links("README.md", text))) == count


@pytest.mark.parametrize("name", TEXT)
def test_files_named_in_prose_exist(name: str) -> None:
    missing = [path for path in NAMED.findall(TEXT[name]) if not (ROOT / path).exists()]
    made = {"bench/results"}  # written by a run
    assert [path for path in missing if path.rstrip("/") not in made] == []


def test_every_document_is_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        for target in LINK.findall(prose(page.read_text(encoding="utf-8"))):
            there = (page.parent / target.partition("#")[0]).resolve()
            if there.is_file():
                todo.append(there)
    assert sorted(set(DOCUMENTS) - seen) == []


def test_every_command_is_documented() -> None:
    missing = [name for name in COMMANDS if f"## holdfast {name}\n" not in TEXT["docs/cli.md"]]
    assert not missing
    listed = re.search(r"The commands `([a-z ]+)`", TEXT["CHANGELOG.md"])
    assert listed is not None
    assert set(listed[1].split()) == set(COMMANDS)


def test_every_key_is_documented() -> None:
    missing = [
        key.name for key in keys() if f"\n| `{key.name}` |" not in TEXT["docs/configuration.md"]
    ]
    assert not missing


def test_every_error_and_close_code_is_documented() -> None:
    errors = TEXT["docs/errors.md"]
    assert [code for code in HTTP_STATUS if f"\n| `{code}` |" not in errors] == []
    assert [code for code in CLOSE_CODES if f"\n| {code} |" not in errors] == []


def test_every_frame_has_an_example() -> None:
    source = (ROOT / "edge/dialects/asterql/frames.py").read_text()
    inbound = set(re.findall(r'msgspec\.Struct, tag="(\w+)"', source))
    outbound = set(re.findall(r'"type": ?"(\w+)"', source))
    assert len(inbound) > 5 and len(outbound) > 5
    shown = TEXT["docs/asterql.md"]
    assert [kind for kind in sorted(inbound) if f'> {{"type":"{kind}"' not in shown] == []
    assert [kind for kind in sorted(outbound) if f'< {{"type":"{kind}"' not in shown] == []


def test_every_table_and_column_is_documented() -> None:
    page = TEXT["docs/ledger.md"]
    for statement in TABLES.split(";"):
        head, _, body = statement.partition("(")
        table = head.split()[-1]
        assert f"\n### {table}\n" in page
        about = page.split(f"\n### {table}\n")[1].split("\n#")[0]
        columns = re.findall(r"(?:^|,)\s*(\w+) (?:TEXT|INTEGER|BLOB)", body)
        assert columns
        assert [column for column in columns if f"`{column}`" not in about] == []
    assert f"`{COLL}`" in page


def test_every_metric_is_documented() -> None:
    source = (ROOT / "edge/metrics.py").read_text()
    gauges, _, counters = source.partition("counters = {")
    names = re.findall(r'^ {12,16}"(\w+)": \(', gauges, re.MULTILINE)
    names += [f"{n}_total" for n in re.findall(r'^ {12,16}"(\w+)": \(', counters, re.MULTILINE)]
    names += [f"{n}_total" for n in re.findall(r'^ {16}"holdfast_(\w+)", ', source, re.MULTILINE)]
    assert len(names) > 18
    page = TEXT["docs/operations.md"]
    assert [name for name in names if f"`holdfast_{name}`" not in page] == []


def test_every_example_is_documented() -> None:
    page = TEXT["docs/examples.md"]
    files = [path for path in sorted((ROOT / "examples").iterdir()) if path.is_file()]
    assert files
    assert [path.name for path in files if f"examples/{path.name}" not in page] == []


def test_every_make_word_is_documented() -> None:
    makefile = (ROOT / "Makefile").read_text()
    words = re.findall(r"^([a-z0-9]+):.*?## ", makefile, re.MULTILINE)
    assert {"serve", "test"} <= set(words)
    told = TEXT["README.md"] + TEXT["docs/examples.md"]
    assert [word for word in words if word != "help" and f"make {word}`" not in told] == []


@pytest.mark.parametrize("name", TEXT)
def test_no_forbidden_words(name: str) -> None:
    assert FORBIDDEN.findall(TEXT[name]) == []
    assert SYMBOLS.findall(TEXT[name]) == []


def test_decisions_are_complete() -> None:
    records = sorted(name for name in TEXT if name.startswith("docs/adr/"))
    assert [name.split("/")[2][:4] for name in records] == [
        f"{number:04d}" for number in range(1, len(records) + 1)
    ]
    for name in records:
        for heading in ("Context", "Decision", "Rejected", "Cost"):
            assert re.search(rf"^## {heading}", TEXT[name], re.MULTILINE), f"{name}: {heading}"
