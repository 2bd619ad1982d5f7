"""Optional packages: imported when a command needs one, one line that says how to get it if not."""

import importlib
from types import ModuleType

from utils.files import UserError


def require(module: str, purpose: str) -> ModuleType:
    """The imported `module`, for a purpose such as "--format coco".

    Raises:
        UserError: its package is not installed, or broken.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(f"{purpose} needs the package {package}, which cannot be imported "
                        f"({error}): pip install -r requirements-extra.txt") from error
