"""The power spectrum of eight windows at once: a mixed-radix fast Fourier transform, compiled by Numba.

Stockham's self-sorting form (Van Loan, Computational Frameworks for the Fast Fourier Transform, section 1.7): one pass
for each factor of the length, from one buffer to the other. A complex array of n values for eight windows is a float64
array (n × 2 × LANES,): the eight real parts of a value, its eight imaginary parts, and so on.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.features.jit import njit
from pipeline.features.simd import LANES, gather, load, splat, store

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

COS_1, COS_2 = float(np.cos(2 * np.pi / 5)), float(np.cos(4 * np.pi / 5))
SIN_1, SIN_2 = float(np.sin(2 * np.pi / 5)), float(np.sin(4 * np.pi / 5))
RADIX_4, RADIX_5 = 4, 5


@dataclass(frozen=True)
class Transform:
    """Tables of the transform for windows of one length, n_fft.

    For an even n_fft, even and odd samples are transformed as the real and imaginary parts of n = n_fft / 2 complex
    values; for an odd one, the samples are n = n_fft complex values without imaginary parts. The product of `factors`
    is n. `roots` (n, 2) and `split` (n_fft // 2 + 1, 2) float64 hold the real and imaginary parts of exp(-2πi·k/n) and
    exp(-2πi·k/n_fft).
    """

    factors: Integers
    roots: Floats
    split: Floats

    @classmethod
    def of(cls, n_fft: int) -> "Transform":
        """Return the tables for windows of `n_fft` samples; a prime factor p above 5 takes time proportional to p²."""
        n = n_fft // 2 if n_fft % 2 == 0 else n_fft
        return cls(np.array(_factors(n), np.int64), _circle(n, n), _circle(n_fft, n_fft // 2 + 1))


def _factors(n: int) -> list[int]:
    """Return factors whose product is `n`: fours first, then primes in rising order."""
    found = []
    for factor in (RADIX_4, *range(2, n + 1)):
        while n % factor == 0:
            found.append(factor)
            n //= factor
    return found


def _circle(n: int, count: int) -> Floats:
    """Return exp(-2πi·k/n) for k < `count` as (count, 2) float64: real and imaginary parts."""
    angle = -2 * np.pi * np.arange(count) / n
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


@njit(cache=True, error_model="numpy")
def load_windows(samples: NDArray[np.float32], first: int, hop: int, window: Floats, out: Floats) -> None:
    """Write eight windows into the complex array `out`; they begin at sample `first` and are `hop` samples apart.

    `window` (n_fft,) holds the weights.
    """
    if len(window) % 2 == 0:
        for i in range(len(window)):
            store(out, i * LANES, window[i] * gather(samples, first + i, hop))
    else:
        for i in range(len(window)):
            store(out, 2 * i * LANES, window[i] * gather(samples, first + i, hop))
            store(out, (2 * i + 1) * LANES, splat(0.0))


@njit(cache=True, error_model="numpy")
def power_spectrum(
    x: Floats, y: Floats, n_fft: int, factors: Integers, roots: Floats, split: Floats, out: Floats
) -> None:
    """Write the powers of the windows in `x` into `out`, (bin × LANES,) with n_fft // 2 + 1 bins.

    `x` and `y` are complex arrays, which are both overwritten; `factors`, `roots` and `split` are a `Transform`.
    """
    n, stride = len(roots), 1
    for radix in factors:
        if radix == RADIX_4:
            _pass_4(x, y, n, stride, roots)
        elif radix == RADIX_5:
            _pass_5(x, y, n, stride, roots)
        else:
            _pass_any(x, y, radix, n, stride, roots)
        n, stride = n // radix, stride * radix
        x, y = y, x
    if n_fft % 2:
        _powers_of_complex(x, out, n_fft // 2 + 1)
    else:
        _powers_of_halves(x, split, out)


@njit(cache=True, error_model="numpy")
def _put(y, place, real, imaginary, cosine, sine):  # type: ignore[no-untyped-def] # vectors have no Python type
    """Write a complex value times a root, cosine + i × sine."""
    store(y, place, cosine * real - sine * imaginary)
    store(y, place + LANES, cosine * imaginary + sine * real)


@njit(cache=True, error_model="numpy")
def _pass_4(x: Floats, y: Floats, n: int, stride: int, roots: Floats) -> None:
    """Write one pass, of radix 4, from `x` into `y`: `stride` interleaved transforms of length `n`."""
    parts = n // 4
    step = len(roots) // n
    apart, between = 2 * stride * parts * LANES, 2 * stride * LANES
    for p in range(parts):
        c1, c2, c3 = roots[p * step, 0], roots[2 * p * step, 0], roots[3 * p * step, 0]
        s1, s2, s3 = roots[p * step, 1], roots[2 * p * step, 1], roots[3 * p * step, 1]
        for q in range(stride):
            a, o = 2 * (q + stride * p) * LANES, 2 * (q + stride * 4 * p) * LANES
            ar, ai = load(x, a), load(x, a + LANES)
            br, bi = load(x, a + apart), load(x, a + apart + LANES)
            cr, ci = load(x, a + 2 * apart), load(x, a + 2 * apart + LANES)
            dr, di = load(x, a + 3 * apart), load(x, a + 3 * apart + LANES)
            er, ei, fr, fi = ar + cr, ai + ci, ar - cr, ai - ci
            gr, gi, hr, hi = br + dr, bi + di, br - dr, bi - di
            store(y, o, er + gr)
            store(y, o + LANES, ei + gi)
            _put(y, o + between, fr + hi, fi - hr, c1, s1)
            _put(y, o + 2 * between, er - gr, ei - gi, c2, s2)
            _put(y, o + 3 * between, fr - hi, fi + hr, c3, s3)


@njit(cache=True, error_model="numpy")
def _pass_5(x: Floats, y: Floats, n: int, stride: int, roots: Floats) -> None:
    """Write one pass, of radix 5; arguments as for `_pass_4`."""
    parts = n // 5
    step = len(roots) // n
    apart, between = 2 * stride * parts * LANES, 2 * stride * LANES
    for p in range(parts):
        c1, c2, c3, c4 = (
            roots[p * step, 0], roots[2 * p * step, 0], roots[3 * p * step, 0], roots[4 * p * step, 0]
        )  # fmt: skip
        s1, s2, s3, s4 = (
            roots[p * step, 1], roots[2 * p * step, 1], roots[3 * p * step, 1], roots[4 * p * step, 1]
        )  # fmt: skip
        for q in range(stride):
            a, o = 2 * (q + stride * p) * LANES, 2 * (q + stride * 5 * p) * LANES
            ar, ai = load(x, a), load(x, a + LANES)
            br, bi = load(x, a + apart), load(x, a + apart + LANES)
            cr, ci = load(x, a + 2 * apart), load(x, a + 2 * apart + LANES)
            dr, di = load(x, a + 3 * apart), load(x, a + 3 * apart + LANES)
            er, ei = load(x, a + 4 * apart), load(x, a + 4 * apart + LANES)
            # sums and differences of the inputs whose roots are conjugate
            tr1, ti1, d1r, d1i = br + er, bi + ei, br - er, bi - ei
            tr2, ti2, d2r, d2i = cr + dr, ci + di, cr - dr, ci - di
            store(y, o, ar + tr1 + tr2)
            store(y, o + LANES, ai + ti1 + ti2)
            m1r, m1i = ar + COS_1 * tr1 + COS_2 * tr2, ai + COS_1 * ti1 + COS_2 * ti2
            m2r, m2i = ar + COS_2 * tr1 + COS_1 * tr2, ai + COS_2 * ti1 + COS_1 * ti2
            n1r, n1i = SIN_1 * d1r + SIN_2 * d2r, SIN_1 * d1i + SIN_2 * d2i
            n2r, n2i = SIN_2 * d1r - SIN_1 * d2r, SIN_2 * d1i - SIN_1 * d2i
            _put(y, o + between, m1r + n1i, m1i - n1r, c1, s1)
            _put(y, o + 2 * between, m2r + n2i, m2i - n2r, c2, s2)
            _put(y, o + 3 * between, m2r - n2i, m2i + n2r, c3, s3)
            _put(y, o + 4 * between, m1r - n1i, m1i + n1r, c4, s4)


@njit(cache=True, error_model="numpy")
def _pass_any(x: Floats, y: Floats, radix: int, n: int, stride: int, roots: Floats) -> None:
    """Write one pass, of any radix, by the definition of the discrete Fourier transform."""
    parts, length = n // radix, len(roots)
    step, turn = length // n, length // radix
    for p in range(parts):
        for q in range(stride):
            a = 2 * (q + stride * p) * LANES
            for k in range(radix):
                real, imaginary, w = load(x, a), load(x, a + LANES), 0
                for j in range(1, radix):
                    w += k * turn
                    w -= length if w >= length else 0
                    b = a + 2 * j * stride * parts * LANES
                    br, bi = load(x, b), load(x, b + LANES)
                    real, imaginary = (
                        real + roots[w, 0] * br - roots[w, 1] * bi,
                        imaginary + roots[w, 0] * bi + roots[w, 1] * br,
                    )
                o, w = 2 * (q + stride * (radix * p + k)) * LANES, p * k * step
                _put(y, o, real, imaginary, roots[w, 0], roots[w, 1])


@njit(cache=True, error_model="numpy")
def _powers_of_halves(x: Floats, split: Floats, out: Floats) -> None:
    """Write the powers for an even length, from the transform of even samples + i × odd samples.

    The transforms of even and odd samples are separated by symmetry, and joined by the roots in `split`.
    """
    n = len(split) - 1
    real, imaginary = load(x, 0), load(x, LANES)
    store(out, 0, (real + imaginary) * (real + imaginary))
    store(out, n * LANES, (real - imaginary) * (real - imaginary))
    for k in range(1, n):
        a, b = 2 * k * LANES, 2 * (n - k) * LANES
        ar, ai, br, bi = load(x, a), load(x, a + LANES), load(x, b), load(x, b + LANES)
        even_r, even_i, odd_r, odd_i = ar + br, ai - bi, ai + bi, br - ar
        real = even_r + split[k, 0] * odd_r - split[k, 1] * odd_i
        imaginary = even_i + split[k, 1] * odd_r + split[k, 0] * odd_i
        store(out, k * LANES, 0.25 * (real * real + imaginary * imaginary))


@njit(cache=True, error_model="numpy")
def _powers_of_complex(x: Floats, out: Floats, count: int) -> None:
    """Write the squared magnitudes of the first `count` complex values of `x`."""
    for k in range(count):
        real, imaginary = load(x, 2 * k * LANES), load(x, (2 * k + 1) * LANES)
        store(out, k * LANES, real * real + imaginary * imaginary)
