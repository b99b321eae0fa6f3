"""The audit log under attack, and the gate that writes to it."""

import base64
import hashlib
import hmac
import json

import pytest

from lessons_lib.privacy import AuditLog, Gate, Refused, Tampered

KEY, OTHER = b"k" * 32, b"o" * 32


@pytest.fixture
def log(tmp_path):
    """A log of six lines, and the same again in another folder."""
    made = AuditLog(tmp_path / "audit.log", KEY, clock=iter(range(100)).__next__)
    for number in range(6):
        made.write("ada", "read", "allowed", file=f"shard {number}", text="two\nlines, ü")
    return made


def lines_of(log):
    return log.path.read_bytes().split(b"\n")[:-1]


def put(log, lines):
    log.path.write_bytes(b"".join(line + b"\n" for line in lines))


def test_what_was_written_is_read(log):
    records = AuditLog(log.path, KEY).verify()
    assert [record["number"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert records[2] == {
        "number": 3,
        "time_s": 2,
        "actor": "ada",
        "action": "read",
        "outcome": "allowed",
        "details": {"file": "shard 2", "text": "two\nlines, ü"},
    }
    assert len(lines_of(log)) == 6
    again = AuditLog(log.path, KEY)
    again.write("bob", "train", "refused")
    assert len(AuditLog(log.path, KEY).verify()) == 7


def rewritten(lines, number, key):
    """Line `number` says something else, and all from there on are hashed again: with SHA-256, or a key."""
    lines = [json.loads(line) for line in lines]
    for k in range(number - 1, len(lines)):
        record = json.loads(lines[k]["body"])
        if k == number - 1:
            record["outcome"] = "refused"
        else:
            record["before"] = lines[k - 1]["hash"]
        body = json.dumps(record, sort_keys=True)
        digest = hmac.new(key, body.encode(), hashlib.sha256) if key else hashlib.sha256(body.encode())
        lines[k] = {"body": body, "hash": digest.hexdigest()}
    return [json.dumps(line).encode() for line in lines]


def attacks(lines):
    """(what was done, the lines after it, the first line that is not what it was)."""
    num = len(lines)
    for k in range(num):
        line = lines[k]
        yield f"change {k + 1}", [*lines[:k], line.replace(b"shard", b"Shard"), *lines[k + 1 :]], k + 1
        yield f"take out {k + 1}", [*lines[:k], *lines[k + 1 :]], k + 1
        yield f"double {k + 1}", [*lines[: k + 1], *lines[k:]], k + 2
        yield f"insert before {k + 1}", [*lines[:k], lines[(k + 3) % num], *lines[k:]], k + 1
        yield f"empty {k + 1}", [*lines[:k], b"", *lines[k + 1 :]], k + 1
        yield f"garbage {k + 1}", [*lines[:k], b"\xff{", *lines[k + 1 :]], k + 1
        yield f"cut from {k + 1}", lines[:k], k + 1
        yield f"rehash from {k + 1}", [*lines[:k], *rewritten(lines, k + 1, None)[k:]], k + 1
        yield f"rehash by another key from {k + 1}", [*lines[:k], *rewritten(lines, k + 1, OTHER)[k:]], k + 1
        yield f"a space after {k + 1}", [*lines[:k], line + b" ", *lines[k + 1 :]], k + 1
        yield f"a return after {k + 1}", [*lines[:k], line + b"\r", *lines[k + 1 :]], k + 1
        entry = json.loads(line)
        for wrong in ({**entry, "more": 1}, {"body": entry["body"]}, [1], {**entry, "hash": "é"}, {**entry, "body": 3}):
            yield f"another form of {k + 1}", [*lines[:k], json.dumps(wrong).encode(), *lines[k + 1 :]], k + 1
        for j in range(k):
            swapped = list(lines)
            swapped[j], swapped[k] = swapped[k], swapped[j]
            yield f"swap {j + 1} and {k + 1}", swapped, j + 1
    yield "reverse", lines[::-1], 1
    yield "append an old line", [*lines, lines[0]], num + 1


def check_attacks(log, verify):
    """Every attack raises and names its line; the count."""
    lines, count = lines_of(log), 0
    for what, changed, line in attacks(lines):
        put(log, changed)
        with pytest.raises(Tampered) as caught:
            verify()
        assert caught.value.line == line, what
        assert str(caught.value).startswith(f"line {line}: ")
        count += 1
    put(log, lines)
    verify()
    return count


def test_every_change_of_a_line_is_found_and_named(log):
    assert check_attacks(log, lambda: AuditLog(log.path, KEY)) == 113


def test_every_byte_counts(log):
    whole = log.path.read_bytes()
    for place in range(len(whole)):
        log.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(Tampered) as caught:
            AuditLog(log.path, KEY)
        assert caught.value.line == whole[:place].count(b"\n") + 1


def test_every_cut_is_found(log):
    whole = log.path.read_bytes()
    for size in range(len(whole)):
        log.path.write_bytes(whole[:size])
        with pytest.raises(Tampered) as caught:
            AuditLog(log.path, KEY)
        assert caught.value.line == whole[:size].count(b"\n") + 1
    log.path.unlink()
    with pytest.raises(Tampered, match="line 1: it is missing, as the head counts 6"):
        AuditLog(log.path, KEY)


def test_a_line_without_an_end_is_found(log):
    whole = log.path.read_bytes()
    for more in (b"x", lines_of(log)[0], b"\0"):
        log.path.write_bytes(whole + more)
        with pytest.raises(Tampered, match="line 7: it has no end"):
            AuditLog(log.path, KEY)


def head_of(log):
    return log.path.with_name("audit.log.head")


def test_the_head_is_guarded_too(log):
    path, lines = head_of(log), lines_of(log)
    num, last, signed = path.read_text().split()
    old = json.loads(lines[2])["hash"]
    forged = (f"3 {old} {signed}", f"{num} {last} {'0' * 64}", f"5 {last} {signed}", "", "6", f"{num} {last} é", "\xff")
    for text in forged:
        path.write_bytes(text.encode("latin-1") + b"\n")
        with pytest.raises(Tampered, match="the head beside the log was changed"):
            AuditLog(log.path, KEY)
    path.unlink()
    with pytest.raises(Tampered, match="the head is missing"):
        AuditLog(log.path, KEY)


def test_an_old_log_with_its_old_head_is_found_by_a_head_kept_elsewhere(log):
    old = log.path.read_bytes(), head_of(log).read_bytes()
    log.write("ada", "read", "allowed")
    kept = log.head()
    log.path.write_bytes(old[0])
    head_of(log).write_bytes(old[1])
    put_back = AuditLog(log.path, KEY)  # nothing here can tell
    with pytest.raises(Tampered, match="line 7: it is missing, as the head counts 7"):
        put_back.verify(kept)
    put_back.write("eve", "read", "allowed")
    with pytest.raises(Tampered, match="line 7: the head signs another line"):
        put_back.verify(kept)
    log.path.unlink()
    head_of(log).unlink()
    with pytest.raises(Tampered):
        AuditLog(log.path, KEY).verify(kept)


def test_a_writer_that_died_before_the_head_is_no_attack(log):
    before = head_of(log).read_bytes()
    log.write("ada", "read", "allowed")
    head_of(log).write_bytes(before)
    again = AuditLog(log.path, KEY)
    assert len(again.verify()) == 7 and again.head() == log.head()
    assert head_of(log).read_bytes() != before
    log.write("ada", "read", "allowed")
    head_of(log).write_bytes(before)
    with pytest.raises(Tampered, match="line 8: the head counts 6"):
        AuditLog(log.path, KEY)


def test_another_key_opens_nothing_and_a_short_one_is_refused(log):
    with pytest.raises(Tampered) as caught:
        AuditLog(log.path, OTHER)
    assert caught.value.line == 1
    for short in (b"k" * 15, "k" * 32, None):
        with pytest.raises(ValueError, match="at least 16 bytes"):
            AuditLog(log.path, short)
    AuditLog(log.path.with_name("other.log"), b"k" * 16)
    with pytest.raises(TypeError):
        log.write("ada", "read", "allowed", thing=object())
    assert len(AuditLog(log.path, KEY).verify()) == 6


# --- logs that are checked in part ----------------------------------------------------------------------------------


def only_the_last_line(log):
    entry = json.loads(lines_of(log)[-1])
    if log._sign(entry["body"]) != entry["hash"] or json.loads(entry["body"])["number"] != 6:
        raise Tampered(6, "changed")


def each_line_alone(log):
    for line, text in enumerate(lines_of(log), start=1):
        entry = json.loads(text)
        if log._sign(entry["body"]) != entry["hash"]:
            raise Tampered(line, "changed")


def only_the_chain(log):
    before = ""
    for line, text in enumerate(lines_of(log), start=1):
        entry = json.loads(text)
        body = json.loads(entry["body"])
        if hashlib.sha256(entry["body"].encode()).hexdigest() == entry["hash"]:
            before = entry["hash"]  # it takes a plain hash for a signature
        elif log._sign(entry["body"]) != entry["hash"] or body["before"] != before:
            raise Tampered(line, "changed")
        before = entry["hash"]


@pytest.mark.parametrize("mistake", [only_the_last_line, each_line_alone, only_the_chain])
def test_a_log_that_is_checked_in_part_is_rejected(log, mistake):
    mistake(log)
    with pytest.raises(
        (pytest.fail.Exception, AssertionError, ValueError, TypeError, KeyError, AttributeError)
    ) as caught:
        check_attacks(log, lambda: mistake(log))
    assert not isinstance(caught.value, Tampered)


# --- the gate --------------------------------------------------------------------------------------------------------


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def gate(tmp_path):
    clock = Clock()
    made = Gate(KEY, AuditLog(tmp_path / "audit.log", OTHER, clock), clock)
    made.clock, made.log = clock, made._log
    return made


@pytest.mark.parametrize(
    "role, may",
    [("reader", "read"), ("trainer", "read train"), ("server", "read serve"), ("admin", "read train serve grant")],
)
def test_a_role_may_do_what_it_may(gate, role, may):
    token = gate.grant("ada", role)
    for action in ("read", "train", "serve", "grant", "fly", "", "READ"):
        if action in may.split():
            assert gate.check(token, action).subject == "ada"
        else:
            with pytest.raises(Refused, match=f"a {role} may not"):
                gate.check(token, action)


def test_all_decisions_are_in_the_log(gate):
    token = gate.grant("ada", "reader")
    gate.check(token, "read")
    with pytest.raises(Refused):
        gate.check(token, "train")
    with pytest.raises(Refused):
        gate.check("nonsense", "read")
    told = [(r["actor"], r["action"], r["outcome"], r["details"].get("why")) for r in gate.log.verify()]
    assert told == [
        ("ada", "grant", "allowed", None),
        ("ada", "read", "allowed", None),
        ("ada", "train", "refused", "a reader may not train"),
        ("unknown", "read", "refused", "no token of this gate"),
    ]
    assert token not in gate.log.path.read_text() and token.split(".")[1] not in gate.log.path.read_text()


def test_tokens_expire_and_can_be_revoked(gate):
    token = gate.grant("ada", "trainer", lifetime_s=60)
    gate.clock.now += 59.9
    number = gate.check(token, "train").number
    gate.clock.now += 0.1
    with pytest.raises(Refused, match="has expired"):
        gate.check(token, "train")
    token, other = gate.grant("ada", "trainer"), gate.grant("ada", "trainer")
    gate.revoke(gate.check(token, "train").number)
    with pytest.raises(Refused, match="was revoked"):
        gate.check(token, "train")
    assert gate.check(other, "train").number != number


def forged(token):
    """Tokens that were made from a right one without the key."""
    body, signature = token.split(".")
    subject, _, expires_s, number = json.loads(base64.urlsafe_b64decode(body))
    admin = base64.urlsafe_b64encode(json.dumps([subject, "admin", expires_s, number]).encode()).decode()
    later = base64.urlsafe_b64encode(json.dumps([subject, "trainer", expires_s + 1e6, number]).encode()).decode()
    yield from (f"{admin}.{signature}", f"{later}.{signature}", f"{admin}.", admin, f"{admin}.{'0' * 64}")
    yield f"{admin}.{hashlib.sha256(b'token ' + admin.encode()).hexdigest()}"
    yield f"{admin}.{hmac.new(OTHER, b'token ' + admin.encode(), hashlib.sha256).hexdigest()}"
    yield from (
        "",
        ".",
        body,
        f".{signature}",
        f"{body}.{signature[:-1]}",
        f"{body}.{signature}0",
        f"{body}.{signature}\n",
    )
    yield from (
        f"{body}=.{signature}",
        f"{body}.{signature.upper()}",
        f"{body}.é{signature[1:]}",
        None,
        5,
        token.encode(),
    )
    for place in range(len(body)):
        yield body[:place] + ("A" if body[place] != "A" else "B") + body[place + 1 :] + "." + signature
    for place in range(len(signature)):
        yield f"{body}.{signature[:place]}{'0' if signature[place] != '0' else '1'}{signature[place + 1 :]}"


def test_forged_tokens_are_refused(gate):
    token = gate.grant("ada", "trainer")
    gate._log = Nothing()
    count = 0
    for attempt in forged(token):
        with pytest.raises(Refused, match="no token of this gate"):
            gate.check(attempt, "read")
        count += 1
    assert count == len(list(forged(token))) > 140
    assert gate.check(token, "read").role == "trainer"
    with pytest.raises(Refused):
        Gate(OTHER, Nothing(), gate.clock).check(token, "read")


class Nothing:
    def write(self, *_, **__):
        pass


def test_signatures_are_compared_in_constant_time(gate, monkeypatch):
    asked = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: asked.append((a, b)) or real(a, b))
    token = gate.grant("ada", "reader")
    asked.clear()
    gate._log = Nothing()
    gate.check(token, "read")
    assert asked == [(token.split(".")[1],) * 2]


def test_what_cannot_be(gate):
    with pytest.raises(ValueError, match="role='root': one of reader, trainer"):
        gate.grant("ada", "root")
    for lifetime in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="lifetime_s="):
            gate.grant("ada", "reader", lifetime)
    for short in (b"k" * 31, "k" * 32, None):
        with pytest.raises(ValueError, match="at least 32 bytes"):
            Gate(short, Nothing())
