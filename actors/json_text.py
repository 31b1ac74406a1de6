"""JSON as JavaScript writes it, where our decoder is stricter. Pure."""

from __future__ import annotations

import re

# Every escape; group 1 is half of a pair, unless the whole pair matched before.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)"
)


def mended(text: str) -> str:
    """JSON text with U+FFFD for every half of a surrogate pair that stands alone.

    JavaScript writes such halves, of a name cut within an emoji for one, and no decoder here takes
    them: refused, a client would send the same again for ever, and nothing behind it.
    """
    return _ESCAPE.sub(lambda found: "\\ufffd" if found[1] else found[0], text)
