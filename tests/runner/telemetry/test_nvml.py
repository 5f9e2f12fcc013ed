"""What is read from NVML, None where nothing is reported: the real pynvml on a fake driver."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from kdbench.runner.telemetry import gpu as gpu_module
from kdbench.runner.telemetry import nvml_binding
from kdbench.runner.telemetry.gpu import GpuReader, throttle_words
from kdbench.runner.telemetry.neighbours import Neighbours
from kdbench.runner.telemetry.nvml import (
    AVAILABLE,
    NO_OWN_MEMORY,
    NOT_SEEN,
    Gpu,
    open_nvml,
    why_lost,
)
from kdbench.runner.telemetry.nvml_errors import fault
from tests.support.fake_nvml import driver
from tests.support.fake_nvml.fixtures import (  # noqa: F401
    GIB,
    MIG_UUID,
    OTHER_UUID,
    UUID,
    card,
    fake_nvml,
    fake_nvml_environment,
)

# ruff: noqa: F811 - fixtures are imported, since conftest.py is shared

SENSORS = ("energy_mj", "power_mw", "sm_mhz", "celsius", "throttle")


@pytest.fixture
def reader(fake_nvml):
    """Call with a card for its reader."""
    with_open = []

    def read(*cards, uuid=UUID, **script):
        fake_nvml(*cards, **script)
        context = open_nvml()
        with_open.append(context)
        return context.__enter__().reader(uuid)

    yield read
    for context in with_open:
        context.__exit__(None, None, None)


def test_a_card_is_described_as_the_driver_tells(fake_nvml):
    fake_nvml(card(processes={"7": GIB}))
    with open_nvml() as nvml:
        assert nvml.problem is None
        assert nvml.gpus() == [
            Gpu(
                index=0,
                uuid=UUID,
                name="Fake GPU 80GB",
                memory_total_bytes=80 * GIB,
                driver_version="575.57.08",
                cuda_driver_version="12.9",
                process_memory=AVAILABLE,
                energy_counter=True,
                mig=False,
                power=True,
                clock=True,
                temperature=True,
                throttling=True,
            )
        ]


def test_a_card_that_tells_little_is_described_with_none(fake_nvml):
    fake_nvml(
        card(used=None, processes=None, **dict.fromkeys(SENSORS)),
        lacks=["nvmlSystemGetCudaDriverVersion_v2", "nvmlDeviceGetMigMode"],
    )
    with open_nvml() as nvml:
        (gpu,) = nvml.gpus()
    assert gpu.memory_total_bytes is None
    assert gpu.cuda_driver_version is None
    assert gpu.process_memory == "the driver does not list the card's processes (Not Supported)"
    assert (gpu.energy_counter, gpu.power, gpu.mig) == (False, False, False)
    assert (gpu.clock, gpu.temperature, gpu.throttling) == (False, False, False)


@pytest.mark.parametrize(
    ("processes", "told"),
    [
        ({}, NOT_SEEN),
        ({"7": 5, "8": None}, AVAILABLE),
        ({"7": None}, "the driver does not tell it"),
        ({"7": 0, "8": 0}, "0 for every process, as in some containers"),
    ],
)
def test_whether_memory_per_process_is_available_is_told(fake_nvml, processes, told):
    fake_nvml(card(processes=processes))
    with open_nvml() as nvml:
        assert nvml.gpus()[0].process_memory == told


def test_mig_is_seen_when_it_is_on_and_not_when_it_is_only_supported(fake_nvml):
    fake_nvml(card(mig=1), card(uuid=OTHER_UUID, mig=0))
    with open_nvml() as nvml:
        assert [gpu.mig for gpu in nvml.gpus()] == [True, False]


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ({"load_fails": True}, "no NVIDIA driver"),
        ({"init": driver.VERSION_MISMATCH}, "different versions"),
        ({"init": 9}, "not loaded"),
        ({"init": 999}, "Unknown Error"),
        ({"lacks": ["nvmlInitWithFlags"]}, "Function Not Found"),
    ],
)
def test_a_driver_that_does_not_start_is_a_state_and_no_error(fake_nvml, script, problem):
    fake_nvml(card(), **script)
    with open_nvml() as nvml:
        assert problem in nvml.problem
        assert nvml.count() == 0
        assert nvml.gpus() == []
        reader = nvml.reader(UUID)
        assert reader.problem is not None
        assert reader.device_bytes() is None
        assert reader.processes() is None


def test_the_library_is_shut_down_again(fake_nvml):
    fake_nvml(card())
    with open_nvml():
        assert pynvml.nvmlDeviceGetCount() == 1
    with pytest.raises(pynvml.NVMLError):
        pynvml.nvmlDeviceGetCount()


def test_a_reader_reads_the_card_of_its_uuid_in_base_units(reader):
    read = reader(card(uuid=OTHER_UUID, used=GIB), card(used=[GIB, 2 * GIB]))
    assert read.problem is None
    assert [read.device_bytes() for _ in range(3)] == [GIB, 2 * GIB, 2 * GIB]
    assert read.power_watts() == 70.5
    assert read.energy_joules() == 1000.0
    assert read.gpu_percent() == 37


def test_an_unknown_uuid_reads_none(reader):
    read = reader(card(), uuid=OTHER_UUID)
    assert OTHER_UUID in read.problem
    assert read.device_bytes() is None


def test_an_old_driver_is_read_by_the_functions_it_has(reader):
    lacks = ["nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetComputeRunningProcesses_v3"]
    read = reader(card(processes={"7": GIB}), lacks=lacks)
    # Its used memory has the driver's reserve in it.
    assert read.device_bytes() == 3 * GIB + GIB // 2
    assert read.processes() == [(7, GIB)]


def test_a_driver_that_refuses_the_second_struct_is_read_by_the_first(reader):
    errors = {"nvmlDeviceGetMemoryInfo_v2": driver.ARGUMENT_VERSION_MISMATCH}
    assert reader(card(errors=errors)).device_bytes() == 3 * GIB + GIB // 2


def test_a_passing_error_leaves_a_gap_and_does_not_change_how_memory_counts(reader):
    script = card(errors={"nvmlDeviceGetMemoryInfo_v2": 999})
    read = reader(script)
    assert read.device_bytes() is None
    script["errors"].clear()
    assert read.device_bytes() == 3 * GIB


def test_functions_that_are_missing_read_none(reader):
    names = ["PowerUsage", "TotalEnergyConsumption", "UtilizationRates", "ClockInfo", "Temperature"]
    names += [f"CurrentClocks{word}Reasons" for word in ("Event", "Throttle")]
    names += [f"ComputeRunningProcesses_v{n}" for n in (2, 3)]
    read = reader(card(), lacks=[f"nvmlDeviceGet{n}" for n in (*names, "ProcessUtilization")])
    for told in (
        *(read.power_watts, read.energy_joules, read.gpu_percent, read.sm_mhz, read.celsius),
        *(read.throttle_bits, read.processes, read.computing),
    ):
        assert told() is None, told
    assert read.device_bytes() == 3 * GIB


def test_all_is_none_where_pynvml_cannot_be_imported(monkeypatch):
    monkeypatch.setattr(gpu_module, "pynvml", None)
    read = GpuReader(UUID, "NVML cannot be asked")
    for figure in (
        *(read.power_watts, read.energy_joules, read.gpu_percent, read.sm_mhz, read.celsius),
        *(read.throttle_bits, read.processes, read.computing, read.device_bytes),
    ):
        assert figure() is None, figure


def test_no_energy_and_no_power_is_none_also_where_the_driver_says_0(reader):
    read = reader(card(energy_mj=None, power_mw=0))
    assert read.energy_joules() is None
    assert read.power_watts() is None
    assert reader(card(energy_mj=0)).energy_joules() is None


def test_an_idle_card_is_at_0_percent(reader):
    assert reader(card(busy_percent=0)).gpu_percent() == 0


def company(processes, *, own=(7, 8), before=(), computing=None):
    """What a second reading says, the first one made before the worker started."""
    neighbours = Neighbours()
    neighbours.read([(pid, 1) for pid in before], (), None)
    listed = None if processes is None else list(processes.items())
    return neighbours.read(listed, own, computing)


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        ({7: GIB}, GIB),
        ({7: GIB, 8: 5, 9: 100}, GIB + 5),
        ({9: 100}, None),  # ours are not listed: perhaps under other numbers
        ({7: None}, None),
        ({7: 0}, None),
        ({7: GIB, 8: None}, None),  # a part is unknown: no sum
        ({7: GIB, 8: 0}, None),
        ({}, None),
    ],
)
def test_memory_of_a_process_and_its_children(processes, expected):
    assert company(processes).worker_bytes == expected


def test_a_list_that_is_not_told_says_nothing():
    assert company(None) is None


@pytest.mark.parametrize(
    ("before", "now", "others", "more"),
    [
        ((), {7: 1}, [], 0),
        ((), {7: 1, 9: 1}, [9], 0),
        ((9,), {7: 1, 9: 1}, [9], 0),
        ((9,), {7: 1}, [], 0),  # it has gone
        # before the worker uses the card, and where its numbers are another namespace's, who came
        # later may be the worker
        ((), {107: 1}, [], 0),
        ((9,), {9: 1, 107: 1}, [9], 0),
        ((9,), {9: 1, 107: 1, 108: 1}, [9], 1),
        # a neighbour that another namespace gives our worker's number
        ((7,), {7: 1, 107: 1}, [7], 0),
    ],
)
def test_others_are_told_from_the_worker(before, now, others, more):
    found = company(now, before=before)
    assert ([other.pid for other in found.others], found.more) == (others, more)
    assert found.count == len(others) + more


def test_once_the_worker_is_seen_under_its_number_all_numbers_are_known():
    neighbours = Neighbours()
    neighbours.read([], (), None)
    assert neighbours.read([(9, 1)], (7,), None).count == 0
    assert neighbours.read([(7, 1), (9, 1)], (7,), None).count == 1
    assert neighbours.read([(9, 1)], (7,), None).count == 1, "ours has left the card again"


def test_a_neighbours_name_is_given_where_the_numbers_are_ours(tmp_path):
    (tmp_path / "9").mkdir()
    (tmp_path / "9/comm").write_text("python\n")
    for own, names in (((7,), {9: "python", 10: None}), ((8,), {9: None, 10: None})):
        neighbours = Neighbours(tmp_path)
        neighbours.read([(9, 1), (10, 1)], (), None)
        found = neighbours.read([(7, 1), (9, 1), (10, 1)], own, {9})
        assert {o.pid: o.name for o in found.others} == names
        assert {o.pid: o.computing for o in found.others} == {9: True, 10: False}


@pytest.mark.parametrize(
    ("told", "computing"),
    [
        ({"7": 90, "9": 0}, {7}),
        ({"7": 90, "9": 5}, {7, 9}),
        ({"7": 90, "9": 4_000_000_000}, {7}),  # rubbish, as of a process that has ended
        ({"7": 0}, None),  # beside a training somebody computes: this is no answer
        ({}, None),
        (None, None),
    ],
)
def test_who_computes(reader, told, computing):
    assert reader(card(computing=told)).computing() == computing


def test_clock_heat_and_throttling(reader):
    read = reader(card(throttle=0x4 | 0x20))
    assert (read.sm_mhz(), read.celsius(), read.throttle_bits()) == (1980, 61, 0x24)
    assert throttle_words(0x24) == ["power cap", "heat"]
    assert throttle_words(0x1 | 0x2 | 0x100) == [], "an idle card and its settings throttle nothing"
    old = reader(card(throttle=8), lacks=["nvmlDeviceGetCurrentClocksEventReasons"])
    assert old.throttle_bits() == 8


PARTED = {
    "mig": 1,
    "instances": [
        card(uuid=MIG_UUID, name="Fake GPU 80GB MIG 1g.10gb", total=10 * GIB, used=GIB),
        card(uuid=MIG_UUID.replace("3", "4"), total=20 * GIB, processes={"7": GIB}),
    ],
}


def test_instances_are_listed_with_their_card(fake_nvml):
    fake_nvml(card(**PARTED), card(uuid=OTHER_UUID))
    with open_nvml() as nvml:
        parted, plain = nvml.gpus()
    assert plain.instances == ()
    small, large = parted.instances
    assert (small.uuid, small.name) == (MIG_UUID, "Fake GPU 80GB MIG 1g.10gb")
    assert [i.memory_total_bytes for i in (small, large)] == [10 * GIB, 20 * GIB]
    assert [i.process_memory for i in (small, large)] == [NOT_SEEN, AVAILABLE]
    assert [(i.part_of, i.index, i.energy_counter, i.power) for i in (small, large)] == [
        (UUID, 0, False, False)
    ] * 2
    assert parted.energy_counter


def test_an_instances_memory_is_its_own_and_what_is_the_cards_is_not_given_for_it(reader):
    """The fake driver would answer: some tell the card's figure when asked for the instance's."""
    read = reader(card(**PARTED, used=70 * GIB, celsius=80), uuid=MIG_UUID)
    assert (read.problem, read.device_bytes()) == (None, GIB)
    for told in (read.power_watts, read.energy_joules, read.gpu_percent, read.computing):
        assert told() is None
    assert (read.sm_mhz(), read.celsius()) == (1980, 80)
    other = reader(card(**PARTED), uuid=MIG_UUID.replace("3", "4"))
    assert other.processes() == [(7, GIB)]


def test_a_card_that_falls_off_the_bus_reads_none_from_then_on(reader):
    script = card(lost_after=3)
    read = reader(script)  # one call: the handle
    assert read.device_bytes() == 3 * GIB
    assert read.power_watts() == 70.5
    assert read.device_bytes() is None
    assert (read.lost, read.problem) == (True, "the card stopped answering: GPU is lost")
    script["lost_after"] = 1000
    assert read.device_bytes() is None, "a lost card is not asked again"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ([card()], None),
        ([card(lost_after=1)], "the card is gone: the card stopped answering: GPU is lost"),
        ([card(uuid=OTHER_UUID)], f"the card is gone: card {UUID}: Not Found"),
    ],
)
def test_a_card_that_does_not_answer_any_more_is_told(script, told, fake_nvml):
    fake_nvml(*script)
    assert why_lost(UUID) == told


def test_a_driver_that_goes_away_is_told(fake_nvml):
    fake_nvml(init=9)
    assert why_lost(UUID).startswith("the driver is gone: ")


def test_a_lost_card_is_counted_but_not_described(fake_nvml):
    fake_nvml(card(lost_after=0), card(uuid=OTHER_UUID))
    with open_nvml() as nvml:
        assert nvml.count() == 2
        assert [(gpu.index, gpu.uuid) for gpu in nvml.gpus()] == [(1, OTHER_UUID)]


NO_TEXT = "hex:f8fff91b5b31"  # no UTF-8, and the start of a colour


def test_a_text_that_is_none_is_escaped(fake_nvml):
    parts = [card(uuid=MIG_UUID, name=NO_TEXT)]
    fake_nvml(card(name=NO_TEXT, mig=1, instances=parts), driver=NO_TEXT)
    with open_nvml() as nvml:
        (gpu,) = nvml.gpus()
    told = r"\xf8\xff\xf9\x1b[1"
    assert (gpu.name, gpu.driver_version, gpu.instances[0].name) == (told, told, told)


def test_a_uuid_that_is_no_text_takes_no_other_card_along(fake_nvml):
    fake_nvml(card(uuid="hex:f8fff9"), card(uuid=OTHER_UUID, name=""))
    with open_nvml() as nvml:
        assert [(gpu.uuid, gpu.name) for gpu in nvml.gpus()] == [
            (r"\xf8\xff\xf9", "Fake GPU 80GB"),
            (OTHER_UUID, None),
        ]


def test_an_error_that_pynvml_does_not_know_is_told_whatever_its_text(fake_nvml):
    fake_nvml(card(), init=4711, messages={"4711": NO_TEXT})
    with open_nvml() as nvml:
        assert "NVML error 4711" in nvml.problem


def test_every_error_has_words():
    codes = {n: v for n, v in vars(pynvml).items() if n.startswith("NVML_ERROR_")}
    assert len(codes) > 25
    for name, code in codes.items():
        assert "NVML error" not in fault(code).name, name
        assert fault(code).meaning


def test_cards_that_may_not_be_opened_are_left_alone(fake_nvml):
    closed = {"errors": {"handle": 4}}
    fake_nvml(card(**closed), card(uuid=OTHER_UUID), card(**closed))
    with open_nvml() as nvml:
        assert [gpu.uuid for gpu in nvml.gpus()] == [OTHER_UUID]
        assert [(i, why.name) for i, why in nvml.silent()] == [
            (0, "Insufficient Permissions"),
            (2, "Insufficient Permissions"),
        ]
        assert nvml.why_none() is None
    fake_nvml(card(**closed))
    with open_nvml() as nvml:
        assert "this process may not open it" in nvml.why_none()


def test_an_instance_of_a_card_that_does_not_tell_of_mig_is_found(fake_nvml):
    fake_nvml(card(**{**PARTED, "errors": {"nvmlDeviceGetMigMode": 4}}))
    with open_nvml() as nvml:
        assert [part.uuid for part in nvml.gpus()[0].instances][:1] == [MIG_UUID]


@pytest.mark.parametrize(
    "change",
    [
        {"used": None},
        {"total": 0, "used": 0, "reserved": 0},
        {"errors": {f"nvmlDeviceGetMemoryInfo{v}": 3 for v in ("", "_v2")}},
        {"errors": {f"nvmlDeviceGetMemoryInfo{v}": 13 for v in ("", "_v2")}},
    ],
)
def test_a_card_without_memory_of_its_own_has_none_and_not_0(fake_nvml, reader, change):
    fake_nvml(card(processes={"7": GIB}, **change))
    with open_nvml() as nvml:
        (gpu,) = nvml.gpus()
    assert gpu.memory_total_bytes is None
    assert gpu.device_memory.startswith("not reported")
    assert (gpu.device_memory == NO_OWN_MEMORY) == (13 not in change.get("errors", {}).values())
    assert gpu.process_memory == AVAILABLE
    assert reader(card(**change)).device_bytes() is None


def test_all_that_is_used_of_pynvml_is_looked_for():
    used = set()
    for path in Path(nvml_binding.__file__).parent.glob("*.py"):
        used |= set(re.findall(r"\bpynvml\.(\w+)", path.read_text()))
    assert used == set(nvml_binding.NEEDED)


def ask(folder, code="print(nvml.problem, '|', nvml.remedy, '|', nvml.no_driver)"):
    """What a process tells that finds a pynvml in a folder."""
    told = (
        "from kdbench.runner.telemetry.nvml import open_nvml, why_lost\n"
        "with open_nvml() as nvml:\n"
        "    assert (nvml.count(), nvml.gpus(), nvml.silent()) == (0, [], [])\n"
        "    assert nvml.reader('GPU-1').device_bytes() is None\n"
        f"    {code}"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", told],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip().split(" | ")


def distribution(folder, name, version, **files):
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for path, source in files.items():
        file = folder / path.replace("__init__", "/__init__")
        file = file.with_name(file.name + ".py")
        file.parent.mkdir(exist_ok=True)
        file.write_text(source)
        with (info / "RECORD").open("a") as record:
            record.write(f"{file.relative_to(folder).as_posix()},,\n")


@pytest.mark.parametrize(
    ("name", "files", "told", "remedy"),
    [
        (
            "pynvml",
            {"pynvml__init__": "class NVMLError(Exception): pass"},
            "the module pynvml is of pynvml 1.2, not of nvidia-ml-py: it lacks NVMLError_",
            "pip uninstall pynvml, then pip install --force-reinstall nvidia-ml-py; or take ",
        ),
        (
            "nvidia-ml-py3",
            {"pynvml": "print 'for Python 2'"},
            "the module pynvml is of nvidia-ml-py3 1.2, not of nvidia-ml-py: SyntaxError",
            "pip uninstall nvidia-ml-py3, then",
        ),
        (
            "nvidia-ml-py",
            {"pynvml": ""},
            "nvidia-ml-py 1.2 is too old: it lacks NVMLError",
            "pip install --upgrade nvidia-ml-py",
        ),
    ],
)
def test_another_pynvml_is_named_with_what_to_do(tmp_path, name, files, told, remedy):
    distribution(tmp_path, name, "1.2", **files)
    problem, todo, no_driver = ask(tmp_path)
    assert problem.startswith("NVML cannot be asked: " + told)
    assert todo.startswith(remedy)
    assert no_driver == "False"


def test_a_file_called_pynvml_is_named(tmp_path):
    (tmp_path / "pynvml.py").write_text("raise RuntimeError('no')")
    problem, todo, _ = ask(tmp_path)
    assert f"{tmp_path / 'pynvml.py'}: RuntimeError: no" in problem
    assert todo.startswith(f"remove or rename {tmp_path / 'pynvml.py'}")


def test_the_fake_reaches_a_child_and_runs_the_next_sitecustomize(fake_nvml_environment, tmp_path):
    environment = fake_nvml_environment(card())
    (tmp_path / "sitecustomize.py").write_text("import os; os.environ['CHAINED'] = 'yes'")
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    code = (
        "import os, ctypes, pynvml; pynvml.nvmlInit(); ctypes.CDLL(None).getpid();"
        "handle = pynvml.nvmlDeviceGetHandleByIndex(0);"
        "print(pynvml.nvmlDeviceGetUUID(handle), os.environ['CHAINED'])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [UUID, "yes"]
