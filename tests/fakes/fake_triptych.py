"""The real `triptych` command over fake children: only what the children run is replaced."""

import sys
from pathlib import Path

import triptych.ask as ask_module
import triptych.detach as detach_module
import triptych.up as up_module
from triptych import main
from triptych_operator.platforms.commands import Programs

CHILD = str(Path(__file__).with_name("fake_child.py"))
PROGRAMS = Programs(engine=(sys.executable, CHILD, "engine"), router=(sys.executable, CHILD, "router"))


def run() -> None:
    original = up_module.prepare

    def prepare(*args: object, **kwargs: object) -> object:
        return original(*args, **{**kwargs, "programs": PROGRAMS})  # type: ignore[arg-type]

    up_module.prepare = prepare  # type: ignore[assignment]
    detach_module.PROGRAM = (sys.executable, __file__)
    ask_module.SETTLE_S = 0.3
    main.run()


if __name__ == "__main__":
    run()
