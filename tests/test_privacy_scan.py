"""The secret scan on planted secrets, on what stands for them, and on this repository."""

import subprocess
from pathlib import Path

import pytest

from lessons_lib.privacy import entropy_bits, scan_files, scan_text

ROOT = Path(__file__).resolve().parent.parent
CHANCE = "q7Zr0Tt" + "9LmX2vB" + "4cWn8Kd"  # put together, so that this file holds none

PLANTED = {
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "another private key": "-----BEGIN " + "PRIVATE KEY-----",
    "AWS access key": "x = 'AKIA" + "IOSFODNN7ABCDEFG'",
    "Alibaba access key": "LTAI" + "4GFooBarBaz12345",
    "Google API key": "AIza" + "Sy" + "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6q",
    "GitHub token": "ghp_" + "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6q7r8",
    "Hugging Face token": "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567",
    "OpenAI key": "sk-" + "proj-" + CHANCE * 2,
    "address": "redis://user:" + "hunter22@db:6379/0",
    "python": 'secret_key = "' + CHANCE + '"',
    "short names": "client(ak='" + CHANCE + "', sk='" + CHANCE[::-1] + "')",
    "argument": "connect(token='" + CHANCE + "')",
    "annotated": 'API_KEY: str = "' + CHANCE + '"',
    "dictionary": '{"access_key": "' + CHANCE + '"}',
    "item": 'os.environ["SECRET_TOKEN"] = "' + CHANCE + '"',
    "bytes": "key = b'" + CHANCE + "'",
    "yaml": "  aws_secret_access_key: " + CHANCE,
    "shell": "export API_TOKEN=" + CHANCE,
    "password": "password = '" + "correct-horse" + "'",
    "notebook": '"sk = \\"' + CHANCE + '\\"\\n",',
    "go": 'authKey := "' + CHANCE + '"',
}
HARMLESS = (
    'secret_key = os.environ["SECRET_KEY"]',
    'secret_key = "<your-secret-key>"',
    'token = "${API_TOKEN}"',
    'password = "{{ password }}"',
    'password: "changeme-please"',
    'api_key = "your-api-key-1234"',
    'access_key = "xxxxxxxx1234"',
    'tokenizer = "bert-base-uncased-v2"',
    'token = "transformer_block"',
    "num_tokens = 12345678",
    'key = "layer_weight"',
    'key="parameter"',
    "tokens: torch.Tensor",
    'monkey = "' + CHANCE + '"',
    "https://example.org/a:b@c",
    "-----BEGIN " + "CERTIFICATE-----",
    'name = "' + CHANCE + '"',
    'secret = ""',
)


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_secret_is_found_and_not_shown(what):
    findings = scan_text(f"import os\n\n    {PLANTED[what]}\n")
    assert findings and {finding.line for finding in findings} == {3}
    assert CHANCE not in str(findings)


@pytest.mark.parametrize("line", HARMLESS)
def test_what_is_none_raises_no_alarm(line):
    assert scan_text(line) == []


@pytest.mark.parametrize(
    "line", ["client(ak='YOUR_AK', sk='YOUR_SK')", 'secret_key = "<your secret key>"', 'ak = "xxx"']
)
def test_what_stands_for_a_secret_is_reported_if_asked(line):
    assert scan_text(line) == []
    assert {finding.kind[:9] for finding in scan_text(line, placeholders=True)} == {"place for"}
    assert scan_text("ak = os.environ['AK']", placeholders=True) == []


def test_this_repository_has_none():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    paths = [ROOT / name for name in listed.stdout.splitlines()] if listed.returncode == 0 else ROOT.rglob("*.py")
    paths = [path for path in paths if path.is_file()]
    assert len(paths) > 100
    assert scan_files(paths) == {}


def test_files_with_secrets_are_named_and_pictures_passed_over(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n" + PLANTED["python"])
    (tmp_path / "b.png").write_bytes(b"\x89PNG\xff" + PLANTED["python"].encode())
    (tmp_path / "c.py").write_text("x = 1")
    found = scan_files(sorted(tmp_path.iterdir()))
    assert [(path.name, finding.line) for path, findings in found.items() for finding in findings] == [("a.py", 2)]


def test_entropy():
    assert entropy_bits("") == entropy_bits("aaaa") == 0
    assert entropy_bits("abcd") == 2 and entropy_bits("aabb") == 1
