"""A small network and its pipeline folder, for the tests of reading and of saving."""

import json

import numpy as np

from boot.diffusers_io import UNet2DConfig, expected_tensors
from boot.safetensors_io import load_tensors, save_tensors

CONFIG = UNet2DConfig(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=4,
    layers_per_block=1,
    num_class_embeds=3,
)
SCHEDULER = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "steps_offset": 1}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
INDEX = WEIGHTS + ".index.json"


def make_tensors(config=CONFIG, seed=0):
    rng = np.random.default_rng(seed)
    shapes = expected_tensors(config)
    return {n: rng.standard_normal(s).astype(np.float16).astype("f4") for n, s in shapes.items()}


TENSORS = make_tensors()


def edit(path, **changes):
    """Change keys of a JSON file; a value of None deletes the key."""
    values = json.loads(path.read_text())
    for key, value in changes.items():
        values.pop(key, None)
        if value is not None:
            values[key] = value
    path.write_text(json.dumps(values))


def assert_holds_the_tensors(pipeline, tensors=TENSORS):
    assert list(pipeline.tensors) == list(expected_tensors(CONFIG))
    for name, array in tensors.items():
        assert pipeline.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(pipeline.tensors[name], array, err_msg=name)


def shard(folder, dot=""):
    """Split the weights of a pipeline folder into two shards with an index."""
    tensors = load_tensors(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    weight_map = {}
    names = list(tensors)
    for i, part in enumerate((names[:20], names[20:]), 1):
        file = f"diffusion_pytorch_model{dot}-0000{i}-of-00002.safetensors"
        save_tensors(folder / "unet" / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{WEIGHTS}.index{dot}.json").write_text(json.dumps(index))


def without(name):
    return {n: a for n, a in TENSORS.items() if n != name}


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


PLAIN = sorted(["model_index.json", "scheduler/scheduler_config.json", "unet/config.json", WEIGHTS])


def random_config(rng):
    """A random small config over every supported option."""
    levels = rng.randint(1, 3)
    widths = [rng.choice([8, 16, 24]) for _ in range(levels)]
    down = ["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
    up = ["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
    embedding = rng.choice(["positional", "fourier", "learned"])
    return {
        "in_channels": rng.randint(1, 4),
        "out_channels": rng.randint(1, 4),
        "time_embedding_type": embedding,
        "num_train_timesteps": 20 if embedding == "learned" else None,
        "time_embedding_dim": rng.choice([None, 20]),
        "block_out_channels": widths,
        "down_block_types": [rng.choice(down) for _ in widths],
        "up_block_types": [rng.choice(up) for _ in widths],
        "mid_block_type": rng.choice(["UNetMidBlock2D", "UNetMidBlock2D", None]),
        "layers_per_block": rng.randint(1, 3),
        "downsample_type": rng.choice(["conv", "resnet"]),
        "upsample_type": rng.choice(["conv", "resnet"]),
        "attention_head_dim": rng.choice([None, 4, 8]),
        "norm_num_groups": rng.choice([2, 4, 8]),
        "attn_norm_num_groups": rng.choice([None, None, 4]),
        "resnet_time_scale_shift": rng.choice(["default", "scale_shift"]),
        "add_attention": rng.random() < 0.7,
        "class_embed_type": rng.choice([None, None, "timestep", "identity"]),
        "num_class_embeds": rng.choice([None, 11]),
    }
