"""Images: recipes as data, a store of what was built from them, and the builders.

:class:`Images` is what the rest of the harness uses; see ``images/`` for the recipes.
"""

from harness.images.images import Images
from harness.images.kernel import Hypervisor, Kernel
from harness.images.recipe import Recipes
from harness.images.store import Entry, Store

__all__ = ["Entry", "Hypervisor", "Images", "Kernel", "Recipes", "Store"]
