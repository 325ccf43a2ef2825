// The direct route, for any convolution.
//
// g[o,p] = Σ_q δ[q,o]·patch[q,p], p = (kh, kw, i): a block of filters and columns stays in the cache while the output's
// rows pass by. Pointwise layers read their input where it lies; others unfold a few rows at a time.
#include "cpu/route.h"

namespace task2vec {
namespace {

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

}  // namespace

TASK2VEC_ROUTE(direct)

}  // namespace task2vec
