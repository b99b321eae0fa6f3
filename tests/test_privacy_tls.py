"""Mutual TLS on loopback: the right parties talk, all others are refused, and a context that asks less is found out."""

import socket
import ssl
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from lessons_lib.privacy import Authority, Identity, client_context, peer_name, server_context
from lessons_lib.privacy.tls import CLIENT, SERVER

NAMES = ("localhost", "127.0.0.1")


class World:
    """An authority, a server and a client of it, and strangers."""

    def __init__(self):
        self.authority, self.stranger = Authority(), Authority("stranger")
        self.ours = self.authority.certificate
        self.server = self.authority.issue("server", NAMES, SERVER)
        self.client = self.authority.issue("worker 3")


@pytest.fixture(scope="module")
def world():
    return World()


def serve(listener, context):
    """Take one connection: (name of the client, what it sent) or the error."""
    raw, _ = listener.accept()
    raw.settimeout(20)
    try:
        with context.wrap_socket(raw, server_side=True) as connection:
            name = peer_name(connection)
            text = connection.recv(100)
            connection.sendall(text[::-1])
            return name, text
    except (OSError, ValueError) as error:
        return error
    finally:
        raw.close()


def talk(server, client, called="localhost"):
    """What both sides end up with: (server's, client's), each a result or an error."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(20)
        other = pool.submit(serve, listener, server)
        with socket.create_connection(listener.getsockname(), timeout=20) as raw:
            try:
                with client.wrap_socket(raw, server_hostname=called) as connection:
                    connection.sendall(b"secret")
                    mine = connection.recv(100) or ConnectionError("closed")
                    mine = (connection.version(), peer_name(connection), mine) if isinstance(mine, bytes) else mine
            except (OSError, ValueError) as error:
                mine = error
        return other.result(30), mine


@pytest.mark.parametrize("called", NAMES)
def test_the_right_parties_talk(world, called):
    server, client = server_context(world.server, world.ours), client_context(world.client, world.ours)
    assert talk(server, client, called) == (("worker 3", b"secret"), ("TLSv1.3", "server", b"terces"))


def bare_client(world):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=world.ours.decode())
    return context


def older(context, version):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def signed_by_a_client(world):
    """A client takes its own certificate for an authority's, and sends it along."""
    upstart = Authority("worker 3")
    upstart._key = serialization.load_pem_private_key(world.client.key, None)
    made = upstart.issue("worker 9")
    return Identity(made.certificate + world.client.certificate, made.key)


def swapped(one, other):
    return Identity(one.certificate, other.key)


def attacks(world):
    """name: (server's context, client's context, name that is called); in each, somebody is not who they should be."""
    issue, ours = world.authority.issue, world.ours
    server, client = server_context(world.server, ours), client_context(world.client, ours)
    other = world.stranger
    their_client = other.issue("worker 3")
    their_server = other.issue("server", NAMES, SERVER)

    def as_client(identity):
        return client_context(identity, ours)

    def as_server(identity):
        return server_context(identity, ours)

    fake = Authority("lessons")  # the same name, another key
    upstart = signed_by_a_client(world)
    return {
        "no client certificate": (server, bare_client(world), "localhost"),
        "client of another authority": (server, as_client(their_client), "localhost"),
        "client of an authority of the same name": (server, as_client(fake.issue("worker 3")), "localhost"),
        "client that a client has signed": (server, as_client(upstart), "localhost"),
        "client expired": (server, as_client(issue("worker 3", starts_in_s=-60, ends_in_s=-1)), "localhost"),
        "client not yet valid": (server, as_client(issue("worker 3", starts_in_s=600)), "localhost"),
        "server's certificate shown by a client": (server, as_client(world.server), "localhost"),
        "server of another authority": (as_server(their_server), client, "localhost"),
        "server of an authority of the same name": (
            as_server(fake.issue("server", NAMES, SERVER)),
            client,
            "localhost",
        ),
        "server expired": (as_server(issue("server", NAMES, SERVER, -60, -1)), client, "localhost"),
        "server not yet valid": (as_server(issue("server", NAMES, SERVER, 600)), client, "localhost"),
        "server of another host": (as_server(issue("server", ("example.org",), SERVER)), client, "localhost"),
        "server without this address": (as_server(issue("server", ("localhost",), SERVER)), client, "127.0.0.1"),
        "its name alone is no address": (as_server(issue("localhost", ("example.org",), SERVER)), client, "localhost"),
        "client's certificate shown by a server": (as_server(issue("server", NAMES, CLIENT)), client, "localhost"),
        "TLS 1.2 client": (server, older(client_context(world.client, ours), ssl.TLSVersion.TLSv1_2), "localhost"),
        "TLS 1.1 client": (server, older(client_context(world.client, ours), ssl.TLSVersion.TLSv1_1), "localhost"),
        "TLS 1.2 server": (older(server_context(world.server, ours), ssl.TLSVersion.TLSv1_2), client, "localhost"),
        "TLS 1.1 server": (older(server_context(world.server, ours), ssl.TLSVersion.TLSv1_1), client, "localhost"),
    }


ATTACKS = list(attacks(World()))


def check_is_refused(server, client, called):
    """Neither side hears the other, and both are told by TLS."""
    theirs, mine = talk(server, client, called)
    assert isinstance(theirs, OSError) and isinstance(mine, OSError), (theirs, mine)


@pytest.mark.parametrize("attack", ATTACKS)
def test_everybody_else_is_refused(world, attack):
    check_is_refused(*attacks(world)[attack])


def test_the_two_that_do_not_speak_tls_learn_nothing(world):
    """A client without TLS, and a server without: neither a byte of what was to be said, nor a hang."""
    server, client = server_context(world.server, world.ours), client_context(world.client, world.ours)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        other = pool.submit(serve, listener, server)
        with socket.create_connection(listener.getsockname(), timeout=20) as raw:
            raw.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with suppress(ConnectionError):
                assert b"secret" not in raw.recv(1000)
        assert isinstance(other.result(30), ssl.SSLError)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        plain = pool.submit(plain_server, listener)
        with socket.create_connection(listener.getsockname(), timeout=20) as raw, pytest.raises(OSError):
            client.wrap_socket(raw, server_hostname="localhost")
        assert b"secret" not in plain.result(30)


def plain_server(listener):
    raw, _ = listener.accept()
    with raw:
        heard = raw.recv(4000)
        raw.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    return heard


class Between:
    """Passes on what two sides say, and changes one bit of what the client says after the handshake, if it should."""

    def __init__(self, target, flip):
        self.listener, self.heard, self._flip = socket.create_server(("127.0.0.1", 0)), b"", flip
        self._target, self._thread = target, threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        client, _ = self.listener.accept()
        server = socket.create_connection(self._target, timeout=20)
        back = threading.Thread(target=self._pass, args=(server, client, False), daemon=True)
        back.start()
        self._pass(client, server, self._flip)
        back.join(20)
        client.close(), server.close()

    def _pass(self, source, target, flip):
        try:
            source.settimeout(20)
            while data := source.recv(65536):
                self.heard += data
                if flip and len(self.heard) > 2500:  # the client's certificate has passed: what follows is its text
                    data = data[:-1] + bytes([data[-1] ^ 1])
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        self._thread.join(20)
        self.listener.close()


@pytest.mark.parametrize("flip", [False, True])
def test_one_between_reads_nothing_and_changes_nothing(world, flip):
    server, client = server_context(world.server, world.ours), client_context(world.client, world.ours)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        other = pool.submit(serve, listener, server)
        between = Between(listener.getsockname(), flip)
        try:
            with (
                socket.create_connection(between.listener.getsockname(), timeout=20) as raw,
                client.wrap_socket(raw, server_hostname="localhost") as connection,
            ):
                connection.sendall(b"secret")
                connection.recv(100)
        except OSError:
            assert flip
        result = other.result(30)
        between.close()
    assert b"secret" not in between.heard and b"worker 3" not in between.heard  # TLS 1.3 hides certificates as well
    assert isinstance(result, ssl.SSLError) if flip else result == ("worker 3", b"secret")


# --- contexts that ask for less --------------------------------------------------------------------------------------


def no_client_asked(world):
    context = server_context(world.server, world.ours)
    context.verify_mode = ssl.CERT_NONE
    return context, bare_client(world), "localhost"


def no_names_compared(world):
    context = client_context(world.client, world.ours)
    context.check_hostname = False
    identity = world.authority.issue("server", ("example.org",), SERVER)
    return server_context(identity, world.ours), context, "localhost"


def trusts_anyone(world):
    context = client_context(world.client, world.ours)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return server_context(world.stranger.issue("server", NAMES, SERVER), world.ours), context, "localhost"


@pytest.mark.parametrize("mistake", [no_client_asked, no_names_compared, trusts_anyone])
def test_a_context_that_asks_less_lets_them_in(world, mistake):
    with pytest.raises(AssertionError):
        check_is_refused(*mistake(world))


def test_what_cannot_be(world, tmp_path):
    with pytest.raises(ValueError, match="lifetime_s=0"):
        Authority(lifetime_s=0)
    with pytest.raises(ValueError, match="an end after the start"):
        world.authority.issue("a", starts_in_s=5, ends_in_s=5)
    with pytest.raises(ValueError, match="a server needs one"):
        world.authority.issue("server", purpose=SERVER)
    with pytest.raises(ssl.SSLError):
        client_context(swapped(world.client, world.server), world.ours)


def test_nothing_outlives_the_authority_or_signs_another(world):
    short = Authority(lifetime_s=60)
    ends = [
        x509.load_pem_x509_certificate(pem).not_valid_after_utc
        for pem in (short.certificate, short.issue("a", ends_in_s=3600).certificate)
    ]
    assert ends[0] == ends[1]
    leaf = x509.load_pem_x509_certificate(world.client.certificate)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not leaf.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_no_key_is_left_in_a_file(world, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    client_context(world.client, world.ours)
    with pytest.raises(ssl.SSLError):
        client_context(swapped(world.client, world.server), world.ours)
    assert list(tmp_path.iterdir()) == []
