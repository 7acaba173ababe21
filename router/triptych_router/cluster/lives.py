"""The end of an instance's life, told to whoever is waiting for its answer."""

from collections.abc import Callable


class Life:
    """One life of one instance: callbacks that run once when it is over."""

    def __init__(self) -> None:
        self._over = False
        self._callbacks: dict[object, Callable[[], None]] = {}

    @property
    def over(self) -> bool:
        """True from the end on."""
        return self._over

    def attach(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back at the end, at once if it is over; the result takes the callback away again."""
        if self._over:
            callback()
            return lambda: None
        handle = object()
        self._callbacks[handle] = callback
        return lambda: _drop(self._callbacks, handle)

    def end(self) -> None:
        """The life is over; a second call does nothing."""
        self._over = True
        callbacks, self._callbacks = self._callbacks, {}
        for callback in callbacks.values():
            callback()


def _drop(callbacks: dict[object, Callable[[], None]], handle: object) -> None:
    callbacks.pop(handle, None)
