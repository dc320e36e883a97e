"""Damaged and hostile weights files: each is refused with an RnncoreError, or is a network of the right shapes.

Each file is a mutant (tests/fuzz/mutants.py), drawn from a seed and its number, in memory or on a memory file system. It has to
be read or refused within a second of processor time. Each process reads its files one after another, and the system refuses it
more than 256 MiB of address space beyond what it had before the first (RLIMIT_AS, on Linux). What is read is held against what
numpy.load or the safetensors library reads. A file that fails is kept under its number, and ``--only NUMBER`` reads it again.
"""

import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

import rnncore
from rnncore import io
from rnncore.errors import FileAccessError, RnncoreError
from rnncore.io.npy import read_npy
from tests.fuzz.mutants import bases, bomb, mutant

COUNT = 1_000_000
SECONDS = 1.0  # of processor time for one file; most take a thousandth of it
MEMORY = 2**28
# Seconds without a new file: no loaded machine takes so long, and a hang ends all the same.
PATIENCE = 600
SHOWN_FAILURES = 20
BATCH = 1000
LARGEST = {"slowest", "memory"}
MESSAGE = 1500  # characters
FOLDER = "build/fuzz"


def add_arguments(parser):
    """Add the options of this part."""
    parser.add_argument("--count", type=int, default=COUNT, help=f"mutants, by default {COUNT:,}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--only", type=int, nargs="+", metavar="NUMBER", help="read these mutants alone, and keep their files"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(FOLDER), help=f"for the files that fail, by default {FOLDER}"
    )


def main(options):
    """Read the mutants and print the figures; return 1 if one failed."""
    if options.only:
        return again(options)
    figures, failures = Counter(), []
    shares = [Share(options, range(k, options.count, options.processes)) for k in range(options.processes)]
    for share in shares:
        share.start()
    for share in shares:
        found, failed = share.result()
        add(figures, found)
        failures += failed
    for number, text in failures[:SHOWN_FAILURES]:
        kept = keep(options, number)
        print(f"mutant {number} of seed {options.seed}, kept as {kept}:\n{text}", flush=True)
    print(
        f"weights, seed {options.seed}: {figures['files']} mutants, {figures['refused']} refused, {figures['read']} read and "
        f"{figures['alone']} read by rnncore alone, {len(failures)} failed; the slowest took {figures['slowest']:.3f} s of "
        f"processor time; {figures['memory'] / 2**20:.0f} MiB of memory beyond the start; "
        f"{figures['files'] / (figures['busy'] or 1):.0f} mutants a second of processor time"
    )
    return 1 if failures else 0


def add(figures, more):
    """Add figures: counts are added, and of LARGEST the larger one is kept."""
    for name, number in more.items():
        figures[name] = max(figures[name], number) if name in LARGEST else figures[name] + number


def again(options):
    """Keep and read some mutants by their numbers, in this process and without limits; raise what they raise."""
    for number in options.only:
        path = keep(options, number)
        print(f"mutant {number} of seed {options.seed}, kept as {path}: {mutant(options.seed, number)[2]}", flush=True)
        print(f"  {check(str(path))}", flush=True)
    return 0


def keep(options, number):
    """Write a mutant to the folder."""
    suffix, raw, _ = mutant(options.seed, number)
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / f"{options.seed}-{number}.{suffix}"
    path.write_bytes(raw)
    return path


# --- one file ---------------------------------------------------------------------------------------------------------


def check(path):
    """Read a file, and return "refused", "read", or "alone" if no other reader reads it.

    Raises
    ------
    AssertionError, Exception
        Anything but an RnncoreError from the reader; a message that cannot be shown; a network unlike its description.
    """
    stored = refused = None
    try:
        stored = read_npy("--input", path) if path.endswith(".npy") else io.read(path)
    except RnncoreError as error:
        refused = error
    if refused is not None:
        text = str(refused)
        assert not isinstance(refused, FileAccessError), f"the system is to blame, and not the file: {text}"
        assert path in text and text.isprintable() and len(text) < MESSAGE, repr(text)
        return "refused"
    if isinstance(stored, np.ndarray):
        arrays = {"array": stored}
    else:
        arrays = stored.params
        check_network(path, stored)
    for array in arrays.values():
        assert array.flags.owndata and array.flags.writeable and array.dtype.isnative
    theirs = read_elsewhere(path)
    if theirs is None:
        return "alone"
    for name, array in arrays.items():
        same = theirs[name].astype(array.dtype, copy=False)
        assert (same.shape, same.tobytes()) == (array.shape, array.tobytes()), name
    return "read"


def check_network(path, stored):
    """The network that the file describes has the arrays of the file, bit for bit."""
    options = {"nonlinearity": (np.sin, np.cos)} if stored.config["custom_nonlinearity"] else {}
    if stored.dtype == "bfloat16":  # NumPy has none
        options["dtype"] = "float32"
    model = rnncore.load(path, backend="numpy", **options)
    shapes = model.spec.parameter_shapes()
    assert list(shapes) == list(stored.params)
    for name, array in stored.params.items():
        assert array.shape == shapes[name]
        held = model.params[name]
        assert (held.dtype, held.tobytes()) == (array.dtype, array.tobytes()), name


def read_elsewhere(path):
    """The arrays as the reference reader of the format reads them; None if it refuses the file."""
    try:
        if path.endswith(".npy"):
            return {"array": np.load(path, allow_pickle=False)}
        if path.endswith(".npz"):
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        from safetensors.numpy import load_file

        return load_file(path)
    except Exception:  # whatever it raises, it does not read it
        return None


# --- many files, in a process of their own ----------------------------------------------------------------------------


class Share:
    """Some of the mutants, read in a process of their own; when it dies, another goes on behind the mutant that killed it."""

    def __init__(self, options, numbers):
        self.seed, self.numbers, self.failures = options.seed, numbers, []
        self.figures, self.started = Counter(), None
        context = multiprocessing.get_context("spawn")
        self.context, self.now = context, context.Value("q", -1, lock=False)

    def start(self):
        """Start the process that reads what is left."""
        self.pipe, theirs = self.context.Pipe(duplex=False)
        self.process = self.context.Process(target=read_all, args=(self.seed, self.numbers, self.now, theirs))
        self.process.start()
        theirs.close()

    def result(self):
        """Wait for the end of all, and return the figures and the failures: numbers and texts."""
        while True:
            text = self.watch()
            if text is None:
                return self.figures, self.failures
            number = self.now.value
            if number < 0:
                raise RuntimeError(f"the process ended before its first mutant: {text}")
            self.failures.append((number, text))
            step = self.numbers.step
            self.numbers = range(number + step, self.numbers.stop, step)
            self.start()

    def watch(self):
        """Read what the process reports until its end; return None, or how it ended before its time."""
        before = None
        while True:
            if not self.pipe.poll(PATIENCE):
                if self.now.value == before:
                    self.process.kill()
                    self.process.join()
                    return f"nothing new for {PATIENCE} seconds: a hang"
                before = self.now.value
                continue
            try:
                kind, *rest = self.pipe.recv()
            except EOFError:
                self.process.join()
                return f"the process ended with status {self.process.exitcode}"
            if kind == "failed":
                self.failures.append(tuple(rest))
            add(self.figures, rest[0] if kind == "figures" else {})
            if kind == "done":
                self.process.join()
                return None


def read_all(seed, numbers, now, pipe):
    """Read mutants one after another, and report each failure, and figures now and then."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        warm_up(folder)
        limit_memory()
        resident = peak_memory()
        figures, busy = Counter(), time.process_time()
        for number in numbers:
            now.value = number
            spent = time.process_time()
            try:
                figures[read_one(seed, number, folder)] += 1
                spent = time.process_time() - spent
                figures["slowest"] = max(figures["slowest"], spent)
                if spent > SECONDS:
                    pipe.send(("failed", number, f"it took {spent:.1f} s of processor time"))
            except BaseException:
                pipe.send(("failed", number, traceback.format_exc()))
            figures["files"] += 1
            if figures["files"] == BATCH or number + numbers.step >= numbers.stop:
                figures |= {"busy": time.process_time() - busy, "memory": peak_memory() - resident}
                pipe.send(("figures", figures))
                figures, busy = Counter(), time.process_time()
        pipe.send(("done", Counter()))


def warm_up(folder):
    """Read a good file of each format, so that what is imported and made once is not counted."""
    bomb()
    for suffix, made in bases().items():
        path = f"{folder}/good.{suffix}"
        for parts in made:
            Path(path).write_bytes(parts["raw"])
            assert check(path) == "read"


def limit_memory():
    """Let this process have MEMORY bytes of address space more than it has."""
    if sys.platform == "linux":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))


def peak_memory():
    """The most bytes that this process has held in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read_one(seed, number, folder):
    """Write a mutant where reading it takes no disk, and check it."""
    suffix, raw, _ = mutant(seed, number)
    path = f"{folder}/mutant.{suffix}"
    with open(path, "wb") as file:
        file.write(raw)
    return check(path)


def memory_folder():
    """A folder on a memory file system, or None."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
