"""Every convolution of a network, by kernel and direction, and its part of the machine's FMA peak.

    python benchmarks/bench_ops.py [--case cifar10] [--batch 8] [--json FILE]

GFLOP/s are nominal: the multiplications of a direct convolution, whatever the kernel does, so a
Winograd kernel may exceed 100 percent of the peak. The data of one layer stay in cache between
repeats, which flatters small batches: judge those by bench_sample.py.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any, NamedTuple

from harness import arguments, save
from machine import Probe
from networks import CASES

DIRECTIONS = ("forward", "data", "weights")
REPORTED = ("direct", "dnnl_winograd", "winograd", "winograd_pairs")


class Layer(NamedTuple):
    """Shape of a convolution, as `_core.bench_conv` takes it after the batch size."""

    H: int
    W: int
    I: int  # noqa: E741 - input channels, as everywhere in the core
    O: int  # noqa: E741
    k: int
    stride: int
    pad_begin: int
    pad_end: int

    def gflop(self, batch: int) -> float:
        """Nominal work of one direction."""
        ho = (self.H + self.pad_begin + self.pad_end - self.k) // self.stride + 1
        wo = (self.W + self.pad_begin + self.pad_end - self.k) // self.stride + 1
        return 2e-9 * batch * ho * wo * self.I * self.O * self.k**2


def layers_of(config: dict[str, Any]) -> Counter[Layer]:
    """The convolutions of a UNet2DModel of plain and attention blocks, with their counts."""
    from boot.unet_config import UNet2DConfig
    from boot.unet_keys import expected_tensors

    checked = UNet2DConfig.from_dict({"_diffusers_version": "0.42.1", **config})
    size, levels = config["sample_size"], len(checked.block_out_channels)
    end = 1
    begin = checked.downsample_padding
    found: Counter[Layer] = Counter()
    for name, shape in expected_tensors(checked).items():
        if len(shape) != 4:
            continue
        parts, side = name.split("."), size
        if parts[0] == "down_blocks":
            side = size >> int(parts[1])
        elif parts[0] == "mid_block":
            side = size >> (levels - 1)
        elif parts[0] == "up_blocks":
            side = size >> (levels - 1 - int(parts[1]))
        stride, pads = 1, (shape[2] // 2,) * 2
        if "downsamplers" in parts and "conv" in parts:
            stride, pads = 2, (begin, end)
        elif "upsamplers" in parts and "conv" in parts:
            side *= 2
        found[Layer(side, side, shape[1], shape[0], shape[2], stride, *pads)] += 1
    return found


def time_layer(layer: Layer, batch: int, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds by direction and kernel."""
    from boot import _core

    times: dict[str, dict[str, float]] = {}
    for number, direction in enumerate(DIRECTIONS):
        times[direction] = {}
        for kernel in _core.conv_kernels():
            if kernel not in REPORTED:
                continue
            try:
                seconds = _core.bench_conv(batch, *layer, kernel, number, repeats)
            except NotImplementedError:
                continue
            times[direction][kernel] = seconds
    return times


def measure(options: argparse.Namespace, peak: float | None) -> dict[str, Any]:
    """Time every layer; print one line per layer and direction."""
    rows, totals = [], dict.fromkeys((*REPORTED, "best"), 0.0)
    total_gflop = 0.0
    for layer, count in sorted(layers_of(CASES[options.case].config).items(), reverse=True):
        if options.only and options.only not in f"{layer.H}x{layer.W}x{layer.I}->{layer.O}":
            continue
        gflop = layer.gflop(options.batch)
        for direction, times in time_layer(layer, options.batch, options.repeats).items():
            best = min(times, key=lambda kernel: times[kernel])
            rates = {kernel: gflop / seconds for kernel, seconds in times.items()}
            percent = f"{100 * rates[best] / peak:5.0f} %" if peak else ""
            cells = "  ".join(f"{k} {rates[k]:7.1f}" for k in REPORTED if k in rates)
            label = (
                f"{layer.H}x{layer.W}x{layer.I} -> {layer.O} k{layer.k} s{layer.stride} x{count}"
            )
            print(f"{label:32s} {direction:8s} {cells:64s} {percent}", flush=True)
            rows.append({"layer": layer._asdict(), "count": count, "direction": direction})
            rows[-1] |= {"seconds": times, "gflops": rates, "best": best}
            total_gflop += count * gflop
            totals["best"] += count * times[best]
            for kernel in REPORTED:  # a kernel that cannot do a layer leaves it to "direct"
                totals[kernel] += count * times.get(kernel, times["direct"])
    rates = {kernel: total_gflop / seconds for kernel, seconds in totals.items() if seconds}
    for kernel, rate in rates.items():
        percent = f"{100 * rate / peak:.0f} % of the peak" if peak else ""
        print(f"all layers and directions, {kernel}: {rate:.1f} GFLOP/s nominal {percent}")
    return {"rows": rows, "total_gflops": rates, "total_seconds": totals}


def main() -> None:
    """Measure the peak, then the layers."""
    parser = arguments("convolutions of a network by kernel", rounds=1)
    parser.add_argument("--case", choices=list(CASES), default="cifar10")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", help="only layers whose HxWxI->O contains this")
    options = parser.parse_args()
    import os

    if options.max_isa:
        os.environ |= {"BOOT_MAX_ISA": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    import boot

    boot.set_num_threads(options.threads)
    peak = Probe(options.threads, options.max_isa).gflops()
    print(f"fp32 FMA peak of {options.threads} threads: {peak} GFLOP/s; figures in GFLOP/s nominal")
    results = measure(options, peak)
    save(
        options,
        {"benchmark": "ops", "case": options.case, "batch": options.batch}
        | results
        | {"peak_gflops": peak, "core": boot.show_config()},
    )


if __name__ == "__main__":
    main()
