"""What doctor finds, the probe of torch, and how --device is settled."""

import http.server
import io
import os
import pwd
import resource
import shutil
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from kdbench.common import environment as machine
from kdbench.common.errors import InputError, WorkerError
from kdbench.runner import device as probing
from kdbench.runner import doctor
from kdbench.runner.device import ResolvedDevice, probe_torch, resolve_device
from kdbench.runner.doctor import examine_machine, render
from kdbench.runner.process.launcher import worker_environment
from kdbench.store.schema import TABLES
from tests.support.fake_nvml.fixtures import GIB, MIG_UUID, OTHER_UUID, UUID, card, fake_nvml  # noqa: F401

# ruff: noqa: F811 - fixtures are imported, since conftest.py is shared

KNOWN = {column.name for columns in TABLES.values() for column in columns}
NO_DRIVER = {"load_fails": True}


def seen(*devices, build="12.9", problem=None):
    """What the probe prints on a machine with these cards, by (name, uuid)."""
    return {
        "torch_version": "2.13.0",
        "cuda_build": build,
        "cuda_available": bool(devices),
        "cuda_problem": problem,
        "threads": 8,
        "devices": [
            {"index": i, "name": n, "uuid": u, "memory_bytes": GIB, "capability": "9.0"}
            for i, (n, u) in enumerate(devices)
        ],
        "bf16": True,
    }


ONE_CARD = seen(("Fake GPU", UUID.removeprefix("GPU-")))


def found(findings):
    return {finding.name: finding for finding in findings}


def look(torch=ONE_CARD, results=None, root=Path("/")):
    report = examine_machine(results, probe=lambda: torch, reaches=lambda _: None, root=root)
    return found(report)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def cuda_build(monkeypatch):
    monkeypatch.setattr(probing, "torch_cuda_build", lambda: "12.9")


# ---- doctor


def test_an_ordinary_card_lacks_nothing_but_polled_peaks_are_lower_bounds(fake_nvml):
    fake_nvml(card(processes={"7": GIB}))
    findings = look()
    assert UUID in findings["card 0"].found
    assert "80.0 GiB" in findings["card 0"].found
    assert findings["driver"].found == "575.57.08, for CUDA up to 12.9"
    assert findings["card 0: per process"].found == "memory is available"
    assert "nvml-counter" in findings["card 0: energy"].found
    on_card = [f for name, f in findings.items() if name.startswith(("card", "driver", "torch"))]
    assert all(f.good and not f.null for f in on_card)
    bounds = {column for f in on_card for column in f.lower_bound}
    assert bounds == {"device_peak_bytes", "process_peak_bytes"}


@pytest.mark.parametrize(
    ("change", "name", "null"),
    [
        ({"processes": {"7": 0}}, "per process", {"process_peak_bytes", "process_bytes"}),
        ({"processes": {"7": None}}, "per process", {"process_peak_bytes"}),
        ({"processes": None}, "per process", {"process_peak_bytes", "gpu_neighbours"}),
        ({"energy_mj": None}, "energy", {"energy_joules"}),
        ({"energy_mj": None, "power_mw": None}, "energy", {"energy_step_joules", "power_watts"}),
    ],
)
def test_what_a_card_does_not_tell_names_its_columns(fake_nvml, change, name, null):
    fake_nvml(card(**change))
    finding = look()[f"card 0: {name}"]
    assert not finding.good
    assert null <= set(finding.null)


def test_energy_without_a_counter_is_still_had_from_power(fake_nvml):
    fake_nvml(card(energy_mj=None))
    finding = look()["card 0: energy"]
    assert "nvml-power" in finding.found
    assert "energy_step_joules" not in finding.null


INSTANCES = [
    card(uuid=MIG_UUID, name="Fake GPU MIG 1g.10gb", total=10 * GIB),
    card(uuid=MIG_UUID.replace("3", "4"), name="Fake GPU MIG 2g.20gb", total=20 * GIB),
]


def test_the_instances_of_a_partitioned_card_are_told(fake_nvml):
    fake_nvml(card(mig=1, instances=INSTANCES))
    findings = look()
    assert not findings["card 0"].good
    assert "partitioned (MIG) into 2 instances" in findings["card 0"].found
    one = findings["card 0, instance 1"]
    assert "Fake GPU MIG 2g.20gb, 20.0 GiB, " + MIG_UUID.replace("3", "4") in one.found
    assert {"energy_step_joules", "power_watts", "gpu_percent"} <= set(one.null)
    assert "process_peak_bytes" not in one.null
    assert findings["card 0, instance 1: per process"].found.startswith("memory is not known until")
    assert "clock" in findings["card 0: state"].found


def test_a_partitioned_card_without_instances_says_what_to_do(fake_nvml):
    fake_nvml(card(mig=1))
    assert "create instances" in look()["card 0"].remedy


@pytest.mark.parametrize(
    ("change", "null"),
    [
        ({}, set()),
        ({"sm_mhz": None}, {"gpu_sm_mhz_median", "gpu_sm_mhz"}),
        ({"celsius": None, "throttle": None}, {"gpu_celsius_max", "gpu_throttled"}),
    ],
)
def test_a_cards_state_is_told(fake_nvml, change, null):
    fake_nvml(card(**change))
    finding = look()["card 0: state"]
    assert finding.good == (not null)
    assert null <= set(finding.null)


def test_what_a_machine_tells_of_its_processors(fake_nvml, tmp_path):
    fake_nvml(**NO_DRIVER)
    cpu, rapl = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq", tmp_path / "sys/class/powercap"
    findings = look(root=tmp_path)
    assert {"cpu_elsewhere", "cpu_mhz", "cpu_governor"} <= set(findings["processor: state"].null)
    assert "no counters" in findings["processor: energy"].found
    assert findings["processor: energy"].good, "nobody can mend that"

    package = rapl / "intel-rapl:0"
    package.mkdir(parents=True)
    (package / "name").write_text("package-0")
    finding = look(root=tmp_path)["processor: energy"]
    assert not finding.good
    assert "chmod" in finding.remedy
    assert "host_energy_step_joules" in finding.null

    (package / "energy_uj").write_text("5")
    for number in range(64):  # whichever of them this process may use
        folder = Path(str(cpu).replace("cpu0", f"cpu{number}"))
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text("2500000")
    (tmp_path / "proc").mkdir()
    lines = [f"cpu{number} 1 0 1 9 0 0 0 0" for number in range(64)]
    (tmp_path / "proc/stat").write_text("\n".join(lines))
    findings = look(root=tmp_path)
    assert (findings["processor: energy"].null, findings["processor: state"].good) == ((), True)
    assert findings["processor: state"].found.startswith("others' use, clock: read each second; ")
    assert "cpu_elsewhere" not in findings["processor: state"].null


def test_a_card_that_does_not_answer_is_told_beside_one_that_does(fake_nvml):
    fake_nvml(card(), card(uuid=OTHER_UUID, lost_after=0))
    findings = look()
    assert findings["card 0"].good
    assert findings["card"].found.startswith("1 of 2 does not answer")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (NO_DRIVER, "libnvidia-ml.so.1 cannot be loaded"),
        ({"init": 18}, "different versions"),
        ({"gpus": []}, "lists no card"),
    ],
)
def test_without_a_card_its_columns_are_null(fake_nvml, script, why):
    fake_nvml(**script)
    findings = look(torch=seen(build=None))
    assert why in findings["card"].found
    assert {"process_peak_bytes", "device_peak_bytes", "energy_step_joules", "gpu_name"} <= set(
        findings["card"].null
    )
    assert findings["torch"].null == ("reserved_peak_bytes",)
    assert findings["torch"].good, "a machine without a card needs no CUDA build"


@pytest.mark.parametrize(
    ("torch", "told", "remedy"),
    [
        (seen(build=None), "the CPU alone", "install a CUDA build of torch"),
        (seen(problem="the driver is too old"), "the driver is too old", "update the driver"),
    ],
)
def test_a_card_that_torch_cannot_use_is_told(fake_nvml, torch, told, remedy):
    fake_nvml(card())
    finding = look(torch)["torch"]
    assert (finding.good, finding.remedy) == (False, remedy)
    assert told in finding.found
    assert "device_peak_bytes" in finding.null


def test_a_torch_that_does_not_load_is_a_finding(fake_nvml):
    def broken():
        raise WorkerError("torch does not work here: no libcudart")

    fake_nvml(card())
    finding = found(examine_machine(probe=broken, reaches=lambda _: None))["torch"]
    assert not finding.good
    assert "no libcudart" in finding.found


def test_a_card_that_shares_the_hosts_memory_names_what_will_be_null(fake_nvml):
    errors = {f"nvmlDeviceGetMemoryInfo{v}": 3 for v in ("", "_v2")}
    fake_nvml(card(name="NVIDIA GB10", total=None, processes={"7": GIB}, errors=errors))
    findings = look()
    assert not findings["card 0"].good
    assert "NVIDIA GB10, memory not reported, as by a card that shares" in findings["card 0"].found
    assert set(findings["card 0"].null) == {
        *("device_peak_bytes", "device_source", "device_bytes", "device_idle_bytes")
    }
    assert findings["card 0"].lower_bound == ()
    assert findings["card 0: per process"].good
    fake_nvml(card(total=0, used=0, reserved=0))
    assert "0.0 GiB" not in look()["card 0"].found


def test_cards_of_other_jobs_are_nothing_to_mend(fake_nvml):
    closed = {"errors": {"handle": 4}}
    fake_nvml(card(**closed), card(uuid=OTHER_UUID), card(**closed))
    findings = look()
    assert findings["card 1"].good
    assert (findings["card"].good, findings["card"].remedy) == (True, None)
    assert "2 of 3 may not be opened by this process (cards 0, 2; Insufficient Permissions)" in (
        findings["card"].found
    )
    fake_nvml(card(**closed))
    report = examine_machine(probe=lambda: ONE_CARD, reaches=lambda _: None)
    first, last = (f for f in report if f.name == "card")
    assert not first.good
    assert "--gres=gpu:1" in first.remedy
    assert "device_peak_bytes" in last.null


def test_a_container_that_lost_its_cards_is_told_what_to_do(fake_nvml):
    fake_nvml(card(), init=999)
    finding = look()["card"]
    assert "Unknown Error" in finding.found
    assert finding.remedy.startswith("restart the container")


@pytest.fixture
def torch_of(monkeypatch, tmp_path):
    """Call with lines of torch's version.py."""

    def put(lines):
        (tmp_path / "version.py").write_text(lines)
        spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
        monkeypatch.setattr(machine.util, "find_spec", lambda _: spec)

    return put


ROCM = "cuda: Optional[str] = None\nhip: Optional[str] = '6.4.43482-0f2d60242'\nxpu = None\n"
XPU = "cuda = None\nhip = None\nxpu: Optional[str] = '20250302'\n"
OTHERS = [(ROCM, "ROCm 6.4.43482-0f2d60242 (AMD's cards)"), (XPU, "XPU 20250302 (Intel's cards)")]


@pytest.mark.parametrize(("lines", "name"), OTHERS)
def test_a_torch_for_other_cards_is_named_with_what_it_is_good_for(
    fake_nvml, torch_of, lines, name
):
    torch_of(lines)
    fake_nvml(**NO_DRIVER)
    finding = look(seen(("AMD Instinct MI300X", None), build=None))["torch"]
    assert f"built for {name}" in finding.found
    assert not finding.good
    assert finding.remedy.startswith("runs are on the CPU")
    assert finding.null == ("reserved_peak_bytes",)
    resolved = resolve_device("auto", probe=no_probe)
    assert (resolved.device, f"torch is a build for {name}" in resolved.note) == ("cpu", True)
    with pytest.raises(InputError, match=r"never tried on others; install a CUDA build"):
        resolve_device("cuda", probe=no_probe)


@pytest.mark.parametrize(
    ("lines", "cuda", "told"),
    [
        ("cuda: Optional[str] = '12.9'\nhip = None", "12.9", "CUDA 12.9"),
        ("cuda = None\nhip = None", None, "the CPU"),
        ("", None, "the CPU"),
    ],
)
def test_what_torch_was_built_for_is_read_from_its_files(torch_of, lines, cuda, told):
    torch_of(lines)
    assert (machine.torch_cuda_build(), machine.torch_build()) == (cuda, told)


@pytest.mark.parametrize("script", [NO_DRIVER, {"gpus": [card(energy_mj=None, processes=None)]}])
def test_every_column_named_is_one_of_the_store(fake_nvml, script, monkeypatch):
    monkeypatch.setattr(doctor, "can_reset_peak", lambda: False)
    monkeypatch.setattr(doctor, "collect_environment", lambda _: ENVIRONMENT)
    fake_nvml(**script)
    findings = look(torch=seen())
    named = {c for f in findings.values() for c in (*f.null, *f.lower_bound)}
    assert named >= {"cpu_model", "host_peak_bytes", "reserved_peak_bytes"}
    assert named <= KNOWN


ENVIRONMENT = {
    "cpu_model": None,
    "cpu_count": 4,
    "cpu_usable": 2,
    "memory_bytes": 8 * GIB,
    "torch_version": "2.13.0",
}


def test_a_containers_memory_limit_is_told(fake_nvml, monkeypatch):
    monkeypatch.setattr(doctor, "collect_environment", lambda _: ENVIRONMENT)
    monkeypatch.setattr(doctor, "memory_limit_bytes", lambda: 2 * GIB)
    fake_nvml(**NO_DRIVER)
    assert look()["memory"].found == "2.0 GiB for this container, of the machine's 8.0 GiB"
    monkeypatch.setattr(doctor, "memory_limit_bytes", lambda: 2**62)
    assert look()["memory"].found == "8.0 GiB"
    assert look()["processor"].found == "unknown: 4 threads, 2 usable here"


@pytest.mark.skipif(sys.platform != "linux", reason="it is a folder on Linux alone")
@pytest.mark.parametrize(
    ("free", "good", "told"),
    [(64 << 20, False, "0.1 GiB free"), (8 << 30, True, "8.0 GiB free"), (None, False, "is not")],
)
def test_little_shared_memory_is_told(fake_nvml, monkeypatch, tmp_path, free, good, told):
    fake_nvml(card())
    if free is not None:
        (tmp_path / "dev/shm").mkdir(parents=True)
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(doctor, "_caches", list)
    finding = look(root=tmp_path)["shared memory"]
    assert (finding.good, told in finding.found) == (good, True), finding
    assert good or "--shm-size" in finding.remedy


def test_a_kernel_without_the_mark_gives_a_lower_bound(fake_nvml, monkeypatch):
    fake_nvml(**NO_DRIVER)
    for can, bound in ((True, ()), (False, ("host_peak_bytes",))):
        monkeypatch.setattr(doctor, "can_reset_peak", lambda can=can: can)
        assert look()["host memory's peak"].lower_bound == bound


@pytest.fixture
def hub():
    """Call with a status for the address of a server that answers with it."""
    servers = []

    def serve(status):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_):
                pass

        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def ask_hub():
    return found(examine_machine(probe=lambda: ONE_CARD))["hub"]


def test_a_hub_that_answers_is_told(fake_nvml, hub, monkeypatch):
    fake_nvml(**NO_DRIVER)
    monkeypatch.setenv("HF_ENDPOINT", hub(200))
    assert ask_hub().good
    assert ask_hub().found.endswith(" answers")


def test_a_hub_that_cannot_be_used_is_a_finding(fake_nvml, hub, monkeypatch):
    fake_nvml(**NO_DRIVER)
    monkeypatch.setenv("HF_ENDPOINT", hub(503))
    assert "it answers 503" in ask_hub().found
    for address in ("http://127.0.0.1:1", "file:///etc", "nonsense", "http://[", "http://a b/"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert not ask_hub().good
        assert address in ask_hub().found


def test_offline_the_hub_is_not_asked(fake_nvml, monkeypatch):
    fake_nvml(**NO_DRIVER)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    report = examine_machine(probe=lambda: ONE_CARD, reaches=lambda _: pytest.fail("asked"))
    assert "HF_HUB_OFFLINE" in found(report)["hub"].found


def test_folders_are_judged_by_what_exists_of_them(fake_nvml, monkeypatch, tmp_path):
    fake_nvml(**NO_DRIVER)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    (tmp_path / "file").write_text("")
    findings = look(results=tmp_path / "file")
    assert findings["hub's cache"].good
    assert f"{tmp_path / 'not' / 'yet'} (not there yet)" in findings["hub's cache"].found
    assert str(tmp_path / "cache") in findings["cache"].found  # KDBENCH_CACHE, in every test
    assert not findings["results"].good
    assert "results" not in look()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_folder_that_only_a_try_tells_from_a_good_one(fake_nvml):
    """Root may write everywhere by its permissions, and still not in /proc."""
    fake_nvml(**NO_DRIVER)
    finding = look(results=Path("/proc/results"))["results"]
    assert (finding.good, "cannot be written to" in finding.found) == (False, True)


def test_a_disk_that_is_full_lets_files_be_made_and_not_written(fake_nvml, tmp_path):
    fake_nvml(**NO_DRIVER)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # stands in for the disk: it, too, refuses what is written alone
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        finding = look(results=tmp_path)["results"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not finding.good
    assert "cannot be written to: file too large" in finding.found


def test_the_report_reads_at_80_columns(fake_nvml):
    fake_nvml(card(processes={"7": 0}))
    report = examine_machine(probe=lambda: ONE_CARD, reaches=lambda _: "no route [to host]")
    text = io.StringIO()
    Console(width=80, file=text).print(render(report))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    words = set(text.getvalue().replace(",", " ").replace(";", " ").split())
    for finding in report:
        for part in (finding.name, finding.found, finding.remedy or "", *finding.null):
            missing = set(part.replace(",", " ").replace(";", " ").split()) - words
            assert not [word for word in missing if len(word) < 40]
    (line,) = [line for line in lines if "card 0: per process" in line]
    assert line.startswith("!! card 0: per process ")


# ---- the probe


def test_the_probe_tells_of_the_installed_torch_without_loading_it_here():
    answer = probe_torch()
    assert answer["torch_version"] == metadata.version("torch")
    assert answer["threads"] >= 1
    assert isinstance(answer["bf16"], bool)
    assert answer["cuda_available"] == bool(answer["devices"])


FAKE_TORCH = f"""
from types import SimpleNamespace as Space
print("a banner that some build prints")
__version__ = "9.9"
version = Space(cuda="12.9")
get_num_threads = lambda: 3
properties = Space(name="Fake GPU", uuid="{UUID.removeprefix("GPU-")}", total_memory=5, major=9,
                   minor=0)
cuda = Space(
    is_available=lambda: True, device_count=lambda: 1,
    get_device_properties=lambda index: properties,
    is_bf16_supported=lambda including_emulation: including_emulation is False,
)
"""


@pytest.fixture
def torch_is(monkeypatch, tmp_path):
    """Call with source code that children import as torch."""

    def put(source):
        (tmp_path / "torch.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return put


def test_the_probe_tells_of_cards(torch_is):
    torch_is(FAKE_TORCH)
    assert probe_torch() == {
        "torch_version": "9.9",
        "cuda_build": "12.9",
        "cuda_available": True,
        "cuda_problem": None,
        "threads": 3,
        "devices": [
            {
                "index": 0,
                "name": "Fake GPU",
                "uuid": UUID.removeprefix("GPU-"),
                "memory_bytes": 5,
                "capability": "9.0",
            }
        ],
        "bf16": True,
    }


def test_the_probe_tells_why_cuda_does_not_start(torch_is):
    torch_is(
        FAKE_TORCH + "def init(): raise RuntimeError('driver too old\\nmore')\n"
        "cuda = Space(is_available=lambda: False, init=init)\n"
        "cpu = Space(get_capabilities=dict)\n"
    )
    answer = probe_torch()
    assert answer["cuda_problem"] == "driver too old"
    assert answer["devices"] == []
    assert answer["bf16"] is False


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise OSError('libcudart.so.12: cannot open')", "libcudart.so.12: cannot open"),
        ("import os; os._exit(3)", "ended with 3: it printed nothing"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with -11"),
        ("import os; os.write(1, b'hello'); os._exit(0)", "expected JSON, found: hello"),
        ("import os; os.write(1, b'[1]'); os._exit(0)", "expected JSON"),
    ],
)
def test_a_probe_that_fails_says_how(torch_is, source, message):
    torch_is(source)
    with pytest.raises(WorkerError, match=message.replace(".", r"\.")):
        probe_torch()


def test_a_probe_that_hangs_is_ended(torch_is):
    torch_is("import time; time.sleep(1000)")
    with pytest.raises(WorkerError, match=r"did not answer within 0\.5 s"):
        probe_torch(timeout=0.5)


# ---- --device


def no_probe():
    pytest.fail("torch was asked")


def test_cpu_asks_nobody(monkeypatch):
    monkeypatch.setattr(probing, "open_nvml", no_probe)
    assert resolve_device("cpu", probe=no_probe) == ResolvedDevice("cpu")


def test_auto_without_a_card_is_the_cpu_and_says_why(fake_nvml, cuda_build):
    fake_nvml(**NO_DRIVER)
    resolved = resolve_device("auto", probe=no_probe)
    assert (resolved.device, resolved.gpu) == ("cpu", None)
    assert "no NVIDIA driver" in resolved.note


def test_auto_takes_a_card_of_which_nvml_alone_does_not_tell(fake_nvml, cuda_build):
    fake_nvml(init=4711)
    resolved = resolve_device("auto", probe=lambda: ONE_CARD)
    assert (resolved.device, resolved.gpu) == ("cuda:0", None)
    assert resolved.card_name == "Fake GPU", "what the results say of it is torch's word"


def test_auto_takes_a_jetsons_card(fake_nvml, cuda_build, monkeypatch):
    fake_nvml(**NO_DRIVER)
    monkeypatch.setattr(probing, "on_tegra", lambda: True)
    assert resolve_device("auto", probe=lambda: ONE_CARD).device == "cuda:0"


def test_a_jetson_is_known_by_its_device_tree(tmp_path):
    assert not probing.on_tegra(tmp_path)
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    file = tmp_path / "proc/device-tree/compatible"
    file.write_bytes(b"nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0")
    assert probing.on_tegra(tmp_path)


def test_auto_where_no_card_may_be_opened_says_so(fake_nvml, cuda_build):
    fake_nvml(card(errors={"handle": 4}))
    resolved = resolve_device("auto", probe=no_probe)
    assert resolved.device == "cpu"
    assert "none of the 1 NVIDIA cards can be used: this process may not open it" in resolved.note


def test_a_name_that_is_no_text_gives_way_to_torchs(fake_nvml, cuda_build):
    fake_nvml(card(name="hex:f8fff9"))
    assert resolve_device("auto", probe=lambda: ONE_CARD).card_name == "Fake GPU"


def test_auto_with_a_torch_for_the_cpu_is_the_cpu_and_says_why(fake_nvml, monkeypatch):
    monkeypatch.setattr(probing, "torch_cuda_build", lambda: None)
    fake_nvml(card())
    resolved = resolve_device("auto", probe=no_probe)
    assert (resolved.device, resolved.gpu) == ("cpu", None)
    assert resolved.note == "on the CPU: Fake GPU 80GB is not used: torch is a build for the CPU"


def test_auto_where_cuda_does_not_start_is_the_cpu_and_says_why(fake_nvml, cuda_build):
    fake_nvml(card())
    resolved = resolve_device("auto", probe=lambda: seen(problem="too old"))
    assert resolved.device == "cpu"
    assert "too old" in resolved.note


@pytest.mark.parametrize("prefix", ["", "GPU-"])
@pytest.mark.parametrize(
    ("request_", "device", "index"),
    [
        ("auto", "cuda:0", 1),
        ("cuda", "cuda:0", 1),
        ("cuda:0", "cuda:0", 1),
        ("cuda:1", "cuda:1", 0),
    ],
)
def test_torchs_card_is_matched_by_uuid_not_by_index(
    fake_nvml, cuda_build, prefix, request_, device, index
):
    fake_nvml(card(), card(uuid=OTHER_UUID))
    uuids = [prefix + uuid.removeprefix("GPU-") for uuid in (OTHER_UUID, UUID)]
    answer = seen(*(("Fake GPU", uuid) for uuid in uuids))
    resolved = resolve_device(request_, probe=lambda: answer)
    assert (resolved.device, resolved.gpu.index, resolved.note) == (device, index, None)


def device_of(torch_uuid):
    return resolve_device("cuda", probe=lambda: seen(("Fake GPU", torch_uuid)))


def test_an_instance_is_matched_by_its_own_uuid(fake_nvml, cuda_build):
    fake_nvml(card(mig=1, instances=INSTANCES))
    for torchs in (INSTANCES[1]["uuid"], INSTANCES[1]["uuid"].removeprefix("MIG-")):
        resolved = device_of(torchs)
        assert resolved.gpu.uuid == INSTANCES[1]["uuid"]
        assert resolved.gpu.memory_total_bytes == 20 * GIB
        assert "on a MIG instance (Fake GPU MIG 2g.20gb)" in resolved.note


@pytest.mark.parametrize(
    ("instances", "visible", "found"),
    [
        (INSTANCES[:1], None, 0),  # there is but one
        (INSTANCES, INSTANCES[1]["uuid"], 1),
        (INSTANCES, INSTANCES[1]["uuid"] + ",7", 1),
        (INSTANCES, None, None),
        (INSTANCES, "MIG-dead", None),
        ([], None, None),
    ],
)
def test_an_instance_that_torch_gives_its_cards_uuid_is_the_one_it_was_told_to_see(
    fake_nvml, cuda_build, monkeypatch, instances, visible, found
):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    fake_nvml(card(mig=1, instances=instances))
    resolved = device_of(UUID)
    assert resolved.device == "cuda:0"
    if found is None:  # the card's own figures would be those of all its instances
        assert resolved.gpu is None
        assert "its memory will be null" in resolved.note
    else:
        assert resolved.gpu.uuid == instances[found]["uuid"]


@pytest.mark.parametrize("uuid", [None, "5ca1ab1e-dead"])
def test_a_card_that_nvml_does_not_list_is_used_without_it(fake_nvml, cuda_build, uuid):
    fake_nvml(card())
    resolved = resolve_device("cuda", probe=lambda: seen(("Fake GPU", uuid)))
    assert (resolved.device, resolved.gpu) == ("cuda:0", None)
    assert "null" in resolved.note


@pytest.mark.parametrize(
    ("request_", "hint"),
    [
        ("gpu", "did you mean 'cuda:0'?"),
        ("cuda1", "did you mean 'cuda:1'?"),
        ("gpu:2", "did you mean 'cuda:2'?"),
        ("3", "did you mean 'cuda:3'?"),
        ("cuda:-1", None),
        ("tpu", None),
        ("", None),
        ("cuda:0\n", "did you mean 'cuda:0'?"),
    ],
)
def test_nonsense_says_what_was_expected(request_, hint):
    with pytest.raises(InputError) as raised:
        resolve_device(request_, probe=no_probe)
    message = f"--device: expected auto, cpu, cuda or cuda:N, found {request_!r}"
    assert str(raised.value) == message + (f"; {hint}" if hint else "")
    assert raised.value.exit_code == 2


def test_a_card_that_is_not_there_names_those_that_are(fake_nvml, cuda_build):
    fake_nvml(card())
    with pytest.raises(InputError, match=r"'cuda:4': torch sees cuda:0 \(Fake GPU\); name one"):
        resolve_device("cuda:4", probe=lambda: ONE_CARD)


def test_cuda_with_a_torch_for_the_cpu_says_so(fake_nvml, monkeypatch):
    monkeypatch.setattr(probing, "torch_cuda_build", lambda: None)
    fake_nvml(card())
    with pytest.raises(InputError, match="build for the CPU; install a CUDA build"):
        resolve_device("cuda", probe=no_probe)


@pytest.mark.parametrize(
    ("script", "visible", "why"),
    [
        (NO_DRIVER, None, "no NVIDIA driver"),
        ({"gpus": [card()]}, "7", "CUDA_VISIBLE_DEVICES='7'"),
        ({"gpus": [card()]}, None, r"torch sees no card \(too old\)"),
    ],
)
def test_cuda_where_there_is_none_says_why(
    fake_nvml, cuda_build, monkeypatch, script, visible, why
):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    fake_nvml(**script)
    with pytest.raises(InputError, match=why):
        resolve_device("cuda", probe=lambda: seen(problem="too old"))


def test_nothing_here_loads_torch():
    code = "import sys, kdbench.runner.doctor as d; print(*sys.modules)"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "pandas", "pyarrow", "rich"}


def test_a_user_without_a_home_has_caches_all_the_same(fake_nvml, monkeypatch):
    """As in a container that is run under a bare number (docker run --user 12345)."""
    fake_nvml(card())
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "KDBENCH_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def without_entry(_number):
        raise KeyError("no such user")

    monkeypatch.setattr(pwd, "getpwuid", without_entry)
    found = look()
    caches = worker_environment(os.environ, network=False)["XDG_CACHE_HOME"]
    assert str(os.getuid()) in caches
    assert found["cache"].found.startswith(f"{caches}/kdbench")
    assert found["hub's cache"].found.startswith(f"{caches}/huggingface/hub")
