"""The study of estimators: its known answers, and a tiny run from end to end."""

from __future__ import annotations

import csv
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oracles
from noisyflow import cli
from noisyflow.experiments import cells, estimator_findings, estimators, spiral_layer
from noisyflow.experiments.estimator_findings import KERNELS, NEIGHBORS, OURS, Study
from noisyflow.experiments.estimators import Config
from noisyflow.experiments.known_sources import (
    COMPONENT_STD,
    cube_mixture,
    expected_plug_in_without_noise,
    full_code,
)
from noisyflow.runs import RunFolder

TINY = Config(num_repetitions=2, max_samples=100, seed=3)


@pytest.fixture(scope="module", autouse=True)
def small_study() -> Any:
    """Few sources, and a reference that need not be precise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spiral_layer, "_REFERENCE_DRAWS", 20)
        patch.setattr(spiral_layer, "_CHECK_POINTS", 600)
        patch.setattr(estimators, "_CUBE_NOISE", (0.1,))
        patch.setattr(estimators, "_OPEN_CUBE_NOISE", (0.2,))
        patch.setattr(estimators, "_SHORT_CODE_NOISE", (0.1, 0.5, 3.0))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not disturbed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert estimators.run(TINY, out)
    return out


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- Known answers


@pytest.mark.parametrize(
    ("noise_std", "per_dimension"),
    [(0.05, -0.855404), (0.1, -0.183284), (0.2, 0.504460)],
)
def test_truncated_cube_has_the_entropy_of_the_papers_dashed_lines(
    noise_std: float, per_dimension: float
) -> None:
    source = cube_mixture(10, noise_std, is_truncated=True)
    assert source.entropy == pytest.approx(10 * per_dimension, abs=1e-5)


@pytest.mark.parametrize(("noise_std", "entropy"), [(0.1, -1.709), (0.2, 5.076)])
def test_untruncated_cube_has_the_entropy_of_two_normals_per_dimension(
    noise_std: float, entropy: float
) -> None:
    source = cube_mixture(10, noise_std, is_truncated=False)
    total = math.hypot(COMPONENT_STD, noise_std)
    exact = 10 * oracles.mixture_entropy_1d((-1, 1), total)
    assert source.entropy == pytest.approx(exact)
    assert source.entropy == pytest.approx(entropy, abs=1e-3)


@pytest.mark.parametrize(
    ("d", "noise_std", "information"),
    [(32, 2.0, 3.565487), (16, 0.5, 10.123523), (16, 1.0, 5.389293)],
)
def test_full_codes_have_the_information_of_independent_bits(
    d: int, noise_std: float, information: float
) -> None:
    assert full_code(d, noise_std).information == pytest.approx(information, abs=1e-6)


def test_expected_plug_in_without_noise_is_that_of_counts(
    rng: np.random.Generator,
) -> None:
    """Known numbers, and draws of 50 from 20 words."""
    assert expected_plug_in_without_noise(100, 65536) == pytest.approx(4.6041, abs=1e-4)
    assert expected_plug_in_without_noise(4096, 4096) == pytest.approx(
        7.744459, abs=1e-6
    )
    share = rng.multinomial(50, [1 / 20] * 20, 4000) / 50
    entropies = -(share * np.log(np.where(share > 0, share, 1))).sum(axis=1)
    error = entropies.std() / math.sqrt(4000)
    assert abs(entropies.mean() - expected_plug_in_without_noise(50, 20)) < 5 * error


@pytest.mark.parametrize("is_truncated", [True, False])
def test_cube_samples_are_what_the_entropy_is_of(
    is_truncated: bool, rng: np.random.Generator
) -> None:
    """Mean and variance of the distance to the corner, and how often it is outside."""
    samples = cube_mixture(5, 0.1, is_truncated=is_truncated).sample(rng, 20_000)
    corners = np.sign(samples)
    inward = (1 - corners * samples).ravel() / COMPONENT_STD
    count = inward.size
    assert abs(corners.mean()) < 5 / math.sqrt(count)
    assert (inward**2).mean() == pytest.approx(1, abs=5 * math.sqrt(2 / count))
    if is_truncated:
        assert inward.min() >= -1e-4
        assert inward.mean() == pytest.approx(math.sqrt(2 / math.pi), abs=0.01)
    else:
        assert inward.mean() == pytest.approx(0, abs=5 / math.sqrt(count))


# --- A run


def test_a_run_writes_all_that_it_promises(finished: Path) -> None:
    files = {str(path.relative_to(finished)) for path in finished.rglob("*.*")}
    assert files == {
        ".lock",
        "checkpoint.safetensors",
        "config.json",
        "figures/codes.png",
        "figures/cube-10.png",
        "figures/cube-5.png",
        "figures/open-cube.png",
        "figures/spiral.png",
        "history.csv",
        "metrics.csv",
        "report.html",
        "report.json",
        "usage.json",
    }


def test_every_source_has_every_method_at_every_number_of_samples(
    finished: Path,
) -> None:
    rows = read(finished / "metrics.csv")
    found = {(row["source"], row["num_samples"], row["method"]) for row in rows}
    compared = {row["source"] for row in rows if row["num_dimensions"] != "16"}
    swept = {row["source"] for row in rows if row["num_dimensions"] == "16"}
    assert (len(compared), len(swept)) == (5, 3)
    assert found == {
        (source, n, method)
        for source in compared
        for n in ("10", "32", "100")
        for method in (OURS, NEIGHBORS, KERNELS)
    } | {(source, "100", OURS) for source in swept}
    for row in rows:
        assert math.isfinite(float(row["entropy"]))
        assert float(row["lower"]) <= float(row["entropy"]) <= float(row["upper"])
        assert (row["upper"] == "inf") == (row["method"] != OURS)
    history = read(finished / "history.csv")
    assert [(row["cell"], row["method"]) for row in history] == [
        (row["cell"], row["method"]) for row in rows
    ]


def test_repetitions_are_independent(finished: Path) -> None:
    rows = [row for row in read(finished / "metrics.csv") if row["method"] == NEIGHBORS]
    assert len({row["entropy"] for row in rows}) == len(rows)


def test_the_report_stands_alone(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 5
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    for text in ("3.5655", "4.6041", "time in kernel density", "num_repetitions"):
        assert text in page


def test_the_spiral_network_is_measured_in_two_ways_that_agree(finished: Path) -> None:
    study = study_of(finished)
    assert float(study.prepared["spiral.accuracy"]) >= 0.98
    assert estimator_findings.spiral_claim(study).holds


def test_a_finished_run_makes_its_figures_and_report_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "figures")
    (out / "report.html").unlink()
    assert estimators.run(TINY, out)
    assert "is finished" in capsys.readouterr().out
    assert len(list((out / "figures").iterdir())) == 5
    assert (out / "report.html").exists()


def test_a_run_interrupted_and_then_killed_ends_with_the_same_numbers(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "disturbed"
    compute = estimators.compute
    calls = []

    def disturbed(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) in (1, 20):
            raise MemoryError
        if len(calls) == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return compute(*arguments)

    monkeypatch.setattr(estimators, "plot", lambda *_: [])
    monkeypatch.setattr(estimators, "compute", disturbed)
    monkeypatch.setattr(cells, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    with pytest.raises(MemoryError):
        estimators.run(TINY, out)
    assert not estimators.run(TINY, out)
    assert len(read(out / "metrics.csv")) == 27
    with pytest.raises(MemoryError):
        estimators.run(TINY, out)
    assert len(read(out / "metrics.csv")) == 54
    monkeypatch.setattr(estimators, "compute", compute)
    assert estimators.run(TINY, out)
    assert capsys.readouterr().out.count("training the network") == 1
    assert (out / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


def test_other_settings_on_the_same_folder_are_refused(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "estimators", "--seed", "4", "--out", str(finished)]
    assert cli.main(command) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_the_options_reach_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        estimators, "run", lambda *arguments: seen.append(arguments) or True
    )
    assert cli.main(["run", "estimators", "--seed", "5"]) == 0
    assert cli.main(["run", "estimators", "--quick"]) == 0
    assert seen[0] == (Config(seed=5), Path("runs/estimators"))
    assert seen[1] == (
        Config(num_repetitions=3, max_samples=3162),
        Path("runs/estimators-quick"),
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_repetitions": 1}, "num_repetitions must be at least 2, got 1"),
        ({"max_samples": 10}, "max_samples must be at least 100, got 10"),
        ({"max_samples": 1e4}, "max_samples must be an integer, got float"),
        ({"seed": 2**63}, "seed must be at most"),
    ],
)
def test_settings_that_make_no_sense_are_named(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Config(**settings)


# --- Claims


def study_of(folder: Path, errors: dict[str, float] | None = None) -> Study:
    """The run's rows; with these errors in place of each method's own."""
    checkpoint = RunFolder(folder).load_checkpoint()
    metrics, history = (
        RunFolder(folder).load_table(name, checkpoint)
        for name in ("metrics.csv", "history.csv")
    )
    for row in metrics if errors else []:
        error = errors[row["method"]] * (1 + 0.01 * row["repetition"])
        row["entropy"] = row["lower"] = row["exact"] + error
        row["upper"] = row["exact"] + errors.get("upper", abs(error))
    prepared = {
        name.removeprefix("prepared."): array
        for name, array in checkpoint.items()
        if name.startswith("prepared.")
    }
    sources = estimators._sources(spiral_layer.source(prepared))
    return Study(sources, metrics, history, prepared)


@pytest.mark.parametrize(("theirs", "holds"), [(0.3, True), (0.1, False)])
def test_being_ahead_is_judged_by_the_errors(
    finished: Path, theirs: float, holds: bool
) -> None:
    study = study_of(finished, {OURS: -0.2, NEIGHBORS: 0.5, KERNELS: theirs})
    (claim,) = [
        estimator_findings.dominance(study, source)
        for source in study.of_family("spiral")
    ]
    assert claim.holds is holds
    assert ("ahead of us: kernel density" in claim.measured) is not holds


@pytest.mark.parametrize(("error", "holds"), [(-0.02, True), (-0.2, False)])
def test_one_percent_is_judged_where_samples_suffice(
    finished: Path, error: float, holds: bool
) -> None:
    """Of 3.5 nats, the information of five bits of which noise leaves nearly all."""
    study = study_of(finished, {OURS: error, NEIGHBORS: 0.5, KERNELS: 0.5})
    source = study.of_family("cube", 5)[0]
    assert estimator_findings._precision(study, 5, 100, source).holds is holds
    assert estimator_findings._precision(study, 5, 1000, source).holds is None


@pytest.mark.parametrize(
    ("error", "upper", "holds"), [(-1, 1, True), (1, 2, False), (-2, -1, False)]
)
def test_a_bracket_beside_the_exact_value_is_noticed(
    finished: Path, error: float, upper: float, holds: bool
) -> None:
    errors = {OURS: error, NEIGHBORS: 0.5, KERNELS: 0.5, "upper": upper}
    study = study_of(finished, errors)
    assert estimator_findings.brackets(study).holds is holds


def test_a_tiny_run_shows_what_it_can(finished: Path) -> None:
    found = estimators.claims(study_of(finished))
    assert [claim for claim in found if claim.holds is False] == []
    assert sum(claim.holds is None for claim in found) == 2
