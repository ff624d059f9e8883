"""A small reader of the .BTF section of a BPF object: struct layouts and enum values."""

import struct
from pathlib import Path
from typing import NamedTuple

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = range(1, 9)
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT = range(9, 17)
DECL_TAG, TYPE_TAG, ENUM64 = 17, 18, 19


class Field(NamedTuple):
    offset: int
    size: int


class Btf:
    """structs: name -> (size, {field: Field}); enums: name -> {value name: value}."""

    def __init__(self, path: Path) -> None:
        data = _section(path.read_bytes(), b".BTF")
        _, _, _, header, type_at, type_length, text_at, _ = struct.unpack_from("<HBBIIIII", data)
        self._text = data[header + text_at :]
        types = data[header + type_at : header + type_at + type_length]
        self._types: list[tuple[str, int, int, list[tuple[int, ...]]]] = [("", 0, 0, [])]
        at = 0
        while at < len(types):
            name, info, size = struct.unpack_from("<III", types, at)
            kind, count, at = info >> 24 & 31, info & 0xFFFF, at + 12
            form, rows = {
                INT: ("<I", 1), ARRAY: ("<III", 1), STRUCT: ("<III", count), UNION: ("<III", count),
                ENUM: ("<Ii", count), FUNC_PROTO: ("<II", count), VAR: ("<I", 1),
                DATASEC: ("<III", count), DECL_TAG: ("<I", 1), ENUM64: ("<III", count),
            }.get(kind, ("<", 0))  # fmt: skip
            step = struct.calcsize(form)
            items = [struct.unpack_from(form, types, at + i * step) for i in range(rows)]
            at += rows * step
            self._types.append((self._name(name), kind, size, items))
        named = [(name, kind, size, items) for name, kind, size, items in self._types if name]
        self.structs = {
            name: (size, {self._name(n): Field(bit // 8, self._size(t)) for n, t, bit in items})
            for name, kind, size, items in named
            if kind == STRUCT
        }
        self.enums = {
            name: {self._name(n): value for n, value in items}
            for name, kind, _, items in named
            if kind == ENUM
        }

    def _name(self, at: int) -> str:
        return self._text[at : self._text.index(b"\0", at)].decode()

    def _size(self, number: int) -> int:
        _, kind, size, items = self._types[number]
        if kind == ARRAY:
            return self._size(items[0][0]) * items[0][2]
        if kind == PTR:
            return 8
        if kind in (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG):
            return self._size(size)
        return size


def _section(elf: bytes, wanted: bytes) -> bytes:
    (headers,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    rows = [struct.unpack_from("<IIQQQQ", elf, headers + i * size) for i in range(count)]
    text = elf[rows[names][4] :]
    for name, _, _, _, offset, length in rows:
        if text[name : text.index(b"\0", name)] == wanted:
            return elf[offset : offset + length]
    raise ValueError(f"no section {wanted!r}")
