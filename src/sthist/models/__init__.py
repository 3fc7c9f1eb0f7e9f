"""One model per published system: a config, and the verbs fit, predict, save and load."""

from sthist._front_door import front_door as _front_door

# A name here is a model; the system that it belongs to is a folder of sthist.systems.
__getattr__, __dir__, __all__ = _front_door(
    {
        "systems.annotation.annotator": ["Annotator", "AnnotatorConfig"],
        "systems.annotation.options": ["AnnotatorTraining"],
        "systems.annotation.report": ["AnnotatorReport"],
        "systems.cells.bags": ["Bags"],
        "systems.cells.model": ["SCellST", "SCellSTConfig"],
        "systems.cells.moco.model": ["MoCoV3", "MoCoV3Config"],
        "systems.cells.moco.training_module": ["MoCoTraining"],
        "systems.composition.model": ["CompositionModel"],
        "systems.composition.models.hist2cell": ["Hist2Cell", "Hist2CellConfig"],
        "systems.composition.models.mlp": ["CompositionMLP", "CompositionMLPConfig"],
        "systems.composition.models.ridge": ["CompositionRidge"],
        "systems.expression.model": ["ExpressionModel"],
        "systems.expression.models.bleep": ["BLEEP", "BLEEPConfig"],
        "systems.expression.models.clip": ["CLIP", "CLIPConfig"],
        "systems.expression.models.deepspot": ["DeepSpot", "DeepSpotConfig"],
        "systems.expression.models.genst": ["GenST", "GenSTConfig"],
        "systems.expression.models.mclstexp": ["McLSTExp", "McLSTExpConfig"],
        "systems.expression.models.mlp": ["EmbeddingMLP", "EmbeddingMLPConfig"],
        "systems.expression.models.resnet": ["ResNet", "ResNetConfig"],
        "regression.ridge": ["RidgeConfig"],
        "systems.expression.models.ridge": ["Ridge"],
        "systems.expression.models.sequence.histogene": ["HisToGene", "HisToGeneConfig"],
        "systems.expression.models.sequence.model": ["SlideConfig"],
        "systems.expression.models.sequence.thitogene": ["THItoGene", "THItoGeneConfig"],
        "systems.expression.models.stnet": ["STNet", "STNetConfig"],
        "regression.pooled": ["PooledConfig"],
        "systems.expression.retrieval": ["RetrievalConfig"],
        "systems.synthesis.adapter": ["C2LAdapter"],
        "systems.synthesis.config": ["C2LAdapterConfig", "C2LConfig", "DiffusionTraining"],
        "systems.synthesis.model": ["C2L"],
        "systems.virtual_he.config": ["LossWeights", "TranslationConfig", "TranslationTraining"],
        "systems.virtual_he.models.beer_lambert": ["BeerLambert", "BeerLambertConfig"],
        "systems.virtual_he.models.pix2pix": ["Pix2Pix", "Pix2PixConfig"],
        "systems.virtual_he.models.st2he": ["ST2HE", "ST2HEConfig"],
        "systems.virtual_he.training_set.pairs": ["ArrayPairs", "Pairs"],
        "systems.virtual_he.translator": ["Translator"],
        "training.model": ["Model", "load"],
        "training.options": ["Training"],
        "regression.module": ["RegressionTraining"],
        "training.splits": ["Split"],
    }
)
