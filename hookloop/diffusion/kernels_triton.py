"""The passes between convolutions, written in Triton: only ``fused`` launches them.

A tensor ``[sample, channel, lat, lon]`` is read as ``[sample, channel, pixel]`` through its strides, so that one kernel
serves both layouts: where a stride is 1, Triton compiles for it. A program works on a tile of ``[C, P]`` channels by
pixels of one sample. Everything is computed in float32; sums run in an order that is always the same, without
atomics. Offsets of a whole tile are 64 bits wide, those within it 32.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-untyped-def,no-untyped-call,misc"
# ruff: noqa: ANN001, ANN201, ANN202, N803, PLR0913, PLR0917

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _origin(tensor, sample, channel, pixel, by_sample, by_channel, by_pixel):
    """Where a tile begins."""
    return (
        tensor
        + sample.to(tl.int64) * by_sample
        + channel.to(tl.int64) * by_channel
        + pixel.to(tl.int64) * by_pixel
    )


@triton.jit
def _logistic(z):
    """1 / (1 + exp(-z))."""
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit(do_not_specialize=["tiles", "chunks"])
def statistics(
    x,
    joined,
    partial,
    channels,
    pixels,
    tiles,
    chunks,
    first,
    total,
    x_sample,
    x_channel,
    x_pixel,
    j_sample,
    j_channel,
    j_pixel,
    JOIN: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
):
    """Mean and summed squared deviation of each channel in each chunk of pixels, after Welford (1962).

    Every lane of the tile keeps its own; Chan et al. (1983) say how they merge. *partial* is
    ``[2, sample, total, chunks]``, and this *x* has its channels there and in *joined* from *first* on.
    With ``JOIN`` what was read is written to *joined* too: concatenation costs no pass of its own.
    """
    at, sample = tl.program_id(0), tl.program_id(2)
    channel, pixel = tl.program_id(1) * C, at * tiles * P
    c, p = tl.arange(0, C)[:, None], tl.arange(0, P)[None, :]
    source = _origin(x, sample, channel, pixel, x_sample, x_channel, x_pixel)
    copy = _origin(joined, sample, channel + first, pixel, j_sample, j_channel, j_pixel)
    mean = tl.zeros([C, P], tl.float32)
    spread = tl.zeros([C, P], tl.float32)
    seen = 0.0
    for start in range(0, tiles * P, P):
        valid = (channel + c < channels) & (pixel + start + p < pixels)
        value = tl.load(source + c * x_channel + (start + p) * x_pixel, mask=valid, other=0.0)
        if JOIN:
            tl.store(copy + c * j_channel + (start + p) * j_pixel, value, mask=valid)
        seen += 1.0
        deviation = tl.where(valid, value.to(tl.float32) - mean, 0.0)
        mean += deviation / seen
        spread += deviation * tl.where(valid, value.to(tl.float32) - mean, 0.0)
    here = tl.minimum(tiles * P, pixels - pixel)
    count = tl.maximum((here - p + P - 1) // P, 0).to(tl.float32)  # what each lane has seen
    centre = tl.sum(mean * count, 1) / here
    apart = mean - centre[:, None]
    squares = tl.sum(spread + count * apart * apart, 1)
    row = tl.arange(0, C) + channel
    index = (sample * total + first + row) * chunks + at
    tl.store(partial + index, centre, mask=row < channels)
    tl.store(partial + tl.num_programs(2) * total * chunks + index, squares, mask=row < channels)


@triton.jit(do_not_specialize=["chunk", "chunks"])
def coefficients(
    partial,
    weight,
    bias,
    before,
    modulation,
    coefficient,
    rstd,
    channels,
    pixels,
    chunk,
    chunks,
    group,
    m_sample,
    epsilon,
    BEFORE: tl.constexpr,
    MODULATION: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
):
    """Merge the chunks of a group, and say what becomes of each of its channels: silu((x - centre)·slope + shift).

    *coefficient* is ``[4, sample, channel]``: centre, slope, shift, and how far the channel's mean (with *before*
    added) is from its group's, which the gradient of *before* needs. *rstd* is ``[sample, group]``.
    """
    sample, which = tl.program_id(1), tl.program_id(0)
    c = tl.arange(0, C)
    row = which * group + c
    inside = c < group
    start = (sample * channels + row[:, None]) * chunks
    size = tl.num_programs(1) * channels
    total = tl.zeros([C], tl.float32)
    for first in range(0, chunks, K):
        k = first + tl.arange(0, K)[None, :]
        valid = inside[:, None] & (k < chunks)
        count = tl.minimum(chunk, pixels - k * chunk).to(tl.float32)
        total += tl.sum(tl.load(partial + start + k, mask=valid, other=0.0) * count, 1)
    mean = total / pixels
    squares = tl.zeros([C], tl.float32)
    for first in range(0, chunks, K):
        k = first + tl.arange(0, K)[None, :]
        valid = inside[:, None] & (k < chunks)
        count = tl.minimum(chunk, pixels - k * chunk).to(tl.float32)
        apart = tl.load(partial + start + k, mask=valid, other=0.0) - mean[:, None]
        spread = tl.load(partial + size * chunks + start + k, mask=valid, other=0.0)
        squares += tl.sum(tl.where(valid, spread + count * apart * apart, 0.0), 1)
    added = tl.zeros([C], tl.float32)
    if BEFORE:
        added = tl.load(before + row, mask=inside, other=0.0).to(tl.float32)
    mean += added
    centre = tl.sum(tl.where(inside, mean, 0.0)) / group
    apart = tl.where(inside, mean - centre, 0.0)
    variance = (tl.sum(squares) / pixels + tl.sum(apart * apart)) / group
    inverse = 1.0 / tl.sqrt(variance + epsilon)
    slope = tl.load(weight + row, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)
    if MODULATION:
        scale = modulation + sample * m_sample + row
        factor = 1.0 + tl.load(scale, mask=inside, other=0.0).to(tl.float32)
        slope *= factor
        shift = shift * factor + tl.load(scale + channels, mask=inside, other=0.0).to(tl.float32)
    place = coefficient + sample * channels + row
    tl.store(place, centre - added, mask=inside)
    tl.store(place + size, slope * inverse, mask=inside)
    tl.store(place + 2 * size, shift, mask=inside)
    tl.store(place + 3 * size, apart, mask=inside)
    tl.store(rstd + sample * tl.num_programs(0) + which, inverse)


@triton.jit
def activate(
    x,
    y,
    coefficient,
    channels,
    pixels,
    x_sample,
    x_channel,
    x_pixel,
    y_sample,
    y_channel,
    y_pixel,
    C: tl.constexpr,
    P: tl.constexpr,
):
    """Write silu((x - centre)·slope + shift).

    Samples come in the opposite order of ``statistics``: what that read last is still in the cache.
    """
    sample = tl.num_programs(2) - 1 - tl.program_id(2)
    channel, pixel = tl.program_id(1) * C, tl.program_id(0) * P
    c, p = tl.arange(0, C), tl.arange(0, P)
    valid = (channel + c < channels)[:, None] & (pixel + p < pixels)[None, :]
    size = tl.num_programs(2) * channels
    row = coefficient + sample * channels + channel + c
    inside = channel + c < channels
    centre = tl.load(row, mask=inside, other=0.0)[:, None]
    slope = tl.load(row + size, mask=inside, other=0.0)[:, None]
    shift = tl.load(row + 2 * size, mask=inside, other=0.0)[:, None]
    source = _origin(x, sample, channel, pixel, x_sample, x_channel, x_pixel)
    value = tl.load(source + c[:, None] * x_channel + p[None, :] * x_pixel, mask=valid, other=0.0)
    z = (value.to(tl.float32) - centre) * slope + shift
    target = _origin(y, sample, channel, pixel, y_sample, y_channel, y_pixel)
    answer = (z * _logistic(z)).to(y.dtype.element_ty)
    tl.store(target + c[:, None] * y_channel + p[None, :] * y_pixel, answer, mask=valid)


@triton.jit(do_not_specialize=["tiles", "chunks"])
def reduce_gradient(
    x,
    gradient,
    coefficient,
    partial,
    channels,
    pixels,
    tiles,
    chunks,
    x_sample,
    x_channel,
    x_pixel,
    g_sample,
    g_channel,
    g_pixel,
    C: tl.constexpr,
    P: tl.constexpr,
):
    """Sum dz and dz·(x - centre) over each channel of each chunk, z what goes into silu.

    *partial* is ``[2, sample, channel, chunks]``.
    """
    at, sample = tl.program_id(0), tl.program_id(2)
    channel, pixel = tl.program_id(1) * C, at * tiles * P
    c, p = tl.arange(0, C), tl.arange(0, P)[None, :]
    inside = channel + c < channels
    size = tl.num_programs(2) * channels
    row = coefficient + sample * channels + channel + c
    centre = tl.load(row, mask=inside, other=0.0)[:, None]
    slope = tl.load(row + size, mask=inside, other=0.0)[:, None]
    shift = tl.load(row + 2 * size, mask=inside, other=0.0)[:, None]
    source = _origin(x, sample, channel, pixel, x_sample, x_channel, x_pixel)
    upstream = _origin(gradient, sample, channel, pixel, g_sample, g_channel, g_pixel)
    plain = tl.zeros([C, P], tl.float32)
    weighted = tl.zeros([C, P], tl.float32)
    for start in range(0, tiles * P, P):
        valid = inside[:, None] & (pixel + start + p < pixels)
        away = tl.load(source + c[:, None] * x_channel + (start + p) * x_pixel, mask=valid, other=0.0)
        above = tl.load(upstream + c[:, None] * g_channel + (start + p) * g_pixel, mask=valid, other=0.0)
        distance = away.to(tl.float32) - centre
        z = distance * slope + shift
        share = _logistic(z)
        dz = above.to(tl.float32) * share * (1.0 + z * (1.0 - share))  # 0 where it is not valid
        plain += dz
        weighted += dz * distance
    index = (sample * channels + channel + c) * chunks + at
    tl.store(partial + index, tl.sum(plain, 1), mask=inside)
    tl.store(partial + size * chunks + index, tl.sum(weighted, 1), mask=inside)


@triton.jit(do_not_specialize=["samples", "chunks"])
def finish_gradient(
    partial,
    coefficient,
    rstd,
    weight,
    bias,
    modulation,
    correction,
    d_weight,
    d_bias,
    d_before,
    d_modulation,
    samples,
    channels,
    pixels,
    chunks,
    group,
    m_sample,
    BEFORE: tl.constexpr,
    MODULATION: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
):
    """Give the gradients of everything that is small, and what ``differentiate`` needs; a program does a group.

    *correction* is ``[2, sample, channel]``, the same for all channels of a group: dx = slope·dz - first
    - (x - centre)·second. *d_before* follows from sums already taken: no pass over dx is needed.
    """
    which = tl.program_id(0)
    c = tl.arange(0, C)
    row = which * group + c
    inside = c < group
    size = samples * channels
    gamma = tl.load(weight + row, mask=inside, other=0.0).to(tl.float32)[None, :]
    beta = tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)[None, :]
    sum_weight = tl.zeros([C], tl.float32)
    sum_bias = tl.zeros([C], tl.float32)
    sum_before = tl.zeros([C], tl.float32)
    for first in range(0, samples, B):
        sample = first + tl.arange(0, B)
        present = sample < samples
        valid = present[:, None] & inside[None, :]
        place = sample[:, None] * channels + row[None, :]
        plain = tl.zeros([B, C], tl.float32)
        weighted = tl.zeros([B, C], tl.float32)
        for k0 in range(0, chunks, K):
            k = k0 + tl.arange(0, K)[None, None, :]
            index = place[:, :, None] * chunks + k
            known = valid[:, :, None] & (k < chunks)
            plain += tl.sum(tl.load(partial + index, mask=known, other=0.0), 2)
            weighted += tl.sum(tl.load(partial + size * chunks + index, mask=known, other=0.0), 2)
        slope = tl.load(coefficient + size + place, mask=valid, other=0.0)
        apart = tl.load(coefficient + 3 * size + place, mask=valid, other=0.0)
        inverse = tl.load(rstd + sample * tl.num_programs(0) + which, mask=present, other=0.0)[:, None]
        elements = 1.0 * group * pixels
        level = tl.sum(slope * plain, 1)[:, None] / elements
        tilt = inverse * inverse * (tl.sum(slope * weighted, 1)[:, None] / elements)
        tl.store(correction + place, level + tl.zeros([B, C], tl.float32), mask=valid)
        tl.store(correction + size + place, tilt + tl.zeros([B, C], tl.float32), mask=valid)
        normalised = weighted * inverse
        factor = tl.full([B, C], 1.0, tl.float32)
        if MODULATION:
            scale = modulation + sample[:, None] * m_sample + row[None, :]
            factor += tl.load(scale, mask=valid, other=0.0).to(tl.float32)
            target = d_modulation + sample[:, None] * 2 * channels + row[None, :]
            d_scale = gamma * normalised + beta * plain
            tl.store(target, d_scale.to(d_modulation.dtype.element_ty), mask=valid)
            tl.store(target + channels, plain.to(d_modulation.dtype.element_ty), mask=valid)
        sum_weight += tl.sum(factor * normalised, 0)
        sum_bias += tl.sum(factor * plain, 0)
        sum_before += tl.sum(slope * plain - pixels * (level + tilt * apart), 0)
    tl.store(d_weight + row, sum_weight.to(d_weight.dtype.element_ty), mask=inside)
    tl.store(d_bias + row, sum_bias.to(d_bias.dtype.element_ty), mask=inside)
    if BEFORE:
        tl.store(d_before + row, sum_before.to(d_before.dtype.element_ty), mask=inside)


@triton.jit
def differentiate(
    x,
    gradient,
    beside,
    coefficient,
    correction,
    dx,
    channels,
    pixels,
    x_sample,
    x_channel,
    x_pixel,
    g_sample,
    g_channel,
    g_pixel,
    b_sample,
    b_channel,
    b_pixel,
    d_sample,
    d_channel,
    d_pixel,
    BESIDE: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
):
    """Write the gradient of x, with ``BESIDE`` added to what x got on another way; samples in opposite order."""
    sample = tl.num_programs(2) - 1 - tl.program_id(2)
    channel, pixel = tl.program_id(1) * C, tl.program_id(0) * P
    c, p = tl.arange(0, C), tl.arange(0, P)
    inside = channel + c < channels
    valid = inside[:, None] & (pixel + p < pixels)[None, :]
    size = tl.num_programs(2) * channels
    row = sample * channels + channel + c
    centre = tl.load(coefficient + row, mask=inside, other=0.0)[:, None]
    slope = tl.load(coefficient + size + row, mask=inside, other=0.0)[:, None]
    shift = tl.load(coefficient + 2 * size + row, mask=inside, other=0.0)[:, None]
    level = tl.load(correction + row, mask=inside, other=0.0)[:, None]
    tilt = tl.load(correction + size + row, mask=inside, other=0.0)[:, None]
    source = _origin(x, sample, channel, pixel, x_sample, x_channel, x_pixel)
    upstream = _origin(gradient, sample, channel, pixel, g_sample, g_channel, g_pixel)
    away = tl.load(source + c[:, None] * x_channel + p[None, :] * x_pixel, mask=valid, other=0.0)
    above = tl.load(upstream + c[:, None] * g_channel + p[None, :] * g_pixel, mask=valid, other=0.0)
    distance = away.to(tl.float32) - centre
    z = distance * slope + shift
    share = _logistic(z)
    answer = above.to(tl.float32) * share * (1.0 + z * (1.0 - share)) * slope - level - distance * tilt
    if BESIDE:
        other = _origin(beside, sample, channel, pixel, b_sample, b_channel, b_pixel)
        more = tl.load(other + c[:, None] * b_channel + p[None, :] * b_pixel, mask=valid, other=0.0)
        answer += more.to(tl.float32)
    target = _origin(dx, sample, channel, pixel, d_sample, d_channel, d_pixel)
    tl.store(
        target + c[:, None] * d_channel + p[None, :] * d_pixel, answer.to(dx.dtype.element_ty), mask=valid
    )


@triton.jit
def merge(
    x,
    h,
    bias,
    out,
    factor,
    channels,
    pixels,
    x_sample,
    x_channel,
    x_pixel,
    h_sample,
    h_channel,
    h_pixel,
    o_sample,
    o_channel,
    o_pixel,
    C: tl.constexpr,
    P: tl.constexpr,
):
    """Write (x + h + bias)·factor."""
    sample = tl.program_id(2)
    channel, pixel = tl.program_id(1) * C, tl.program_id(0) * P
    c, p = tl.arange(0, C), tl.arange(0, P)
    inside = channel + c < channels
    valid = inside[:, None] & (pixel + p < pixels)[None, :]
    source = _origin(x, sample, channel, pixel, x_sample, x_channel, x_pixel)
    branch = _origin(h, sample, channel, pixel, h_sample, h_channel, h_pixel)
    one = tl.load(source + c[:, None] * x_channel + p[None, :] * x_pixel, mask=valid, other=0.0)
    two = tl.load(branch + c[:, None] * h_channel + p[None, :] * h_pixel, mask=valid, other=0.0)
    added = tl.load(bias + channel + c, mask=inside, other=0.0).to(tl.float32)[:, None]
    answer = (one.to(tl.float32) + two.to(tl.float32) + added) * factor
    target = _origin(out, sample, channel, pixel, o_sample, o_channel, o_pixel)
    tl.store(
        target + c[:, None] * o_channel + p[None, :] * o_pixel, answer.to(out.dtype.element_ty), mask=valid
    )


@triton.jit(do_not_specialize=["tiles", "chunks"])
def divide_gradient(
    gradient,
    dx,
    partial,
    factor,
    channels,
    pixels,
    tiles,
    chunks,
    g_sample,
    g_channel,
    g_pixel,
    d_sample,
    d_channel,
    d_pixel,
    C: tl.constexpr,
    P: tl.constexpr,
):
    """Write gradient·factor, and its sum over each channel of each chunk: *partial* ``[sample, chunks, channel]``."""
    at, sample = tl.program_id(0), tl.program_id(2)
    channel, pixel = tl.program_id(1) * C, at * tiles * P
    c, p = tl.arange(0, C), tl.arange(0, P)[None, :]
    inside = channel + c < channels
    source = _origin(gradient, sample, channel, pixel, g_sample, g_channel, g_pixel)
    target = _origin(dx, sample, channel, pixel, d_sample, d_channel, d_pixel)
    total = tl.zeros([C, P], tl.float32)
    for start in range(0, tiles * P, P):
        valid = inside[:, None] & (pixel + start + p < pixels)
        above = tl.load(source + c[:, None] * g_channel + (start + p) * g_pixel, mask=valid, other=0.0)
        answer = above.to(tl.float32) * factor
        place = target + c[:, None] * d_channel + (start + p) * d_pixel
        tl.store(place, answer.to(dx.dtype.element_ty), mask=valid)
        total += answer
    tl.store(partial + (sample * chunks + at) * channels + channel + c, tl.sum(total, 1), mask=inside)
