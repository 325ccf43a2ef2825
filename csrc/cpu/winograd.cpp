// The Winograd route: 3×3, stride and dilation 1.
//
// g[k] = Σ_j δ[j]·x[k+j], k = 0…2, for four δ at a time: F(3, 4), six multiplications instead of twelve, 36 instead of
// 144 in two dimensions, at the points 0, ±1, ±2, ∞. In that domain the weight gradient is 36 matrix products over
// tiles, g̃_ξ[o,i] = Σ_t δ̃_ξ[t,o]·x̃_ξ[t,i]; it is brought back, squared and summed once a sample, not once a tile.
//
// Source: Lavin & Gray 2016 (arXiv 1509.09308), the same six points with the operands' parts exchanged.
#include "cpu/route.h"

namespace task2vec {
namespace {

constexpr int kTile = 4, kPoints = 6, kDomain = kPoints * kPoints;
constexpr int kBlockWidth = 64;               // filters and channels brought back together
constexpr ptrdiff_t kBlockNumbers = 1 << 18;  // of transformed tiles held at once, a side
// A smaller part of Σ_t ‖δ_t‖²·‖x_t‖² would show the rounding of products in the domain whose sum is none in g.
constexpr double kLeastPart = 1e-5;

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
// (tile·4 − offset), zero outside the image. One plane more, out[36], has their sums of squares.
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
      V squares = {};
      for (const V& pixel : pixels) squares += pixel * pixel;
      store(out + kDomain * plane + (c - first), squares);
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

// sizes[o] += Σ_t ‖x_t‖²·‖δ_t‖² from the planes of sums of squares.
template <class T>
void add_sizes(const T* x,
               ptrdiff_t x_pitch,
               int channels,
               const T* d,
               ptrdiff_t d_pitch,
               int filters,
               int tiles,
               T* sizes) {
  for (int t = 0; t < tiles; ++t, x += x_pitch, d += d_pitch) {
    T of_x = 0;
    for (int i = 0; i < channels; ++i) of_x += x[i];
    for (int o = 0; o < filters; ++o) sizes[o] += of_x * d[o];
  }
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
  T* const v = scratch<T>(kLeft, (kDomain + 1) * v_plane);
  T* const d = scratch<T>(kRight, (kDomain + 1) * d_plane);
  T* const m = scratch<T>(kProduct, kDomain * m_plane);
  T* const sizes = scratch<T>(kSizes, task.filters);

  std::fill(task.out, task.out + task.filters, T(0));
  std::fill(sizes, sizes + task.filters, T(0));
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
        const ptrdiff_t i_first = whole ? i0 : 0;
        add_sizes(v + kDomain * v_plane + i_first, v_pitch, i_count, d + kDomain * d_plane, o_pitch, o_count, t1 - t0,
                  sizes + o0);
        for (int xi = 0; xi < kDomain; ++xi)
          for (int i = 0; i < i_count; i += kColumns<T>)
            for (int o = 0; o < o_count; o += kRows) {
              Tile<T> tile;
              T* const sums = m + xi * m_plane + o * block_pitch + i;
              const T* const a = d + xi * d_plane + o;
              if (t0) tile.read(sums, block_pitch);
              tile.accumulate([=](int r, ptrdiff_t k) { return a[k * o_pitch + r]; }, v + xi * v_plane + i_first + i,
                              v_pitch, t1 - t0);
              tile.write(sums, block_pitch);
            }
      }
      for (int o = 0; o < o_count; ++o) task.out[o0 + o] += sum_of_squares_back(m + o * block_pitch, m_plane, i_count);
    }
  }
  TASK2VEC_ISA::recompute_lost(task, sizes, static_cast<T>(kLeastPart));
}

}  // namespace

TASK2VEC_ROUTE(winograd)

}  // namespace task2vec
