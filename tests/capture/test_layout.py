"""The C header and its Python mirror are one layout, by the BTF of the built object."""

from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtap.capture
from helpers.btf import Btf
from streamtap.capture import layout
from streamtap.model import Policy

OBJECTS = Path(streamtap.capture.__file__).parent
STRUCTS = [
    "segment_record", "orphan_tuple", "opened_record", "closed_record", "process_record",
    "app_key", "process", "policy", "settings", "counters", "flow_listing",
]  # fmt: skip
ENUMS: dict[str, tuple[str, type[IntEnum] | Any]] = {
    "record_kind": ("RECORD_", layout.RecordKind),
    "scope_use": ("USE_", layout.ScopeUse),
    "flow_flag": ("FLOW_", layout.FlowFlag),
    "process_flag": ("PROCESS_", layout.ProcessFlag),
    "policy_mode": ("POLICY_", Policy),
}


@pytest.fixture(scope="module", params=["callout.bpf.o", "callout_scratch.bpf.o"])
def btf(request: pytest.FixtureRequest) -> Btf:
    return Btf(OBJECTS / request.param)


@pytest.mark.parametrize("name", STRUCTS)
def test_a_dtype_has_the_size_and_fields_of_its_struct(btf: Btf, name: str) -> None:
    dtype: np.dtype[Any] = getattr(layout, name.upper())
    size, fields = btf.structs[name]
    assert dtype.fields is not None
    mirrored = {key: (entry[1], entry[0].itemsize) for key, entry in dtype.fields.items()}
    assert mirrored == {key: tuple(field) for key, field in fields.items()}
    assert dtype.itemsize == size


@pytest.mark.parametrize("name", ENUMS)
def test_an_enum_has_the_values_of_its_c_twin(btf: Btf, name: str) -> None:
    prefix, mirror = ENUMS[name]
    assert {prefix + item.name: item.value for item in mirror} == btf.enums[name]


@pytest.mark.parametrize("name", [s for s in STRUCTS if s != "flow_listing"])
def test_a_row_reads_what_the_dtype_reads(name: str) -> None:
    dtype: np.dtype[Any] = getattr(layout, name.upper())
    data = bytes(range(256)) * (dtype.itemsize // 256 + 1)
    row = layout.Row(dtype).read(data)
    column = np.frombuffer(data[: dtype.itemsize], dtype)[0]
    for field, value in row.items():
        expected = column[field]
        if isinstance(value, tuple):
            assert list(value) == expected.tolist()
        elif isinstance(value, bytes):
            assert value == expected.tobytes()
        else:
            assert value == int(expected)
