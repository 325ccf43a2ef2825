// The shifted Gram route, for any stride and dilation.
//
// ‖g_o‖² = δ_o A δ_oᵀ with A[q,q'] = Σ_r ⟨x[q·s+r], x[q'·s+r]⟩ over the window's elements r. Elements whose offset is
// equal modulo the stride s meet the same pixels, those of one *phase* of the image, and in a phase the stride is one:
// with G the Gram matrix of a phase's pixels, A[q,q'] = Σ_phases Σ_r G[q+r, q'+r].
//
// Pixels and locations are numbered on one grid, so wide that no window leaves its row: then a window's element is one
// offset, and a row of A is a sum of shifted rows of G. A and G are symmetric: only q' ≥ q is computed.
#include <vector>

#include "cpu/aligned.h"
#include "cpu/route.h"

namespace task2vec {
namespace {

// The elements of the window, along one axis, that one phase holds, as offsets from a location.
struct Taps {
  AlignedVector<int> offsets;  // not std::vector<int>, whose code the linker takes from any instruction set
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
  int first_h = 0, first_w = 0;                  // the phase's first pixel in the image
  int top = 0, bottom = 0, left = 0, right = 0;  // rows [top, bottom) and columns [left, right) of the phase
  int pitch = 0;                                 // of the grid
  ptrdiff_t last_column = 0;                     // of the grid that holds a pixel, plus one
  ptrdiff_t row_pitch = 0, offset = 0;           // of G

  // Of pixel (0, 0) of the phase, which may itself be outside.
  ptrdiff_t grid(int i, int j) const { return ptrdiff_t{i - h.lowest} * pitch + (j - w.lowest); }
};

constexpr ptrdiff_t kGramNumbers = 1 << 19;  // of G held at once, unless one row of one strip needs more
// A smaller part of Σ_q δ[q]²·A[q,q] would show its rounding, one part in 2²⁴: at most 1.2e-4 in float32 (measured).
constexpr double kLeastPart = 1. / 1024;

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
  if (plan.phases.empty()) return TASK2VEC_ISA::direct(task);  // zero, but for what is not finite
  T* const gram = scratch<T>(kProduct, plan.gram_numbers);
  T* const columns = scratch<T>(kRight, plan.packed_numbers);
  const ptrdiff_t a_pitch = round_up(ptrdiff_t{conv.out_height} * plan.pitch, kLanes<T>) + kLanes<T>;
  T* const a = scratch<T>(kLeft, kRows * a_pitch);

  T* const sizes = scratch<T>(kSizes, task.filters);  // Σ_q δ[q]²·A[q,q]
  // What the products of one A[q,q] may lose where they underflow, and 2²⁴ times as much.
  const T lost_in_a = std::numeric_limits<T>::min() * static_cast<T>(conv.patch_size());

  std::fill(task.out, task.out + task.filters, T(0));
  std::fill(sizes, sizes + task.filters, T(0));
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
        Vector<T> sums[2] = {}, terms[2] = {};
        for (int r = 0; r < rows; ++r) {
          const T* const from = delta.at(h_of(r), w_of(r)) + o;
          const T size = 2 * a[r * a_pitch + ptrdiff_t{h_of(r)} * plan.pitch + w_of(r)] + lost_in_a;
          for (int j = 0; j < 2; ++j) {
            const Vector<T> d = load(from + j * kLanes<T>);
            sums[j] += tile.sums[r][j] * d;
            terms[j] += size * d * d;
          }
        }
        for (int c = 0; c < std::min(kColumns<T>, task.filters - o); ++c) {
          task.out[o + c] += 2 * sums[c / kLanes<T>][c % kLanes<T>];
          sizes[o + c] += terms[c / kLanes<T>][c % kLanes<T>];
        }
      }
    }
  }
  TASK2VEC_ISA::recompute_lost(task, sizes, static_cast<T>(kLeastPart));
}

}  // namespace

TASK2VEC_ROUTE(shifted_gram)

}  // namespace task2vec
