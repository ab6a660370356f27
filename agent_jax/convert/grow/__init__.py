"""Grows a checkpoint into another model: another vocabulary, row length, class head, encoder for clips or image size.

Carries what both have, makes new rows of tables from carried ones, and initialises the rest:

    source.py    what `config.init.checkpoint` names: a run, an exported PyTorch folder, or one on the hub
    fields.py    the fields of config.model in which both models may differ
    tokens.py    the token rows, matched by the tokens' names
    plan.py      what happens to every parameter, from shapes alone
    fill.py      the parameters of the new model
    report.py    the table, and the same as JSON
    preview.py   the table for a config, without training
"""
