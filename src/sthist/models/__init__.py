"""One model per published system: a config, and the verbs fit, predict, save and load."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_annotator_report": ["AnnotatorReport"],
        "_base": ["Model", "load"],
        "annotator": ["Annotator", "AnnotatorConfig"],
        "_translation": ["Translator"],
        "_translation_config": ["LossWeights", "TranslationConfig", "TranslationTraining"],
        "_translation_pairs": ["ArrayPairs", "Pairs"],
        "beer_lambert": ["BeerLambert", "BeerLambertConfig"],
        "pix2pix": ["Pix2Pix", "Pix2PixConfig"],
        "st2he": ["ST2HE", "ST2HEConfig"],
    },
)
