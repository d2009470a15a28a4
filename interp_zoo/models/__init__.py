"""timm architectures of this package; importing it registers them."""

from interp_zoo.models import ca_zoo, cifar, demo
from interp_zoo.models.ca_stream import CAStream
from interp_zoo.models.loading import create, list_models

__all__ = ["CAStream", "ca_zoo", "cifar", "create", "demo", "list_models"]
