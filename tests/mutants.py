"""Small planted mistakes in C and Python, and the tests that must notice each of them.

`tests/soak/mutants.py` plants them one by one; `tests/test_mutants.py` keeps the list in step with
the code. A row: file, the text as it is (found exactly once), the mistake, pytest arguments.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One mistake."""

    file: str
    old: str
    new: str
    tests: str


def _op(file: str, old: str, new: str, keyword: str) -> Mutant:
    return Mutant(f"csrc/ops/{file}.c", old, new, f"tests/test_ops.py -k {keyword}")


ADAMW, SIGNAL, TABLE = "csrc/optim/adamw.c", "csrc/diffusion/signal.c", "csrc/diffusion/schedule.c"
T_ADAMW, T_SIGNAL = "tests/test_adamw.py", "tests/test_diffusion.py"
T_SCHEDULE, T_FILES = "tests/test_schedule.py tests/test_samplers.py", "tests/test_files.py"
T_DISTILLER, T_STUDENT = "tests/test_distiller.py", "tests/test_student.py"
T_CHECKPOINT = "tests/test_checkpoint.py tests/test_fit.py"
T_OFFLOAD = "tests/test_offload.py"
T_PAIRS = "tests/test_gemm_pairs.py"
T_READING = "tests/test_reading.py"
T_NOISE = "tests/test_noise.py"
T_SYNCS, T_SECOND = "tests/test_sync_order.py", "tests/test_fit.py -k second_signal"

OPERATIONS = [
    _op(
        "linear",
        "if (db) boot_column_sums_team(M, O, dy->data, dy->ld, db);",
        "(void)db;",
        "linear",
    ),
    Mutant(
        "csrc/ops/linear.c",
        "dx->data, dx->ld, call->accumulate[i]);",
        "dx->data, dx->ld, false);",
        "tests/test_unet.py",
    ),
    _op(
        "linear_pair",
        "if (right_bias)\n            boot_gemm_team(s->M",
        "if (0)\n            boot_gemm_team(s->M",
        "linear_pair",
    ),
    _op("linear_pair", "right_bias ? s->M : 0", "0", "linear_pair"),
    _op("conv2d_taps", "* s->stride + a < s->pad", "* s->stride + a <= s->pad", "conv2d"),
    Mutant(
        "csrc/net/unet2d.c",
        "linear_pair(b, h, keys[0], keys[1], true)",
        "linear_pair(b, h, keys[0], keys[1], false)",
        "tests/test_unet.py",
    ),
    _op("add", "y[i] = (a[i] + b[i]) * scale;", "y[i] = a[i] + b[i] * scale;", "add"),
    _op("add", "dx[i] = scale * dy[i];", "dx[i] = dy[i];", "add"),
    _op("mean2x2", "2 * i) * x->w", "2 * i + 1) * x->w", "mean2x2"),
    _op("mean2x2", "inside ? 0.25f * s[c]", "inside ? 0.5f * s[c]", "mean2x2"),
    _op("upsample_nearest", "(q >> 1) * 2 * W", "(q >> 1) * W", "upsample"),
    _op(
        "upsample_nearest",
        "const float sum = (s[c] + s[c + dy->ld]) + (below[c] + below[c + dy->ld]);",
        "const float sum = (s[c] + s[c + dy->ld]) + (below[c] + s[c + dy->ld]);",
        "upsample",
    ),
    _op("concat", "(i == A ? 0 : call->in[A].c)", "(i == A ? 0 : call->in[B].c)", "concat"),
    _op("concat", "(i == A ? 0 : node->in[A].c)", "(i == A ? 0 : node->in[B].c)", "concat"),
    _op("to_nhwc", "const float part = scale * dy", "const float part = dy", "to_nhwc"),
    _op("to_nhwc", "+ shift;", "- shift;", "to_nhwc"),
    _op(
        "to_nchw",
        "call->in[T].data ? v / call->in[T].data[n] : v;\n                float *d",
        "v;\n                float *d",
        "to_nchw",
    ),
    _op("attention", "most[0] *= scale;", "most[0] *= 1.0f;", "attention"),
    _op(
        "attention",
        "g[c] = scale * part * (g[c] - delta[c]);",
        "g[c] = part * (g[c] - delta[c]);",
        "attention",
    ),
    _op("attention", "dk->ld, i > 0 || call->accumulate[K]);", "dk->ld, false);", "attention"),
    _op("group_norm", "= -stats[2 * g]", "= stats[2 * g]", "group_norm"),
    Mutant(
        "csrc/ops/group_norm_loops.h",
        "1.0f + s[c] : 1.0f",
        "s[c] : 1.0f",
        "tests/test_ops.py -k group_norm",
    ),
    _op("conv2d_columns", "tap != r / m->C", "tap != r % m->C", "conv2d"),
    _op("conv2d_columns", "? taps - 1 - tap : tap;", "? tap : tap;", "conv2d"),
    _op("conv2d_plain", "i * c->stride + a", "i + a", "conv2d"),
    Mutant("csrc/ops/conv2d_winograd_pairs.c", "scales[k] *= own;", ";", T_PAIRS),
    Mutant("csrc/ops/conv2d_winograd_pairs.c", "] *= of.backs[i];", "] *= 1;", T_PAIRS),
    Mutant("csrc/ops/conv2d_winograd_pairs.c", "k < K && most <= 1;", "k < K;", T_PAIRS),
    Mutant("csrc/ops/conv2d_winograd_pairs.c", "size == 0 ? 0 : 1 /", "1 /", T_PAIRS),
    Mutant("csrc/base/gemm_pairs.c", "if (size == 0) return 0;", ";", T_PAIRS),
    Mutant("csrc/base/gemm_pairs.c", "(both < least_squares(K)) |", "", T_PAIRS),
    Mutant(
        "csrc/base/gemm_pairs.c",
        " = sum[i][w] - less;",
        " = sum[i][w];",
        "tests/test_ops.py -k conv2d",
    ),
    _op(
        "conv2d_plain",
        "(o * c->I + e) * c->k + a) * c->k + b];\n            t->y",
        "(o * c->I + e) * c->k + b) * c->k + a];\n            t->y",
        "conv2d",
    ),
    _op("activation", "dx[i] = dy[i] * boot_act_slope", "dx[i] = boot_act_slope", "activation"),
]

METHOD = [
    Mutant(ADAMW, "v[i] += t.one_b2 * (d * d - v[i]);", "v[i] += t.one_b2 * d * d;", T_ADAMW),
    Mutant(ADAMW, ".one_b1 = (float)(1 - c->beta1)", ".one_b1 = (float)(1 - c->beta2)", T_ADAMW),
    Mutant(ADAMW, ".clip = (float)clip_factor(c->max_grad_norm, *norm),", ".clip = 1,", T_ADAMW),
    Mutant(ADAMW, "1 - pow(c->beta1, (double)c->step)", "1 - c->beta1", T_ADAMW),
    Mutant(ADAMW, "ema[i] += rate * (w[i] - ema[i]);", "ema[i] += (w[i] - ema[i]);", T_ADAMW),
    Mutant(ADAMW, "1 - c->learning_rate * c->weight_decay", "1 - c->weight_decay", T_ADAMW),
    Mutant(ADAMW, "if (!isfinite(*norm))", "if (*norm < 0)", T_ADAMW),
    Mutant(ADAMW, "(bits + chance) >> 16", "(bits + 0x8000) >> 16", T_ADAMW),  # to nearest
    Mutant(
        ADAMW,
        "v[i] = halved(square, chance >> 16);",
        "v[i] = halved(square, chance & 0xffff);",
        T_ADAMW,
    ),
    Mutant(ADAMW, "step * 0xd1342543de82ef95u", "0xd1342543de82ef95u", T_ADAMW),
    Mutant(SIGNAL, "(float)(-sigma[i] / alpha[i])", "(float)(sigma[i] / alpha[i])", T_SIGNAL),
    Mutant(SIGNAL, "b = (float)(-sigma[i] / square);", "b = (float)(sigma[i] / square);", T_SIGNAL),
    Mutant(SIGNAL, "f[k] = clip > 0 ? clamp(v, clip) : v;", "f[k] = v;", T_SIGNAL),
    Mutant(SIGNAL, "0.5f * (f[k] + f2[k])", "f2[k]", T_SIGNAL),
    Mutant(SIGNAL, "scale * (f_cond[k] - f_null[k])", "scale * f_cond[k]", T_SIGNAL),
    Mutant(SIGNAL, "(float)(2 * weight[i] / (double)count)", "(float)(weight[i])", T_SIGNAL),
    Mutant(SIGNAL, "x < -limit ? -limit : x", "x < -limit ? limit : x", T_SIGNAL),
    Mutant(TABLE, "cosine_abar((double)(i + 1)", "cosine_abar((double)i", T_SCHEDULE),
    Mutant(TABLE, "root * root", "root", T_SCHEDULE),
    Mutant(TABLE, "(double)i / (double)(n - 1)", "(double)i / (double)n", T_SCHEDULE),
    Mutant(
        "boot/schedule.py",
        "self.num_train_timesteps - 1.0\n",
        "self.num_train_timesteps\n",
        T_SCHEDULE,
    ),
    Mutant(TABLE, "sqrt(-expm1(log_abar))", "sqrt(1 - exp(log_abar))", T_SCHEDULE),
    Mutant(TABLE, "exp(0.5 * at_start) * (1 - t)", "exp(0.5 * at_start) * (1 - start)", T_SCHEDULE),
    Mutant("boot/samplers.py", "alpha_s - keep * alpha_t, keep", "alpha_s, keep", T_SCHEDULE),
    Mutant("boot/samplers.py", "0.5 * full)", "full)", T_SCHEDULE),
    Mutant(
        "boot/student.py",
        "dy * np.float32(-self._sigma)",
        "dy * np.float32(self._sigma)",
        f"{T_STUDENT} {T_DISTILLER}",
    ),
    Mutant("boot/signal_ode.py", "y_s, eps, s), s)", "y_s, eps, s), t)", T_SCHEDULE),
    Mutant(
        "boot/inputs.py",
        "labels[labels != guidance.null_label] if guidance.active else labels",
        "labels",
        f"tests/test_samplers.py {T_STUDENT} {T_DISTILLER}",
    ),
    Mutant("csrc/diffusion/philox.c", "{0, 0, sample, step}", "{0, 0, sample, 0}", T_NOISE),
    Mutant("csrc/diffusion/philox.c", "(uint32_t)(bits >> 32)", "(uint32_t)bits", T_NOISE),
    Mutant(
        "csrc/python/noise.c", "at->first + i);\n        bitgen_t", "i);\n        bitgen_t", T_NOISE
    ),
    Mutant(
        "boot/learning_rate.py",
        "return (step + 1) / warmup",
        "return step / warmup",
        "tests/test_config.py",
    ),
]

FILES = [
    Mutant("boot/reading.py", "number if math.isfinite(number)", "number if True", T_READING),
    Mutant("boot/reading.py", "if len(result) != len(pairs):", "if False:", T_READING),
    Mutant("boot/files.py", "        temporary.unlink()\n", "        pass\n", T_FILES),
    Mutant(
        "boot/files.py",
        "    os.fsync(file.fileno())",
        "    file.fileno()",
        f"{T_FILES} {T_CHECKPOINT}",
    ),
    Mutant(
        "boot/files.py", "            sync_folder(Path(folder))\n", "            pass\n", T_SYNCS
    ),
    Mutant("boot/files.py", "            sync_folder(path.parent)\n", "", T_SYNCS),
    Mutant(
        "boot/files.py",
        "        path.mkdir(exist_ok=True)\n    sync_folder(path.parent)\n",
        "        path.mkdir(exist_ok=True)\n",
        T_SYNCS,
    ),
    Mutant("boot/fit.py", "sync_file(folder / LOG_FILE)", "pass", T_SYNCS),
    Mutant("boot/interrupts.py", "signal.raise_signal(number)", "pass", T_SECOND),
    Mutant(
        "boot/safetensors_io.py",
        "if position != size:",
        "if position > size:",
        "tests/test_safetensors_io.py",
    ),
    Mutant(
        "boot/safetensors_io.py",
        "if info.begin != position:",
        "if info.begin < position:",
        "tests/test_safetensors_io.py",
    ),
    Mutant(
        "boot/safetensors_io.py",
        "shard == os.path.basename(shard)",
        "shard",
        "tests/test_safetensors_io.py",
    ),
    Mutant("boot/checkpoint.py", "if found != expected:", "if False:", T_CHECKPOINT),
    Mutant("boot/checkpoint.py", "limit - 1, list[Path]()", "limit, list[Path]()", T_CHECKPOINT),
    Mutant("boot/checkpoint.py", "wanted > 0 and _is_intact(other)", "wanted > 0", T_CHECKPOINT),
    Mutant(
        "boot/network.py",
        "if missing or unexpected or misshapen:",
        "if missing:",
        "tests/test_network.py",
    ),
]

SAFETY = [
    Mutant("csrc/net/network.c", "if (network->weights_away)", "if (0)", T_OFFLOAD),
    Mutant(
        "boot/offload.py",
        "                self._compare(files)  #",
        "                pass  #",
        T_OFFLOAD,
    ),
    Mutant(
        "boot/offload.py",
        "self.begin + start * item",
        "self.begin + start",
        T_OFFLOAD,
    ),
    Mutant("boot/offload.py", "any(student.gradients_held for", "any(False for", T_OFFLOAD),
    Mutant(
        "boot/offload.py", "            self._core.weights_back()", "            pass", T_OFFLOAD
    ),
    Mutant(
        "boot/network.py",
        "        self._bring_back()\n        count = len(sample)",
        "        count = len(sample)",
        T_OFFLOAD,
    ),
    Mutant("csrc/net/arena.c", "    arena->epoch++;", "    ;", "tests/test_alloc.py"),
    Mutant("csrc/python/module.c", "&& first != here", "&& first == here", "tests/test_fork.py"),
    Mutant("csrc/base/memory.c", "|| *product > BOOT_COUNT_MAX", "", "tests/test_bad_core.py"),
    Mutant(
        "csrc/ops/packs.c",
        "*fresh = pack && pack->version == packs->version;",
        "*fresh = pack;",
        "tests/test_network.py",
    ),
    Mutant(
        "csrc/python/network.c",
        "PyArray_DIM(arrays[0], 1) != c->in_channels",
        "0",
        "tests/test_bad_core.py",
    ),
]

MUTANTS = OPERATIONS + METHOD + FILES + SAFETY
