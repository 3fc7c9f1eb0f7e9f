"""One model per published system: a config, and the verbs fit, predict, save and load."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_annotator_report": ["AnnotatorReport"],
        "_base": ["Model", "load"],
        "annotator": ["Annotator", "AnnotatorConfig"],
        "beer_lambert": ["BeerLambert", "BeerLambertConfig"],
    },
)
