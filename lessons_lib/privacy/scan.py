"""Secrets that were written into code: found before they are pushed (lesson 25)."""

import math
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

# What a provider's keys look like: their first letters are fixed so that they can be found.
SHAPES = {
    "private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----",
    "AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "Alibaba access key": r"\bLTAI[0-9A-Za-z]{12,20}\b",
    "Tencent access key": r"\bAKID[0-9A-Za-z]{13,40}\b",
    "Google API key": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "GitHub token": r"\b(?:gh[pousr]_[0-9A-Za-z]{36}|github_pat_[0-9A-Za-z_]{50,90})\b",
    "Hugging Face token": r"\bhf_[0-9A-Za-z]{30,40}\b",
    "OpenAI key": r"\bsk-(?:[a-z]+-)?[0-9A-Za-z_-]{32,}\b",
    "Slack token": r"\bxox[abprs]-[0-9A-Za-z-]{10,}",
    "password in an address": r"\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@\"'{}<>$]+:[^\s/:@\"'{}<>$]{3,}@",
}
_WORDS = "secret|token(?!iz)|passw|pwd|credential|api_?key|access_?key|private_?key|auth_?key"
_NAME = rf"(?P<name>(?:{_WORDS})[\w-]{{0,40}}|\b(?:ak|sk|key))"  # what stands before it is left out: it takes long
_QUOTE = r"\\?[\"']"  # in the JSON of a notebook, quotes have a backslash
_ASSIGNED = re.compile(
    rf"{_NAME}(?:{_QUOTE})?\]?\s*(?::\s*\w+\s*)?(?::=|=>|=|:)\s*[rbf]{{0,2}}{_QUOTE}(?P<value>[^\"'\\]{{2,}}){_QUOTE}",
    re.IGNORECASE,
)
_UNQUOTED = re.compile(
    rf"^\s*(?:export\s+|-\s+)?[\w.-]{{0,40}}?{_NAME}\s*[:=]\s*(?P<value>[^\s\"'#]{{8,}})\s*$", re.IGNORECASE
)
_STANDS_FOR = re.compile(r"your|example|change.?me|placeholder|dummy|xxx|\*\*\*|\.\.\.|[<>{}$()\[\]%]", re.IGNORECASE)


class Finding(NamedTuple):
    """Something that looks like a secret.

    Attributes:
        line: from 1.
        kind: what it looks like.
        shown: its first characters, and no more: a report is read by many.
    """

    line: int
    kind: str
    shown: str


def scan_text(text, placeholders=False):
    """Look for secrets in source text: keys of known shapes, and text like chance assigned to a name like "secret".

    What stands for a secret, such as "<your-key>" or "${TOKEN}", is none. It is a net with holes: a word as a password
    under a harmless name gets through, and so does what is put together from parts.

    Args:
        text: of any language; notebooks too.
        placeholders: report what stands for a secret as well: where it stands, somebody will write the real one.

    Returns:
        A list of `Finding`, one for each line and kind.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        for kind, shape in SHAPES.items():
            if match := re.search(shape, line):
                found.append(Finding(number, kind, match.group()[:6] + "…"))
        for match in [*_ASSIGNED.finditer(line), *_UNQUOTED.finditer(line)]:
            name, value = match["name"], match["value"]
            if _is_secret(name, value):
                found.append(Finding(number, f"literal for {name}", value[:2] + "…"))
            elif placeholders and _STANDS_FOR.search(value):
                found.append(Finding(number, f"place for {name}", value[:20]))
    return list(dict.fromkeys(found))


def scan_files(paths):
    """Scan files as `scan_text` does; those that are no UTF-8 text are passed over.

    Returns:
        {path: list of `Finding`}, of the files in which there are any.
    """
    found = {}
    for path in paths:
        try:
            found[path] = scan_text(Path(path).read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
    return {path: findings for path, findings in found.items() if findings}


def entropy_bits(text):
    """Shannon's entropy of the characters of `text` by how often each is in it, in bits per character: 0 for ""."""
    shares = [count / len(text) for count in Counter(text).values()]
    return sum(-share * math.log2(share) for share in shares)


def _is_secret(name, value):
    if len(value) < 8 or re.search(r"\s", value) or _STANDS_FOR.search(value):
        return False
    if re.search(r"passw|pwd", name, re.IGNORECASE):
        return True
    return bool(re.search(r"\d", value) and re.search(r"[A-Za-z]", value) and entropy_bits(value) >= 3)
