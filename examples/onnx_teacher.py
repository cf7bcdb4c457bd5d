"""Distil a teacher that is an ONNX Runtime session: inputs x (N,C,H,W) and t (N,), float32."""

import argparse

import numpy as np
import onnxruntime

from boot import Distiller, Teacher
from boot.continuous import FlowSchedule
from boot.toy import small_network


def tiny_model():
    """Build a model to try: the velocity eps - x_0 of images N(0.3, 0.5^2), as ONNX bytes."""
    from onnx import parser

    text = """<ir_version: 8, opset_import: ["" : 17]>
    velocity (float[n, 1, 4, 4] x, float[n] t) => (float[n, 1, 4, 4] u) {
        shape = Constant <value = int64[4] {-1, 1, 1, 1}> ()
        mean = Constant <value = float {0.3}> ()
        square = Constant <value = float {0.25}> ()
        one = Constant <value = float {1.0}> ()
        sigma = Reshape (t, shape)
        alpha = Sub (one, sigma)
        alpha2 = Mul (alpha, alpha)
        sigma2 = Mul (sigma, sigma)
        signal = Mul (alpha2, square)
        variance = Add (signal, sigma2)
        shift = Mul (alpha, mean)
        rest = Sub (x, shift)
        top = Mul (alpha, square)
        down = Sub (sigma, top)
        slope = Div (down, variance)
        scaled = Mul (slope, rest)
        u = Sub (scaled, mean)
    }"""
    return parser.parse_model(text).SerializeToString()


def teacher_of(model):
    """Return a Teacher of an ONNX file's path or bytes; one thread, to leave the rest to boot."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def velocity(x, t, condition):
        return session.run(None, {"x": x, "t": t.astype(np.float32)})[0]

    return Teacher.from_callable(
        velocity,
        prediction_type="flow",
        schedule=FlowSchedule(),
        sample_shape=tuple(session.get_inputs()[0].shape[1:]),
        name="onnx",
    )


def main():
    """Train a student of a file, or of the tiny model, and print the spread of its images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="an .onnx file; default: a tiny model built here")
    parser.add_argument("--max-train-steps", type=int, default=300)
    arguments = parser.parse_args()
    teacher = teacher_of(arguments.model or tiny_model())
    distiller = Distiller(
        teacher, student=small_network(teacher), max_train_steps=arguments.max_train_steps
    )
    distiller.fit()
    images = distiller.student.sample(1000)
    print(f"student, 1 call: mean {images.mean():.3f}, standard deviation {images.std():.3f}")


if __name__ == "__main__":
    main()
