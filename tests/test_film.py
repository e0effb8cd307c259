"""The film of a run: what is in it, and how the command complains."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from matplotlib import animation
from PIL import Image

from noisyflow import cli, datasets, film, plotting
from noisyflow.estimate import Estimate
from noisyflow.experiments import szt, szt_network
from noisyflow.experiments.tracked_training import TrackedTraining
from noisyflow.plotting.film import _frames
from noisyflow.runs import Interruption, RunError, RunFolder
from noisyflow.tracking import LayerInformation

CONFIG = szt.Config(epochs=4, seed=1)


class Pretence:
    """Stands for a tracker: numbers of a generator, at no cost."""

    def measure(self, epoch: int) -> list[LayerInformation]:
        generator = np.random.default_rng(epoch)
        return [
            LayerInformation(
                layer=layer,
                mutual_information=Estimate(*generator.random(4), 0.0, 0),
                label_information=Estimate(*generator.random(4), 0.0, 0),
                num_proposals=0,
                effective_sample_size=1.0,
                effective_sample_size_low=1.0,
            )
            for layer in range(1, 6)
        ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with pretended measurements at epochs 1, 2 and 3."""
    out = tmp_path_factory.mktemp("runs") / "szt"
    folder = RunFolder(out)
    train, test = datasets.split(datasets.szt(), seed=1)
    work = TrackedTraining(
        lambda: (szt_network.build(CONFIG, train)[0], Pretence()),
        train,
        test,
        epochs=CONFIG.epochs,
        logged_epochs=[1, 2, 3],
        folder=folder,
    )
    with folder.open("szt", asdict(CONFIG)), Interruption() as interruption:
        work.advance(interruption)
    return out


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> list[plotting.Scenes]:
    """Collects what films are asked to show, in place of drawing it."""
    seen: list[plotting.Scenes] = []

    def draw(scenes: plotting.Scenes, suffix: str, *, fps: int) -> bytes:
        seen.append(scenes)
        return f"{suffix} at {fps}".encode()

    monkeypatch.setattr(plotting, "film", draw)
    return seen


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that the command says before it ends with 2."""
    assert cli.main(["film", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_gif_has_a_frame_per_logged_epoch_and_rests_at_the_end(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["film", str(finished), "--fps", "20"]) == 0
    path = finished / "figures" / "film.gif"
    assert str(path) in capsys.readouterr().out
    pauses = []
    with Image.open(path) as picture:
        pixels = []
        for number in range(picture.n_frames):
            picture.seek(number)
            pauses.append(picture.info["duration"])
            pixels.append(np.asarray(picture.convert("RGB")))
    assert pauses == [50, 50, 2000]
    changed = (pixels[0] != pixels[-1]).any(axis=2)
    left, right = np.array_split(changed, 2, axis=1)
    assert left.any()
    assert right.any()


def test_film_shows_the_layer_and_its_information(
    finished: Path, scenes: list[plotting.Scenes]
) -> None:
    out = film.make_film(finished, finished / "other.gif", fps=7, layer=4)
    assert out.read_bytes() == b".gif at 7"
    results = RunFolder(finished).results()
    (shown,) = scenes
    np.testing.assert_array_equal(shown.epochs, [1, 2, 3])
    metrics = {name: column[:, 3] for name, column in results.metrics.items()}
    np.testing.assert_array_equal(shown.values, metrics["mutual_information"])
    reach = 2 * metrics["standard_error"]
    np.testing.assert_allclose(shown.low, metrics["lower"] - reach)
    np.testing.assert_allclose(shown.high, metrics["upper"] + reach)
    assert shown.ceiling == pytest.approx(np.log(4096))


def test_only_the_film_of_the_last_layer_is_the_film_of_the_run(
    finished: Path, scenes: list[plotting.Scenes]
) -> None:
    names = [film.make_film(finished, layer=layer).name for layer in (1, 5, None)]
    assert names == ["film-layer-1.gif", "film.gif", "film.gif"]
    assert [shown.layer for shown in scenes] == [1, 5, 5]


def test_points_of_three_units_are_the_outputs_themselves(
    finished: Path, scenes: list[plotting.Scenes]
) -> None:
    film.make_film(finished, finished / "other.gif")
    (shown,) = scenes
    assert shown.layer == 5
    results = RunFolder(finished).results()
    every = szt.layer_outputs(CONFIG, results.parameters[1])[-1]
    where = [
        int(np.flatnonzero((every == one).all(axis=1))[0]) for one in shown.points[1]
    ]
    assert len(set(where)) == len(where) == 1000
    assert (szt.labels(CONFIG)[where] == shown.labels).all()


def test_principal_components_keep_the_distances_of_flat_clouds() -> None:
    generator = np.random.default_rng(0)
    basis, _ = np.linalg.qr(generator.standard_normal((6, 3)))
    clouds = [scale * generator.standard_normal((20, 3)) for scale in (1.0, 3.0)]
    found = film._principal_components([7 + cloud @ basis.T for cloud in clouds])
    for cloud, projected in zip(clouds, found, strict=True):
        assert projected.shape == (20, 3)
        expected = np.linalg.norm(cloud[:, None] - cloud, axis=2)
        distances = np.linalg.norm(projected[:, None] - projected, axis=2)
        np.testing.assert_allclose(distances, expected, atol=1e-10)
    # The last cloud has the largest spread, along axes of its own; the first is flat.
    line = np.zeros((20, 6))
    line[:, 5] = generator.standard_normal(20)
    _, wide = film._principal_components([line, 3 * clouds[1] @ basis.T])
    expected = np.linalg.norm(3 * (clouds[1] - clouds[1].mean(axis=0)))
    assert np.linalg.norm(wide - wide.mean(axis=0)) > 0.99 * expected
    spreads = np.concatenate(found).std(axis=0)
    assert spreads[0] >= spreads[1] >= spreads[2]


@pytest.mark.parametrize("dimensions", [1, 2])
def test_layers_of_one_and_two_units_can_be_filmed(dimensions: int) -> None:
    generator = np.random.default_rng(0)
    scenes = plotting.Scenes(
        epochs=np.array([1, 2]),
        points=[generator.standard_normal((30, dimensions)) for _ in range(2)],
        labels=np.arange(30) % 4,
        values=np.array([1.0, 2.0]),
        low=np.array([0.9, 1.9]),
        high=np.array([1.1, 2.1]),
        ceiling=np.log(30),
        layer=1,
        remark="",
        axis_names=["unit 1", "unit 2"][:dimensions],
    )
    figure = list(_frames(scenes))[-1]
    left, right = figure.axes
    assert len(left.collections) == 4  # classes
    assert sum(len(one.get_offsets()) for one in left.collections) == 30
    assert "epoch 2" in left.get_title()
    assert "2.00 nats" in right.get_title()


def test_mp4_without_ffmpeg_is_refused(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(animation.FFMpegWriter, "isAvailable", lambda: False)
    said = complaint(capsys, finished, "--out", tmp_path / "film.mp4")
    assert "MP4 needs the program ffmpeg" in said
    assert not list(tmp_path.iterdir())


def test_mp4_is_made_where_there_is_ffmpeg(finished: Path, tmp_path: Path) -> None:
    if not plotting.has_ffmpeg():
        pytest.skip("no ffmpeg here")
    path = film.make_film(finished, tmp_path / "film.mp4")
    assert path.read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "film.avi"], "must end in .gif or .mp4, got film.avi"),
        (["--out", "/nowhere/film.gif"], "/nowhere is not a folder"),
        (["--out", "/proc/film.gif"], "cannot write /proc/film.gif"),
        (["--layer", "6"], "layer must be at most 5, got 6"),
        (["--layer", "0"], "layer must be at least 1, got 0"),
        (["--fps", "0"], "fps must be at least 1, got 0"),
        (["--fps", "51"], "fps must be at most 50, got 51"),
    ],
)
def test_what_cannot_be_made_is_told_in_one_line(
    finished: Path,
    arguments: list[str],
    said: str,
    scenes: list[plotting.Scenes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert said in complaint(capsys, finished, *arguments)


def test_folder_without_a_film_in_it_is_told_in_one_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "has no config.json" in complaint(capsys, tmp_path)
    with RunFolder(tmp_path / "estimators").open("estimators", {}):
        pass
    said = complaint(capsys, tmp_path / "estimators")
    assert "a run of estimators, which tracks no layers" in said
    with RunFolder(tmp_path / "szt").open("szt", {}):
        pass
    assert "holds no measurements yet" in complaint(capsys, tmp_path / "szt")
    with RunFolder(tmp_path / "wings").open("szt", {"wings": 2}):
        pass
    assert "settings that szt does not know" in complaint(capsys, tmp_path / "wings")
    shutil.copytree(finished, tmp_path / "estimators" / "networks" / "one")
    said = complaint(capsys, tmp_path / "estimators")
    inner = tmp_path / "estimators" / "networks" / "one"
    assert f"holds several networks; name the folder of one: {inner}" in said


def test_weights_of_another_network_are_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(szt_network, "SIZES", (12, 10, 2))
    with pytest.raises(RunError, match="do not fit its settings"):
        film.make_film(finished)
