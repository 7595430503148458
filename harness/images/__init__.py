"""Images: recipes as data, a store of what was built from them, and the builders.

:class:`Images` is what the rest of the harness uses; see ``images/`` for the recipes.
"""

from harness.images.images import Images, Kernel
from harness.images.recipe import Recipes
from harness.images.store import Entry, Store

__all__ = ["Entry", "Images", "Kernel", "Recipes", "Store"]
