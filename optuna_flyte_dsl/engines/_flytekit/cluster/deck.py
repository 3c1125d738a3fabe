"""Lists the executions of searches in the eager workflow's Deck, beside those that flytekit lists."""

import collections
import html
import threading
import time
import weakref
from typing import Any

from flytekit.core.context_manager import FlyteContext, flyte_context_Var
from flytekit.core.worker_queue import NODE_HTML_TEMPLATE, Controller
from flytekit.deck.deck import Deck

from optuna_flyte_dsl._compat.flytekit import set_deck_html
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._text import shown

_TITLE = "Eager Executions"
_SHOWN = 1_000
"""The largest number of executions that the Deck lists. The Deck leaves out the earliest executions."""

_TEXT_LIMIT = 2_000  # characters


def text_for_deck(value: Any) -> str:
    """Return the text of inputs or outputs. The call may take long: it runs the `__repr__` of users' classes."""
    return shown(value, _TEXT_LIMIT)


class ExecutionsDeck:
    """Adds executions to the page that an eager workflow's controller renders.

    The executions are not entered into flytekit's own list: flytekit polls each entry of its list every two seconds,
    and keeps each page that it has rendered.
    """

    def __init__(self, controller: Controller, context: FlyteContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._rows: collections.OrderedDict[str, str] = collections.OrderedDict()
        self._left_out = 0
        self._changed = False
        self._next = time.monotonic() + pauses.deck
        self._deck: Deck | None = None
        self._writer: threading.Thread | None = None
        render = type(controller).render_html
        held = weakref.ref(controller)

        def render_html() -> str:
            own = held()
            page = self._page(render(own) if own is not None else "")
            params = context.user_space_params
            with self._lock:
                if params is not None:  # the new page replaces an earlier one of the same title
                    params.decks[:] = [deck for deck in params.decks if deck.name != _TITLE]
                self._deck = None
            return page

        controller.render_html = render_html  # type: ignore[method-assign]

    def show(self, name: str, *, entity: str, kind: str, url: str, inputs: str, outputs: str) -> None:
        row = NODE_HTML_TEMPLATE.format(
            entity_type=html.escape(kind),
            entity_name=html.escape(entity),
            execution_name=html.escape(name),
            url=html.escape(url, quote=True),
            inputs=html.escape(inputs[:_TEXT_LIMIT]),
            outputs=html.escape(outputs[:_TEXT_LIMIT]),
        )
        with self._lock:
            self._rows[name] = row
            while len(self._rows) > _SHOWN:
                self._rows.popitem(last=False)
                self._left_out += 1
            self._changed = True

    def publish(self) -> None:
        """Begin to write the Deck if the list has changed, unless the last write is recent or still under way.

        The Deck is written in a thread of its own, because nothing limits the time of the write.
        """
        params = self._context.user_space_params
        if not self._changed or time.monotonic() < self._next or params is None or not params.enable_deck:
            return
        if self._writer is None or not self._writer.is_alive():
            self._next = time.monotonic() + pauses.deck
            self._changed = False
            self._writer = threading.Thread(target=self._write, name="optuna-flyte-deck", daemon=True)
            self._writer.start()

    def finish(self) -> None:
        """Wait for a write that is under way, so that it does not replace the page that flytekit writes at the end."""
        if self._writer is not None:
            self._writer.join(pauses.deck_end)

    def _write(self) -> None:
        flyte_context_Var.set([self._context])
        try:
            if self._deck is None:
                self._deck = Deck(_TITLE)
            set_deck_html(self._deck, self._page(""))
            Deck.publish()
        except Exception:  # noqa: BLE001 - a failed Deck must not end the search
            logger.debug("The Deck could not be written.", exc_info=True)

    def _page(self, base: str) -> str:
        with self._lock:
            more = f"<p>{self._left_out} earlier executions are not shown.</p>" if self._left_out else ""
            return "\n".join([base or "<h2>Nodes</h2><hr>", more, *self._rows.values()])
