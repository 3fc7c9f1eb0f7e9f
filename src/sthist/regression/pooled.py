"""Models on one vector of features for each tile: of a backbone that is trained along, or that stays as it is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist.encoders import get as get_encoder
from sthist.regression.backbones import BackboneConfig, BackboneModel, encoder_name
from sthist.regression.collect import DEFAULT_SPEC, EmbeddingModel, TileModel
from sthist.regression.data.features import keys_of, standards
from sthist.regression.data.inputs import Arrays
from sthist.regression.model import PREDICTED_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from sthist.regression.data.inputs import Inputs
    from sthist.regression.data.targets import Targets
    from sthist.training.rows import SampleRows


@dataclass(frozen=True)
class PooledConfig(BackboneConfig):
    """Settings of models on one vector of features for each tile.

    Attributes
    ----------
    frozen
        Leave the backbone as it is: its embeddings are made once and kept in ``obsm``, and all else is trained on
        them, which takes minutes without an accelerator. So it is, too, with ``embedding=``, whatever has made that.
    """

    frozen: bool = False


class PooledModel(BackboneModel, EmbeddingModel):
    """Base of the models on one vector of features for each tile; a subclass makes its network (:meth:`make_head`)."""

    config: PooledConfig

    @abstractmethod
    def make_head(self, trunk: nn.Module | None, n_outputs: int, mean: Any) -> nn.Module:
        """The network on a trunk, or on stored features where there is none; the mean of outputs is a tensor."""

    def collect(
        self,
        rows: SampleRows,
        *,
        embedding: str | Sequence[str] | None = None,
        image: str | None = None,
        device: str | None = None,
        progress: bool | None = None,
    ) -> Inputs:
        """Readers of the tiles; or embeddings, where the backbone is frozen or others are given."""
        given: dict[str, Any] = {"image": image, "device": device, "progress": progress}
        if not self.config.frozen and embedding is None:
            return TileModel.collect(self, rows, **given)
        self.config = replace(self.config, frozen=True)
        own = keys_of(encoder_name(self.config.backbone))
        if embedding is None and tuple(self.config.embeddings) in ((), own):
            self._embed_with_backbone(rows, own[0], **given)
            embedding = own
        stored = EmbeddingModel.collect(self, rows, embedding=embedding, **given)
        return Arrays({**stored.take(np.arange(len(stored))), **self.extra(rows)})

    def _embed_with_backbone(self, rows: SampleRows, key: str, **given: Any) -> None:
        """Embed the regions of tables that lack the frozen backbone's embeddings."""
        if not self.config.pretrained:
            raise ValueError("A backbone that is frozen needs weights: pretrained=True, with backbone_weights= or not.")
        if any(key not in adata.obsm for adata in rows.tables):
            encoder = get_encoder(
                encoder_name(self.config.backbone), weights=self.config.backbone_weights, device=given["device"]
            )
            spec = self.spec or encoder.spec or DEFAULT_SPEC
            self._embed_missing(rows, key, encoder, given["image"], given["device"], given["progress"], spec)

    def settle(self, inputs: Inputs, targets: Targets, rows: np.ndarray) -> None:
        """What the backbone takes and gives, or what standardises stored features."""
        if "spot" not in inputs.take(rows[:1]):
            self.config = replace(self.config, frozen=False)
            super().settle(inputs, targets, rows)
            return
        features = np.concatenate([batch["spot"] for _, batch in inputs.in_order(rows, PREDICTED_AT_ONCE)])
        self._standards = standards(features)
        self.config = replace(self.config, frozen=True, n_features=features.shape[1])

    def make_net(self, n_outputs: int, mean: np.ndarray, scale: np.ndarray) -> nn.Module:
        """The network on a new trunk, or on features that are standardised before it."""
        import torch

        if not self.config.frozen:
            return self.make_head(self.trunk(), n_outputs, torch.from_numpy(mean))
        head = self.make_head(None, n_outputs, torch.from_numpy(mean))
        return self.standardized(head, self.config.n_features)

    def representation(self, inputs: Inputs, rows: np.ndarray, *, device: str | None = None) -> np.ndarray:
        """Features of the trunk, or those that are stored, (n, d) float32."""
        if self.config.frozen:
            return EmbeddingModel.representation(self, inputs, rows, device=device)
        found = np.empty((len(rows), self.config.n_features), np.float32)
        place = {row: number for number, row in enumerate(rows.tolist())}
        features = self.run(_features, inputs, rows, batch_size=PREDICTED_AT_ONCE // 16, device=device)
        for part, values in features:
            found[[place[row] for row in part.tolist()]] = values
        return found


def _features(net: Any, batch: dict[str, Any]) -> Any:
    return net.trunk(batch["tiles"])
