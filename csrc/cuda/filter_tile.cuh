// The tile both routes share. For 64 filters of one group and all columns c of one sample it forms
//   T[o,c] = Σ_q δ[o,q] · B[q,c]
// in registers, 64 columns at a time, and keeps only Σ_c epilogue(T[o,c], o, c). Direct route: B = the unfolded
// input, epilogue = square. Gram routes: B = A[q,q'], epilogue = times δ[o,q'].
//
// 256 threads, 4 × 4 values of T each; operands pass through shared memory 16 locations q at a time. Accumulation
// is float32 in a fixed order: the same bits every run.
#pragma once
#include "cuda/launch.h"
#include "cuda/scalar.cuh"

namespace task2vec {

constexpr int kTileFilters = 64, kTileColumns = 64, kTileDepth = 16, kTileThreads = 256;
constexpr int kPerThread = 4;
constexpr int kPad = 4;  // keeps rows 16-byte aligned and spreads a column over the banks
static_assert(kTileFilters * kTileColumns == kTileThreads * kPerThread * kPerThread);
static_assert(kTileDepth * kTileColumns == kTileThreads * 4 && kTileDepth * kTileFilters == kTileThreads * 4);

// Columns must offer:
//   kAlongDepth          lanes of a warp read along q (true) or along c (false): whichever is contiguous
//   Column column(n, g, c)         what stays fixed while q runs
//   float at(column, oh, ow)       B[q,c] at q = (oh, ow)
//   float epilogue(T, n, o, c)     what is summed over c
template <class Delta, class Columns>
__global__ void __launch_bounds__(kTileThreads, 2)
    filter_tile_kernel(View4<Delta> delta,  // [N, groups·group_filters, rows, out_width]
                       Columns columns,
                       int group_filters,
                       int filter_tiles,  // of one group
                       int64_t groups,
                       int positions,  // Q
                       int out_width,
                       int column_count,
                       int splits,
                       float* __restrict__ out) {  // [N, splits, groups·group_filters]
  __shared__ float delta_tile[kTileDepth][kTileFilters + kPad];
  __shared__ float column_tile[kTileDepth][kTileColumns + kPad];

  int64_t block = blockIdx.x;
  const int split = static_cast<int>(block % splits);
  block /= splits;
  const int first_filter = static_cast<int>(block % filter_tiles) * kTileFilters;  // in the group
  block /= filter_tiles;
  const int64_t g = block % groups, n = block / groups;

  const int thread = static_cast<int>(threadIdx.x);
  const int my_filter = thread / 16 * kPerThread, my_column = thread % 16 * kPerThread;

  // δ is contiguous along q in the usual layout: lanes read along q.
  const int load_depth = thread % kTileDepth, load_lane = thread / kTileDepth;
  float row_sum[kPerThread] = {};

  for (int first_column = split * kTileColumns; first_column < column_count; first_column += splits * kTileColumns) {
    constexpr int kCursors = Columns::kAlongDepth ? 4 : 1;
    typename Columns::Column cursor[kCursors];
    bool in_range[kCursors];
#pragma unroll
    for (int j = 0; j < kCursors; ++j) {
      const int c = first_column + (Columns::kAlongDepth ? load_lane + j * 16 : thread % kTileColumns);
      in_range[j] = c < column_count;
      cursor[j] = columns.column(n, g, in_range[j] ? c : 0);
    }

    float tile[kPerThread][kPerThread] = {};
    for (int q0 = 0; q0 < positions; q0 += kTileDepth) {
      const int q = q0 + load_depth;
      const int oh = q / out_width, ow = q - oh * out_width;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int o = load_lane + j * 16;
        float value = 0.f;
        if (q < positions && first_filter + o < group_filters)
          value =
              to_float(delta.plane(n, g * group_filters + first_filter + o)[oh * delta.stride_h + ow * delta.stride_w]);
        delta_tile[load_depth][o] = value;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (Columns::kAlongDepth) {
          column_tile[load_depth][load_lane + j * 16] =
              q < positions && in_range[j] ? columns.at(cursor[j], oh, ow) : 0.f;
        } else {
          const int depth = thread / kTileColumns + j * 4, qj = q0 + depth;
          const int ohj = qj / out_width;
          column_tile[depth][thread % kTileColumns] =
              qj < positions && in_range[0] ? columns.at(cursor[0], ohj, qj - ohj * out_width) : 0.f;
        }
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kTileDepth; ++k) {
        float a[kPerThread], b[kPerThread];
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) {
          a[j] = delta_tile[k][my_filter + j];
          b[j] = column_tile[k][my_column + j];
        }
#pragma unroll
        for (int i = 0; i < kPerThread; ++i)
#pragma unroll
          for (int j = 0; j < kPerThread; ++j) tile[i][j] += a[i] * b[j];
      }
      __syncthreads();
    }

    // Rows and columns past the end hold zeros, so only the epilogue's own reads need a guard.
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int o = first_filter + my_filter + i;
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        const int c = first_column + my_column + j;
        if (o < group_filters && c < column_count)
          row_sum[i] += columns.epilogue(tile[i][j], n, g * group_filters + o, c);
      }
    }
  }

  // The 16 threads of a half-warp share their filters.
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    for (int offset = 8; offset > 0; offset >>= 1) row_sum[i] += __shfl_xor_sync(0xffffffffu, row_sum[i], offset);
    const int o = first_filter + my_filter + i;
    if (thread % 16 == 0 && o < group_filters)
      out[(n * splits + split) * groups * group_filters + g * group_filters + o] = row_sum[i];
  }
}

template <class Delta, class Columns>
void launch_filter_tile(View4<Delta> delta,
                        Columns columns,
                        int64_t samples,
                        int64_t groups,
                        int group_filters,
                        int positions,
                        int out_width,
                        int column_count,
                        int splits,
                        float* out,
                        Place at) {
  const int filter_tiles = static_cast<int>(ceil_div(group_filters, kTileFilters));
  const dim3 grid = grid_of(samples * groups * filter_tiles * splits);
  DeviceGuard guard(at.device);
  TASK2VEC_LAUNCH((filter_tile_kernel<Delta, Columns>), grid, dim3(kTileThreads), 0, stream_of(at), delta, columns,
                  group_filters, filter_tiles, groups, positions, out_width, column_count, splits, out);
  check(cudaGetLastError());
}

}  // namespace task2vec
