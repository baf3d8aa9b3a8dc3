"""Triton's interpreter, as the tests of kernels use it."""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def round_products_once() -> None:
    """Makes ``tl.dot`` sum in float64 and round to its dtype at the end.

    The interpreter leaves it to NumPy's BLAS, which sums in an order that depends on the CPU, real or named in
    ``OPENBLAS_CORETYPE``; on some its float32 error is several times that of others. What is tested are the kernels'
    own sums and roundings.
    """
    import numpy as np
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, d: TensorHandle, *_: object) -> object:
        product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64))
        return TensorHandle((product + d.data).astype(d.data.dtype), d.dtype.scalar)

    InterpreterBuilder.create_dot = create_dot
