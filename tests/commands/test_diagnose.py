"""The command `rnncore diagnose`: its output, its status and its errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import rnncore
from rnncore.commands.cli import main
from rnncore.diagnostics.run import diagnose
from tests.diagnostics.monitor.networks import B, H, I, T, X, numbers
from tests.tools.command import PLAIN, read_all


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Networks and inputs, good and bad."""
    path = tmp_path_factory.mktemp("diagnose")
    rnncore.RNN(I, H, rng=0, dtype="float32").save(path / "w.safetensors")
    rnncore.RNN(I, H, rng=0).save(path / "w.npz")
    rnncore.RNN(I, H, nonlinearity="identity", init=rnncore.init.orthogonal(1.0), rng=0).save(path / "good.safetensors")
    custom = rnncore.custom_nonlinearity(lambda z, *, xp: z, lambda z, *, xp: xp.ones_like(z), name="mine")
    rnncore.RNN(I, H, nonlinearity=custom, rng=0).save(path / "custom.safetensors")
    arrays = {
        "x": X,
        "x32": X.astype("f4"),
        "ints": (X > 0).astype("i8"),
        "big-endian": X.astype(">f8"),
        "d": np.ones((30, B, H)),
        "huge": np.full((5, B, I), 1e300),
        "nan": np.full((5, B, I), np.nan),
        "bool": X > 0,
        "complex": X.astype(complex),
        "object": np.asarray([{}], dtype=object),
        "string": np.full((3, B, I), "a"),
        "fortran": numbers(I, B, T).T,
        "1-D": np.ones(I),
        "4-D": np.ones((1, 5, B, I)),
        "0-D": np.ones(()),
        "T = 0": np.ones((0, B, I)),
        "features": np.ones((5, B, I + 2)),
    }
    if np.dtype(np.longdouble).itemsize > 8:
        arrays["longdouble"] = X.astype(np.longdouble)
    for name, value in arrays.items():
        np.save(path / f"{name}.npy", value, allow_pickle=True)
    whole = (path / "x.npy").read_bytes()
    (path / "truncated.npy").write_bytes(whole[:-8])
    (path / "longer.npy").write_bytes(whole + b"\0")
    (path / "head.npy").write_bytes(whole[:20])
    (path / "empty.npy").write_bytes(b"")
    (path / "text.npy").write_text("1 2 3\n")
    (path / "claims.npy").write_bytes(whole.replace(b"(30, 3, 4), }       ", b"(99999999999, 3, 4)}"))
    (path / "claims much.npy").write_bytes(whole.replace(b"(30, 3, 4), }       ", b"(99999999, 3, 4), } "))
    np.savez(path / "zip.npy.npz", X)
    (path / "folder.npy").mkdir()
    return path


def command(folder, *arguments, code="", env=()):
    script = (
        f"import sys\n{code}\nfrom rnncore.commands.cli import main\n"
        f"sys.argv = ['rnncore', 'diagnose', *{arguments!r}]\nsys.exit(main())"
    )
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        env={**PLAIN, **dict(env)},
        check=False,
    )


def test_status_0_is_healthy_and_1_is_not(folder):
    good = command(folder, "good.safetensors", "--input", "x.npy")
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.startswith("healthy: ") and "\x1b" not in good.stdout
    bad = command(folder, "w.safetensors", "--input", "x.npy")
    assert (bad.returncode, bad.stderr) == (1, "")
    assert bad.stdout.startswith("vanishing: ") and "  try      " in bad.stdout
    nan = command(folder, "w.safetensors", "--input", "nan.npy")
    assert nan.returncode == 1 and nan.stdout.startswith("nonfinite: ")


@pytest.mark.parametrize("x", ["x.npy", "x32.npy", "ints.npy", "big-endian.npy"])
@pytest.mark.parametrize("weights", ["w.safetensors", "w.npz"])
def test_json_is_the_reports(folder, weights, x):
    done = command(folder, weights, "--input", x, "--json", "-")
    assert (done.returncode, done.stderr) == (1, "")
    rnn = rnncore.load(folder / weights, backend="numpy")
    report = diagnose(rnn, np.load(folder / x).astype(rnn.dtype))
    assert json.loads(done.stdout) == json.loads(report.to_json())


def test_html_is_the_reports(folder, tmp_path):
    path = tmp_path / "out.html"
    path.write_text("what was there before")
    done = command(folder, "w.npz", "--input", "x.npy", "--html", str(path))
    assert (done.returncode, done.stderr) == (1, "") and done.stdout.startswith("vanishing: ")
    want = diagnose(rnncore.load(folder / "w.npz", backend="numpy"), X).to_html()
    assert path.read_text(encoding="utf-8") == want
    # On a terminal that speaks no UTF-8 too, as the page says that it is UTF-8.
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = "import rnncore.diagnostics.report.page as p\np.READ['flow'] = '\\u2202L/\\u2202h'"
    shown = command(folder, "w.npz", "--input", "x.npy", "--html", "-", code=code, env=env)
    assert shown.returncode == 1 and shown.stdout.startswith("<!doctype html>") and "\u2202L/\u2202h" in shown.stdout
    both = command(folder, "good.safetensors", "--input", "x.npy", "--html", str(path), "--json", "-")
    assert both.returncode == 0 and json.loads(both.stdout)["verdict"]["label"] == "healthy"
    assert '<h1 class="good">healthy</h1>' in path.read_text(encoding="utf-8")


NEVER = "import rnncore.commands.diagnose as c\nc.read_npy = lambda *a: sys.exit('it has begun')\n"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is protected from root")
def test_a_protected_file_is_seen_before_the_work(folder, tmp_path):
    (tmp_path / "out.html").touch(mode=0o400)
    done = command(folder, *GIVEN, "x.npy", "--html", str(tmp_path / "out.html"), code=NEVER)
    assert done.returncode == 2 and "--html: expected a file that can be written" in done.stderr


@pytest.mark.parametrize("path", ["folder.npy", "/no/such/out.html"])
def test_a_bad_path_is_seen_before_the_work(folder, path):
    done = command(folder, *GIVEN, "x.npy", "--html", path, code=NEVER)
    expected = f"rnncore: --html: expected a file that can be written, got {path!r}\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_without_matplotlib_the_command_that_brings_it_is_said_before_the_work(folder, tmp_path):
    path = tmp_path / "out.html"
    code = NEVER + "sys.modules['matplotlib'] = None"
    done = command(folder, *GIVEN, "x.npy", "--html", str(path), code=code)
    expected = 'rnncore: --html: a figure needs matplotlib: pip install "rnncore[demo]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    assert not path.exists()
    without = command(folder, *GIVEN, "x.npy", code="sys.modules['matplotlib'] = None")
    assert without.returncode == 1 and without.stdout.startswith("vanishing: ")


def test_every_option_arrives(folder, tmp_path):
    path = tmp_path / "out.json"
    done = command(
        folder,
        *("w.safetensors", "--input", "x.npy", "--backend", "torch", "--device", "cpu", "--level", "deep"),
        *("--lengths", "14, 0,27", "--dependency-length", "20", "--cotangent", "d.npy", "--json", str(path)),
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("vanishing: ")
    rnn = rnncore.load(folder / "w.safetensors", backend="torch")
    given = torch.tensor(X, dtype=torch.float32)
    pull = (torch.ones(30, B, H), None)
    report = diagnose(rnn, given, pull, lengths=[14, 0, 27], dependency_length=20, level="deep")
    got, want = json.loads(path.read_text()), json.loads(report.to_json())
    assert (got["subject"], got["verdict"]["label"]) == (want["subject"], want["verdict"]["label"])
    assert got["gradcheck"] is not None and got["subject"]["lengths"] == [14, 0, 27]


def test_the_selected_backend_is_the_default(folder):
    done = command(folder, "w.safetensors", "--input", "x.npy", "--json", "-", env={"RNNCORE_BACKEND": "torch"})
    assert json.loads(done.stdout)["subject"]["backend"] == "torch"


def test_a_plugin_that_prints_does_not_disturb_the_document(folder):
    done = command(
        folder,
        *("w.safetensors", "--input", "x.npy", "--json", "-"),
        code="import rnncore.backend.registry as r\nf = r.get_backend\nimport rnncore.commands.diagnose as c\n"
        "c.get_backend = lambda n: (print('hello'), f(n))[1]",
    )
    json.loads(done.stdout)
    assert "hello" in done.stderr


GIVEN = ("w.safetensors", "--input")


BAD_CALLS = {
    "no input": (("w.safetensors",), ["--input"]),
    "no weights": (("--input", "x.npy"), ["weights"]),
    "weights absent": (("no.safetensors", "--input", "x.npy"), ["no.safetensors"]),
    "weights of another kind": (("x.npy", "--input", "x.npy"), [".safetensors", "x.npy"]),
    "weights that are none": (("zip.npy.npz", "--input", "x.npy"), ["zip.npy.npz"]),
    "own nonlinearity": (("custom.safetensors", "--input", "x.npy"), ["nonlinearity"]),
    "input absent": ((*GIVEN, "no.npy"), ["no.npy"]),
    "input a folder": ((*GIVEN, "folder.npy"), ["folder.npy"]),
    "input a device": ((*GIVEN, "/dev/zero"), ["--input", "/dev/zero", "regular file"]),
    "input a zip": ((*GIVEN, "zip.npy.npz"), ["--input", "header"]),
    "text": ((*GIVEN, "text.npy"), ["--input", "text.npy", "header"]),
    "empty": ((*GIVEN, "empty.npy"), ["--input", "empty.npy"]),
    "a header's half": ((*GIVEN, "head.npy"), ["--input", "head.npy"]),
    "truncated": ((*GIVEN, "truncated.npy"), ["--input", "2880", "2872"]),
    "longer": ((*GIVEN, "longer.npy"), ["--input", "2880", "2881"]),
    "claims too much": ((*GIVEN, "claims much.npy"), ["--input"]),
    "claims with another header": ((*GIVEN, "claims.npy"), ["--input", "truncated"]),
    "bool": ((*GIVEN, "bool.npy"), ["--input", "real numbers", "bool"]),
    "complex": ((*GIVEN, "complex.npy"), ["--input", "complex.npy"]),
    "object": ((*GIVEN, "object.npy"), ["--input", "Python objects"]),
    "string": ((*GIVEN, "string.npy"), ["--input", "plain numbers"]),
    "Fortran order": ((*GIVEN, "fortran.npy"), ["--input", "C order", "numpy.ascontiguousarray(x)"]),
    "beyond float32": ((*GIVEN, "huge.npy"), ["--input", "float32", "[0, 0, 0] = 1e+300"]),
    "1-D": ((*GIVEN, "1-D.npy"), ["x", "(4,)"]),
    "4-D": ((*GIVEN, "4-D.npy"), ["x", "(1, 5, 3, 4)"]),
    "0-D": ((*GIVEN, "0-D.npy"), ["x", "()"]),
    "T = 0": ((*GIVEN, "T = 0.npy"), ["x", "at least one time step"]),
    "features": ((*GIVEN, "features.npy"), ["x", "input_size 4"]),
    "level": ((*GIVEN, "x.npy", "--level", "chap"), ["level", "did you mean 'cheap'"]),
    "backend": ((*GIVEN, "x.npy", "--backend", "nump"), ["'nump'", "Did you mean 'numpy'"]),
    "device": ((*GIVEN, "x.npy", "--device", "tpu"), ["device", "'tpu'"]),
    "lengths too many": ((*GIVEN, "x.npy", "--lengths", "1,2,3,4"), ["lengths", "3 entries", "4"]),
    "lengths too long": ((*GIVEN, "x.npy", "--lengths", "1,2,31"), ["lengths[2]", "[0, 30]"]),
    "lengths negative": ((*GIVEN, "x.npy", "--lengths", "1,-2,3"), ["--lengths", "'-2'", "place 1"]),
    "lengths with words": ((*GIVEN, "x.npy", "--lengths", "a"), ["--lengths", "'a'"]),
    "lengths empty": ((*GIVEN, "x.npy", "--lengths", ""), ["--lengths"]),
    "lengths of many digits": ((*GIVEN, "x.npy", "--lengths", "9" * 5000), ["--lengths"]),
    "dependency 0": ((*GIVEN, "x.npy", "--dependency-length", "0"), ["--dependency-length"]),
    "dependency in words": ((*GIVEN, "x.npy", "--dependency-length", "long"), ["--dependency-length"]),
    "cotangent absent": ((*GIVEN, "x.npy", "--cotangent", "no.npy"), ["no.npy"]),
    "cotangent's shape": ((*GIVEN, "x.npy", "--cotangent", "x.npy"), ["cotangent[0]", "(30, 3, 5)", "(30, 3, 4)"]),
    "cotangent's kind": ((*GIVEN, "x.npy", "--cotangent", "object.npy"), ["--cotangent", "Python objects"]),
    "html nowhere": ((*GIVEN, "x.npy", "--html", "/no/such/out.html"), ["--html", "/no/such/out.html"]),
    "html a folder": ((*GIVEN, "x.npy", "--html", "folder.npy"), ["--html", "folder.npy"]),
    "html without a name": ((*GIVEN, "x.npy", "--html", ""), ["--html", "''"]),
    "html under a file": ((*GIVEN, "x.npy", "--html", "x.npy/out.html"), ["--html", "x.npy/out.html"]),
    "html on a full disk": ((*GIVEN, "x.npy", "--html", "/dev/full"), ["No space left"]),
    "one file for both": ((*GIVEN, "x.npy", "--json", "out", "--html", "./out"), ["--html", "--json", "'./out'"]),
    "one output for both": ((*GIVEN, "x.npy", "--json", "-", "--html", "-"), ["--html", "--json", "'-'"]),
    "json nowhere": ((*GIVEN, "x.npy", "--json", "/no/such/out.json"), ["--json", "/no/such/out.json"]),
    "unknown option": ((*GIVEN, "x.npy", "--nonsense"), ["--nonsense"]),
}


if np.dtype(np.longdouble).itemsize > 8:
    BAD_CALLS["longdouble"] = ((*GIVEN, "longdouble.npy"), ["--input", "longdouble.npy"])


@pytest.mark.parametrize(("arguments", "words"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_bad_call_is_one_line_and_status_2(folder, capfd, monkeypatch, arguments, words):
    """In this process: starting one for each would take minutes."""
    from rnncore.commands.cli import main

    monkeypatch.chdir(folder)
    monkeypatch.delenv("RNNCORE_BACKEND", raising=False)
    monkeypatch.setattr(sys, "argv", ["rnncore", "diagnose", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    written, said = capfd.readouterr()
    assert stopped.value.code == 2
    assert written == ""
    assert said.startswith("rnncore: ") and said.count("\n") == 1, said
    for word in words:
        assert word in said


def test_a_mistake_in_the_program_is_shown_and_is_no_verdict(folder):
    done = command(folder, *GIVEN, "x.npy", code="import rnncore.commands.diagnose as c\nc.read_npy = lambda *a: 1 / 0")
    assert done.returncode == 2 and "ZeroDivisionError" in done.stderr


def test_memory_that_is_not_there_is_one_line(folder):
    code = "import rnncore.commands.diagnose as c\ndef f(*a): raise MemoryError('of 9 TiB')\nc.read_npy = f"
    done = command(folder, *GIVEN, "x.npy", code=code)
    assert (done.returncode, done.stderr) == (2, "rnncore: there is not enough memory: of 9 TiB\n")


def test_nothing_in_a_file_is_executed(folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    np.save(folder / "bomb.npy", np.asarray([Bomb()], dtype=object), allow_pickle=True)
    assert command(folder, *GIVEN, "bomb.npy").returncode == 2
    assert not (tmp_path / "executed").exists()


def test_progress_only_where_there_is_a_terminal(folder, tmp_path):
    import pty

    parent, child = pty.openpty()
    script = "import sys\nfrom rnncore.commands.cli import main\nsys.exit(main())"
    call = [sys.executable, "-c", script, "diagnose", "w.safetensors", "--input", "x.npy", "--json", "-"]
    call += ["--html", str(tmp_path / "out.html")]
    environment = {**PLAIN, "TERM": "xterm"}
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=child, cwd=folder, env=environment) as process:
        os.close(child)
        shown = read_all(parent)
        written = process.stdout.read()
    os.close(parent)
    assert b"reading" in shown or b"diagnosing" in shown
    assert b"drawing the page" in shown
    json.loads(written)


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.parametrize("name", ["rnn.safetensors", "x.npy", "pull.npy"])
def test_the_command_does_not_write_over_what_it_reads(tmp_path, option, name, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    rnncore.RNN(3, 4, rng=0).save(tmp_path / "rnn.safetensors")
    for file, shape in (("x.npy", (9, 2, 3)), ("pull.npy", (9, 2, 4))):
        np.save(tmp_path / file, rng.standard_normal(shape))
    before = (tmp_path / name).read_bytes()
    given = ["rnn.safetensors", "--input", "x.npy", "--cotangent", "pull.npy"]
    arguments = [v if v.startswith("--") else str(tmp_path / v) for v in given]
    monkeypatch.setattr(sys, "argv", ["rnncore", "diagnose", *arguments, option, str(tmp_path / "." / name)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and f"{option}: expected another file than" in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == before
