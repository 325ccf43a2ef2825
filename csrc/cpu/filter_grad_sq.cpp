// The CPU's own routes. Compiled once per instruction set, into the namespace TASK2VEC_ISA.
//
// All read channels-last: a vector holds neighbouring channels or filters of one pixel. A sample in another layout is
// first copied so, on its own.
#include <algorithm>
#include <vector>

#include "aligned.h"
#include "instruction_sets.h"
#include "simd.h"

namespace task2vec {
namespace {

// ---- memory ------------------------------------------------------------------------------------------------

enum Slot { kInput, kGradOutput, kLeft, kRight, kProduct, kPadded, kSlots };

// A thread's buffers, kept from call to call: fresh pages for every layer would cost as much as a route. What a layer
// with a large sample needs beyond kKept goes back when the task is done.
class Scratch {
 public:
  static constexpr size_t kKept = 16 << 20;  // bytes

  template <class T>
  T* get(Slot slot, ptrdiff_t count) {
    constexpr ptrdiff_t kSlack = 2 * kColumns<T>;  // a vector at the end may reach beyond it
    const size_t bytes = static_cast<size_t>(count + kSlack) * sizeof(T);
    if (buffers_[slot].size() < bytes) {
      release(slot);  // nothing in it is worth moving
      buffers_[slot].resize(bytes);
      held_ += bytes;
      count_scratch(static_cast<int64_t>(bytes));
    }
    return reinterpret_cast<T*>(buffers_[slot].data());
  }
  void trim() {
    while (held_ > kKept) {
      int largest = 0;
      for (int slot = 1; slot < kSlots; ++slot)
        if (buffers_[slot].size() > buffers_[largest].size()) largest = slot;
      release(largest);
    }
  }
  ~Scratch() {
    for (int slot = 0; slot < kSlots; ++slot) release(slot);
  }

 private:
  AlignedVector<unsigned char> buffers_[kSlots];
  size_t held_ = 0;

  void release(int slot) {
    count_scratch(-static_cast<int64_t>(buffers_[slot].size()));
    held_ -= buffers_[slot].size();
    AlignedVector<unsigned char>().swap(buffers_[slot]);
  }
};
thread_local Scratch thread_scratch;

template <class T>
T* scratch(Slot slot, ptrdiff_t count) {
  return thread_scratch.get<T>(slot, count);
}

// One sample with its channels side by side.
template <class T>
struct Image {
  const T* data;
  int64_t stride_h, stride_w;
  int channels, height, width;

  const T* at(int64_t h, int64_t w) const { return data + h * stride_h + w * stride_w; }
};

// The sample itself where its channels are adjacent and, if `whole_columns`, fill whole tiles; else a copy.
template <class T>
Image<T> channels_last(const T* data,
                       const std::array<int64_t, 3>& stride,
                       int channels,
                       int height,
                       int width,
                       bool whole_columns,
                       Slot slot) {
  if ((stride[0] == 1 || channels == 1) && !(whole_columns && channels % kColumns<T>))
    return {data, stride[1], stride[2], channels, height, width};
  const int64_t pitch = whole_columns ? round_up(channels, kColumns<T>) : channels;
  T* copy = scratch<T>(slot, height * width * pitch);
  constexpr int kBlock = 16;
  for (int h = 0; h < height; ++h)
    for (int w0 = 0; w0 < width; w0 += kBlock)
      for (int c = 0; c < pitch; ++c)
        for (int w = w0; w < std::min(w0 + kBlock, width); ++w)
          copy[(int64_t{h} * width + w) * pitch + c] =
              c < channels ? data[c * stride[0] + h * stride[1] + w * stride[2]] : T(0);
  return {copy, width * pitch, pitch, channels, height, width};
}

// ---- direct: any convolution ------------------------------------------------------------------------------------
//
// g[o,p] = Σ_q δ[q,o]·patch[q,p], p = (kh, kw, i): a block of filters and columns stays in the cache while the output's
// rows pass by. Pointwise layers read their input where it lies; others unfold a few rows at a time.

constexpr int kDirectFilters = 256, kDirectColumns = 512;  // of g held at once
constexpr int kDirectDepth = 128;                          // locations between two visits of a tile of g

// The sample with its zero padding, so that no window leaves it.
template <class T>
Image<T> padded(const Image<T>& x, int padding_h, int padding_w) {
  const int height = x.height + 2 * padding_h, width = x.width + 2 * padding_w;
  const ptrdiff_t row = ptrdiff_t{width} * x.channels;
  T* const copy = scratch<T>(kPadded, height * row);
  std::fill(copy, copy + height * row, T(0));
  for (int h = 0; h < x.height; ++h) {
    T* to = copy + (h + padding_h) * row + ptrdiff_t{padding_w} * x.channels;
    for (int w = 0; w < x.width; ++w, to += x.channels) std::copy_n(x.at(h, w), x.channels, to);
  }
  return {copy, row, x.channels, x.channels, height, width};
}

// A run of a patch's columns that lie side by side in the image.
struct Run {
  ptrdiff_t from;  // relative to the window's first pixel
  int to, count;
};

// The runs of columns [first, last), last − first ≤ kColumns.
template <class T>
int runs_of(const Image<T>& x, const Conv& conv, int first, int last, Run* runs) {
  // Where windows have no holes, a window's row is one run of memory; else a pixel is.
  const int length = (conv.dilation_w == 1 ? conv.kernel_w : 1) * x.channels,
            in_row = conv.kernel_w * x.channels / length;
  int count = 0;
  for (int p = first; p < last; p += runs[count - 1].count) {
    const int run = p / length, offset = p % length;
    runs[count++] = {run / in_row * conv.dilation_h * x.stride_h + run % in_row * conv.dilation_w * x.stride_w + offset,
                     p - first, std::min(length - offset, last - p)};
  }
  return count;
}

// Output rows [h0, h1) of δ, filters [first, last): [filters / kRows][depth][kRows].
template <class T>
void pack_filters(const Image<T>& delta, int h0, int h1, int first, int last, ptrdiff_t depth, T* out) {
  for (int h = h0; h < h1; ++h)
    for (int w = 0; w < delta.width; ++w, out += kRows) {
      const T* from = delta.at(h, w) + first;
      T* to = out;
      for (int o = first; o < last; o += kRows, from += kRows, to += depth * kRows)
        std::memcpy(to, from, kRows * sizeof(T));
    }
}

// Output rows [h0, h1) of the unfolded input, columns [first, last): [locations][kColumns].
template <class T>
void pack_columns(const Image<T>& x, const Conv& conv, int h0, int h1, int first, int last, T* out) {
  Run runs[kColumns<T>];
  const int count = runs_of(x, conv, first, last, runs);
  const bool whole = runs[0].count == kColumns<T>;
  for (int h = h0; h < h1; ++h)
    for (int w = 0; w < conv.out_width; ++w, out += kColumns<T>) {
      const T* const window = x.at(int64_t{h} * conv.stride_h, int64_t{w} * conv.stride_w);
      if (whole) {
        for (int j = 0; j < 2; ++j) store(out + j * kLanes<T>, load(window + runs[0].from + j * kLanes<T>));
        continue;
      }
      // Whole vectors: what is too much is overwritten by the next run, or by the next location.
      for (const Run* run = runs; run < runs + count; ++run)
        for (int c = 0; c < run->count; c += kLanes<T>) store(out + run->to + c, load(window + run->from + c));
    }
}

template <class T>
T sum_of_squares(const T* from, ptrdiff_t count) {
  Vector<T> total = {};
  for (; count >= kLanes<T>; from += kLanes<T>, count -= kLanes<T>) total += load(from) * load(from);
  const Vector<T> rest = load_some(from, count);
  return sum<T>(total + rest * rest);
}

template <class T>
void direct_route(const CpuTask<T>& task) {
  const Conv& conv = task.conv;
  const bool pointwise = conv.kernel_h == 1 && conv.kernel_w == 1 && conv.padding_h == 0 && conv.padding_w == 0;
  auto x =
      channels_last(task.input, task.input_stride, conv.group_channels, conv.height, conv.width, pointwise, kInput);
  if (!pointwise) x = padded(x, conv.padding_h, conv.padding_w);
  const auto delta = channels_last(task.grad_output, task.grad_stride, task.filters, conv.out_height, conv.out_width,
                                   true, kGradOutput);
  const int patch = conv.patch_size(), column_blocks = (patch + kDirectColumns - 1) / kDirectColumns;
  const int block = static_cast<int>(round_up((patch + column_blocks - 1) / column_blocks, kColumns<T>));
  const int rows = std::max(1, kDirectDepth / conv.out_width);
  const ptrdiff_t depth = ptrdiff_t{rows} * conv.out_width, g_pitch = block;
  T* const g = scratch<T>(kProduct, round_up(std::min(kDirectFilters, task.filters), kRows) * g_pitch);
  // Both operands in the order they are read: in place, rows a power of two apart would share a few cache sets.
  T* const left = scratch<T>(kLeft, depth * round_up(kDirectFilters, kRows));  // [filters / kRows][depth][kRows]
  T* const right = scratch<T>(kRight, depth * kColumns<T>);                    // [depth][kColumns]

  std::fill(task.out, task.out + task.filters, T(0));
  for (int p0 = 0; p0 < patch; p0 += block)
    for (int o0 = 0; o0 < task.filters; o0 += kDirectFilters) {
      const int p1 = std::min(p0 + block, patch), o1 = std::min(o0 + kDirectFilters, task.filters);
      for (int h0 = 0; h0 < conv.out_height; h0 += rows) {
        const int h1 = std::min(h0 + rows, conv.out_height);
        const ptrdiff_t locations = ptrdiff_t{h1 - h0} * conv.out_width;
        pack_filters(delta, h0, h1, o0, o1, depth, left);
        for (int p = p0; p < p1; p += kColumns<T>) {
          pack_columns(x, conv, h0, h1, p, std::min(p + kColumns<T>, p1), right);
          for (int o = o0; o < o1; o += kRows) {
            T* const sums = g + (o - o0) * g_pitch + (p - p0);
            const T* const a = left + (o - o0) * depth;
            Tile<T> tile;
            if (h0) tile.read(sums, g_pitch);
            tile.accumulate([a](int r, ptrdiff_t k) { return a[k * kRows + r]; }, right, kColumns<T>, locations);
            tile.write(sums, g_pitch);
          }
        }
      }
      for (int o = o0; o < o1; ++o) task.out[o] += sum_of_squares(g + (o - o0) * g_pitch, p1 - p0);
    }
}

// ---- Winograd: 3×3, stride 1 -----------------------------------------------------------------------------------
//
// g[k] = Σ_j δ[j]·x[k+j], k = 0…2, for four δ at a time: F(3, 4), six multiplications instead of twelve, 36 instead of
// 144 in two dimensions, at the points 0, ±1, ±2, ∞. In that domain the weight gradient is 36 matrix products over
// tiles, g̃_ξ[o,i] = Σ_t δ̃_ξ[t,o]·x̃_ξ[t,i]; it is brought back, squared and summed once a sample, not once a tile.
//
// Source: Lavin & Gray 2016 (arXiv 1509.09308), the same six points with the operands' parts exchanged.

constexpr int kTile = 4, kPoints = 6, kDomain = kPoints * kPoints;
constexpr int kBlockWidth = 64;               // filters and channels brought back together
constexpr ptrdiff_t kBlockNumbers = 1 << 18;  // of transformed tiles held at once, a side

template <class V>
inline void transform_input(const V* x, ptrdiff_t step, V* out) {  // Bᵀ·x, 6 → 6
  const V x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[3 * step], x4 = x[4 * step], x5 = x[5 * step];
  const V even = x4 - 4 * x2, odd = x3 - 4 * x1, far = x4 - x2, near = 2 * (x3 - x1);
  out[0] = 4 * x0 - 5 * x2 + x4;
  out[1] = even + odd;
  out[2] = even - odd;
  out[3] = far + near;
  out[4] = far - near;
  out[5] = 4 * x1 - 5 * x3 + x5;
}

template <class V>
inline void transform_grad(const V* d, ptrdiff_t step, V* out) {  // G·δ, 4 → 6
  using T = decltype(d[0][0] + 0);
  const V d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
  const V even = (d0 + d2) * T(-1. / 6), odd = (d1 + d3) * T(-1. / 6);
  const V far = d0 * T(1. / 24) + d2 * T(1. / 6), near = d1 * T(1. / 12) + d3 * T(1. / 3);
  out[0] = d0 * T(1. / 4);
  out[1] = even + odd;
  out[2] = even - odd;
  out[3] = far + near;
  out[4] = far - near;
  out[5] = d3;
}

template <class V>
inline void transform_back(const V* m, ptrdiff_t step, V* out) {  // Aᵀ·m, 6 → 3
  const V near = m[step] + m[2 * step], far = m[3 * step] + m[4 * step];
  out[0] = m[0] + near + far;
  out[1] = m[step] - m[2 * step] + 2 * (m[3 * step] - m[4 * step]);
  out[2] = near + 4 * far + m[5 * step];
}

// Channels [first, last) of the tiles [first_tile, last_tile) into out[ξ][tile][pitch]; `size` pixels a side from
// (tile·4 − offset), zero outside the image.
template <class T, int kSize, class Transform>
void transform_tiles(const Image<T>& image,
                     int offset_h,
                     int offset_w,
                     int first,
                     int last,
                     int tiles_w,
                     int first_tile,
                     int last_tile,
                     T* out,
                     ptrdiff_t pitch,
                     ptrdiff_t plane,
                     Transform transform) {
  using V = Vector<T>;
  for (int tile = first_tile; tile < last_tile; ++tile, out += pitch) {
    const int top = tile / tiles_w * kTile - offset_h, left = tile % tiles_w * kTile - offset_w;
    const bool inside = top >= 0 && left >= 0 && top + kSize <= image.height && left + kSize <= image.width;
    for (int c = first; c < last; c += kLanes<T>) {
      const int count = std::min(last - c, kLanes<T>);
      // The next tile's pixels, all but those it shares with this one: too scattered for the processor to foresee.
      for (int h = 0; h < kSize; ++h)
        for (int w = 0; w < kTile; ++w) __builtin_prefetch(image.at(top + h, left + kSize + w) + c);
      V pixels[kSize * kSize], half[kPoints * kSize], points[kPoints];
      for (int h = 0; h < kSize; ++h)
        for (int w = 0; w < kSize; ++w) {
          const T* pixel = image.at(top + h, left + w) + c;
          const bool hit =
              inside || (top + h >= 0 && top + h < image.height && left + w >= 0 && left + w < image.width);
          pixels[h * kSize + w] = !hit ? V{} : count == kLanes<T> ? load(pixel) : load_some(pixel, count);
        }
#pragma GCC unroll 6
      for (int w = 0; w < kSize; ++w) {
        transform(pixels + w, kSize, points);
        for (int k = 0; k < kPoints; ++k) half[k * kSize + w] = points[k];
      }
#pragma GCC unroll 6
      for (int h = 0; h < kPoints; ++h) {
        transform(half + h * kSize, 1, points);
        for (int k = 0; k < kPoints; ++k) store(out + (h * kPoints + k) * plane + (c - first), points[k]);
      }
    }
  }
}

// ‖g[o,·]‖² over `channels` channels from their numbers in the domain, m[ξ][channel].
template <class T>
T sum_of_squares_back(const T* m, ptrdiff_t plane, int channels) {
  using V = Vector<T>;
  V total = {};
  for (int i = 0; i < channels; i += kLanes<T>) {
    V points[kDomain], half[3 * kPoints], g[3];
    for (int xi = 0; xi < kDomain; ++xi) points[xi] = load(m + xi * plane + i);
#pragma GCC unroll 6
    for (int w = 0; w < kPoints; ++w) {
      transform_back(points + w, kPoints, g);
      for (int k = 0; k < 3; ++k) half[k * kPoints + w] = g[k];
    }
#pragma GCC unroll 3
    for (int h = 0; h < 3; ++h) {
      transform_back(half + h * kPoints, 1, g);
      for (int k = 0; k < 3; ++k) total += g[k] * g[k];
    }
  }
  return sum<T>(total);
}

template <class T>
void winograd_route(const CpuTask<T>& task) {
  using V = Vector<T>;
  const Conv& conv = task.conv;
  const auto x =
      channels_last(task.input, task.input_stride, conv.group_channels, conv.height, conv.width, false, kInput);
  const auto delta = channels_last(task.grad_output, task.grad_stride, task.filters, conv.out_height, conv.out_width,
                                   false, kGradOutput);
  const int tiles_w = (conv.out_width + kTile - 1) / kTile, tiles = (conv.out_height + kTile - 1) / kTile * tiles_w;

  // A cache line more than a plane needs: planes a power of two apart would compete for the same cache sets.
  constexpr int kSpread = kLanes<T>;
  const ptrdiff_t x_pitch = round_up(conv.group_channels, kColumns<T>);
  const bool whole = ptrdiff_t{tiles} * kDomain * x_pitch <= kBlockNumbers;  // x̃ is made once for all blocks of filters
  const ptrdiff_t block_pitch = std::min<ptrdiff_t>(kBlockWidth, x_pitch), v_pitch = whole ? x_pitch : block_pitch;
  const ptrdiff_t o_pitch = round_up(std::min(kBlockWidth, task.filters), std::max(kRows, kLanes<T>));
  const int block_tiles =
      whole ? tiles
            : std::min<int>(tiles, std::max<int>(1, kBlockNumbers / (kDomain * std::max(block_pitch, o_pitch))));
  const ptrdiff_t v_plane = block_tiles * v_pitch + kSpread, d_plane = block_tiles * o_pitch + kSpread;
  const ptrdiff_t m_plane = o_pitch * block_pitch + kSpread;
  T* const v = scratch<T>(kLeft, kDomain * v_plane);
  T* const d = scratch<T>(kRight, kDomain * d_plane);
  T* const m = scratch<T>(kProduct, kDomain * m_plane);

  std::fill(task.out, task.out + task.filters, T(0));
  for (int o0 = 0; o0 < task.filters; o0 += kBlockWidth) {
    const int o_count = std::min(kBlockWidth, task.filters - o0);
    for (int i0 = 0; i0 < conv.group_channels; i0 += kBlockWidth) {
      const int i_count = std::min(kBlockWidth, conv.group_channels - i0);
      for (int t0 = 0; t0 < tiles; t0 += block_tiles) {
        const int t1 = std::min(t0 + block_tiles, tiles);
        if (!whole)
          transform_tiles<T, 6>(x, conv.padding_h, conv.padding_w, i0, i0 + i_count, tiles_w, t0, t1, v, v_pitch,
                                v_plane, transform_input<V>);
        else if (o0 == 0 && i0 == 0)
          transform_tiles<T, 6>(x, conv.padding_h, conv.padding_w, 0, conv.group_channels, tiles_w, 0, tiles, v,
                                v_pitch, v_plane, transform_input<V>);
        if (!whole || i0 == 0)
          transform_tiles<T, 4>(delta, 0, 0, o0, o0 + o_count, tiles_w, t0, t1, d, o_pitch, d_plane, transform_grad<V>);
        for (int xi = 0; xi < kDomain; ++xi)
          for (int i = 0; i < i_count; i += kColumns<T>)
            for (int o = 0; o < o_count; o += kRows) {
              Tile<T> tile;
              T* const sums = m + xi * m_plane + o * block_pitch + i;
              const T* const a = d + xi * d_plane + o;
              if (t0) tile.read(sums, block_pitch);
              tile.accumulate([=](int r, ptrdiff_t k) { return a[k * o_pitch + r]; },
                              v + xi * v_plane + (whole ? i0 : 0) + i, v_pitch, t1 - t0);
              tile.write(sums, block_pitch);
            }
      }
      for (int o = 0; o < o_count; ++o) task.out[o0 + o] += sum_of_squares_back(m + o * block_pitch, m_plane, i_count);
    }
  }
}

// ---- shifted Gram: any stride and dilation ---------------------------------------------------------------------
//
// ‖g_o‖² = δ_o A δ_oᵀ with A[q,q'] = Σ_r ⟨x[q·s+r], x[q'·s+r]⟩ over the window's elements r. Elements whose offset is
// equal modulo the stride s meet the same pixels, those of one *phase* of the image, and in a phase the stride is one:
// with G the Gram matrix of a phase's pixels, A[q,q'] = Σ_phases Σ_r G[q+r, q'+r].
//
// Pixels and locations are numbered on one grid, so wide that no window leaves its row: then a window's element is one
// offset, and a row of A is a sum of shifted rows of G. A and G are symmetric: only q' ≥ q is computed.

// The elements of the window, along one axis, that one phase holds, as offsets from a location.
struct Taps {
  std::vector<int> offsets;
  int lowest = 0, highest = 0;
};

inline Taps taps_of(int phase, int kernel, int stride, int padding, int dilation) {
  Taps taps;
  for (int k = 0; k < kernel; ++k) {
    const int shift = k * dilation - padding, remainder = (shift % stride + stride) % stride;
    if (remainder == phase) taps.offsets.push_back((shift - remainder) / stride);
  }
  if (!taps.offsets.empty()) taps.lowest = taps.offsets.front(), taps.highest = taps.offsets.back();
  return taps;
}

// Pixels of one phase, those that some window meets, and where their part of G lies.
struct Phase {
  Taps h, w;
  int first_h, first_w;          // the phase's first pixel in the image
  int top, bottom, left, right;  // rows [top, bottom) and columns [left, right) of the phase
  int pitch;                     // of the grid
  ptrdiff_t last_column;         // of the grid that holds a pixel, plus one
  ptrdiff_t row_pitch, offset;   // of G

  // Of pixel (0, 0) of the phase, which may itself be outside.
  ptrdiff_t grid(int i, int j) const { return ptrdiff_t{i - h.lowest} * pitch + (j - w.lowest); }
};

constexpr ptrdiff_t kGramNumbers = 1 << 19;  // of G held at once, unless one row of one strip needs more

// G of the phase's pixels that the output rows [h0, h1) meet, against all that follow them on the grid.
template <class T>
void gram_of_pixels(const Image<T>& x, const Conv& conv, const Phase& phase, int h0, int h1, T* columns, T* gram) {
  const int top = std::max(phase.top, h0 + phase.h.lowest), bottom = std::min(phase.bottom, h1 + phase.h.highest);
  const int width = phase.right - phase.left;
  if (bottom <= top) return;
  const auto pixel = [&](int i, int j) {
    return x.at(int64_t{i} * conv.stride_h + phase.first_h, int64_t{j} * conv.stride_w + phase.first_w);
  };
  // Channels × grid, zero where the grid has no pixel.
  const ptrdiff_t origin = phase.grid(top, phase.left), count = round_up(phase.last_column - origin, kColumns<T>);
  constexpr int kBlock = 16;
  for (int c0 = 0; c0 < conv.group_channels; c0 += kBlock) {
    const int channels = std::min(kBlock, conv.group_channels - c0);
    T* const to = columns + c0 * count;
    std::fill(to, to + channels * count, T(0));
    for (int i = top; i < phase.bottom; ++i)
      for (int j = phase.left; j < phase.right; ++j) {
        const T* from = pixel(i, j) + c0;
        T* const column = to + (phase.grid(i, j) - origin);
        for (int c = 0; c < channels; ++c) column[c * count] = from[c];
      }
  }
  const int pixels = (bottom - top) * width;
  for (int p0 = 0; p0 < pixels; p0 += kRows) {
    const T* rows[kRows];
    for (int r = 0; r < kRows; ++r) {
      const int p = std::min(p0 + r, pixels - 1);
      rows[r] = pixel(top + p / width, phase.left + p % width);
    }
    T* const out = gram + p0 * phase.row_pitch + origin;
    const ptrdiff_t skipped = phase.grid(top + p0 / width, phase.left + p0 % width) - origin;
    for (ptrdiff_t c = skipped / kColumns<T> * kColumns<T>; c < count; c += kColumns<T>) {
      Tile<T> tile;
      tile.accumulate([&rows](int r, ptrdiff_t k) { return rows[r][k]; }, columns + c, count, conv.group_channels);
      tile.write(out + c, phase.row_pitch);
    }
    for (int r = 0; r < kRows; ++r)
      std::fill(out + r * phase.row_pitch + count, out + (r + 1) * phase.row_pitch - origin, T(0));
  }
}

// All phases, on one grid, and how many output rows are treated at once.
struct GramPlan {
  std::vector<Phase> phases;  // none where every window lies in the padding
  int pitch = 0;              // of the grid: a location has one number in all phases
  int strip = 1;              // output rows at once
  ptrdiff_t gram_numbers = 0, packed_numbers = 0;
};

template <class T>
GramPlan gram_plan(const Conv& conv) {
  GramPlan plan;
  for (int a = 0; a < conv.stride_h; ++a)
    for (int b = 0; b < conv.stride_w; ++b) {
      Phase phase{taps_of(a, conv.kernel_h, conv.stride_h, conv.padding_h, conv.dilation_h),
                  taps_of(b, conv.kernel_w, conv.stride_w, conv.padding_w, conv.dilation_w)};
      if (phase.h.offsets.empty() || phase.w.offsets.empty()) continue;
      phase.first_h = a, phase.first_w = b;
      phase.top = std::max(0, phase.h.lowest);
      phase.left = std::max(0, phase.w.lowest);
      phase.bottom = std::min((conv.height - a + conv.stride_h - 1) / conv.stride_h, conv.out_height + phase.h.highest);
      phase.right = std::min((conv.width - b + conv.stride_w - 1) / conv.stride_w, conv.out_width + phase.w.highest);
      if (phase.top >= phase.bottom || phase.left >= phase.right) continue;
      plan.pitch = std::max(plan.pitch, conv.out_width + phase.w.highest - phase.w.lowest);
      plan.phases.push_back(phase);
    }

  int reach = 0;
  ptrdiff_t row_numbers = 0;  // of G for one row of pixels of every phase
  for (Phase& phase : plan.phases) {
    phase.pitch = plan.pitch;
    phase.last_column = phase.grid(phase.bottom - 1, phase.right - 1) + 1;
    const ptrdiff_t last_read = phase.grid(conv.out_height - 1 + phase.h.highest, conv.out_width - 1 + phase.w.highest);
    // A block of columns that starts before the last pixel may end after it.
    phase.row_pitch = round_up(std::max(last_read + 1, phase.last_column) + kColumns<T>, kLanes<T>);
    row_numbers += phase.row_pitch * (phase.right - phase.left);
    reach = std::max(reach, phase.h.highest - phase.h.lowest);
    const ptrdiff_t columns = phase.last_column - phase.grid(phase.top, phase.left);
    plan.packed_numbers = std::max(plan.packed_numbers, round_up(columns, kColumns<T>) * conv.group_channels);
  }
  if (plan.phases.empty()) return plan;
  // The rows of pixels that two strips share are computed twice.
  plan.strip = static_cast<int>(std::clamp<ptrdiff_t>(kGramNumbers / row_numbers - reach, 1, conv.out_height));
  for (Phase& phase : plan.phases) {
    const int rows = std::min(plan.strip + phase.h.highest - phase.h.lowest, phase.bottom - phase.top);
    phase.offset = plan.gram_numbers;
    plan.gram_numbers += round_up(ptrdiff_t{rows} * (phase.right - phase.left), kRows) * phase.row_pitch;
  }
  return plan;
}

// Row q = (h, w) of A, from q on, its diagonal halved: δ A δᵀ is twice the sum over q' > q and once the diagonal. h0 is
// the first output row of the strip that G was made for. [start, stop) are the columns anybody reads.
template <class T>
void gram_row(const GramPlan& plan, const T* gram, int h0, int h, int w, ptrdiff_t start, ptrdiff_t stop, T* row) {
  const ptrdiff_t q = ptrdiff_t{h} * plan.pitch + w, from = q / kLanes<T> * kLanes<T>;
  std::fill(row + start, row + stop, T(0));
  for (const Phase& phase : plan.phases) {
    const int top = std::max(phase.top, h0 + phase.h.lowest), width = phase.right - phase.left;
    for (const int u : phase.h.offsets) {
      if (h + u < phase.top || h + u >= phase.bottom) continue;
      for (const int v : phase.w.offsets) {
        if (w + v < phase.left || w + v >= phase.right) continue;
        const ptrdiff_t pixel = ptrdiff_t{h + u - top} * width + (w + v - phase.left);
        const T* const source = gram + phase.offset + pixel * phase.row_pitch + phase.grid(u, v);
        for (ptrdiff_t k = from; k < stop; k += kLanes<T>) store(row + k, load(row + k) + load(source + k));
      }
    }
  }
  std::fill(row + from, row + q, T(0));
  row[q] *= T(0.5);
}

template <class T>
void shifted_gram_route(const CpuTask<T>& task) {
  const Conv& conv = task.conv;
  const auto x =
      channels_last(task.input, task.input_stride, conv.group_channels, conv.height, conv.width, false, kInput);
  const auto delta = channels_last(task.grad_output, task.grad_stride, task.filters, conv.out_height, conv.out_width,
                                   true, kGradOutput);
  const GramPlan plan = gram_plan<T>(conv);
  T* const gram = scratch<T>(kProduct, plan.gram_numbers);
  T* const columns = scratch<T>(kRight, plan.packed_numbers);
  const ptrdiff_t a_pitch = round_up(ptrdiff_t{conv.out_height} * plan.pitch, kLanes<T>) + kLanes<T>;
  T* const a = scratch<T>(kLeft, kRows * a_pitch);

  std::fill(task.out, task.out + task.filters, T(0));
  if (plan.phases.empty()) return;
  for (int h0 = 0; h0 < conv.out_height; h0 += plan.strip) {
    const int h1 = std::min(h0 + plan.strip, conv.out_height), locations = (h1 - h0) * conv.out_width;
    for (const Phase& phase : plan.phases) gram_of_pixels(x, conv, phase, h0, h1, columns, gram + phase.offset);
    for (int q0 = 0; q0 < locations; q0 += kRows) {
      const int rows = std::min(kRows, locations - q0), first_row = h0 + q0 / conv.out_width;
      const auto h_of = [&](int r) { return h0 + (q0 + r) / conv.out_width; };
      const auto w_of = [&](int r) { return (q0 + r) % conv.out_width; };
      const ptrdiff_t start = ptrdiff_t{first_row} * plan.pitch;
      const ptrdiff_t stop = ptrdiff_t{conv.out_height - 1} * plan.pitch + conv.out_width;
      for (int r = 0; r < rows; ++r) gram_row(plan, gram, h0, h_of(r), w_of(r), start, stop, a + r * a_pitch);
      for (int r = rows; r < kRows; ++r) std::fill(a + r * a_pitch + start, a + r * a_pitch + stop, T(0));
      for (int o = 0; o < task.filters; o += kColumns<T>) {
        Tile<T> tile;
        for (int h = first_row; h < conv.out_height; ++h) {
          const T* const left = a + ptrdiff_t{h} * plan.pitch;
          tile.accumulate([=](int r, ptrdiff_t k) { return left[r * a_pitch + k]; }, delta.at(h, 0) + o, delta.stride_w,
                          conv.out_width);
        }
        Vector<T> sums[2] = {};
        for (int r = 0; r < rows; ++r)
          for (int j = 0; j < 2; ++j) sums[j] += tile.sums[r][j] * load(delta.at(h_of(r), w_of(r)) + o + j * kLanes<T>);
        for (int c = 0; c < std::min(kColumns<T>, task.filters - o); ++c)
          task.out[o + c] += 2 * sums[c / kLanes<T>][c % kLanes<T>];
      }
    }
  }
  // A is positive semi-definite; rounding may leave a vanishing form a hair below zero.
  for (int o = 0; o < task.filters; ++o) task.out[o] = std::max(task.out[o], T(0));
}

}  // namespace

namespace TASK2VEC_ISA {
#define TASK2VEC_ROUTE(name)               \
  void name(const CpuTask<float>& task) {  \
    name##_route(task);                    \
    thread_scratch.trim();                 \
  }                                        \
  void name(const CpuTask<double>& task) { \
    name##_route(task);                    \
    thread_scratch.trim();                 \
  }
TASK2VEC_ROUTE(direct)
TASK2VEC_ROUTE(winograd)
TASK2VEC_ROUTE(shifted_gram)
}  // namespace TASK2VEC_ISA
}  // namespace task2vec
