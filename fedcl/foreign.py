"""Other people's texts, before they are printed or logged: no control characters, no line that could be one of ours.

An error of a client, what Flower's processes say, the name of a file in a site's folder: whoever writes such a text
could move the cursor, colour the terminal, or write what looks like our own next line. So whatever comes from elsewhere
goes through `line` where one line belongs, and through `quoted` where there may be several.
"""

import re

# C0 and C1 but for tabs and newlines; what splits lines beside "\n"; what turns the direction of writing round.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
MARK = "  | "  # begins every line that is not ours


def plain(text: str) -> str:
    """Return a text without control characters; newlines and tabs stay."""
    return CONTROL.sub("", text.replace("\r\n", "\n"))


def line(text: str) -> str:
    """Return a text as one line without control characters."""
    return " ".join(plain(text).split())


def quoted(text: str) -> str:
    """Return a text of several lines with a mark before each, none for an empty text."""
    return "\n".join(f"{MARK}{each}" for each in plain(text).strip("\n").split("\n")) if text.strip() else ""
