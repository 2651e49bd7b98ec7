"""The doctor on machines that lack something: what it says, and how it ends."""
import errno
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, command

from paleotrain.app import doctor as doctor_module
from paleotrain.app.checks import BROKEN, FINE, LIMITED, Check, Cuda, advice_for, gpu, native, nvml
from paleotrain.core.settings import load_settings
from paleotrain.app.doctor import doctor, loaders, place

GIB = 2**30


def states(text: str) -> dict[str, str]:
    """State by name, from the printed lines; the last one sums up."""
    return {line[3:21].strip(): line[0] for line in text.splitlines()[:-1]}


def test_the_command_says_that_all_works_here_and_leaves_nothing_behind(tmp_path, monkeypatch):
    for name in ("DATA", "ARTIFACTS", "RUNS"): monkeypatch.setenv(f"PALEOTRAIN_{name}", str(tmp_path / name.lower()))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = command("paleotrain", "doctor")
    found = states(done.stdout)
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr[-2000:]
    assert {name: found[name] for name in ("torch", "bitsandbytes lib", "4-bit cpu", "8-bit cpu", "hub", "environment")} == dict.fromkeys(
        ("torch", "bitsandbytes lib", "4-bit cpu", "8-bit cpu", "hub", "environment"), FINE), done.stdout
    assert found["gpu"] == LIMITED and BROKEN not in found.values()
    assert "TOKENIZERS_PARALLELISM=false" in done.stdout and "offline (HF_HUB_OFFLINE)" in done.stdout
    assert f"{tmp_path / 'runs'}: " in done.stdout and f"{tmp_path / 'hub'}" in done.stdout
    assert list(tmp_path.iterdir()) == [] # the places were tried, not made
    assert done.stdout.splitlines()[-1].startswith("this machine can do what the project does")


def test_bitsandbytes_without_its_binary_is_a_line_and_no_traceback(tmp_path):
    """The installed package without its shared objects, found first."""
    place = next(file for file in metadata.files("bitsandbytes") if file.name == "cextension.py").locate().parent
    shutil.copytree(place, tmp_path / "bitsandbytes", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    script = ("from paleotrain.app import doctor; from paleotrain.core.settings import load_settings; checks = doctor.all_checks(load_settings())\n"
              "doctor.all_checks = lambda settings: [c for c in checks if c[0] in ('bitsandbytes', 'bitsandbytes lib', '4-bit cpu', 'memory')]\n"
              "from paleotrain.app.cli import main; import sys; sys.exit(main(['doctor']))")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=200,
                          env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    line = next(line for line in done.stdout.splitlines() if "bitsandbytes lib" in line)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stderr[-2000:]
    assert line.startswith(BROKEN) and "libbitsandbytes" in line and "--force-reinstall" in line and "python -m bitsandbytes" in line
    assert states(done.stdout)["memory"] == FINE # the others went on
    assert done.stdout.splitlines()[-1].startswith("1 of 4 checks failed")


def test_a_native_library_for_a_newer_system_is_told_from_its_own_error(monkeypatch):
    from bitsandbytes import cextension
    class Mock(cextension.ErrorHandlerMockBNBNativeLibrary):
        def __init__(self): pass
    monkeypatch.setattr(cextension, "lib", Mock())
    def fails(): raise OSError("/lib/libc.so.6: version `GLIBC_2.38' not found (required by libbitsandbytes_cpu.so)")
    monkeypatch.setattr(cextension, "get_native_library", fails)
    found = native()
    assert found.state == BROKEN and "GLIBC_2.38" in found.found and "C library is older" in found.advice


def runtime(number: int, text: str) -> str:
    return f"Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before that might have set an error? Error {number}: {text}"


@pytest.mark.parametrize(("said", "fix"), [
    (runtime(304, "OS call failed or operation not supported on this OS"), "nvidia-container-toolkit"),
    (runtime(802, "system not yet initialized"), "nvidia-fabricmanager"),
    (runtime(803, "system has unsupported display driver / cuda driver combination"), "reboot after a driver update"),
    (runtime(804, "forward compatibility was attempted on non supported HW"), "cuda-compat"),
    (runtime(101, "invalid device ordinal"), "CUDA_VISIBLE_DEVICES"),
    (runtime(100, "no CUDA-capable device is detected"), "CUDA_VISIBLE_DEVICES"),
    ("No CUDA GPUs are available", "CUDA_VISIBLE_DEVICES"),
    ("The NVIDIA driver on your system is too old (found version 11040).", "update the driver"),
    ("CUDA unknown error - this may be due to an incorrectly set up environment", "nvidia_uvm"),
])
def test_cuda_that_does_not_start_is_broken_and_says_why(monkeypatch, said, fix):
    import torch
    def init(): raise RuntimeError(said)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("paleotrain.app.checks.has_driver", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = gpu(doctor_module.look())
    assert found.state == BROKEN and said in found.found and fix in found.advice and "\n" not in str(found)


@pytest.mark.parametrize(("cuda", "state", "word"), [
    (Cuda(None, False, False, "Torch not compiled with CUDA enabled"), LIMITED, "a 7B model does not"),
    (Cuda("13.0", False, False, "Found no NVIDIA driver on your system."), LIMITED, "a 7B model does not"),
    (Cuda(None, True, False, "Torch not compiled with CUDA enabled"), BROKEN, "pip install -c constraints.txt torch"),
    (Cuda("13.0", True, True, "No CUDA GPUs are available"), LIMITED, "CUDA_VISIBLE_DEVICES"),
    (Cuda("13.0", True, False, "", ("NVIDIA A, 10.5 of 11.0 GiB free",)), FINE, "NVIDIA A, 10.5 of 11.0 GiB free; torch for CUDA 13.0"),
])
def test_what_a_gpu_means(cuda, state, word):
    assert gpu(cuda).state == state and word in str(gpu(cuda))


def test_nvml(monkeypatch):
    import pynvml
    monkeypatch.setattr("paleotrain.app.checks.has_driver", lambda: False)
    assert nvml() is None
    monkeypatch.setattr("paleotrain.app.checks.has_driver", lambda: True)
    for code, fix in ((pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "reboot"), (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "NVIDIA_DRIVER_CAPABILITIES")):
        def fails(code=code): raise pynvml.NVMLError(code)
        monkeypatch.setattr(pynvml, "nvmlInit", fails)
        assert nvml().state == LIMITED and fix in nvml().advice and "cannot be shown" in nvml().found
    assert "reload the nvidia modules" in advice_for("Failed to initialize NVML: Driver/library version mismatch")


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    found = place("runs", tmp_path / "file" / "runs")
    assert found.state == BROKEN and f"{tmp_path / 'file'} is a file" in found.found and "settings.ini" in found.advice
    assert place("hub cache", Path("/proc/none"), "HF_HOME").state == BROKEN # no file can be made there, by root either
    assert "HF_HOME" in place("hub cache", Path("/proc/none"), "HF_HOME").advice
    def full(_): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    found = place("runs", tmp_path)
    assert found.state == BROKEN and "No space left" in found.found and "make room" in found.advice
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"] # the file that was tried is gone


def test_a_closed_folder(tmp_path):
    (tmp_path / "shut").mkdir(mode=0)
    owner = os.geteuid()
    if not owner: os.seteuid(65534) # root writes everywhere
    try: found = place("runs", tmp_path / "shut" / "a" / "runs")
    finally: os.seteuid(owner)
    assert found.state == BROKEN and "Permission denied" in found.found and "take the right to write" in found.advice


@pytest.mark.parametrize(("free", "state"), [(5 * GIB, FINE), (5 * GIB - 1, LIMITED), (GIB // 2, LIMITED), (GIB // 2 - 1, BROKEN)])
def test_room(tmp_path, monkeypatch, free, state):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert place("runs", tmp_path).state == state and bool(place("runs", tmp_path).advice) == (state != FINE)


def test_loaders_without_semaphores_or_shared_memory(tmp_path, monkeypatch):
    import multiprocessing
    assert loaders(Path("/proc/self")).state == LIMITED # there, and no file can be made
    assert loaders(tmp_path / "none").state == FINE # a system that has none
    def no_lock(): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(multiprocessing.get_context(), "Lock", no_lock)
    assert loaders().state == LIMITED and "dataloader_num_workers at 0" in loaders().advice


def test_a_check_that_crashes_is_a_line_and_the_next_goes_on(monkeypatch, capsys):
    def crash(): raise ZeroDivisionError("a surprise\nin two lines")
    monkeypatch.setattr(doctor_module, "all_checks", lambda settings: [("memory", crash), ("gpu", lambda: None), ("hub", lambda: Check("hub", FINE, "online"))])
    found = doctor(load_settings())
    lines = capsys.readouterr().out.splitlines()
    assert [check.state for check in found] == [BROKEN, FINE] and len(lines) == 2
    assert lines[0].startswith("✕  memory            ZeroDivisionError: a surprise in two lines  → ")


def test_without_torch_the_doctor_still_speaks(tmp_path):
    """Its import fails, as with a broken installation."""
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch_cpu.so: cannot enable executable stack')")
    settings = {f"PALEOTRAIN_{name}": str(tmp_path) for name in ("DATA", "ARTIFACTS", "RUNS")}
    done = subprocess.run([sys.executable, "-c", "from paleotrain.app.cli import main; import sys; sys.exit(main(['doctor']))"], cwd=ROOT, capture_output=True,
                          text=True, timeout=200, env=os.environ | settings | {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    found = states(done.stdout)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stderr[-2000:]
    assert found["torch"] == found["gpu"] == found["4-bit cpu"] == BROKEN and found["runs"] in (FINE, LIMITED) and found["memory"] in (FINE, LIMITED)
    assert "libtorch_cpu.so" in next(line for line in done.stdout.splitlines() if "torch  " in line)
