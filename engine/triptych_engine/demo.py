"""Where the demo model lies: inside an installed package, or in the repository of an editable install."""

from pathlib import Path

_PACKAGE = Path(__file__).parent
_INSTALLED = _PACKAGE / "demo_model"
_IN_REPOSITORY = _PACKAGE.parent.parent / "models" / "demo"


def demo_model_dir() -> Path:
    """The folder that `demo://` stands for.

    Raises:
        FileNotFoundError: It was not installed with the package.
    """
    for folder in (_INSTALLED, _IN_REPOSITORY):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError("the demo model is not installed; make it with models/demo/make.py")
