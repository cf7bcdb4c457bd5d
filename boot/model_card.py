"""The README.md of a saved student: what it is, where it comes from, and how to run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boot._version import __version__

if TYPE_CHECKING:
    from boot.student import Student
    from boot.student_info import StudentInfo

_FRONT = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags:
- boot
- distillation
- one-step
- data-free
---
"""

_ABOUT = """
# {title}

A one-step image generator, distilled without data from the diffusion model `{teacher}` by
`boot` {version} (the method of BOOT, Gu et al. 2023, arXiv 2306.05544): one network call turns
noise into an image.

| | |
|---|---|
| images | {channels} channels, {size} |
| network | UNet2DModel, {parameters:,} parameters |
| start time t_max | {t_max:g} (timestep index {index}) |
| guidance scale | {guidance} |
| training steps | {steps} |
| teacher SHA-256 | `{sha256}` |

## With boot

```python
import boot

student = boot.Student.from_pretrained("{title}")
images = student.sample(16, seed=0)  # (16, {channels}, H, W) float32 in [-1, 1]
```
"""

_UNCONDITIONAL = """
## With diffusers

```python
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("{title}")
images = pipeline(batch_size=16, num_inference_steps=1).images  # one step, not the default 50
```
"""

_CONDITIONAL = """
## With diffusers

`DDIMPipeline` passes no class labels, so call the network yourself:

```python
import torch
from diffusers import DDIMScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained("{title}", subfolder="unet")
scheduler = DDIMScheduler.from_pretrained("{title}", subfolder="scheduler")
scheduler.set_timesteps(1)
t = scheduler.timesteps[0]
labels = {labels}  # {classes}
noise = torch.randn(16, {channels}, {height}, {width})
with torch.no_grad():
    output = unet(noise, t, class_labels=labels).sample
    images = scheduler.step(output, t, noise).prev_sample.clamp(-1, 1)
```
"""


def model_card(student: Student, title: str) -> str:
    """Return the card as Markdown with the front matter that model hubs read."""
    config, info = student.model.config, student.info
    shape = student.model.image_shape()
    height, width = ("height", "width") if shape is None else (str(n) for n in shape[1:])
    labels, classes = _labels(student)
    usage = _UNCONDITIONAL if student.num_classes is None else _CONDITIONAL
    return (_FRONT + _ABOUT + usage).format(
        title=title,
        teacher=info.teacher.get("name", "unknown"),
        sha256=info.teacher.get("sha256", "unknown"),
        version=__version__,
        channels=config.in_channels,
        size=f"{height} x {width}",
        height=height,
        width=width,
        parameters=student.model.num_parameters,
        t_max=info.t_max,
        index=int(student.schedule.index(info.t_max)),
        guidance=_guidance(info),
        steps=info.training.get("steps", "unknown"),
        labels=labels,
        classes=classes,
    )


def _guidance(info: StudentInfo) -> str:
    """Say which guidance scale is built in, and which others boot can choose."""
    if not info.takes_scale:
        return f"{info.guidance_scale:g}, built in"
    lo, hi = info.scale_range
    chosen = f"{info.guidance_scale:g} with diffusers"
    return f"{chosen}; {lo:g} ... {hi:g} with boot: `sample(..., guidance_scale=)`"


def _labels(student: Student) -> tuple[str, str]:
    """Return an expression for 16 labels of the classes in turn, and a remark on them."""
    count, guidance = student.num_classes or 1, student.info.guidance
    if not guidance.active:
        return f"torch.arange(16) % {count}", f"the classes: 0 ... {count - 1}"
    remark = f"{guidance.null_label} meant 'no class' and was not trained"
    if guidance.null_label == count - 1:
        return f"torch.arange(16) % {count - 1}", f"the classes: 0 ... {count - 2}; {remark}"
    classes = f"[i for i in range({count}) if i != {guidance.null_label}]"
    return f"torch.tensor({classes})[torch.arange(16) % {count - 1}]", remark
