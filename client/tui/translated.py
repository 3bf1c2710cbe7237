"""Bindings whose words are translated when a screen is made, not when its class is read."""

from dataclasses import replace

from textual.dom import DOMNode

from shoal.client.translate import _


def translate_bindings(node: DOMNode) -> None:
    """Put a node's descriptions of its keys into the user's language; call it once, at the end of `__init__`."""
    keys = node._bindings.key_to_bindings  # Textual's only place for a node's own copy
    for key, bindings in keys.items():
        keys[key] = [replace(each, description=_(each.description) if each.description else "") for each in bindings]
