"""Writes reproducible TorchScript archives, and refuses to load one that holds more than a traced module.

TorchScript is a language with files, processes and calls into Python, and `torch.jit.load` itself runs what a class
declares as `__setstate__`. A frozen trace needs none of this: one class with one method, `forward`, which calls
operators on its inputs and on constants. Its source is in the archive, and it is a subset of Python. `problems` parses
it and runs nothing.
"""

from __future__ import annotations

import ast
import hashlib
import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qabuild.models.backends import vet
from qabuild.models.backends.operators import ATEN

_COUNTED = re.compile(rb"___torch_mangle_\d+")
_ORDINAL = b"___torch_mangle_0"
_EPOCH = (1980, 1, 1, 0, 0, 0)

_RECORD = re.compile(r"data\.pkl|constants\.pkl|constants/\d+|byteorder|(\.data/)?version|\.data/serialization_id")
_CODE = re.compile(r"code/(__torch__(/\w+)+)\.py", re.ASCII)
_CHARACTERS = re.compile(r"[\w \n()\[\],.:=>\"+-]*", re.ASCII)
"""No comments, escapes or semicolons, which torch's parser could read in another way than Python's."""
_FUNCTIONS = {
    *("annotate", "int", "float", "bool", "torch.device"),
    *(f"torch.{name}" for name in ATEN),
    *(f"ops.prim.{name}" for name in ("NumToTensor", "device", "dtype", "max", "min")),
}
_SYNTAX = (
    *(ast.Assign, ast.If, ast.Name, ast.Load, ast.Store, ast.keyword, ast.List, ast.Tuple, ast.Return),
    *(ast.UnaryOp, ast.USub),
)
_CONSTANT = re.compile(r"CONSTANTS\.c\d+", re.ASCII)
_TEXT = re.compile(r"cpu|cuda(:\d+)?|[a-z]+(,[a-z]+)*->[a-z]*|[a-z]*", re.ASCII)
"""Devices, equations of einsum, and modes, such as `tanh` of GELU: no names of files."""
_TYPE = re.compile(r"(Tensor|int|float|bool|List|Optional|Tuple|[\[\], ])+", re.ASCII)
_PICKLED = re.compile(r"torch\._utils _rebuild_tensor_v2|torch [A-Za-z0-9]+Storage|collections OrderedDict", re.ASCII)
_PUT, _GET, _INT = "(LONG_)?BINPUT ", "(LONG_)?BINGET ", "(BININT[12]?|LONG1) "
_CLASS, _STRING, _SHAPE = f"(GLOBAL {_PUT}|{_GET})", f"(BINUNICODE {_PUT}|{_GET})", f"MARK ({_INT})*TUPLE "
_STORAGE = f"(MARK {_STRING}{_CLASS}{_STRING}{_STRING}{_INT}TUPLE BINPERSID {_PUT}|{_GET})"
_TENSOR = f"{_CLASS}MARK {_STORAGE}{_INT}{_SHAPE}{_SHAPE}NEW(FALSE|TRUE) {_CLASS}EMPTY_TUPLE REDUCE TUPLE REDUCE {_PUT}"
_FEW = "|".join(f"({_TENSOR}){{{count}}}TUPLE{count} " for count in (1, 2, 3))
_CONSTANTS = re.compile(f"PROTO (EMPTY_TUPLE |{_FEW}|MARK ({_TENSOR})*TUPLE )({_PUT})?STOP ")
"""The opcodes of a pickled tuple of tensors. No value in it is nested deeply: torch frees nested values recursively."""
_OBJECT = re.compile(f"PROTO GLOBAL {_PUT}EMPTY_TUPLE NEWOBJ EMPTY_DICT MARK SETITEMS BUILD ({_PUT})?STOP ")
"""Those of an object without fields."""


def save(module: Any, path: Path) -> None:
    """`torch.jit.save` without traces of the machine and the process.

    Debug records are left out: they hold absolute paths of source files. The class name of a traced module ends in a
    count of the modules traced before it in the process, which is set to 0. A frozen module has only one such class.
    """
    import torch

    raw = path.with_suffix(".raw")
    torch.jit.save(module, raw)
    with zipfile.ZipFile(raw) as source, zipfile.ZipFile(path, "w") as archive:
        digest = hashlib.sha256()
        for entry in source.infolist():
            name = entry.filename.split("/", 1)[1]
            if name.endswith(".debug_pkl") or name == ".data/serialization_id":
                continue
            content = source.read(entry)
            if name.startswith("code/") or name.endswith(".pkl"):
                name = _COUNTED.sub(_ORDINAL, name.encode()).decode()
                content = _COUNTED.sub(_ORDINAL, content)
            digest.update(content)
            _add(archive, name, content, entry.compress_type)
        _add(archive, ".data/serialization_id", digest.hexdigest().encode(), zipfile.ZIP_STORED)
    raw.unlink()


def _add(archive: zipfile.ZipFile, name: str, content: bytes, compression: int) -> None:
    entry = zipfile.ZipInfo(f"model/{name}", _EPOCH)
    entry.compress_type = compression
    archive.writestr(entry, content)


def problems(path: Path) -> Iterator[str]:
    """Whatever the archive holds besides a traced and frozen module."""
    reader, names = vet.records(path)
    code = [name for name in names if _CODE.fullmatch(name)]
    for name in names.difference(code):
        if not _RECORD.fullmatch(name):
            yield f"the record {name!r} is not one of a traced module"
    if len(code) != 1:
        yield f"it holds {len(code)} files of code: a traced module has one"
        return
    module = code[0].removeprefix("code/").removesuffix(".py").replace("/", ".")
    yield from _code_problems(reader.get_record(code[0]).decode(), module)
    own_class = re.compile(rf"{re.escape(module)} \w+", re.ASCII)
    yield from _pickle_problems(reader.get_record("data.pkl"), _OBJECT, own_class)
    constants = reader.get_record("constants.pkl")
    yield from _pickle_problems(constants, _CONSTANTS, _PICKLED)
    yield from _storage_problems(reader, constants)


def _code_problems(source: str, module: str) -> Iterator[str]:
    if not _CHARACTERS.fullmatch(source):
        yield "its code has characters that the code of a traced module has not"
    match ast.parse(source).body:
        case [ast.ClassDef(bases=[ast.Name(id="Module")], keywords=[], body=[*fields, ast.FunctionDef() as method])]:
            for field in fields:
                if ast.unparse(field) not in ("__parameters__ = []", "__buffers__ = []"):
                    yield f"its class declares {ast.unparse(field)[:80]!r}: a frozen one has neither fields nor methods"
            yield from _method_problems(method, module)
        case _:
            yield "its code is more than one class with one method"


def _method_problems(method: ast.FunctionDef, module: str) -> Iterator[str]:
    arguments = method.args
    if method.name != "forward" or arguments.defaults or arguments.kwonlyargs or arguments.vararg or arguments.kwarg:
        yield f"its method is {method.name}({ast.unparse(arguments)[:80]}), not forward"
    own, *types = [ast.unparse(each) for each in (*(arg.annotation for arg in arguments.args), method.returns) if each]
    if own.rpartition(".")[0] != module:
        yield f"it takes the class {own[:80]!r} of other code"
    for text in types:
        if not _TYPE.fullmatch(text):
            yield f"it takes or returns {text[:80]!r}"
    for statement in method.body:
        yield from _syntax_problems(statement)


def _syntax_problems(node: ast.AST) -> Iterator[str]:
    """Whatever is in the tree besides calls of known operators on variables, constants and numbers."""
    parts = list(ast.iter_child_nodes(node))
    match node:
        case ast.Call(func=function):
            name = ast.unparse(function)
            if name not in _FUNCTIONS:
                yield f"it calls {name[:80]!r}, which is no operator of a supported architecture"
            if name == "annotate" and _TYPE.fullmatch(ast.unparse(node.args[0])):
                parts.remove(node.args[0])
            parts.remove(function)
        case ast.Attribute():
            if not _CONSTANT.fullmatch(ast.unparse(node)):
                yield f"it uses {ast.unparse(node)[:80]!r}"
            return
        case ast.Constant(value=str(text)):
            if not _TEXT.fullmatch(text):
                yield f"it holds the text {text[:80]!r}"
        case ast.Constant(value=int() | float() | None):
            pass
        case _ if not isinstance(node, _SYNTAX):
            yield f"its code holds {type(node).__name__}: {ast.unparse(node)[:80]!r}"
            return
    for part in parts:
        yield from _syntax_problems(part)


def _pickle_problems(content: bytes, shape: re.Pattern[str], known: re.Pattern[str]) -> Iterator[str]:
    opcodes = []
    for opcode, argument, _ in pickletools.genops(content):
        opcodes.append(f"{opcode.name} ")
        if opcode.name == "GLOBAL" and not known.fullmatch(str(argument)):
            yield f"it holds a pickled {argument}"
    if not shape.fullmatch("".join(opcodes)):
        yield "it holds other pickled values than a module without fields and tensors"


def _storage_problems(reader: Any, constants: bytes) -> Iterator[str]:
    """torch takes the stated number of elements for the record's, and would read beyond its end."""
    from torch.storage import _storage_type_to_dtype_map

    storages = _Storages(constants)
    storages.load()
    for kind, key, elements in storages.found:
        size = len(reader.get_record(f"constants/{key}"))
        if elements * _storage_type_to_dtype_map()[kind].itemsize != size:
            yield f"it states {elements} elements of {kind} for constants/{key}, which has {size} bytes"


class _Storages(pickle.Unpickler):
    """Lists the storages of a pickle of tensors that `_pickle_problems` accepted. No tensor is made."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.found: list[tuple[str, str, int]] = []
        """Type of each storage, such as LongStorage; its record below constants/; its number of elements."""

    def persistent_load(self, storage: Any) -> None:
        _, kind, key, _, elements = storage
        self.found.append((kind, str(key), int(elements)))

    def find_class(self, module: str, name: str) -> Any:
        return name if module == "torch" else lambda *_: None
