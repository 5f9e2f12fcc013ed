"""What each command's help shows of its use."""

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "doctor": ("kdbench doctor", "kdbench doctor results --repair"),
    "cells": (
        "kdbench cells benchmarks/fig4.toml",
        "kdbench cells benchmarks/fig4.toml --preset all --only method=embed-kd",
    ),
    "predict": (
        "kdbench predict benchmarks/fig4.toml",
        "kdbench predict benchmarks/fig4.toml --profile rtx4090 --fits card",
        "kdbench predict benchmarks/fig4.toml --profile h100 --fits 40GB",
    ),
    "run": (
        "kdbench run benchmarks/quickstart.toml",
        "kdbench run benchmarks/fig4.toml --device cuda:0 --set training.batch_size=32",
        "kdbench run benchmarks/fig4.toml --retry failed,oom",
    ),
    "show": (
        "kdbench show results",
        "kdbench show results --memory --only method=embed-kd",
        "kdbench show results --format csv",
    ),
    "plot": (
        "kdbench plot results",
        "kdbench plot results --figure fig4 --metric step_time --format pdf",
    ),
    "tables": ("kdbench tables benchmarks/fig4.toml --format latex --table students",),
    "compare": (
        "kdbench compare results-a results-b",
        "kdbench compare results --before method=teacher-kd --after method=embed-kd",
        "kdbench compare results --before source=predicted --after source=measured",
    ),
    "check": (
        "kdbench check benchmarks/fig4.toml --baseline baseline.txt --update",
        "kdbench check benchmarks/fig4.toml --baseline baseline.txt",
        "kdbench check results --baseline measured.txt",
    ),
}


def epilog(command: str) -> str:
    """Write a command's examples as the end of its help, their lines kept as they are."""
    # \b alone on a line: what follows it is not wrapped
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in EXAMPLES[command])))
