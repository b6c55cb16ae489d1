"""What transformers' processors make of pictures for vision-language models: sizes, pixels, tokens and positions.

    picture_inputs.py [--out tests/golden/picture-inputs]

After picture_texts.py. Needs requirements.txt and pillow 13.0.0. ../../tests/golden/README.md explains the file.
"""
import argparse
import pathlib

import numpy as np
import torch
from PIL import Image

from common import GOLDEN, fresh, versions, write_json
from picture_texts import IDS

SAMPLES = 97
# (width, height)
SIZES = [(50, 37), (37, 50), (200, 90), (31, 31), (128, 128), (7, 120), (129, 64)]


def picture(width, height):
    """A picture that a formula gives, in whole numbers."""
    x, y, c = np.meshgrid(np.arange(width), np.arange(height), np.arange(3), indexing="xy")
    return ((5 * x + 3 * y + 50 * c + 9 * ((x * y) % 17)) % 256).astype(np.uint8)


def summary(values):
    """Numbers of a long list that tell it from another."""
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    places = np.linspace(0, len(flat) - 1, SAMPLES).astype(int)
    return {"length": len(flat), "sum": round(float(flat.sum()), 3), "samples": [round(float(flat[i]), 5) for i in places]}


def tiles():
    from transformers import Idefics3ImageProcessorPil, SmolVLMImageProcessorPil
    rows = []
    for make, settings in [
        (Idefics3ImageProcessorPil, {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 32}}),
        (SmolVLMImageProcessorPil, {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 32}, "do_image_splitting": False}),
        (SmolVLMImageProcessorPil, {"do_resize": False, "max_image_size": {"longest_edge": 48}, "resample": 3}),
    ]:
        processor = make(**settings)
        for width, height in SIZES:
            result = processor(Image.fromarray(picture(width, height)), return_row_col_info=True)
            rows.append({"settings": settings, "width": width, "height": height, "rows": result["rows"][0][0], "columns": result["cols"][0][0],
                         "count": len(result["pixel_values"][0]), "pixels": summary(result["pixel_values"][0])})
    return rows


def patches():
    from transformers import Qwen2VLImageProcessorPil
    rows = []
    for settings in [{"size": {"shortest_edge": 3136, "longest_edge": 12544}}, {"patch_size": 16, "min_pixels": 1024, "max_pixels": 1003520},
                     {"patch_size": 4, "merge_size": 1, "temporal_patch_size": 1, "min_pixels": 16, "max_pixels": 4096}]:
        processor = Qwen2VLImageProcessorPil(**settings)
        for width, height in SIZES:
            result = processor(Image.fromarray(picture(width, height)))
            rows.append({"settings": {**settings, "image_mean": processor.image_mean, "image_std": processor.image_std}, "width": width, "height": height, "grid": result["image_grid_thw"][0].tolist(),
                         "pixels": summary(result["pixel_values"])})
    return rows


def texts():
    """Prompts as processors fill them."""
    from transformers import Gemma3ImageProcessorPil, Gemma3Processor, PreTrainedTokenizerFast, SiglipImageProcessorPil, SmolVLMImageProcessorPil
    folder = GOLDEN / "graphs" / "llava"
    prompt = lambda mark: f"Of old {mark} the sea {mark} was"
    images = [Image.fromarray(picture(50, 37)), Image.fromarray(picture(16, 16))]
    names = {"boi_token": "<|vision_start|>", "eoi_token": "<|vision_end|>", "image_token": "<|image_pad|>"}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=names)
    gemma = Gemma3Processor(Gemma3ImageProcessorPil(size={"height": 16, "width": 16}), tokenizer, image_seq_length=4)
    ids = {key: IDS[name] for key, name in names.items()}
    text = prompt(names["boi_token"])
    result = [{
        "config": {"model_type": "gemma3", "boi_token_index": ids["boi_token"], "eoi_token_index": ids["eoi_token"], "image_token_index": ids["image_token"]},
        "prompt": text, "inputIds": gemma(text=text, images=[images])["input_ids"][0]}]
    return result


def positions():
    """Of a text with a picture of 4 x 6 patches and one of 2 x 2, four of which are one token."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2VLConfig, Qwen2VLModel
    token = 9
    ids = [1, 2] + [token] * 6 + [3, 4, 5] + [token] + [6]
    grids = [[1, 4, 6], [1, 2, 2]]
    kinds = torch.tensor([[int(i == token) for i in ids]])
    rows = []
    for make, config in [(Qwen2VLModel, Qwen2VLConfig), (Qwen2_5_VLModel, Qwen2_5_VLConfig)]:
        with torch.device("meta"):
            model = make(config(image_token_id=token))
        found, _ = model.get_rope_index(torch.tensor([ids]), mm_token_type_ids=kinds, image_grid_thw=torch.tensor(grids))
        rows.append({"model": make.__name__, "token": token, "inputIds": ids, "grids": grids, "positions": found[:, 0].tolist()})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN / "picture-inputs")
    folder = fresh(parser.parse_args().out)
    write_json(folder / "expected.json", {
        "versions": versions("transformers", "pillow"), "tiles": tiles(), "patches": patches(), "texts": texts(), "positions": positions()})


if __name__ == "__main__":
    main()
