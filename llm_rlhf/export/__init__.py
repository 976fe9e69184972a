"""From a run to a folder that others load: an adapter on the hub's base, or whole weights, with a model card.

`folder.py` writes it, `source.py` says what is exported and from what, `fidelity.py` measures what the export changed,
`card.py` says what is known of it, `pushing.py` puts it on the hub.
"""
