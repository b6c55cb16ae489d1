// Packs lines of a matrix side by side into panels [depth][width], in the order in which the micro-kernel reads them. A
// line is a row of the left operand or a column of the right operand. The last panel is padded with zeros.

/**
 * Packs `lines` lines of `depth` elements into ⌈lines / width⌉ panels of depth · width elements at `to`, `panelBytes`
 * apart. Element p of line i is at from + i·stride + p·size if lines are contiguous, else at from + p·stride + i·size.
 * The stride is in bytes.
 */
export function pack<T>(
  from: usize,
  stride: usize,
  contiguous: bool,
  lines: i32,
  depth: i32,
  width: i32,
  to: usize,
  panelBytes: usize,
): void {
  for (let i = 0; i < lines; i += width) {
    const source = from + <usize>i * (contiguous ? stride : sizeof<T>())
    packPanel<T>(source, stride, contiguous, min(width, lines - i), depth, width, to)
    to += panelBytes
  }
}

function packPanel<T>(
  from: usize,
  stride: usize,
  contiguous: bool,
  lines: i32,
  depth: i32,
  width: i32,
  to: usize,
): void {
  const step = <usize>width * sizeof<T>()
  const next = contiguous ? stride : sizeof<T>()
  if (lines < width) memory.fill(to, 0, step * <usize>depth)
  while (lines > 0) {
    const group = lines < 16 / <i32>sizeof<T>() ? 1 : 16 / <i32>sizeof<T>()
    if (group == 1) copyLine<T>(from, contiguous ? sizeof<T>() : stride, depth, to, step)
    else if (!contiguous) copyVector(from, stride, depth, to, step)
    else if (sizeof<T>() == 4) interleave4(from, stride, depth, to, step)
    else interleave2(from, stride, depth, to, step)
    lines -= group
    from += <usize>group * next
    to += <usize>group * sizeof<T>()
  }
}

function copyLine<T>(from: usize, stride: usize, depth: i32, to: usize, step: usize): void {
  for (; depth > 0; depth--) {
    store<T>(to, load<T>(from))
    from += stride
    to += step
  }
}

function copyVector(from: usize, stride: usize, depth: i32, to: usize, step: usize): void {
  for (; depth > 0; depth--) {
    v128.store(to, v128.load(from))
    from += stride
    to += step
  }
}

function interleave4(from: usize, stride: usize, depth: i32, to: usize, step: usize): void {
  for (; depth >= 4; depth -= 4) {
    const a = v128.load(from)
    const b = v128.load(from + stride)
    const c = v128.load(from + 2 * stride)
    const d = v128.load(from + 3 * stride)
    const ab = i32x4.shuffle(a, b, 0, 4, 1, 5)
    const cd = i32x4.shuffle(c, d, 0, 4, 1, 5)
    const AB = i32x4.shuffle(a, b, 2, 6, 3, 7)
    const CD = i32x4.shuffle(c, d, 2, 6, 3, 7)
    v128.store(to, i32x4.shuffle(ab, cd, 0, 1, 4, 5))
    v128.store(to + step, i32x4.shuffle(ab, cd, 2, 3, 6, 7))
    v128.store(to + 2 * step, i32x4.shuffle(AB, CD, 0, 1, 4, 5))
    v128.store(to + 3 * step, i32x4.shuffle(AB, CD, 2, 3, 6, 7))
    from += 16
    to += 4 * step
  }
  for (; depth > 0; depth--) {
    for (let i: usize = 0; i < 4; i++) store<f32>(to + 4 * i, load<f32>(from + i * stride))
    from += 4
    to += step
  }
}

function interleave2(from: usize, stride: usize, depth: i32, to: usize, step: usize): void {
  for (; depth >= 2; depth -= 2) {
    const a = v128.load(from)
    const b = v128.load(from + stride)
    v128.store(to, i64x2.shuffle(a, b, 0, 2))
    v128.store(to + step, i64x2.shuffle(a, b, 1, 3))
    from += 16
    to += 2 * step
  }
  if (depth > 0) {
    store<f64>(to, load<f64>(from))
    store<f64>(to + 8, load<f64>(from + stride))
  }
}
