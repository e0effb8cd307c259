"""`noisyflow estimate`: what it prints of a file of samples, and how it complains."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import noisyflow
import oracles
from noisyflow import _streamed, cli, estimate_file

NOISE = 0.3


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """Writes an array and returns its path."""

    def write(array: np.ndarray, name: str = "samples.npy") -> str:
        np.save(tmp_path / name, array)
        return str(tmp_path / name)

    return write


def record_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    """The JSON record of one command, read as strictly as JSON is."""
    assert cli.main(["estimate", *arguments, "--json"]) == 0
    text = capsys.readouterr().out
    assert text.count("\n") == 1

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def complaint_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that must fail says, in one line; exit code 2."""
    try:
        code = cli.main(["estimate", *arguments])
    except SystemExit as end:
        code = end.code
    (out, err) = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("noisyflow: ")
    assert err.count("\n") == 1
    return err


def assert_is(record: dict, estimate: noisyflow.Estimate) -> None:
    for name in ("value", "standard_error", "lower", "num_pairs", "stopped_by"):
        assert record[name] == getattr(estimate, name)


# -- the numbers --------------------------------------------------------------


def test_samples_give_their_entropy_and_what_it_tells_of_them(save, rng, capsys):
    source = oracles.uniform_cube(3, NOISE)
    samples = source.sample(rng, 2000)
    record = record_of(capsys, save(samples), "--noise-std", str(NOISE), "--seed", "5")
    estimates = record["estimates"]
    assert_is(estimates["h(T)"], noisyflow.entropy(samples, NOISE, seed=5))
    own = oracles.noise_entropy(3, NOISE)
    whole, information = estimates["h(T)"], estimates["I(S;T)"]
    for name in ("value", "lower", "upper"):
        assert information[name] == pytest.approx(whole[name] - own, abs=1e-12)
    margin = 4 * whole["standard_error"]
    assert whole["lower"] - margin < source.entropy < whole["upper"] + margin
    assert whole["lower_confidence_bound_95"] < source.entropy
    (low, high) = whole["entropy_bounds"]
    assert low - margin < whole["value"] < high + margin


def test_a_population_has_no_bias_and_needs_no_confidence_bound(save, capsys):
    corners = oracles.cube_corners(3)
    arguments = (save(corners), "--noise-std", "0.4", "--population", "--error", "1e-3")
    record = record_of(capsys, *arguments)
    whole = record["estimates"]["h(T)"]
    assert whole["lower"] == whole["value"] == whole["upper"]
    assert whole["lower_confidence_bound_95"] is None
    assert abs(whole["value"] - oracles.bpsk_cube(3, 0.4).entropy) <= 4e-3
    assert record["population"] is True


@pytest.mark.parametrize("shape", [(2, 1), (2, 1, 1)])
def test_no_information_is_said_to_be_at_least_less_than_nothing(shape, save, capsys):
    """Two samples bound h(T) by far less than the noise's own entropy."""
    path = save(np.array([-1.0, 1.0]).reshape(shape))
    arguments = ["estimate", path, "--noise-std", "0.5"]
    if len(shape) == 3:
        arguments += ["--inputs", "sampled"]
    assert cli.main(arguments) == 0
    (_, _, information) = capsys.readouterr().out.rpartition("I(")
    assert "at least              0.0000 nats, with 95 % confidence" in information
    estimates = record_of(capsys, *arguments[1:])["estimates"]
    name = "I(S;T)" if len(shape) == 2 else "I(X;T)"
    assert estimates[name]["lower_confidence_bound_95"] == 0
    if len(shape) == 2:
        noise = oracles.noise_entropy(1, 0.5)
        assert estimates["h(T)"]["lower_confidence_bound_95"] < noise


def test_inputs_give_their_information_and_that_of_labels(save, rng, capsys):
    samples = rng.uniform(-1, 1, (60, 1, 1)) + 0.1 * rng.standard_normal((60, 30, 1))
    labels = np.arange(60) % 3
    arguments = (save(samples), "--noise-std", str(NOISE), "--conditional")
    arguments += ("--labels", save(labels, "labels.npy"), "--inputs", "sampled")
    estimates = record_of(capsys, *arguments)["estimates"]
    call = {"inputs": "sampled"}
    assert_is(estimates["I(X;T)"], noisyflow.mutual_information(samples, NOISE, **call))
    assert_is(
        estimates["I(Y;T)"],
        noisyflow.mutual_information(samples, NOISE, labels=labels, **call),
    )
    assert_is(estimates["h(T|X)"], noisyflow.conditional_entropy(samples, NOISE))
    information, noise = estimates["I(X;T)"], estimates["h(T|X)"]
    whole = estimates["h(T)"]
    assert whole["value"] == information["value"] + noise["value"] == whole["lower"]
    assert whole["upper"] == information["upper"] + noise["upper"]


def test_entropy_of_a_network_by_its_parts(save, rng, capsys):
    """h(T_2) of the linear network: closed form, inside its bracket."""
    network = oracles.LinearGaussianNetwork(
        np.array([[1.0, 0.5], [-0.3, 0.8]]), np.array([[0.7, 0.2], [0.1, 0.9]]), 0.5
    )
    samples = network.samples(rng, 150, 20)
    arguments = (save(samples), "--noise-std", "0.5", "--conditional")
    whole = record_of(capsys, *arguments, "--inputs", "sampled")["estimates"]["h(T)"]
    exact = network.information + network.conditional_entropy
    margin = 4 * whole["standard_error"]
    assert whole["lower"] - margin < exact < whole["upper"] + margin
    assert whole["upper"] - whole["lower"] < 0.2


@pytest.mark.filterwarnings("ignore::noisyflow.estimate.UndersampledWarning")
def test_the_bracket_of_the_whole_holds_where_draws_are_few(save, rng, capsys):
    """S: 50 far levels plus a unit Gaussian, so h = log 50 + that of N(0, 2)."""
    levels = 1000.0 * np.arange(50)[:, None, None] * np.ones((1, 1, 6))
    samples = levels + rng.standard_normal((50, 4, 6))
    arguments = (save(samples), "--noise-std", "1.0", "--conditional")
    whole = record_of(capsys, *arguments)["estimates"]["h(T)"]
    exact = np.log(50) + 3 * np.log(2 * np.pi * np.e * 2)
    margin = 4 * whole["standard_error"]
    assert whole["lower"] - margin < exact < whole["upper"] + margin


def test_what_is_printed_for_people(save, rng, capsys):
    path = save(rng.standard_normal((500, 2)).astype(np.float32))
    assert cli.main(["estimate", path, "--noise-std", "1.0"]) == 0
    (out, err) = capsys.readouterr()
    estimate = noisyflow.entropy(np.load(path), 1.0)
    lines = out.splitlines()
    assert lines[0] == f"h(T) = {estimate}"
    assert any(line.startswith("I(S;T) = ") for line in lines)
    bound = f"{estimate.lower_confidence_bound(0.95):.4f} nats, with 95 % confidence"
    for what in (
        bound,
        f"{estimate.midpoint:.4f} nats",
        f"{estimate.saturation:.3g}",
        f"{estimate.num_pairs:,}",
        "of the plug-in, by pairwise distances",
        "more samples are needed",
    ):
        assert what in out
    assert err == ""


def test_an_infinite_end_is_null_and_has_no_middle():
    estimate = noisyflow.Estimate(
        *(2.0, 0.1, 2.0, math.inf, 0.9, 100), stopped_by="target"
    )
    quantity = estimate_file.Quantity(estimate)
    report = estimate_file.Report({"noise_std": math.nan}, {"h(T)": quantity}, [])
    assert "inf" in str(report)
    assert "middle" not in str(report)
    assert "at least" not in str(report)
    record = json.loads(report.to_json(), parse_constant=lambda _: pytest.fail("JSON"))
    assert record["noise_std"] is None
    of_entropy = record["estimates"]["h(T)"]
    for name in ("upper", "midpoint", "bounded_difference"):
        assert of_entropy[name] is None
    assert of_entropy["lower_confidence_bound_95"] is None
    assert (of_entropy["value"], of_entropy["entropy_bounds"]) == (2.0, None)


def test_the_record_says_what_was_asked_of_what(save, rng, capsys):
    samples = rng.standard_normal((50, 2)).astype(np.float32)
    path = save(samples)
    arguments = (path, "--noise-std", "2", "--max-pairs", "1e6", "--seed", "7")
    record = record_of(capsys, *arguments, "--error", "0.5")
    assert record["file"] == path
    assert (record["shape"], record["dtype"]) == ([50, 2], "float32")
    assert (record["noise_std"], record["seed"]) == (2.0, 7)
    assert (record["max_pairs"], record["standard_error"]) == (10**6, 0.5)
    assert record["versions"]["noisyflow"] == noisyflow.__version__
    assert record["warnings"] == []


def test_warnings_are_lines_and_part_of_the_record(save, rng, capsys):
    path = save(rng.uniform(-1, 1, (200, 8)))
    arguments = ("estimate", path, "--noise-std", "0.02", "--json")
    assert cli.main(list(arguments)) == 0
    (out, err) = capsys.readouterr()
    (warning,) = json.loads(out)["warnings"]
    assert "too few for d = 8 at --noise-std 0.02" in warning
    assert "a larger --noise-std or fewer dimensions help" in warning
    assert "if the samples are all the values that S can take, pass --popul" in warning
    assert "log(2 pi e noise_std^2)" in warning
    assert err == f"noisyflow: warning: {warning}\n"


def test_one_input_is_told_of_and_no_work_is_done(save, rng, capsys):
    """Perhaps an axis too many: what is known already cannot be told."""
    path = save(rng.standard_normal((1, 400, 2)))
    arguments = ("estimate", path, "--noise-std", "0.5", "--json")
    assert cli.main([*arguments, "--max-pairs", "1"]) == 0
    (out, err) = capsys.readouterr()
    record = json.loads(out)
    (warning,) = record["warnings"]
    assert warning.startswith(f"{path} holds one input, shape (1, 400, 2), so that I(X")
    assert "save shape (400, 2): array[0]" in warning
    assert err == f"noisyflow: warning: {warning}\n"
    found = record["estimates"]["I(X;T)"]
    assert (found["value"], found["num_pairs"], found["stopped_by"]) == (0, 0, "exact")
    complaint = complaint_of(capsys, *arguments[1:], "--inputs", "sampled")
    assert "must hold at least 2 inputs with --inputs sampled, got shape" in complaint


def test_a_target_out_of_reach_ends_with_what_was_reached(save, rng, capsys):
    path = save(rng.uniform(-1, 1, (300, 3)))
    arguments = ("estimate", path, "--noise-std", "0.2", "--error", "1e-6")
    assert cli.main([*arguments, "--max-pairs", "1e6", "--population"]) == 0
    (out, err) = capsys.readouterr()
    assert "the limit of pairs is reached" in out
    assert "and not the 1e-06 asked for" in err
    assert "a larger --max-pairs would get there" in err
    assert err.count("\n") == 1


def test_verbose_says_what_is_read_and_what_it_costs(save, rng, capsys):
    path = save(rng.uniform(-1, 1, (400, 3)))
    arguments = ["estimate", path, "--noise-std", "0.2", "--population"]
    assert cli.main([*arguments, "--error", "2e-4", "--verbose"]) == 0
    err = capsys.readouterr().err
    assert f"noisyflow: {path}: float64, shape (400, 3); 10000 queries take" in err
    assert "more queries of 400 centers, about" in err
    assert cli.main([*arguments, "--error", "2e-4"]) == 0
    assert capsys.readouterr().err == ""
    assert logging.getLogger("noisyflow").handlers == []


# -- large files --------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch):
    """Every memory map is streamed, 100 rows of three float64 at a time."""
    monkeypatch.setattr(_streamed, "SMALLEST_STREAMED_BYTES", 0)
    monkeypatch.setattr(_streamed, "_BLOCK_BYTES", 100 * 3 * 8)


@pytest.mark.parametrize("population", [False, True])
def test_a_streamed_file_gives_what_the_array_in_memory_gives(
    population, save, rng, small_blocks
):
    """Same queries, so all but rounding is equal; 20,000 rows: more than queries."""
    samples = rng.uniform(-1, 1, (20_000, 3))
    mapped = np.load(save(samples), mmap_mode="r")
    options = {"population": population, "max_pairs": 2048 * 20_000, "seed": 3}
    streamed = noisyflow.entropy(mapped[:], NOISE, **options)
    whole = noisyflow.entropy(samples, NOISE, **options)
    assert streamed.num_pairs == whole.num_pairs
    assert streamed.isolated == whole.isolated
    for name in ("value", "standard_error", "lower", "upper", "saturation"):
        assert getattr(streamed, name) == pytest.approx(getattr(whole, name), abs=1e-8)
    assert streamed.bounded_difference == whole.bounded_difference


@pytest.mark.parametrize("population", [False, True])
def test_streamed_weights_give_what_they_give_in_memory(
    population, save, rng, small_blocks
):
    samples = rng.uniform(-1, 1, (1000, 3))
    weights = rng.random(1000)
    weights[100:200] = 0  # a block of its own, and of no weight
    weights /= weights.sum()
    mapped = np.load(save(samples), mmap_mode="r")
    options = {"weights": weights, "population": population}
    streamed = noisyflow.entropy(mapped, NOISE, **options)
    whole = noisyflow.entropy(samples, NOISE, **options)
    error = 4 * math.hypot(streamed.monte_carlo_error, whole.monte_carlo_error)
    for name in ("value", "lower", "upper"):
        assert abs(getattr(streamed, name) - getattr(whole, name)) <= error
    assert streamed.saturation == pytest.approx(whole.saturation, rel=0.1)


def test_a_nan_in_a_late_block_is_named_by_its_place(save, small_blocks, capsys):
    samples = np.zeros((1000, 3))
    samples[234, 1] = np.nan
    path = save(samples)
    complaint = complaint_of(capsys, path, "--noise-std", "1")
    assert "must be finite, got nan at [234, 1]" in complaint


def test_changes_to_a_private_map_are_neither_lost_nor_overlooked(
    save, rng, small_blocks
):
    """Mode "c": what the user wrote is in memory only, and must stay there."""
    path = save(rng.uniform(-1, 1, (1000, 3)))
    private = np.load(path, mmap_mode="c")
    private[:] = 0
    estimate = noisyflow.entropy(private, 1.0, population=True)
    assert estimate.value == pytest.approx(oracles.noise_entropy(3, 1.0), abs=1e-9)
    assert not np.any(private)
    assert np.any(np.load(path))


def test_the_command_streams_a_large_file(save, rng, small_blocks, capsys, monkeypatch):
    used = []
    mixture = _streamed.StreamedMixture.log_own_and_others

    def spy(self, points, own):
        used.append(len(points))
        return mixture(self, points, own)

    monkeypatch.setattr(_streamed.StreamedMixture, "log_own_and_others", spy)
    monkeypatch.setattr(estimate_file, "_MOST_BOUNDED_CENTERS", 0)
    path = save(rng.uniform(-1, 1, (2000, 3)))
    record = record_of(capsys, path, "--noise-std", str(NOISE))
    assert sum(used) > 0
    assert record["estimates"]["h(T)"]["entropy_bounds"] is None


# -- mistakes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 2), int), "float64, got int64; convert it: numpy.save(file, arr"),
        (np.zeros((3, 2), np.int8), "got int8; convert it: numpy.save(file, array.ast"),
        (np.zeros((3, 2), np.float16), '.astype("float32"))'),
        (np.zeros((3, 2), ">f8"), "got >f8; convert it"),
        (np.zeros((3, 2), complex), "got complex128; save real and imaginary parts"),
        (np.zeros((3, 2), "U4"), "got <U4; save the samples as numbers"),
        (np.zeros(7), "array.reshape(-1, 1)"),
        (np.zeros(()), "must hold an array (n, d) or (inputs, draws, d), got shape ()"),
        (np.zeros((2, 2, 2, 2)), "flatten the features of each sample into one axis"),
        (np.zeros((0, 3)), "must not be empty, got shape (0, 3)"),
        (np.zeros((3, 0)), "must not be empty, got shape (3, 0)"),
        (np.zeros((3, 0, 2)), "must not be empty, got shape (3, 0, 2)"),
        (np.array([[0.0, 1.0], [np.nan, 2.0]]), "must be finite, got nan at [1, 0]"),
        (np.full((2, 2, 2), np.inf), "must be finite, got inf at [0, 0, 0]"),
        (
            np.zeros((1, 2)),
            "samples.npy must hold at least 2 samples, got shape (1, 2)",
        ),
        (np.zeros((1, 2)), "is a distribution only with --population"),
        (np.full((2, 2), 1e30), "--noise-std must be at least 7.11e+15 for samples as"),
    ],
)
def test_an_array_that_will_not_do_is_named_with_a_remedy(array, words, save, capsys):
    path = save(array)
    complaint = complaint_of(capsys, path, "--noise-std", "1")
    assert words in complaint


def test_objects_are_never_unpickled(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    path = tmp_path / "objects.npy"
    np.save(path, np.array([Trap()], object), allow_pickle=True)
    complaint = complaint_of(capsys, str(path), "--noise-std", "1")
    assert "holds Python objects, which are never unpickled" in complaint
    good = tmp_path / "good.npy"
    np.save(good, np.zeros((1, 2, 2)))
    arguments = (str(good), "--noise-std", "1", "--labels", str(path))
    assert "never unpickled" in complaint_of(capsys, *arguments)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a .npy file; write one with numpy.save"),
        (b"hello there", "is not a .npy file; write one with numpy.save"),
        (b"PK\x03\x04 and so on", "is a .npz archive; save the array by itself"),
        (b"\x93NUMPY\x01\x00", "is damaged or cut short"),
        (b"\x93NUMPY\x07\x00\x10\x00", "is damaged or cut short"),
    ],
)
def test_a_file_of_another_kind_is_named(content, words, tmp_path, capsys):
    path = tmp_path / "file.npy"
    path.write_bytes(content)
    assert words in complaint_of(capsys, str(path), "--noise-std", "1")


@pytest.mark.parametrize("length", [40, 100, 128, 500])
def test_a_file_that_was_cut_short_is_named(length, save, capsys):
    path = Path(save(np.ones((100, 2))))
    path.write_bytes(path.read_bytes()[:length])
    assert "is damaged or cut short" in complaint_of(
        capsys, str(path), "--noise-std", "1"
    )


def test_what_cannot_be_read_is_named(tmp_path, save, capsys):
    missing = str(tmp_path / "none.npy")
    assert complaint_of(capsys, missing, "--noise-std", "1") == (
        f"noisyflow: cannot read {missing}: No such file or directory\n"
    )
    folder = complaint_of(capsys, str(tmp_path), "--noise-std", "1")
    assert folder == f"noisyflow: {tmp_path} is a folder, not a .npy file\n"
    good = save(np.zeros((1, 2, 2)))
    arguments = (good, "--noise-std", "1", "--labels", missing)
    assert f"cannot read {missing}" in complaint_of(capsys, *arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "arguments are required: --noise-std"),
        ("--noise-std 0", "--noise-std must be positive and finite, got 0.0"),
        ("--noise-std -1", "--noise-std must be positive and finite, got -1.0"),
        ("--noise-std nan", "--noise-std must be positive and finite, got nan"),
        ("--noise-std much", "invalid float value: 'much'"),
        ("--noise-std 1 --error 0", "--error must be positive, got 0.0"),
        ("--noise-std 1 --error nan", "--error must be finite, got nan"),
        ("--noise-std 1 --max-seconds -2", "--max-seconds must be positive, got -2.0"),
        ("--noise-std 1 --max-pairs 0", "--max-pairs must be at least 1, got 0"),
        ("--noise-std 1 --max-pairs 1.5", "must be a whole number, got '1.5'"),
        ("--noise-std 1 --max-pairs inf", "must be a whole number, got 'inf'"),
        ("--noise-std 1 --max-pairs 1", ": --max-pairs must allow"),
        ("--noise-std 1 --seed -1", ": --seed must be at least 0, got -1"),
        ("--noise-std 1 --inputs fixed", "--inputs needs an array (inputs, draws, d)"),
        ("--noise-std 1 --conditional", "--conditional needs an array (inputs, draws"),
        ("--noise-std 1 --labels x.npy", "--labels needs an array (inputs, draws, d)"),
        ("--noise-std 1 --inputs other", "invalid choice: 'other'"),
    ],
)
def test_a_mistaken_option_is_named_as_it_was_written(options, words, save, capsys):
    path = save(np.zeros((4, 3)))
    assert words in complaint_of(capsys, path, *options.split())


def test_options_of_samples_are_refused_for_inputs(save, capsys):
    path = save(np.zeros((3, 2, 2)))
    complaint = complaint_of(capsys, path, "--noise-std", "1", "--population")
    assert "--population is for an array (n, d)" in complaint


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (
            np.zeros(4, int),
            "--labels must have shape (3,), one label per input, got (4,)",
        ),
        (np.zeros((3, 1), int), "must hold one label per input, shape (inputs,), got"),
        (np.zeros(3), "--labels must be integers, booleans or strings, got float64"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, words, save, capsys):
    path = save(np.zeros((3, 2, 2)))
    arguments = (path, "--noise-std", "1", "--labels", save(labels, "labels.npy"))
    assert words in complaint_of(capsys, *arguments)


def test_an_interrupt_is_one_line(save, rng):
    path = save(rng.uniform(-1, 1, (20_000, 6)))
    command = [sys.executable, "-m", "noisyflow.cli", "estimate", path]
    command += ["--noise-std", "0.3", "--population", "--error", "1e-7", "--verbose"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert "float64" in process.stderr.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    (out, err) = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "noisyflow: stopped before the estimate was done"
    assert "Traceback" not in err
    assert out == ""


def test_nothing_is_left_to_import_once_interrupts_are_caught():
    """KeyboardInterrupt within an import may end the process as by a signal."""
    code = (
        "import sys, numpy as np\n"
        "from noisyflow import estimate_file, entropy\n"
        "before = set(sys.modules)\n"
        "entropy(np.random.default_rng(0).normal(size=(50, 3)), 1.0)\n"
        "print(sorted(m for m in set(sys.modules) - before if 'scipy' in m))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_it_needs_no_torch(tmp_path, save, rng):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch')")
    paths = [str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    path = save(rng.uniform(-1, 1, (100, 1)))
    command = [sys.executable, "-m", "noisyflow.cli", "estimate", path]
    done = subprocess.run(
        [*command, "--noise-std", "0.5"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
