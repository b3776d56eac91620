"""What transformers' image processor makes of pictures: `images/` holds them, the configurations and the pixels.

`python images.py` remakes all. Every configuration stands in images/cases.json as a preprocessor_config.json would.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

FOLDER = Path(__file__).parent / "images"
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CASES = {
    "bilinear": {"size": {"height": 12, "width": 12}, "resample": 2, **HALF},
    "old_size": {"size": 12, "resample": 2, **IMAGENET, "feature_extractor_type": "ViTFeatureExtractor"},
    "bicubic": {"size": {"height": 12, "width": 12}, "resample": 3, **IMAGENET},
    "lanczos": {"size": {"height": 12, "width": 12}, "resample": 1, **HALF},
    "nearest": {"size": {"height": 12, "width": 12}, "resample": 0, "do_normalize": False},
    "larger": {"size": {"height": 60, "width": 52}, "resample": 3, **HALF},
    "cut": {"size": {"shortest_edge": 14}, "resample": 3, "do_center_crop": True, "crop_size": {"height": 12, "width": 12}, **HALF},
    "not_scaled": {"size": {"height": 12, "width": 12}, "resample": 2, "do_rescale": False, "do_normalize": False},
}


def pictures():
    noise = np.random.default_rng(5)
    y, x = np.mgrid[0:37, 0:23]
    waves = np.stack([127 + 120 * np.sin(x / (2 + c) + y / (5 - c)) for c in range(3)], -1)
    photo = np.clip(waves + noise.normal(0, 25, waves.shape), 0, 255).astype(np.uint8)
    Image.fromarray(photo).save(FOLDER / "photo.png")
    Image.fromarray(photo[:, :, 0]).save(FOLDER / "grey.png")
    alpha = np.concatenate([photo, noise.integers(0, 256, (37, 23, 1), dtype=np.uint8)], -1)
    Image.fromarray(alpha).save(FOLDER / "alpha.png")
    Image.fromarray(photo[:20]).save(FOLDER / "wide.jpg", quality=92)


def main():
    FOLDER.mkdir(exist_ok=True)
    pictures()
    pixels = {}
    for name, config in CASES.items():
        processor = ViTImageProcessorPil(**{k: v for k, v in config.items() if k != "feature_extractor_type"})
        for path in sorted(FOLDER.glob("*.png")) + sorted(FOLDER.glob("*.jpg")):
            made = processor(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"][0]
            pixels[f"{name}/{path.name}"] = made.to(torch.float32).contiguous()
    save_file(pixels, FOLDER / "pixels.safetensors")
    (FOLDER / "cases.json").write_text(json.dumps(CASES, indent=1) + "\n")


if __name__ == "__main__":
    main()
