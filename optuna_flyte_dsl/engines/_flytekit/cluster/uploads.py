"""Hashes the content of the files that a launch uploads, because each upload has a new address."""

import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flyteidl.core.literals_pb2 import Blob, Literal, LiteralMap
from flytekit.core.context_manager import FlyteContext
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile
from flytekit.types.pickle.pickle import FlytePickleTransformer

from optuna_flyte_dsl._proxy import Proxy
from optuna_flyte_dsl.study.content_hash import content_hash

_PICKLE = FlytePickleTransformer.PYTHON_PICKLE_FORMAT

_hashes: dict[str, str] = {}
"""The address of each upload of this process, and the hash of its content.

Flytekit uploads the same value once: later conversions of the value return the address of its first upload.
"""


class Uploads(Proxy):
    """A proxy of flytekit's data access that notes what is uploaded through it."""

    async def async_put_data(self, local_path: Any, remote_path: str, *args: Any, **kwargs: Any) -> str:
        address: str = await self.__wrapped__.async_put_data(local_path, remote_path, *args, **kwargs)
        return self._self_note(address, local_path)

    async def async_put_raw_data(self, lpath: Any, *args: Any, **kwargs: Any) -> str:
        content = lpath
        if isinstance(lpath, io.IOBase):  # a stream can be read once only
            content = lpath.read()
            lpath = io.StringIO(content) if isinstance(content, str) else io.BytesIO(content)
            content = content.encode() if isinstance(content, str) else content
        address: str = await self.__wrapped__.async_put_raw_data(lpath, *args, **kwargs)
        return self._self_note(address, content)

    def put_data(self, local_path: Any, remote_path: str, *args: Any, **kwargs: Any) -> str:
        return self._self_note(self.__wrapped__.put_data(local_path, remote_path, *args, **kwargs), local_path)

    def put_raw_data(self, lpath: Any, *args: Any, **kwargs: Any) -> str:
        return self._self_note(self.__wrapped__.put_raw_data(lpath, *args, **kwargs), lpath)

    def _self_note(self, address: str, content: Any) -> str:
        if isinstance(content, bytes):
            _hashes[address] = hashlib.sha256(content).hexdigest()
        else:
            _hashes[address] = _hash_of(pathlib.Path(content))
        return address


def digest(inputs: LiteralMap, values: Mapping[str, Any], context: FlyteContext, prefix: str) -> str:
    """Return a hash of inputs, the same in each process, with the content of uploads in place of their addresses.

    The call blocks.

    Args:
        values: The Python values of the inputs. Flytekit pickles values of types that it does not know. The pickle of a
            set differs between processes, so values that flytekit pickles, or that hold a set, are hashed by their
            content.
        prefix: The prefix of the addresses of uploads. Flytekit writes tables under this prefix without its data access
            layer, so the content of tables is read back.
    """
    hashed, contents = LiteralMap(), []
    for name, literal in sorted(inputs.literals.items()):
        content = _content_of(literal, values[name])
        if content is None:
            hashed.literals[name].CopyFrom(literal)
        else:
            contents.append(f"{name}\0{content}\0".encode())
    for address in (scalar.uri for scalar in _stored(hashed.literals.values())):
        if address.startswith(prefix) and address not in _hashes:
            _hashes[address] = _read_back(address, context)
    data = hashed.SerializeToString(deterministic=True)
    # Each address of an upload is replaced by the hash of its content, in the bytes of the serialized inputs: the
    # address of a file may be anywhere in an encoded dataclass.
    hashes = _hashes.copy()  # other threads upload too
    for address in sorted(hashes, key=len, reverse=True):
        data = data.replace(address.encode(), hashes[address].encode())
    return hashlib.sha256(b"".join([data, *contents])).hexdigest()


def _content_of(literal: Literal, value: Any) -> str | None:
    """Return a hash of a value's content if its literal differs between processes; `None` for all other values.

    Flyte's pickle of a set, and the encoded list that a dataclass's set becomes, have another order in each process.
    """
    is_pickle = any(isinstance(each, Blob) and each.metadata.type.format == _PICKLE for each in _stored([literal]))
    if not is_pickle and not _holds_set(value):
        return None
    with contextlib.suppress(Exception):  # whatever the value's class raises
        return content_hash(value, _content_of_file)
    return None


def _content_of_file(value: Any) -> Any:
    """Return the address, or a hash of the content, of a `FlyteFile` or `FlyteDirectory`; other values unchanged."""
    if not isinstance(value, FlyteFile | FlyteDirectory):
        return value
    path = pathlib.Path(value.path)
    return str(value.remote_source or (_hash_of(path) if path.exists() else value.path))


def _holds_set(value: Any) -> bool:
    """Return whether a value is a set, or has a set among its items or its fields, at any depth."""
    if isinstance(value, set | frozenset):
        return True
    if isinstance(value, Mapping):
        return any(map(_holds_set, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_set, value))
    is_record = dataclasses.is_dataclass(value) or hasattr(type(value), "model_fields")  # or a model of pydantic
    return is_record and not isinstance(value, type) and any(map(_holds_set, vars(value).values()))


def _hash_of(path: pathlib.Path) -> str:
    """Return a hash of a file, or of all files in a folder with their names."""
    digest = hashlib.sha256()
    for file in sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]:
        digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as content:
            while block := content.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _read_back(address: str, context: FlyteContext) -> str:
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, "data")
        access = context.file_access
        is_folder = access.get_filesystem_for_path(address).isdir(address)
        access.get_data(address, target, is_multipart=is_folder)
        return _hash_of(pathlib.Path(target))


def _stored(literals: Iterable[Literal]) -> Iterator[Any]:
    """Yield all blobs, schemas and structured datasets among literals."""
    for literal in literals:
        which = literal.WhichOneof("value")
        if which == "collection":
            yield from _stored(literal.collection.literals)
        elif which == "map":
            yield from _stored(literal.map.literals.values())
        elif which == "scalar":
            kind = literal.scalar.WhichOneof("value")
            if kind == "union":
                yield from _stored([literal.scalar.union.value])
            elif kind in ("blob", "schema", "structured_dataset"):
                yield getattr(literal.scalar, kind)
