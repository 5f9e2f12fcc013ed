"""The pytest plugin: memory per training step, in a project's own tests.

    def test_memory_of_a_step(kd_memory):
        used = kd_memory(step, model=model, optimizer=optimizer)
        used.assert_at_most("1.2 GB")

pytest loads this module in every run of a project that has kdbench installed, so it imports nothing
that takes time: torch and the ledger come with the first call of the fixture.
"""

import pytest

from kdbench.pytest_plugin.fixture import KdMemory
from kdbench.pytest_plugin.summary import Summary

__all__ = ["KdMemory"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the plugin's options."""
    group = parser.getgroup("kdbench", "memory of training steps (kdbench)")
    group.addoption(
        "--kd-memory",
        action="store_true",
        help="print what each step measured by kd_memory needs; always done beside benchmarks",
    )
    group.addoption(
        "--kd-memory-update",
        action="store_true",
        help="have kd_memory.check record what it is given instead of comparing with the record",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Take part in the summary."""
    if config.getoption("kd_memory_update") and config.getoption("dist", "no") != "no":
        raise pytest.UsageError("--kd-memory-update writes to one file: run it without -n")
    config.pluginmanager.register(Summary(config), "kdbench-summary")


@pytest.fixture
def kd_memory(request: pytest.FixtureRequest) -> KdMemory:
    """Measure the memory and the work of one training step."""
    return KdMemory(request)
