"""Names of linear layers that transformers 5 changed: those in checkpoints, which transformers 4 has, and today's.

    module_names.py [--out tests/golden/module-names.json]

By type of model: [older, today] for the first layer of each kind, told by the values of tiny models that are saved.
"""
import argparse
import pathlib
import re
import sys

import torch

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "generate"))
from transformers_classes import SHRINKS, pairs, tiny  # noqa: E402

from common import GOLDEN, versions, write_json  # noqa: E402

CLASSES = """AltCLIPModel ConditionalDetrForObjectDetection DFineForObjectDetection DetrForObjectDetection
Dinov2ForImageClassification GPTNeoXForCausalLM GroundingDinoForObjectDetection Mask2FormerForUniversalSegmentation MaskFormerForInstanceSegmentation
OneFormerForUniversalSegmentation PhimoeForCausalLM RTDetrForObjectDetection RTDetrV2ForObjectDetection SegformerForImageClassification
SegformerForSemanticSegmentation SwinForImageClassification ViTForImageClassification ViTMSNForImageClassification VideoLlavaForConditionalGeneration
ZoeDepthForDepthEstimation BeitForImageClassification""".split()


def build(cls):
    from transformers import ResNetConfig
    if re.match(r"(Conditional)?Detr", cls.__name__):  # without timm
        backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage4"])
        return cls(cls.config_class(backbone=None, use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=backbone, d_model=32,
                                    encoder_layers=1, decoder_layers=1, encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_attention_heads=2,
                                    decoder_attention_heads=2))
    for count in SHRINKS:
        try:
            return tiny(cls, count, False)
        except Exception as error:
            last = error
    raise last


def names(model):
    linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    found, kinds = [], set()
    for stored, today, (how, *_) in pairs(model):
        kind = re.sub(r"\d+", "#", today)
        if how == "same" and today in linears and kind not in kinds:
            kinds.add(kind)
            found.append([stored.removesuffix(".weight"), today.removesuffix(".weight")])
    return found


def main():
    import transformers
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "module-names.json")
    args = parser.parse_args()
    found = {}
    for name in CLASSES:
        found[name] = names(build(getattr(transformers, name)))
    write_json(args.out, {"versions": versions("transformers"), "classes": found})


if __name__ == "__main__":
    main()
