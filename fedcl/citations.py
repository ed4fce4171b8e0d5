"""The papers that docstrings cite, in one form: (Author et al., VENUE YEAR, arXiv:NNNN.NNNNN), several joined by "; ".

A doi or the page of the Proceedings of Machine Learning Research, PMLR:vNNN/name00a, stands where there is no arXiv id.
"""

import inspect
import re

IDENTIFIER = r"(?:arXiv:\d{4}\.\d{4,5}|doi:10\.\d{4,9}/[^\s;,()]+|PMLR:v\d+/\w+)"
_CITATION = re.compile(rf" ?\(([^()]*{IDENTIFIER})\)")


def cited(text: str) -> str:
    """Return the first citation of a text, without its brackets; "": there is none."""
    found = _CITATION.search(" ".join(text.split()))
    return found[1] if found else ""


def uncited(text: str) -> str:
    """Return the text without its citations."""
    return _CITATION.sub("", text)


def identifiers(text: str) -> list[str]:
    """Return the papers that a text names by identifier, cited in the one form or not, each once."""
    return list(dict.fromkeys(re.findall(IDENTIFIER, text)))


def paper(cls: type) -> str:
    """Return the paper of a part: what its class cites, else what the head of its module does; "": it has none."""
    module = inspect.getdoc(inspect.getmodule(cls)) or ""
    return cited(inspect.getdoc(cls) or "") or cited(module.split("\n\n")[0])
