"""Chooses the node of a conditional, as propeller does (its controller/nodes/branch)."""

import operator

from flyteidl.core.condition_pb2 import ComparisonExpression, ConjunctionExpression

_OPERATORS = {
    ComparisonExpression.EQ: operator.eq,
    ComparisonExpression.NEQ: operator.ne,
    ComparisonExpression.GT: operator.gt,
    ComparisonExpression.GTE: operator.ge,
    ComparisonExpression.LT: operator.lt,
    ComparisonExpression.LTE: operator.le,
}


def chosen(choice, inputs):
    """Return the first node of a conditional whose condition holds, or else the one of the last case.

    Args:
        choice: An IfElseBlock.
        inputs: A LiteralMap: the inputs of the conditional's node.

    Raises:
        LookupError: With the conditional's own message, if no case holds.
    """
    for block in (choice.case, *choice.other):
        if _holds(block.condition, inputs):
            return block.then_node
    if choice.WhichOneof("default") == "else_node":
        return choice.else_node
    raise LookupError(choice.error.message)


def _holds(condition, inputs):
    if condition.WhichOneof("expr") == "comparison":
        compared = condition.comparison
        left, right = (_operand(side, inputs) for side in (compared.left_value, compared.right_value))
        if type(left) is not type(right):
            raise LookupError("Comparison between different primitives types.")
        return _OPERATORS[compared.operator](left, right)
    both = condition.conjunction
    left, right = (_holds(side, inputs) for side in (both.left_expression, both.right_expression))
    return (left or right) if both.operator == ConjunctionExpression.OR else (left and right)


def _operand(operand, inputs):
    primitive = operand.primitive
    if operand.WhichOneof("val") != "primitive":
        if operand.var not in inputs.literals:
            raise LookupError(f"Failed to find Value for Variable [{operand.var}]")
        primitive = inputs.literals[operand.var].scalar.primitive
    return getattr(primitive, primitive.WhichOneof("value"))
