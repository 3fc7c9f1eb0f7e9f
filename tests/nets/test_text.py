"""Prompts as numbers, without any file."""

from __future__ import annotations

import pytest
import torch

from sthist.nets import SMALL, PromptEncoder, byte_ids


class TestPromptEncoder:
    def test_bytes_are_filled_and_never_cut(self):
        ids = byte_ids(["", "é" * 4], 10)
        assert ids.tolist() == [[257, 258] + [256] * 8, [257] + [0xC3, 0xA9] * 4 + [258]]
        with pytest.raises(ValueError, match="has 10 bytes; this encoder takes 8"):
            byte_ids(["é" * 5], 10)
        assert byte_ids([], 10).shape == (0, 10)

    def test_drawn_numbers_are_the_same_everywhere(self):
        import numpy as np

        state = PromptEncoder(SMALL).draw(7).model.state_dict()
        first = next(value for name, value in state.items() if name.endswith("embeddings.position_embedding.weight"))
        expected = np.random.RandomState(7).standard_normal((SMALL.tokens, SMALL.text_dim))
        torch.testing.assert_close(first, torch.from_numpy(expected).float())

    def test_gets_no_gradients(self):
        encoder = PromptEncoder(SMALL).draw()
        assert not encoder(byte_ids(["HE"], SMALL.tokens)).requires_grad
        assert not any(parameter.requires_grad for parameter in encoder.parameters())

    def test_tells_prompts_apart(self):
        a, b = PromptEncoder(SMALL).draw()(byte_ids(["a lung", "a skin"], SMALL.tokens))
        assert (a - b).norm() > 0.05 * a.norm()
