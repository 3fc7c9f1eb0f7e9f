"""The training verbs with all their options as one flat list of arguments, which keeps tests short."""

from __future__ import annotations

import dataclasses
import inspect

import sthist


def _routed(verb, kind, arguments):
    """Arguments of a verb, with those that are fields of its options or of its split within these."""
    own = set(inspect.signature(verb).parameters)
    fields = {each.name for each in dataclasses.fields(kind)} - own
    parts = {each.name for each in dataclasses.fields(sthist.models.Split)} - {"by"}
    split = {name: value for name, value in arguments.items() if name in parts}
    rest = {name: value for name, value in arguments.items() if name not in fields | parts}
    rest["training"] = {name: value for name, value in arguments.items() if name in fields}
    rest["training"] |= arguments.get("training", {})
    if split:
        default = inspect.signature(verb).parameters["split"].default
        if verb is sthist.tl.train_annotator:
            split = {"validation": 0.2, **split}
        rest["split"] = sthist.models.Split(arguments.get("split", default), **split)
    return rest


def train_virtual_he(data, model="small", **arguments):
    return sthist.tl.train_virtual_he(
        data, model, **_routed(sthist.tl.train_virtual_he, sthist.models.TranslationTraining, arguments)
    )


def train_annotator(data, label, **arguments):
    return sthist.tl.train_annotator(
        data, label, **_routed(sthist.tl.train_annotator, sthist.models.AnnotatorTraining, arguments)
    )
