"""The arrays of an npz: malformed headers and data are refused."""

import numpy as np

from tests.tools.weights_files import hostile_tests, npy, npy_claim, npy_header, z, z_array

NPY_CASES = {
    "description of floats": (z(lambda e: e.update({"rnncore.npy": npy(np.ones(3))})), "uint8"),
    "description of int8": (z(lambda e: e.update({"rnncore.npy": e["rnncore.npy"].replace(b"|u1", b"|i1")})), "uint8"),
    "description a matrix": (z(lambda e: e.update({"rnncore.npy": npy(np.ones((3, 3), np.uint8))})), "uint8"),
    "description 0-d": (z(lambda e: e.update({"rnncore.npy": npy(np.array(1, np.uint8))})), "uint8"),
    "description a string": (z(lambda e: e.update({"rnncore.npy": npy(np.array(["{}"]))})), "npy header"),
    "description objects": (z(lambda e: e.update({"rnncore.npy": npy(np.array([{}], object))})), "objects"),
    "description claims more": (
        z(lambda e: e.update({"rnncore.npy": npy_claim("|u1", shape="(99999999,)", data=b"{}")})),
        "uint8",
    ),
    "description not utf-8": (z(lambda e: e.update({"rnncore.npy": npy(np.full(9, 255, np.uint8))})), "JSON"),
    "description empty": (z(lambda e: e.update({"rnncore.npy": b""})), "npy header"),
    "description large": (z(lambda e: e.update({"rnncore.npy": npy(np.zeros(70_000_000, np.uint8))})), "at most"),
    "array empty": (z_array(b""), "npy header"),
    "array no magic": (z_array(b"NUMPY" * 20), "npy header"),
    "array half a header": (z_array(npy(np.ones((2, 2)))[:50]), "npy header"),
    "array no data": (z_array(npy(np.ones((2, 2)))[:128]), "bytes of numbers"),
    "array one byte short": (z_array(npy(np.ones((2, 2)))[:-1]), "bytes of numbers"),
    "array one byte more": (z_array(npy(np.ones((2, 2))) + b"\0"), "bytes of numbers"),
    "array version 2": (z_array(npy(np.ones((2, 2)), (2, 0))), "version"),
    "array version 9": (z_array(npy_header("{}", version=b"\x09\0")), "npy header"),
    "array header nested": (z_array(npy_header("(" * 900)), "npy header"),
    "array header recursive": (z_array(npy_header("-" * 900 + "1")), "npy header"),
    "array header long": (z_array(npy_claim(data=b"").replace(b"}", b"}" + b" " * 60_000)), "npy header"),
    "array header padded": (
        z_array(
            npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2), }" + " " * 2000 + "\n", bytes(32))
        ),
        "at most 1024",
    ),
    "array header code": (z_array(npy_header("__import__('os').system('true')")), "npy header"),
    "array header python 2": (z_array(npy_claim(shape="(2L, 2L)")), "npy header"),
    "array header bad escape": (z_array(npy_claim().replace(b"<f8", b"\\df")), "npy header"),
    "array of objects": (z_array(npy(np.ones((2, 2), object))), "objects"),
    "array big-endian": (z_array(npy(np.ones((2, 2), ">f8"))), "expected float64"),
    "array float32": (z_array(npy(np.ones((2, 2), np.float32))), "expected float64"),
    "array int64": (z_array(npy(np.ones((2, 2), np.int64))), "expected float64"),
    "array complex": (z_array(npy(np.ones((2, 1), complex))), "expected float64"),
    "array of records": (z_array(npy(np.zeros((2, 2), [("a", "<f8")]))), "npy header"),
    "array of void": (z_array(npy_claim("|V9999999")), "npy header"),
    "array of float3": (z_array(npy_claim("<f3")), "npy header"),
    "array of float with no size": (z_array(npy_claim("<f")), "npy header|expected float64"),
    "array of huge integers": (z_array(npy_claim("<i" + "9" * 30)), "npy header"),
    "array Fortran": (z_array(npy(np.asfortranarray(np.ones((2, 2)))).replace(b"False", b"True ")), "Fortran"),
    "array other shape": (z_array(npy(np.ones((2, 3)))), "expected float64 of shape"),
    "array flat": (z_array(npy(np.ones(4))), "expected float64 of shape"),
    "array 0-d": (z_array(npy(np.array(1.0))), "expected float64 of shape"),
    "array zero-size": (z_array(npy(np.ones((0, 2)))), "expected float64 of shape"),
    "array negative": (z_array(npy_claim(shape="(-2, -2)")), "npy header"),
    "array booleans": (z_array(npy_claim(shape="(True, 2)")), "npy header"),
    "array leading zero": (z_array(npy_claim(shape="(02, 2)")), "npy header"),
    "array long shape": (z_array(npy_claim(shape="(" + "1, " * 300 + "2)")), "expected float64 of shape"),
    "array 900 digits": (z_array(npy_claim(shape="(" + "9" * 900 + ",)")), "expected float64 of shape"),
    "array of 8 TiB": (z_array(npy_claim(shape=f"({2**40},)")), "expected float64 of shape"),
    "array overflowing": (z_array(npy_claim(shape=f"({2**63}, {2**63})")), "expected float64 of shape"),
}


NPY_FILES = {name: ("npz", *case) for name, case in NPY_CASES.items()}

test_a_hostile_npy_is_refused, test_a_hostile_npy_takes_no_memory = hostile_tests(NPY_FILES)
