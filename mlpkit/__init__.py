"""mlpkit: one script of plain functions becomes a production ML algorithm service.

    from mlpkit import App
    app = App("sentiment", kind="text_classification")

Start with `App`; the README shows a whole script. Importing this package starts nothing and is cheap.
"""

from mlpkit.app import Algorithm, App
from mlpkit.injection import Depends

__version__ = "0.1.0"

__all__ = ["Algorithm", "App", "Depends", "__version__"]
