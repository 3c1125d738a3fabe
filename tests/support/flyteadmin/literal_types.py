"""The type of a literal, and which types flyteadmin takes for an input: propeller's `AreTypesCastable`."""

from flyteidl.core import types_pb2

PRIMITIVES = {
    "integer": types_pb2.INTEGER,
    "float_value": types_pb2.FLOAT,
    "string_value": types_pb2.STRING,
    "boolean": types_pb2.BOOLEAN,
    "datetime": types_pb2.DATETIME,
    "duration": types_pb2.DURATION,
}


def simple(kind):
    return types_pb2.LiteralType(simple=kind)


def type_of(literal):
    """Return the type of a literal; `None` if flyteadmin does not know it."""
    which = literal.WhichOneof("value")
    if which == "collection":
        return types_pb2.LiteralType(collection_type=_common_type(literal.collection.literals))
    if which == "map":
        return types_pb2.LiteralType(map_value_type=_common_type(literal.map.literals.values()))
    if which == "offloaded_metadata":
        return literal.offloaded_metadata.inferred_type
    return _type_of_scalar(literal.scalar) if which == "scalar" else None


def _type_of_scalar(scalar):
    which = scalar.WhichOneof("value")
    if which == "primitive":
        return simple(PRIMITIVES.get(scalar.primitive.WhichOneof("value"), types_pb2.NONE))
    if which == "binary":
        return simple(types_pb2.STRUCT if scalar.binary.tag == "msgpack" else types_pb2.BINARY)
    if which == "generic":
        return simple(types_pb2.STRUCT)
    if which == "none_type":
        return simple(types_pb2.NONE)
    if which == "error":
        return simple(types_pb2.ERROR)
    if which == "union":
        return types_pb2.LiteralType(union_type=types_pb2.UnionType(variants=[scalar.union.type]))
    if which == "blob":
        return types_pb2.LiteralType(blob=scalar.blob.metadata.type)
    if which == "schema":
        return types_pb2.LiteralType(schema=scalar.schema.type)
    if which == "structured_dataset":
        kind = scalar.structured_dataset.metadata.structured_dataset_type
        return types_pb2.LiteralType(structured_dataset_type=kind)
    return None


def _common_type(literals):
    """Return the type of the members of a collection or a map: a union where they differ."""
    found = {}
    for literal in literals:
        kind = type_of(literal)
        is_empty = literal.WhichOneof("value") == "collection" and not literal.collection.literals
        found.setdefault(kind.SerializeToString(deterministic=True), (is_empty, kind))
    kinds = [kind for is_empty, kind in found.values() if not is_empty] or [kind for _, kind in found.values()][:1]
    if not kinds:
        return simple(types_pb2.NONE)
    if len(kinds) == 1:
        return kinds[0]
    variants = []
    are_collections = False
    for kind in kinds:
        if kind.collection_type.HasField("union_type"):
            are_collections = True
            variants.extend(kind.collection_type.union_type.variants)
        else:
            variants.append(kind)
    union = types_pb2.LiteralType(union_type=types_pb2.UnionType(variants=variants))
    return types_pb2.LiteralType(collection_type=union) if are_collections else union


def is_castable(given, wanted):
    """Return whether an input of a type may be given where another type is wanted."""
    variants = given.union_type.variants if given.HasField("union_type") else ()
    if len(variants) == 1 and _casts(variants[0], wanted):
        return True
    return _casts(given, wanted)


def _casts(given, wanted):
    which = wanted.WhichOneof("type")
    if which in ("collection_type", "map_value_type"):
        if not given.HasField(which):
            return False
        inner = getattr(given, which)
        return _is_none(inner) or _casts(inner, getattr(wanted, which))
    if which == "union_type":
        if given.HasField("union_type"):
            variants = wanted.union_type.variants
            return all(any(is_castable(one, other) for other in variants) for one in given.union_type.variants)
        return sum(is_castable(given, variant) for variant in wanted.union_type.variants) == 1  # else it is ambiguous
    if which == "blob":
        formats = given.blob.format, wanted.blob.format
        return given.HasField("blob") and (not all(formats) or formats[0] == formats[1])
    if which in ("schema", "structured_dataset_type"):  # their columns are not compared here
        is_table = given.HasField("schema") or given.HasField("structured_dataset_type")
        return is_table or (which == "structured_dataset_type" and _is_none(given))
    if _is_none(wanted):
        return _is_none(given)
    return _casts_plainly(given, wanted)


def _casts_plainly(given, wanted):
    if given.HasField("enum_type") and wanted.simple == types_pb2.STRING:
        return True
    if wanted.HasField("enum_type") and given.simple == types_pb2.STRING:
        return True
    if given.structure.tag and given.structure.tag != wanted.structure.tag:
        return False
    bare = []
    for kind in (given, wanted):
        copy = types_pb2.LiteralType()
        copy.CopyFrom(kind)
        for field in ("structure", "metadata", "annotation"):
            copy.ClearField(field)
        bare.append(copy)
    return bare[0] == bare[1]


def _is_none(kind):
    return kind.WhichOneof("type") == "simple" and kind.simple == types_pb2.NONE
