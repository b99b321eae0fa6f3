"""A log that shows tampering: each line holds the hash of the one before, a signed head that of the last (lesson 25).

A chain alone tells of a line that was changed, moved, taken out or put in. It cannot tell of lines cut off at its end,
nor that it was written anew from some line on, by one who can hash as well. So each hash is keyed (HMAC), and a small
file beside the log, the head, names the number of lines and the last hash, and is signed by the same key.

Who has the key can rewrite all, and who can put back an old log together with its old head goes back in time: keep the
head where the writer of the log cannot reach it, as `head()` allows.

Source: Schneier and Kelsey, Secure Audit Logs to Support Computer Forensics (1999); HMAC, RFC 2104.
"""

import hashlib
import hmac
import json
import os
import time
from pathlib import Path


class Tampered(ValueError):
    """A log is not as it was written.

    Attributes:
        line: the first line, from 1, that is not what it was; one past the end if lines are missing there.
    """

    def __init__(self, line, problem):
        super().__init__(line, problem)
        self.line, self.problem = line, problem

    def __str__(self):
        return f"line {self.line}: {self.problem}"


class AuditLog:
    """Writes records to a file, one line of JSON each, and finds out whether it is still what was written.

    Args:
        path: of the log; its head lies beside it, with `.head` at its end. There need be none yet.
        key: at least 16 bytes, from `load_key` or such; not the key of anything else.
        clock: gives the time in seconds since 1970.

    Raises:
        ValueError: the key is short.
        Tampered: what is there already was changed: nothing is added to it.
    """

    def __init__(self, path, key, clock=time.time):
        if not isinstance(key, bytes) or len(key) < 16:
            raise ValueError("key: at least 16 bytes are needed")
        self.path, self._key, self._clock = Path(path), key, clock
        self._head_path = self.path.with_name(self.path.name + ".head")
        self.verify()

    def write(self, actor, action, outcome, **details):
        """Append a record, on the disk when this returns. One process writes a log.

        Args:
            actor: who did it.
            action: what.
            outcome: how it ended, such as "allowed" or "refused".
            details: more, as JSON holds it. No secrets: a log is read by many.

        Raises:
            TypeError: JSON does not hold a detail.
        """
        num, last = self._last
        record = {"number": num + 1, "time_s": self._clock(), "actor": actor, "action": action, "outcome": outcome}
        body = json.dumps({**record, "details": details, "before": last}, sort_keys=True)
        self._last = num + 1, self._sign(body)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"body": body, "hash": self._last[1]}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._write_head()

    def verify(self, head=None):
        """Go through the whole log.

        Args:
            head: what `head()` gave before, kept elsewhere: the log must hold at least those lines, as they were.
                None takes the file beside the log.

        Returns:
            The records, dictionaries, in order.

        Raises:
            Tampered: names the first line that is not as it was written.
        """
        text = self.path.read_bytes().decode(errors="replace") if self.path.exists() else ""
        lines = text.split("\n")  # as bytes, since reading text would take \r\n for \n
        records, hashes = [], [""]
        for line, text in enumerate(lines[:-1], start=1):
            records.append(self._read(line, text, hashes[-1]))
            hashes.append(records[-1].pop("hash"))
        if lines[-1]:
            raise Tampered(len(lines), "it has no end")
        num, last = self._read_head() if head is None else head
        if len(records) < num:
            raise Tampered(len(records) + 1, f"it is missing, as the head counts {num} lines")
        # One line more than the head counts is a writer that died between the two; all lines are signed in any case.
        if len(records) > num + 1 and head is None:
            raise Tampered(num + 2, f"the head counts {num} lines")
        if not hmac.compare_digest(hashes[num], last):
            raise Tampered(max(num, 1), "the head signs another line")
        self._last = len(records), hashes[-1]
        if head is None and len(records) > num:
            self._write_head()
        return records

    def head(self):
        """(number of lines, last hash): what to keep elsewhere, so that a log that was put back is found."""
        return self._last

    def _read(self, line, text, before):
        try:
            entry = json.loads(text)
            body, signed = entry["body"], entry["hash"]
            if set(entry) != {"body", "hash"} or not hmac.compare_digest(self._sign(body), signed):
                raise Tampered(line, "its hash is not that of what it says")
            record = json.loads(body)
            if record["number"] != line or record.pop("before") != before:
                raise Tampered(line, f"it was line {record['number']}, or follows on another line")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise error if isinstance(error, Tampered) else Tampered(line, "it is no record") from None
        if text != json.dumps(entry):
            raise Tampered(line, "it is written otherwise")
        return {**record, "hash": signed}

    def _sign(self, body):
        return hmac.new(self._key, body.encode(), hashlib.sha256).hexdigest()

    def _write_head(self):
        num, last = self._last
        aside = self._head_path.with_name(self._head_path.name + ".new")
        aside.write_text(f"{num} {last} {self._sign(f'head {num} {last}')}\n", encoding="ascii")
        os.replace(aside, self._head_path)

    def _read_head(self):
        if not self._head_path.exists():
            if self.path.exists() and self.path.stat().st_size:
                raise Tampered(1, "the head is missing")
            return 0, ""
        try:
            num, last, signed = self._head_path.read_text(encoding="ascii").rstrip("\n").split(" ")
            if hmac.compare_digest(self._sign(f"head {num} {last}"), signed):
                return int(num), last
        except (ValueError, TypeError):
            pass
        raise Tampered(1, "the head beside the log was changed")
