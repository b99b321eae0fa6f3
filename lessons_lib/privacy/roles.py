"""Who may do what: signed tokens that expire, and a gate that writes down whom it turns away (lesson 25)."""

import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import NamedTuple

ROLES = {
    "reader": frozenset({"read"}),
    "trainer": frozenset({"read", "train"}),
    "server": frozenset({"read", "serve"}),
    "admin": frozenset({"read", "train", "serve", "grant"}),
}


class Refused(PermissionError):
    """An action was not allowed; says why, and not more than who asked may know."""


class Token(NamedTuple):
    """What a token says once its signature is known to be right.

    Attributes:
        subject: whose it is.
        role: a name of `ROLES`.
        expires_s: until when, in seconds since 1970.
        number: random, so that one token can be revoked.
    """

    subject: str
    role: str
    expires_s: float
    number: str


class Gate:
    """Gives tokens and lets through who has the right one; all that it decides goes to an audit log.

    Args:
        key: at least 32 bytes, of this gate alone.
        log: an `AuditLog`.
        clock: gives the time in seconds since 1970.

    Raises:
        ValueError: the key is short.

    Source: HMAC, RFC 2104; the form is that of a JSON Web Token (RFC 7515) with one algorithm and no choice: a token
    that may name its own algorithm has been the way in more than once.
    """

    def __init__(self, key, log, clock=time.time):
        if not isinstance(key, bytes) or len(key) < 32:
            raise ValueError("key: at least 32 bytes are needed")
        self._key, self._log, self._clock, self._revoked = key, log, clock, set()

    def grant(self, subject, role, lifetime_s=3600.0):
        """Make a token.

        Args:
            subject: whose it is.
            role: a name of `ROLES`.
            lifetime_s: seconds, above 0.

        Returns:
            Text. Who has it is taken for the subject: send it over TLS alone, and log it nowhere.

        Raises:
            ValueError: there is no such role, or the lifetime is out of range.
        """
        if role not in ROLES:
            raise ValueError(f"role={role!r}: one of {', '.join(ROLES)} is needed")
        if not 0 < lifetime_s < 10**9:
            raise ValueError(f"lifetime_s={lifetime_s!r}: a number above 0 is needed")
        token = Token(str(subject), role, self._clock() + lifetime_s, secrets.token_hex(8))
        body = base64.urlsafe_b64encode(json.dumps(token).encode()).decode()
        self._log.write(token.subject, "grant", "allowed", role=role, number=token.number)
        return f"{body}.{self._sign(body)}"

    def revoke(self, number):
        """Let the token of this number open nothing from now on."""
        self._revoked.add(number)
        self._log.write("gate", "revoke", "allowed", number=number)

    def check(self, text, action):
        """Let an action pass.

        Args:
            text: a token.
            action: such as "train".

        Returns:
            The `Token`.

        Raises:
            Refused: it is no token of this gate, expired, revoked, or its role may not do that. The log says so too.
        """
        token, problem = self._judge(text, action)
        subject = token.subject if token else "unknown"
        self._log.write(subject, action, "refused" if problem else "allowed", **({"why": problem} if problem else {}))
        if problem:
            raise Refused(problem)
        return token

    def _judge(self, text, action):
        body, _, signature = text.partition(".") if isinstance(text, str) else ("", "", "")
        # compare_digest takes as long whatever the first wrong character is: times would tell a signature bit by bit
        if not signature.isascii() or not hmac.compare_digest(self._sign(body), signature):
            return None, "no token of this gate"
        token = Token(*json.loads(base64.urlsafe_b64decode(body)))
        if self._clock() >= token.expires_s:
            return token, "the token has expired"
        if token.number in self._revoked:
            return token, "the token was revoked"
        if action not in ROLES.get(token.role, ()):
            return token, f"a {token.role} may not {action}"
        return token, None

    def _sign(self, body):
        return hmac.new(self._key, b"token " + body.encode(errors="replace"), hashlib.sha256).hexdigest()
