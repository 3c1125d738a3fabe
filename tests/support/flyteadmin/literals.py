"""Checks of inputs, and the resolution of bindings, as flyteadmin and propeller do them."""

from flyteidl.core import literals_pb2, types_pb2

from tests.support.flyteadmin.errors import invalid
from tests.support.flyteadmin.literal_types import is_castable, type_of


def check_inputs(given, variables, defaults):
    """Return the inputs of an execution: those given, and the defaults.

    Args:
        given: A LiteralMap.
        variables: The interface's.
        defaults: Literals by name.
    """
    for name in given.literals:
        if name not in variables:
            raise invalid(f"invalid input {name}")
    inputs = literals_pb2.LiteralMap()
    for name, variable in variables.items():
        literal = given.literals[name] if name in given.literals else defaults.get(name)
        if literal is None:
            raise invalid(f"{name} missing expected parameter")
        kind = type_of(literal)
        if kind is None:
            raise invalid(f"invalid literal type for {name}: got unknown literal type")
        if not is_castable(kind, variable.type):
            raise invalid(f"invalid {name} input wrong type. Expected {variable.type}, but got {kind}")
        inputs.literals[name].CopyFrom(literal)
    return inputs


def resolve(binding, values):
    """Return the literal of a binding.

    Args:
        binding: A BindingData.
        values: Literals by node id and variable.
    """
    literal = literals_pb2.Literal()
    which = binding.WhichOneof("value")
    if which == "scalar":
        literal.scalar.CopyFrom(binding.scalar)
    elif which == "promise":
        literal.CopyFrom(values[binding.promise.node_id][binding.promise.var])
    elif which == "collection":
        literal.collection.SetInParent()
        literal.collection.literals.extend(resolve(each, values) for each in binding.collection.bindings)
    elif which == "map":
        literal.map.SetInParent()
        for key, each in binding.map.bindings.items():
            literal.map.literals[key].CopyFrom(resolve(each, values))
    else:
        raise NotImplementedError(f"a binding of the kind {which}")
    return literal


def as_text(literal):
    """Return a primitive as a command line has it."""
    primitive = literal.scalar.primitive
    return str(getattr(primitive, primitive.WhichOneof("value")))


def from_text(text, kind):
    """Return the literal that a raw container's output file stands for."""
    literal = literals_pb2.Literal()
    primitive = literal.scalar.primitive
    if kind.simple == types_pb2.FLOAT:
        primitive.float_value = float(text)
    elif kind.simple == types_pb2.INTEGER:
        primitive.integer = int(text)
    elif kind.simple == types_pb2.STRING:
        primitive.string_value = text
    else:
        raise NotImplementedError(f"an output of the type {kind}")
    return literal
