"""flyteadmin's filter expressions, its sort and its page tokens."""

import re

from tests.support.flyteadmin.errors import invalid

EXPRESSION = re.compile(r"(.+)\((.+),\s?(.+)\)")
COLUMNS = {"execution_name", "execution_project", "execution_domain", "phase", "created_at", "updated_at"}
RELATED = {"execution_tag.key", "execution_tag.value"}


def _matcher(expression):
    match = EXPRESSION.fullmatch(expression)
    if match is None:
        raise invalid(f"invalid value for filters: {expression}")
    function, field, value = match.groups()
    field = field.removeprefix("execution.")
    if field == "name":
        field = "execution_name"
    if field not in COLUMNS | RELATED:
        raise invalid(f"'execution.{field}' is invalid filter")
    values = value.split(";")
    if function not in ("value_in", "eq", "ne"):
        raise invalid(f"unsupported filter function {function}")
    if function != "value_in" and len(values) > 1:
        raise invalid(f"{function} takes one value")

    def test(row):
        found = row[field]
        held = any(each in values for each in found) if isinstance(found, (set, list)) else found in values
        return held is (function != "ne")

    return test


def select(rows, request):
    """Return a page of rows and the next page's token.

    Args:
        rows: Pairs of a dict of columns and what it stands for.
        request: A ResourceListRequest.
    """
    if request.limit <= 0:
        raise invalid("invalid value for limit")
    tests = [_matcher(part) for part in request.filters.split("+")] if request.filters else []
    if request.token and not request.token.isdigit():
        raise invalid(f"invalid pagination token {request.token}")
    offset = int(request.token or 0)
    key = request.sort_by.key
    if key and key not in COLUMNS:
        raise invalid(f"invalid sort key {key}")
    found = [(row, thing) for row, thing in rows if all(test(row) for test in tests)]
    if key:
        found.sort(key=lambda pair: pair[0][key], reverse=request.sort_by.direction == request.sort_by.DESCENDING)
    else:  # a database without ORDER BY promises nothing: pages overlap and leave rows out
        found = found[offset % 2 :] + found[: offset % 2]
    page = [thing for _, thing in found[offset : offset + request.limit]]
    token = str(offset + len(page)) if len(page) == request.limit else ""
    return page, token
