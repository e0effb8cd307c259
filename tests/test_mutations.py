"""Damaged files end in a clear error, or are read rightly; see `mutations.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mutations
from noisyflow import cli, gallery
from noisyflow.estimate_file import FileError, estimate_file
from noisyflow.runs import RunError, RunFolder, Usage

COUNT = 60


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """Of so many mutations of every format, in a process of little memory."""
    command = [sys.executable, mutations.__file__, "--count", str(COUNT), "--json"]
    done = subprocess.run(
        [*command, "--seed", "1"], capture_output=True, text=True, timeout=300
    )
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.parametrize("name", mutations.FORMATS)
def test_a_mutated_file_is_refused_or_read_rightly(
    name: str, outcomes: dict[str, Any]
) -> None:
    assert outcomes[name]["failures"] == []
    # Enough of them were damage, and not all.
    assert sum(outcomes[name]["outcomes"].values()) == COUNT
    assert outcomes[name]["outcomes"].get("same", 0) < COUNT / 2


@pytest.mark.parametrize("thing", mutations.IN_PLACE)
@pytest.mark.parametrize("name", mutations.FORMATS)
def test_what_is_no_file_is_neither_waited_for_nor_read_without_end(
    name: str, thing: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    kind = mutations.FORMATS[name]
    path = tmp_path / "run"
    kind.make(path)
    data = mutations.replace_file(path / kind.file, thing, rng)
    assert mutations.judged(kind, path, None, data) in ("refused", "other", "same") or (
        # Without its checkpoint a run starts anew, if nothing else is left of it.
        thing in ("missing", "dangling link") and not (path / "metrics.csv").exists()
    )


@pytest.mark.parametrize("name", ["parameters", "exp_avg", "shuffle", "noise.0"])
def test_a_single_bit_of_a_checkpoint_is_noticed(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    mutations.make_training(path)
    array = RunFolder(path).load_checkpoint()[f"trainer.{name}"]
    data = bytearray((path / "checkpoint.safetensors").read_bytes())
    data[data.index(array.tobytes())] ^= 1
    (path / "checkpoint.safetensors").write_bytes(data)
    with pytest.raises(RunError, match=r"checkpoint\.safetensors is damaged"):
        mutations.train(path)


def test_a_checkpoint_without_its_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    mutations.make_training(path)
    name = path / "checkpoint.safetensors"
    name.write_bytes(name.read_bytes().replace(b'"sha256"', b'"sha257"'))
    with pytest.raises(RunError, match="was saved by an earlier build"):
        mutations.train(path)


@pytest.mark.parametrize("entry", ["experiment", "noisyflow", "device"])
def test_a_config_that_is_not_that_of_its_checkpoint_is_refused(
    entry: str, tmp_path: Path
) -> None:
    mutations.train(tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config))  # other spaces, the same settings
    RunFolder(path.parent).results()
    path.write_text(json.dumps({**config, entry: "other"}))
    with pytest.raises(RunError, match=r"config\.json does not match its checkpoint"):
        RunFolder(path.parent).results()


def test_a_film_of_other_settings_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its points would be those of other inputs than the network learned."""
    mutations.train(tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace("0.25", "0.5"))
    assert cli.main(["film", str(path.parent)]) == 2
    assert "config.json does not match its checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["header", "arrays"])
def test_what_a_checkpoint_promises_is_not_set_aside(size: str, tmp_path: Path) -> None:
    """Neither memory for a header of 2^62 bytes, nor for a file that is one hole."""
    mutations.make_training(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.safetensors"
    if size == "header":
        path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])
    else:
        os.truncate(path, 2**40)
    with pytest.raises(RunError, match="is damaged"):
        RunFolder(path.parent).load_checkpoint()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1", "1e999", '"nan"', "null"])
def test_an_impossible_usage_is_none(number: str, tmp_path: Path) -> None:
    mutations.make_usage(tmp_path / "run")
    path = tmp_path / "run" / "usage.json"
    for name in ("12.5", "345.5"):
        path.write_text('{"seconds": 12.5, "peak_mib": 345.5}'.replace(name, number))
        assert RunFolder(path.parent).usage() == Usage()
        mutations.read_usage(path.parent)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1", "1e999", '"1"', "true"])
def test_an_impossible_time_of_a_report_is_damage(number: str, tmp_path: Path) -> None:
    mutations.make_report(tmp_path / "run")
    path = tmp_path / "run" / "report.json"
    text = path.read_text()
    for name in ('"seconds": 0.0', '"peak_mib": 0.0'):
        assert name in text
        changed = f"{name.split(':')[0]}: {number}"
        path.write_text(text.replace(name, changed))
        with pytest.raises(RunError, match=r"report\.json is damaged"):
            gallery.read_report(path.parent)


def test_half_a_character_in_a_report_is_damage(tmp_path: Path) -> None:
    mutations.make_report(tmp_path / "run")
    path = tmp_path / "run" / "report.json"
    path.write_text(path.read_text().replace("Words.", r"\ud800"))
    with pytest.raises(RunError, match=r"report\.json is damaged"):
        gallery.read_report(path.parent)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (8, 2",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (8L, 2), ]",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2**62, 4), }",
        f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**62}, 4), }}",
        f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**70}, 4), }}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 2), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (True, 2), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (8.0, 2), }",
        "{'descr': [], 'fortran_order': False, 'shape': (8, 2), }",
        "{'descr': '\\N{', 'fortran_order': False, 'shape': (8, 2), }",
        "{'descr': '\\d', 'fortran_order': False, 'shape': (8, 2), }",
        "(" * 4000,
    ],
)
def test_no_header_of_an_array_gets_past_the_file_s_name(
    header: str, tmp_path: Path
) -> None:
    path = tmp_path / "samples.npy"
    size = len(header).to_bytes(2, "little")
    path.write_bytes(b"\x93NUMPY\1\0" + size + header.encode() + bytes(128))
    with pytest.raises(FileError, match=r"samples\.npy"):
        estimate_file(path, 0.5)


@pytest.mark.parametrize("name", ["README.md", "szt.md"])
def test_a_pipe_among_the_pages_of_a_gallery_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / name)
    with mutations.within_limits():
        arguments = ["--out", str(tmp_path), "--runs", str(tmp_path / "runs")]
        assert cli.main(["gallery", "szt", *arguments]) == 2
    assert f"{name}: it is not a regular file" in capsys.readouterr().err
