"""`python -m lessons_lib serve`: from a file, from nothing, and what is wrong with the arguments."""

import os
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import openai
import pytest

from lessons_lib.__main__ import main
from lessons_lib.serve import save_model, tiny_model

COMMAND = [sys.executable, "-m", "lessons_lib", "serve", "--port", "0"]
FOLDER = Path(__file__).resolve().parent.parent


def test_without_a_file_a_tiny_model_is_trained_and_served(tmp_path):
    (tmp_path / "keys").write_text("k\nother\n")
    command, surroundings = [*COMMAND, "--keys", str(tmp_path / "keys")], {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=FOLDER, env=surroundings, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert "training a tiny one" in process.stdout.readline()
            url = re.match(r"tiny on (http://127\.0\.0\.1:\d+)/v1 ", process.stdout.readline())[1]
            create = openai.OpenAI(base_url=url + "/v1", api_key="k", timeout=60).completions.create
            answer = create(model="tiny", prompt="The statement", max_tokens=40, temperature=0)
            assert len(answer.choices[0].text) == 40
            assert len(set(answer.choices[0].text)) > 3  # it has learnt more than spaces
            assert urllib.request.urlopen(url + "/health", timeout=60).status == 200
            process.terminate()
            assert process.wait(60) == 0
            assert "all that was accepted is finished" in process.stdout.read()
        finally:
            process.kill()


def test_wrong_arguments_are_told_before_anything_is_trained(tmp_path, capsys):
    (tmp_path / "model").write_text("no model")
    (tmp_path / "empty").write_text("\n")
    save_model(tmp_path / "good", *tiny_model(steps=0, width=8, num_layers=1))
    for arguments, message in [
        ([str(tmp_path / "nowhere")], "nowhere"),
        ([str(tmp_path / "model")], "no model that `save_model` wrote"),
        (["--max-batch", "0"], "--max-batch: 0: a whole number of at least 1 is needed"),
        (["--max-queue", "-1"], "--max-queue: -1: a whole number of at least 0 is needed"),
        (["--keys", str(tmp_path / "empty"), str(tmp_path / "good")], "empty: at least one line with a key"),
        (["--keys", str(tmp_path / "nowhere"), str(tmp_path / "good")], "nowhere"),
        (["--port", "65536"], "--port: 65536: a whole number from 0 to 65535 is needed"),
        (["--drain", "nan"], "--drain: nan: a finite number of at least 0 is needed"),
    ]:
        with pytest.raises(SystemExit) as ended:
            main(["serve", *arguments])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_told(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("lessons_lib.serve.command.tiny_model", lambda: tiny_model(steps=0, width=8, num_layers=1))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit):
        main(["serve", "--port", str(taken.getsockname()[1])])
    assert "in use" in capsys.readouterr().err
