"""Steps of public models on a card, as any script would train them: what the allocator holds.

`python -m tests.gpu.trainings --out FOLDER [--jobs N]` trains every point of the list below, each
in a process of its own, and writes a line of JSON for each to FOLDER/trainings.jsonl. With `--point
WORDS` it is one of these processes. A card that is not there is asked the same points, so that the
two can be compared: nothing here depends on the values of tensors.
"""

import argparse
import contextlib
import gzip
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.gpu.models import TEXT_MODELS, prepared

_STEPS = 4
_MOST_ACTIONS = 2**20
_IMAGE_MODELS = (
    "resnet18",
    "resnet50",
    "vgg16",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mnasnet1_0",
    "regnet_y_400mf",
    "convnext_tiny",
    "efficientnet_b0",
    "densenet121",
)


def points():
    """Every point as the arguments of its process."""
    for number, model in enumerate(_IMAGE_MODELS):
        optimizers = ("SGD", "Adam", "AdamW", "RMSprop")
        for place, batch in enumerate((16, 100, 256, 489)):
            optimizer = optimizers[(number + place) % len(optimizers)]
            yield [model, "--batch", str(batch), "--optimizer", optimizer]
        yield [model, "--batch", "32", "--side", "224", "--history"]
        yield [model, "--batch", "64", "--side", "224", "--precision", "bf16", "--channels-last"]
    for number, model in enumerate(TEXT_MODELS):
        optimizers = ("Adam", "SGD", "AdamW", "Adagrad")
        for place, batch in enumerate((1, 5, 20, 55)):
            optimizer = optimizers[(number + place) % len(optimizers)]
            yield [model, "--batch", str(batch), "--optimizer", optimizer]
        yield [model, "--batch", "8", "--precision", "bf16", "--fused", "--history"]
        yield [
            model,
            "--batch",
            "9",
            "--precision",
            "bf16-weights",
            "--zero-grad",
            "before-backward",
        ]
    for precision in ("fp32", "bf16", "fp16"):
        for attention in ("sdpa", "eager"):
            for dropout in ("0.1", "0"):
                words = ["vit", "--batch", "64", "--precision", precision, "--side", "32"]
                words += ["--attention", attention, "--dropout", dropout]
                yield [*words, "--history"]
                yield [*words, "--fused", "--batch", "200"]
    vit = ["vit", "--batch", "64", "--side", "32", "--precision", "bf16"]
    yield [*vit, "--compile"]
    yield [*vit, "--allocator", "expandable_segments:True"]
    yield [*vit, "--graph"]
    yield ["resnet50", "--batch", "100", "--allocator", "expandable_segments:True"]
    yield ["gpt2", "--batch", "20", "--allocator", "expandable_segments:True"]
    yield ["resnet50", "--batch", "100", "--benchmark"]
    for most in ("2.0", "4.0"):
        yield ["vit", "--side", "32", "--largest", "--cap", most]
        yield ["vit", "--side", "32", "--largest", "--cap", most, "--precision", "bf16"]
        yield ["resnet50", "--side", "86", "--largest", "--cap", most]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--only", default="", help="points whose words have this in them")
    parser.add_argument("--point", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(trained(parse_point(options.point), options.out)), flush=True)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    listed = [words for words in points() if options.only in " ".join(words)]
    failed = 0
    with (
        ThreadPoolExecutor(options.jobs) as pool,
        (options.out / "trainings.jsonl").open("a") as file,
    ):
        for row in pool.map(partial(in_process, out=options.out), listed):
            file.write(json.dumps(row) + "\n")
            file.flush()
            failed += "error" in row
            told = row.get("error") or row.get("largest") or row["reserved_bytes"]
            print(f"{' '.join(row['point'])}: {str(told)[-300:]}", flush=True)
    print(f"{len(listed)} points, {failed} failed")
    return 1 if failed else 0


def in_process(words, out):
    environment = dict(os.environ)
    if "--allocator" in words:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = words[words.index("--allocator") + 1]
    command = [sys.executable, "-m", "tests.gpu.trainings", "--out", str(out), "--point", *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=180
        )
    except subprocess.TimeoutExpired:
        return {"point": words, "error": "not done after 180 seconds"}
    if done.returncode:
        return {"point": words, "error": done.stderr[-2000:]}
    return {"point": words, **json.loads(done.stdout.splitlines()[-1])}


def parse_point(words):
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--side", type=int, default=86)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--optimizer", default="AdamW")
    parser.add_argument("--fused", action="store_true")
    parser.add_argument(
        "--precision", default="fp32", choices=["fp32", "bf16", "fp16", "bf16-weights"]
    )
    parser.add_argument("--zero-grad", default="start", choices=["start", "before-backward", "end"])
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--benchmark", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--graph", action="store_true")
    parser.add_argument("--allocator")
    parser.add_argument("--history", action="store_true")
    parser.add_argument("--largest", action="store_true")
    parser.add_argument("--cap", type=float, help="GiB")
    options = parser.parse_args(words)
    options.words = words
    return options


def trained(options, out):
    """Train a point; what the allocator told, as JSON."""
    import torch  # noqa: PLC0415 - the driver does without

    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = options.benchmark
    if options.cap:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(options.cap * 2**30 / whole, 0)
    started = time.monotonic()
    if options.largest:
        return {"largest": largest(options), "seconds": time.monotonic() - started}
    if options.history:
        torch.cuda.memory._record_memory_history(
            enabled="all", context=None, stacks="python", max_entries=_MOST_ACTIONS
        )
    marks, kept = steps(options)
    row = {
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "card": torch.cuda.get_device_name(0),
        "marks": marks,
        "allocated_bytes": max(mark["allocated_peak"] for mark in marks),
        "reserved_bytes": max(mark["reserved_peak"] for mark in marks),
        "retries": torch.cuda.memory_stats()["num_alloc_retries"],
        "nvml": used_by_process(),
        "seconds": time.monotonic() - started,
    }
    if options.history:
        actions = torch.cuda.memory._snapshot()["device_traces"][0]
        row["actions"] = len(actions)
        name = "-".join(options.words).replace("---", "-").replace(".", "") + ".json.gz"
        with gzip.open(out / name, "wt") as file:
            rows = [[a["action"], a["size"], a.get("addr"), a.get("stream")] for a in actions]
            json.dump({"point": options.words, "marks": marks, "actions": rows}, file)
    del kept
    return row


def used_by_process():
    """What NVML says that this process holds, and the card as a whole; None where it does not."""
    import pynvml  # noqa: PLC0415

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return {
            "pid": os.getpid(),
            "processes": {p.pid: p.usedGpuMemory for p in processes},
            "used": pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2).used,
        }
    return None


def steps(options, count=_STEPS):
    """Run some steps; (the allocator's peaks of each, what has to live until they are read)."""
    import torch  # noqa: PLC0415

    device = torch.device("cuda:0")
    model, batch = prepared(options)
    if options.precision == "bf16-weights":
        model.bfloat16()
    model.to(device).train()
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    run = torch.compile(model) if options.compile else model
    named = {"fused": True} if options.fused else {}
    optimizer = getattr(torch.optim, options.optimizer)(model.parameters(), lr=1e-3, **named)
    marks = [mark(torch, "start")]
    if options.graph:
        return graphed(options, model, batch, optimizer, marks), (model, optimizer)
    cast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(options.precision)
    for number in range(count):
        if options.zero_grad == "start":
            optimizer.zero_grad()
        inputs = batch(device)
        with torch.autocast("cuda", dtype=cast, enabled=cast is not None):
            loss = run(**inputs)
        if options.zero_grad == "before-backward":
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if options.zero_grad == "end":
            optimizer.zero_grad()
        marks.append(mark(torch, number))
    return marks, (model, optimizer)


def graphed(options, model, batch, optimizer, marks):
    """Capture a step in a CUDA graph, as torch's documentation shows, and replay it."""
    import torch  # noqa: PLC0415

    inputs = batch(torch.device("cuda:0"))

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=options.precision == "bf16"):
            loss = model(**inputs)
        loss.backward()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    marks.append(mark(torch, "warm"))
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        step()
    marks.append(mark(torch, "captured"))
    for number in range(_STEPS):
        graph.replay()
        optimizer.step()
        marks.append(mark(torch, number))
    return marks


def mark(torch, name):
    torch.cuda.synchronize()
    told = {
        "at": name,
        "allocated": torch.cuda.memory_allocated(),
        "reserved": torch.cuda.memory_reserved(),
        "allocated_peak": torch.cuda.max_memory_allocated(),
        "reserved_peak": torch.cuda.max_memory_reserved(),
        "requested_peak": torch.cuda.memory_stats()["requested_bytes.all.peak"],
    }
    torch.cuda.reset_peak_memory_stats()
    return told


def largest(options):
    """The largest batch of which three steps fit under the cap, and every batch tried."""
    import torch  # noqa: PLC0415

    tried = {}

    def fits(batch):
        options.batch = batch
        try:
            marks, _ = steps(options, 3)
            tried[batch] = max(mark["reserved_peak"] for mark in marks)
        except torch.OutOfMemoryError as error:
            tried[batch] = str(error)[:300]
        torch.cuda.empty_cache()
        return isinstance(tried[batch], int)

    low, high = 1, 2
    while fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return {"batch": low, "tried": tried}


if __name__ == "__main__":
    sys.exit(main())
