"""Give a history new numbers, all of them `jump` higher, with everything that names a seq.

Entries are kept, so that scopes without rows keep their content and refilled drafts meet the causes
that survived. Within a transaction of the ledger's.
"""

from __future__ import annotations

from actors.dialects import dialect_named
from infra.sqlite import Handle

_PAGE = 1000


def renumber(db: Handle, dialect: str, *, head: int, jump: int) -> tuple[int, int]:
    """Move entries up to `head`, rows, unfolded tails and dedupe answers.

    `jump` exceeds the number of entries, so no number is met twice on the way. Returns the bytes
    of all entry bodies and those of the largest, because the seq stands in some bodies.
    """
    body_at = dialect_named(dialect).renumber
    after = 0
    while True:
        page = db.execute(
            "SELECT seq, body FROM entries WHERE seq>? AND seq<=? ORDER BY seq LIMIT ?",
            (after, head, _PAGE),
        ).fetchall()
        if not page:
            break
        db.executemany(
            "UPDATE entries SET seq=?, body=? WHERE seq=?",
            [(seq + jump, body_at(body, seq + jump), seq) for seq, body in page],
        )
        after = page[-1][0]
    for table in ("rows", "unfolded", "dedupe"):
        db.execute(f"UPDATE {table} SET seq=seq+?", (jump,))
    total, largest = db.execute(
        "SELECT coalesce(sum(size), 0), coalesce(max(size), 0)"
        " FROM (SELECT length(CAST(body AS BLOB)) AS size FROM entries)"
    ).fetchone()
    return int(total), int(largest)
