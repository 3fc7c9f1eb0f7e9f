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
        default = inspect.signature(verb).parameters["split"].default or "patient"
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


def _with_split(benchmark, default, arguments):
    """Arguments of a benchmark, with those that are fields of its split within it."""
    training = dict(arguments.get("training") or {})
    parts = {each.name for each in dataclasses.fields(sthist.models.Split)} - {"by"}
    split = {name: value for name, value in (training | arguments).items() if name in parts}
    rest = {name: value for name, value in arguments.items() if name not in parts}
    if "training" in rest:
        rest["training"] = {name: value for name, value in training.items() if name not in parts}
    if split:
        rest["split"] = sthist.models.Split(arguments.get("split", "block"), **default | split)
    return rest


def cross_validate_virtual_he(data, *args, **arguments):
    verb = sthist.benchmark.cross_validate_virtual_he
    return verb(data, *args, **_with_split(verb, {}, arguments))


def ablate_virtual_he(data, *args, **arguments):
    verb = sthist.benchmark.ablate_virtual_he
    return verb(data, *args, **_with_split(verb, {"test": 0.2}, arguments))
