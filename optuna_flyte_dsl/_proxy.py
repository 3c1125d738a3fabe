"""`Proxy`, the base class of transparent proxies: wrapt's class, declared so that type checkers understand it."""

from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:

    class Proxy:
        """An object that has all attributes of the object that it wraps.

        The proxy's own attributes have the prefix `_self_`; all other attributes are those of the wrapped object.
        """

        __wrapped__: Any

        def __init__(self, wrapped: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...
else:
    Proxy = wrapt.BaseObjectProxy
