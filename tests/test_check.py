"""`noisyflow check`, and what becomes of `--device`, where there is no GPU."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import noisyflow
from noisyflow import (
    _benchmarking,
    _device,
    _machine,
    check,
    cli,
    estimate_file,
    runtime,
)
from noisyflow.runs import RunFolder
from noisyflow.tracking import InformationTracker

torch = pytest.importorskip("torch")

from fake_cuda import FakeCuda, PosingTensor, posing  # noqa: E402  needs torch


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Formulas in place of the CUDA kernels, on tensors that pose."""
    module = FakeCuda()
    monkeypatch.setattr(_device, "extension", lambda: module)
    monkeypatch.setattr(
        _device, "is_on_device", lambda value: isinstance(value, PosingTensor)
    )
    _device._check_device.cache_clear()
    return module


def checked(capsys: pytest.CaptureFixture[str], exit_code: int = 0) -> str:
    assert cli.main(["check"]) == exit_code
    return capsys.readouterr().out


# -- noisyflow check ----------------------------------------------------------


def test_check_names_what_is_there_and_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from noisyflow import cli\n"
        "code = cli.main(['check'])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    if _device.extension() is None:
        assert result.returncode == 0, result.stderr
    for word in (noisyflow.__version__, np.__version__, runtime.cpu_target(), "passed"):
        assert word in result.stdout
    assert result.stdout.endswith("usable\n")


def test_check_says_how_to_build_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_device, "extension", lambda: None)
    assert "not built: install NVIDIA's nvcc" in checked(capsys)


@pytest.mark.parametrize("is_built", [False, True])
@pytest.mark.parametrize(
    ("cuda", "is_named"), [("None", True), ("'13.0'", False), (None, False)]
)
def test_check_names_every_obstacle(
    is_built: bool,
    cuda: str | None,
    is_named: bool,
    fake: FakeCuda,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No driver, and a torch whose version.py says that it knows no CUDA."""
    if cuda is not None:
        text = f"__version__ = '2'\ncuda: str | None = {cuda}\nhip = None\n"
        (tmp_path / "version.py").write_text(text)
    spec = importlib.machinery.ModuleSpec(
        "torch", None, origin=str(tmp_path / "__init__.py")
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(check, "_driver_version", lambda: 0)
    fake.driver = 0
    if not is_built:
        monkeypatch.setattr(_device, "extension", lambda: None)
    out = checked(capsys)
    assert ("not built: install" in out) is not is_built
    assert ("was built without CUDA; install one with it" in out) is is_named
    subject = "GPU" if is_built else "driver"
    assert f"\n{subject:<14}none: no NVIDIA driver was found (libcuda.so)" in out


def test_check_says_that_a_gpu_needs_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "cannot use a GPU: it is not installed; pip install" in checked(capsys)


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch has CUDA")
def test_check_knows_this_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"torch {torch.__version__} was built without" in checked(capsys)


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (0, "none: no NVIDIA driver was found"),
        (12020, "none: no GPU can be used: CUDA driver version is insufficient"),
    ],
)
def test_check_says_why_there_is_no_gpu(
    fake: FakeCuda, capsys: pytest.CaptureFixture[str], driver: int, words: str
) -> None:
    fake.driver = driver
    out = checked(capsys)
    assert words in out
    assert "built with 13.0 for 80-real, 90-real, 90-virtual" in out


def test_check_tries_every_gpu_that_it_can(
    fake: FakeCuda, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.devices = [(9, 0), (7, 5)]
    monkeypatch.setattr(runtime, "checked_device", lambda name: torch.device("cpu"))
    real = torch.as_tensor
    monkeypatch.setattr(torch, "as_tensor", lambda *a, **k: posing(real(*a, **k)))
    out = checked(capsys)
    assert "GPU 0 test    passed" in out
    assert "capability 7.5" in out
    assert "NOISYFLOW_CUDA_ARCHITECTURES=75" in out
    assert fake.calls == {"log_density": 1, "gradients": 1}

    def broken(*_: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(fake, "gradients", broken)
    out = checked(capsys, exit_code=1)
    assert "GPU 0 test    FAILED: RuntimeError: an illegal memory access" in out
    assert out.endswith("NOT usable: GPU 0 test\n")


def test_check_fails_where_a_kernel_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = check._core.log_density
    monkeypatch.setattr(
        check._core, "log_density", lambda *given: right(*given) + np.float32(1e-3)
    )
    assert "NOT usable: CPU test" in checked(capsys, exit_code=1)


@pytest.mark.parametrize("what", ["log_density", "skipping", "skips nothing"])
def test_check_tries_every_cpu_target(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last of them is wrong, and no other."""
    last = runtime.available_cpu_targets()[-1]
    core = check._core

    def is_wrong() -> bool:
        return runtime.cpu_target() == last

    if what == "log_density":
        right = core.log_density

        def log_density(*given: Any) -> Any:
            return right(*given) + np.float32(1e-3 * is_wrong())

        monkeypatch.setattr(core, "log_density", log_density)
        failed = f"CPU test ({last} float32); CPU test ({last} float64)"
    else:

        class Prepared(core.Prepared64):  # type: ignore[misc, name-defined]
            def log_density(self, *given: Any) -> Any:
                (value, *others, counts) = super().log_density(*given)
                if what == "skipping":
                    value = value - 1e-5 * is_wrong()
                elif is_wrong():
                    counts = (10**9, *counts[1:])
                return (value, *others, counts)

        monkeypatch.setattr(core, "Prepared64", Prepared)
        failed = f"CPU test ({last} skipping)"
    assert checked(capsys, exit_code=1).endswith(f"NOT usable: {failed}\n")


def test_check_knows_an_entropy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = check.entropy

    def entropy(*given: Any, **settings: Any) -> Any:
        estimate = right(*given, **settings)
        wrong = estimate.value + 6 * estimate.standard_error
        return dataclasses.replace(estimate, value=wrong)

    monkeypatch.setattr(check, "entropy", entropy)
    assert "NOT usable: CPU test (entropy)\n" in checked(capsys, exit_code=1)


def test_check_leaves_the_target_as_it_was() -> None:
    last = runtime.available_cpu_targets()[-1]
    runtime.set_cpu_target(last)
    try:
        assert f"CPU           {last}, of " in str(check.check())
        assert runtime.cpu_target() == last
    finally:
        runtime.set_cpu_target(None)


def test_check_is_fit_to_be_shared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "/home/someone")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    out = checked(capsys)
    for fact in (
        f"built with    {check._core.build_info()['compiler']}",
        f"system        {platform.system()}",
        "processor     ",
        "OMP_NUM_THREADS=(not shown), OPENBLAS_NUM_THREADS=3",
        "CPU test      entropy: passed",
    ):
        assert fact in out
    private = (Path.home(), Path.cwd(), Path(noisyflow.__file__).parent, "someone")
    for text in map(str, (*private, platform.node())):
        assert len(text) < 2 or text not in out


def test_check_knows_a_package_without_metadata(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert check._version("numpy") == f"numpy {np.__version__}"
    assert check._version("nothing-of-the-kind") == "no nothing-of-the-kind"


# -- what a machine is --------------------------------------------------------


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tree of control groups of its own; this process is in none yet."""
    monkeypatch.setattr(_machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(_machine, "_OWN_CGROUP", tmp_path / "self")
    _machine.granted_cpus.cache_clear()
    yield tmp_path
    _machine.granted_cpus.cache_clear()


def test_without_control_groups_nothing_is_limited(groups: Path) -> None:
    assert _machine.cpu_quota() is None
    assert _machine.memory_limit() is None
    assert _machine.num_cpus() == len(_machine.cpus())


@pytest.mark.parametrize(("quota", "granted"), [(150000, 2), (50000, 1), (900000, 4)])
@pytest.mark.parametrize("has_torch", [False, True])
def test_no_more_threads_than_a_control_group_grants(
    quota: int,
    granted: int,
    has_torch: bool,
    groups: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine of four CPUs, of which torch takes all."""
    (groups / "self").write_text("0::/\n")
    (groups / "cpu.max").write_text(f"{quota} 100000\n")
    monkeypatch.setattr(_machine, "cpus", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(runtime, "_num_threads", None)
    monkeypatch.delenv("NOISYFLOW_NUM_THREADS", raising=False)
    torch = mock.Mock(get_num_threads=lambda: 4) if has_torch else None
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert runtime.num_threads() == granted
    monkeypatch.setenv("NOISYFLOW_NUM_THREADS", "3")  # who asks for more has it
    assert runtime.num_threads() == 3


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_control_group_counts(version: int, groups: Path) -> None:
    files: dict[str, str]
    if version == 2:
        (groups / "self").write_text("0::/outer/inner\n")
        files = {
            "cpu.max": "max 100000\n",
            "outer/cpu.max": "150000 100000\n",
            "outer/inner/cpu.max": "400000 100000\n",
            "outer/memory.max": f"{3 * 2**30}\n",
            "outer/inner/memory.max": f"{4 * 2**30}\n",
            "memory.max": "max\n",
        }
    else:
        (groups / "self").write_text("2:cpu,cpuacct:/outer/inner\n1:memory:/outer/in\n")
        files = {
            "cpu,cpuacct/none": "",
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpu/cpu.cfs_period_us": "100000\n",
            "cpu/outer/cpu.cfs_quota_us": "150000\n",
            "cpu/outer/cpu.cfs_period_us": "100000\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/outer/memory.limit_in_bytes": f"{3 * 2**30}\n",
            "memory/outer/in/memory.limit_in_bytes": f"{4 * 2**30}\n",
        }
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    assert _machine.cpu_quota() == 1.5
    assert _machine.memory_limit() == 3 * 2**30
    assert "limit of 3 GiB by a control group" in _machine.memory()
    assert "quota of 1.5 by a control group" in _machine.processor()
    assert check._about_threads(2) == ""
    assert "grants 1.5: NOISYFLOW_NUM_THREADS=2 would" in check._about_threads(3)


def test_cores_that_share_are_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [
        f"processor\t: {i}\nmodel name\t: A CPU\nphysical id\t: {i // 4}\n"
        f"core id\t\t: {i % 2}\n"
        for i in range(8)
    ]
    (tmp_path / "cpuinfo").write_text("\n".join(entries))
    monkeypatch.setattr(_machine, "_CPUINFO", tmp_path / "cpuinfo")
    assert _machine.processor().startswith("A CPU, cores: ")
    assert "logical of 4 physical" in _machine.processor()
    assert _benchmarking.machine()["cpu"] == "A CPU"


def test_a_machine_that_tells_nothing_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_CPUINFO", "_MEMINFO", "_CGROUP", "_OWN_CGROUP"):
        monkeypatch.setattr(_machine, name, tmp_path / "none")
    assert "physical" not in _machine.processor()
    assert "control group" not in _machine.memory()
    assert check.check().is_usable


def test_check_fails_at_a_setting_that_cannot_be_followed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOISYFLOW_NUM_THREADS", "many")
    assert "must be a positive integer, got 'many'" in checked(capsys, exit_code=1)


# -- --device -----------------------------------------------------------------


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch has CUDA")
def test_a_torch_without_cuda_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, 2)))
    arguments = [str(tmp_path / "x.npy"), "--noise-std", "1", "--device", "cuda"]
    assert cli.main(["estimate", *arguments]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert f"this torch, {torch.__version__}, was built without CUDA" in complaint
    assert cli.main(["estimate", *arguments[:-1], "tpu"]) == 2
    assert "device must be cpu, cuda or cuda:N, got 'tpu'" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::noisyflow.UndersampledWarning")
@pytest.mark.parametrize("shape", [(200, 3), (8, 25, 3)])
def test_estimate_on_a_gpu_is_that_on_the_cpu(
    fake: FakeCuda,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rng: np.random.Generator,
    shape: tuple[int, ...],
) -> None:
    np.save(tmp_path / "x.npy", rng.normal(size=shape).astype(np.float32))
    command = ["estimate", str(tmp_path / "x.npy"), "--noise-std", "0.6", "--json"]
    assert cli.main(command) == 0
    of_cpu = json.loads(capsys.readouterr().out)
    upload = estimate_file._on_device
    monkeypatch.setattr(runtime, "checked_device", torch.device)
    monkeypatch.setattr(runtime, "device_name", lambda name: f"{name}, that poses")
    monkeypatch.setattr(
        estimate_file, "_on_device", lambda samples, _: posing(upload(samples, "cpu"))
    )
    monkeypatch.setattr(estimate_file, "_UPLOADED_BYTES", 100)
    assert cli.main([*command, "--device", "cuda:0"]) == 0
    of_gpu = json.loads(capsys.readouterr().out)
    assert (of_cpu["device"], of_gpu["device"]) == ("cpu", "cuda:0, that poses")
    assert fake.calls["block_log_sums"] > 0
    for name, theirs in of_cpu["estimates"].items():
        ours = of_gpu["estimates"][name]
        for key in ("value", "lower", "upper", "standard_error"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), key


def test_estimate_tells_of_a_gpu_without_enough_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    np.save(tmp_path / "x.npy", np.zeros((5, 2)))
    monkeypatch.setattr(runtime, "checked_device", torch.device)
    monkeypatch.setattr(torch, "empty", full)
    command = ["estimate", str(tmp_path / "x.npy"), "--noise-std", "1"]
    assert cli.main([*command, "--device", "cuda"]) == 1
    assert "out of memory. fewer samples need less" in capsys.readouterr().err


def test_a_run_records_its_device(tmp_path: Path) -> None:
    for settings, device in (({"device": "cpu"}, "cpu"), ({}, "cpu")):
        folder = RunFolder(tmp_path / str(len(settings)))
        with folder.open("szt", settings):
            assert folder.config()["device"] == device


class _Network:
    """Yields outputs that pose as those of a network on a GPU."""

    noise_std = 0.5

    def clean_outputs(
        self, inputs: Any, num_draws: int = 1, *, seed: int | None = None
    ) -> list[Any]:
        generator = torch.Generator().manual_seed(seed or 0)
        first = torch.as_tensor(inputs)[:, None].expand(-1, num_draws, -1)
        noise = torch.randn(first.shape, generator=generator, dtype=first.dtype)
        outputs = [first, torch.tanh(first + 0.5 * noise)]
        return [self.place(output) for output in outputs]

    def place(self, output: Any) -> Any:
        return output


@pytest.mark.filterwarnings("ignore::noisyflow.UndersampledWarning")
def test_the_tracker_leaves_outputs_on_a_gpu_there(
    fake: FakeCuda, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = rng.normal(size=(20, 3))
    labels = rng.integers(0, 2, 20)

    def measured() -> list[Any]:
        tracker = InformationTracker(_Network(), inputs, labels, num_draws=8)
        return tracker.measure(3)

    of_cpu = measured()
    monkeypatch.setattr(_Network, "place", lambda self, output: posing(output))
    assert fake.calls == {}
    of_gpu = measured()
    assert fake.calls["block_log_sums"] > 0
    for ours, theirs in zip(of_gpu, of_cpu, strict=True):
        assert ours.num_proposals == theirs.num_proposals
        for name in ("mutual_information", "label_information"):
            (found, expected) = (getattr(part, name) for part in (ours, theirs))
            assert found.value == pytest.approx(expected.value, rel=1e-4)
            assert found.upper == pytest.approx(expected.upper, rel=1e-4)
