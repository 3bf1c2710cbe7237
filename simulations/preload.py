"""What the fork server imports once for all nodes: the node, and hivemind, which it would import late."""

import shoal.node.daemon  # noqa: F401  # imported for its effect on sys.modules
from shoal.protocol.net.hivemind_loader import load_hivemind

load_hivemind()
