"""Encoders that have no classifier."""

from __future__ import annotations

import timm
import torch

from ftcore import Backbone, HeadSlot, InputSpec
from ftcore_plugins.models.timm import with_pooling


def test_an_encoder_without_a_classifier_gets_the_mean_of_its_tokens_and_a_linear_layer() -> None:
    encoder = timm.create_model("test_vit", num_classes=0, global_pool="").eval()
    made = with_pooling(Backbone(encoder, (), InputSpec((160, 160)), stages={"pos_embed": 0}))

    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        wanted = made.module.get_submodule("head")(encoder(images).mean(1))
        torch.testing.assert_close(made.module(images), wanted)
    assert made.heads == (HeadSlot("head", 64),)
    assert made.stages == {"encoder.pos_embed": 0}


def test_a_network_with_a_pooling_of_ftcores_is_none_that_timm_builds() -> None:
    encoder = timm.create_model("test_vit", num_classes=0, global_pool="")

    made = with_pooling(Backbone(encoder, (), InputSpec((160, 160)), builder_code=lambda _: ["model = None"]))

    assert made.builder_code is None
