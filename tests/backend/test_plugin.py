"""Plugins of others: one that works, and those that break the contract."""

import re
import sys

import numpy as np
import pytest

import rnncore
from rnncore.backend import registry
from rnncore.errors import ArgumentTypeError, BackendUnavailableError, RnncoreError
from tests.tools.plugins import Nobodys, Sub, as_object, cases, sound
from tests.tools.rounding import agree


def test_a_third_partys_plugin_works_without_a_line_of_ours(acme):
    listed = {b.name: b for b in rnncore.backends()}["acme"]
    assert (listed.usable, listed.distribution, listed.version) == (True, "rnncore-acme", "0.1")
    numpy = rnncore.RNN(3, [4, 5], bidirectional=True, rng=0)
    rnn = numpy.to("acme")
    assert rnn.backend == "acme" and str(rnn.device) == str(rnncore.get_backend("acme").devices()[0])
    plugin = rnncore.get_backend("acme")
    rng = np.random.default_rng(0)
    x, lengths = rng.standard_normal((6, 3, 3)), [4, 0, 6]
    give = lambda a: plugin.asarray(np.asarray(a), dtype=rnn.dtype, device=rnn.device)  # noqa: E731
    output, h_n, pullback = rnn.vjp(give(x), lengths=lengths, checkpoint=2)
    want_output, want_h_n, want_pullback = numpy.vjp(x, lengths=lengths)
    agree(plugin.to_numpy(output), want_output)
    agree(plugin.to_numpy(h_n[1]), want_h_n[1])
    d = rng.standard_normal(want_output.shape)
    got, want = pullback(give(d)), want_pullback(d)
    for k in want.params:
        agree(plugin.to_numpy(got.params[k]), want.params[k])
    assert "no scans of its own" in str(rnn.explain())
    with pytest.raises(ArgumentTypeError, match=r"'acme' \(acme_arrays\), got numpy.ndarray \(backend 'numpy'\)"):
        rnn(x)
    import rnncore_acme

    assert rnncore_acme.RNN(2, 3).backend == "acme"


RAISES = "@property\ndef {}(self): raise RuntimeError('no licence')"
OBJECT = "rnncore_broken:backend"


# What is wrong, the module, the entry point's value, the words in the listing: those that no listing can miss.
SEEN_WHEN_LISTED = {
    "raises": ("raise RuntimeError('no licence')", None, "RuntimeError: no licence"),
    "raises what cannot be printed": (
        "class Mute(Exception):\n    def __str__(self): raise RuntimeError\nraise Mute",
        None,
        "failed to load: Mute",
    ),
    "imports what is missing": (
        "import a_module_that_is_not_there",
        None,
        "No module named 'a_module_that_is_not_there'",
    ),
    "exits": ("import sys; sys.exit(3)", None, "SystemExit: 3"),
    "panics": ("class Panic(BaseException): pass\nraise Panic('a library in Rust')", None, "Panic: a library in Rust"),
    "is no Python": ("def namespace(:", None, "SyntaxError"),
    "lacks everything": (
        "name = 'broken'",
        None,
        "lacks asarray, devices, is_native, namespace, native_package, scans",
    ),
    "lacks one": (sound(more="del to_numpy"), None, "lacks to_numpy"),
    "a member is no function": (sound(more="devices = ('cpu',)"), None, "devices must be a function, got tuple"),
    "another contract": (
        sound(more="contract_version = 3"),
        None,
        "version 3 of the contract, and this rnncore versions 1 and 2",
    ),
    "another contract, other members": ("contract_version = 7", None, "version 7 of the contract"),
    "its version is no number": (sound(more="contract_version = '1'"), None, "version '1' of the contract"),
    "its version raises": (
        as_object(RAISES.format("contract_version")),
        OBJECT,
        "contract_version cannot be read: Runtime",
    ),
    "its name raises": (as_object(RAISES.format("name")), OBJECT, "its name cannot be read: RuntimeError: no licence"),
    "its package raises": (as_object(RAISES.format("native_package")), OBJECT, "its native_package cannot be read"),
    "a member raises": (
        as_object(RAISES.format("devices")),
        OBJECT,
        "its devices cannot be read: RuntimeError: no licence",
    ),
    "a member exits": (
        as_object("@property\ndef scans(self): raise SystemExit"),
        OBJECT,
        "its scans cannot be read: SystemExit",
    ),
    "its unusable cannot be read": (
        as_object(RAISES.format("unusable")),
        OBJECT,
        "its unusable cannot be read: RuntimeError",
    ),
    "another name": (sound("other"), None, "calls itself 'other'"),
    "its name is no string": (sound(more="name = 3"), None, "name must be a string, got int"),
    "its package is no string": (
        sound(more="native_package = None"),
        None,
        "native_package must be a string, got NoneType",
    ),
    "its package is empty": (sound(more="native_package = ''"), None, "must be a module's name, got ''"),
    "its package is relative": (
        sound(more="native_package = '.arrays'"),
        None,
        "must be a module's name, got '.arrays'",
    ),
    "its package has no parent": (
        sound(more="native_package = 'not_there.arrays'"),
        None,
        "not_there.arrays is not installed: pip install not_there",
    ),
    "unusable raises": (
        sound(more="def unusable(): raise RuntimeError('no licence')"),
        None,
        "unusable failed: RuntimeError",
    ),
    "unusable exits": (sound(more="def unusable(): raise SystemExit(3)"), None, "unusable failed: SystemExit: 3"),
    "unusable returns a number": (sound(more="def unusable(): return 3"), None, "unusable returned int, not a string"),
    "unusable is no function": (sound(more="unusable = 'no driver'"), None, "its unusable must be a function, got str"),
    "no such object": (sound(), "rnncore_broken:nothing", "AttributeError"),
    "no such module": (sound(), "rnncore_missing", "No module named 'rnncore_missing'"),
    "its value is no name": (
        sound(),
        "not a module at all!",
        "entry point broken = not a module at all! of broken 1.2",
    ),
    "its value is empty": (sound(), " ", "entry point broken ="),
    "its value is a call": (sound(), "rnncore_broken:backend()", "entry point broken = rnncore_broken:backend()"),
}


# What is wrong, the module, the words of the error: only asking for it can tell.
SEEN_WHEN_ASKED_FOR = {
    "namespace raises": ("def namespace(): raise OSError('libacme.so: not found')", "OSError: libacme.so: not found"),
    "namespace exits": ("def namespace(): raise SystemExit(3)", "SystemExit: 3"),
    "devices raises": ("def devices(): raise RuntimeError('driver')", "RuntimeError: driver"),
    "devices exits": ("def devices(): raise SystemExit(4)", "SystemExit: 4"),
    "devices returns a number": ("def devices(): return 3", "TypeError"),
    "devices returns nothing": ("def devices(): pass", "installed but it has no usable device"),
    "devices is empty, unusable silent": ("def devices(): return ()", "installed but it has no usable device"),
}


# What is wrong, the module, the words of the error for an array without an owner.
SEEN_WITH_AN_ARRAY = {
    "is_native raises": (
        "def is_native(x, /): raise RuntimeError('no licence')",
        "is_native failed: RuntimeError: no licence",
    ),
    "is_native exits": ("def is_native(x, /): raise SystemExit(3)", "is_native failed: SystemExit: 3"),
    "is_native returns a string": ("def is_native(x, /): return 'yes'", "is_native returned str, not a bool"),
    "is_native returns nothing": ("def is_native(x, /): pass", "is_native returned NoneType, not a bool"),
    "is_native takes nothing": ("def is_native(): return True", "is_native failed: TypeError"),
}


@cases(SEEN_WHEN_LISTED)
def test_a_broken_plugin_is_listed_with_its_fault_and_disturbs_no_other(plugin_files, others, case):
    body, value, words = case
    plugin_files("broken", body, value=value)
    others("broken")
    row = next(b for b in rnncore.backends() if b.name == "broken")
    assert not row.usable and words in row.reason
    assert (row.distribution, row.version) == ("broken", "1.2")
    if "unusable" not in words and "installed" not in words:  # these two speak of the library, not of the plugin
        with pytest.raises(
            BackendUnavailableError, match=r"^backend 'broken': entry point broken = .* of broken 1\.2"
        ) as e:
            rnncore.get_backend("broken")
        assert words in str(e.value)
        assert row.reason.startswith("entry point broken = ")  # the row has its name already
    with rnncore.use_backend("broken"):  # chosen, it still has no say about arrays
        assert registry.backend_of(np.ones(2)).name == "numpy"
    others("broken")


@cases(SEEN_WHEN_ASKED_FOR)
def test_a_plugin_that_fails_when_it_is_used_says_so_from_then_on(plugin_files, others, case):
    more, words = case
    plugin_files("broken", sound(more=more))
    others("broken")
    assert next(b.usable for b in rnncore.backends() if b.name == "broken")
    for ask in (rnncore.get_backend, lambda name: rnncore.RNN(2, 3, backend=name)):
        with pytest.raises(BackendUnavailableError, match="backend 'broken': numpy ") as error:
            ask("broken")
        assert words in str(error.value)
    row = next(b for b in rnncore.backends() if b.name == "broken")
    assert not row.usable and row.reason in str(error.value)
    others("broken")


@cases(SEEN_WITH_AN_ARRAY)
def test_a_plugin_that_cannot_tell_its_arrays_has_none(plugin_files, others, case):
    more, words = case
    plugin_files("broken", sound(more=more))
    others("broken")
    assert rnncore.get_backend("broken").name == "broken"
    others("broken")
    with rnncore.use_backend("broken"):  # preferred or not
        assert registry.backend_of(np.ones(2), prefer="broken").name == "numpy"
    with pytest.raises(
        ArgumentTypeError, match=r"expected an array of a registered backend \(broken, .*got .*Nobodys"
    ) as e:
        registry.backend_of(Nobodys())
    assert f"could not be asked: backend 'broken': its {words}" in str(e.value)


LONG = 2**20
# A longest text, with its note on what is left out, and the words around it.
SHORT_ENOUGH = 4000
# Lines of a plugin that define the class Odd of an error, or of what else it may hand out.
ODD = {
    "1 MB": f"def odd(): return 'first' + 'x' * {LONG} + 'last'",
    "1 MB of lines": f"def odd(): return 'first' + 'x\\n' * {LONG // 2} + 'last'",
    "ANSI": "def odd(): return 'first \\x1b[2J\\x1b[31mred\\x1b[0m \\x1b]0;title\\x07\\r\\x08\\x00 last'",
    "surrogates": "def odd(): return 'first \\ud800\\udfff last'",
    "raises": "def odd(): raise RuntimeError('mute')",
    "exits": "def odd(): raise SystemExit(3)",
    "panics": "class Panic(BaseException): pass\ndef odd(): raise Panic",
    "recurses": "def odd(): return odd()",
    "no string": "def odd(): return 3",
}
# Where the text appears.
PLACES = {
    "while it is loaded": "raise Odd",
    "unusable raises": "def unusable(): raise Odd",
    "unusable returns": "def unusable(): return odd()",
    "namespace raises": "def namespace(): raise Odd",
    "devices raises": "def devices(): raise Odd",
    "is_native raises": "def is_native(x, /): raise Odd",
    "its name": "name = odd()",
    "its package": "class Name(str):\n    def __repr__(self): return odd()\nnative_package = Name(odd())",
    "its version": "class Version:\n    def __repr__(self): return odd()\ncontract_version = Version()",
    "writable": "class Odder:\n    def __repr__(self): return odd()\nwritable = Odder()\ncontract_version = 2",
    "forms": "scan_forms = {odd()}\ncontract_version = 2",
}


@pytest.mark.parametrize("kind", ["BaseException", "SystemExit", "GeneratorExit", "ImportError"])
@pytest.mark.parametrize("place", ["while it is loaded", "unusable raises", "namespace raises"])
def test_errors_of_any_kind_are_kept_short(plugin_files, place, kind):
    check_short(plugin_files, ODD["1 MB"], PLACES[place], kind)


@cases(PLACES)
@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_whatever_text_a_plugin_hands_out_is_kept_short_and_printable(plugin_files, text, case):
    check_short(plugin_files, text, case)


def check_short(plugin_files, text, more, kind="Exception"):
    odd = f"{text}\nclass Odd({kind}):\n    def __str__(self): return odd()\n"
    plugin_files("broken", sound(more=odd + more))
    texts = [b.reason for b in rnncore.backends() if b.name == "broken"]
    for ask in (lambda: rnncore.get_backend("broken"), lambda: registry.backend_of(Nobodys())):
        try:
            ask()
        except RnncoreError as error:
            texts.append(str(error))
    texts += [b.reason for b in rnncore.backends() if b.name == "broken"]
    assert "".join(texts)
    for shown in texts:
        assert len(shown) < SHORT_ENOUGH
        assert shown.replace("\n", "").isprintable()
        shown.encode("utf-8")  # as a file or a terminal does
    if f"* {LONG}" in text:
        found = next(shown for shown in texts if "left out" in shown)
        assert (
            "first" in found
            and "last" in found
            and re.search(r"xx \[\.\.\. \d+ characters left out \.\.\.\] xx", found)
        )


def test_a_library_whose_import_is_blocked_is_not_installed(plugin_files, others, monkeypatch):
    monkeypatch.setitem(sys.modules, "blocked", None)
    plugin_files("broken", sound(more="native_package = 'blocked'\ndef is_native(x, /): return True"))
    others("broken")
    assert registry.owner_name(Nobodys()) is None
    row = next(b for b in rnncore.backends() if b.name == "broken")
    assert row.reason == "blocked is not installed: pip install blocked"


def test_ctrl_c_passes(plugin_files):
    plugin_files("broken", "raise KeyboardInterrupt")
    for ask in (rnncore.backends, lambda: rnncore.get_backend("broken"), lambda: registry.owner_name(Sub(2))):
        with pytest.raises(KeyboardInterrupt):
            ask()
    plugin_files("later", sound("later", "def namespace(): raise KeyboardInterrupt"), "later")
    with pytest.raises(KeyboardInterrupt):
        rnncore.get_backend("later")


@pytest.mark.parametrize("value", [None, "rnncore_early:backend"])
def test_a_plugin_that_lists_the_backends_while_it_is_imported_is_not_held_to_be_broken(plugin_files, value):
    """It has nothing to show yet; afterwards it has."""
    body = sound("early") if value is None else as_object(name="early")
    plugin_files("early", f"import rnncore\nlisted = rnncore.backends()\n{body}", "early", value=value)
    import rnncore_early

    assert not next(b for b in rnncore_early.listed if b.name == "early").usable
    with pytest.raises(ArgumentTypeError) as error:
        registry.backend_of(Nobodys())
    assert "could not be asked" not in str(error.value)
    assert next(b for b in rnncore.backends() if b.name == "early").usable
