"""timm architectures of this package; importing it registers them."""

from interp_zoo.models import demo
from interp_zoo.models.loading import create, list_models

__all__ = ["create", "demo", "list_models"]
