// The tile of filter_tile.cuh on tensor cores (sm_80 and later): T[o,c] = Σ_q δ[o,q] · B[q,c] in registers, of which
// only Σ_c epilogue(T[o,c]) leaves the block.
//
// q is cut into slices, rectangles of output locations; shared memory holds a few of them, one being used while the
// next ones arrive (cp.async). A column is a (channel, tap): B[q, (i, r)] = tile[row(q) + row(r)][i], so that all taps
// of a 3×3 window read the same pixels, which are brought in once with their border. That keeps the operands' traffic
// below what the L2 cache delivers: in 16 bits, 64 filters × (9 taps × 64 channels) over slices of 28 × 4 locations
// are 110 multiply-adds a byte, 128 × 128 of a plain matrix product 32. With one tap it is such a product: 1×1
// convolutions, and the Gram routes.
//
// Where there are too few channels for that, a column is any number of the patch, and each lane has its own offset.
//
// A warp takes 64 filters and 64 or 72 columns: with fewer, shared memory would be the limit. Accumulation is float32
// in a fixed order: the same bits every run.
#pragma once
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/load_pixels.cuh"
#include "cuda/mma.cuh"

namespace task2vec {

constexpr int kMaxSlice = 128;  // output locations
constexpr int kTableBytes = kMaxSlice * static_cast<int>(sizeof(int));

// kFilterWarps of the kWarps share the filters of a tile, the others its channels; each takes kChunks times 8 channels
// at kTaps taps. Slices of at most kSliceBytes of one channel, kStages of them in shared memory.
template <int kWarps_, int kFilterWarps_, int kTaps_, int kChunks_, int kStages_, int kSliceBytes_, int kBlocks_>
struct TileShape {
  static constexpr int kWarps = kWarps_, kFilterWarps = kFilterWarps_, kTaps = kTaps_, kChunks = kChunks_;
  static constexpr int kStages = kStages_, kSliceBytes = kSliceBytes_;
  static constexpr int kBlocks = kBlocks_;  // on one multiprocessor
  static constexpr int kThreads = kWarps * 32, kChannelWarps = kWarps / kFilterWarps;
  static constexpr int kFilters = kFilterWarps * kWarpFilters, kChannels = kChannelWarps * kChunks * 8;
  static constexpr int kFilterPitch = kFilters + kMmaPad, kChannelPitch = kChannels + kMmaPad;
  static constexpr bool kWeighted = false;  // epilogue: times a weight instead of squared
  static constexpr bool kGathered = false;  // columns lie anywhere in the column tile, not 8 channels side by side
};
// 64 filters × (64 channels × 9 taps): 144 accumulators a thread, so one block. A slice is long: two stages do.
using WindowShape = TileShape<8, 1, 9, 1, 2, kMaxSlice * 4, 1>;
// 128 filters × 128 columns, an ordinary matrix product: 128 accumulators a thread.
template <bool kWeighted_>
struct MatrixShape : TileShape<4, 2, 1, 8, 3, 128, 2> {
  static constexpr bool kWeighted = kWeighted_;
};
// How the output locations are cut, and what a slice takes in shared memory.
struct Slices {
  int height, width;  // of one slice
  int down, across;   // slices; none: nothing fits
  int depth;          // locations, filled up to the depth of an mma
  int tile_rows;      // rows of the column tile

  __host__ __device__ int count() const { return down * across; }
};

template <class Shape, class T>
int shared_bytes(const Slices& slices) {
  const int stage =
      static_cast<int>(sizeof(T)) * (slices.depth * Shape::kFilterPitch + slices.tile_rows * Shape::kChannelPitch);
  const int sums = static_cast<int>(sizeof(float)) * Shape::kChannelWarps * Shape::kFilters;
  const int weights = Shape::kWeighted ? static_cast<int>(sizeof(T)) * Shape::kChannels * Shape::kFilterPitch : 0;
  return kTableBytes + std::max({Shape::kStages * stage, sums, weights});
}

inline int shared_limit(int device) {  // bytes that a block may have
  int limit = 0;
  check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return limit;
}

// The slices that cost least in products and loads, of which a block's share of the limit holds the stages.
// tile_rows(height, width) are those of the column tile.
template <class Shape, class T, class TileRows>
Slices cut(int out_height, int out_width, int limit, TileRows tile_rows) {
  constexpr int kLongest = std::min<int>(kMaxSlice, Shape::kSliceBytes / static_cast<int>(sizeof(T)));
  Slices best{};
  int64_t best_cost = 0;
  for (int width = std::min(out_width, kLongest); width > 0; --width) {
    const int across = static_cast<int>(ceil_div(out_width, width));
    if (ceil_div(out_width, across) < width) continue;  // as many narrower slices would do
    for (int height = 1; height <= out_height && height * width <= kLongest; ++height) {
      const int64_t rows = tile_rows(height, width);
      if (rows > limit) continue;  // and the bytes below overflow no int
      const Slices slices{height,
                          width,
                          static_cast<int>(ceil_div(out_height, height)),
                          across,
                          static_cast<int>(ceil_div(height * width, kMmaDepth<T>)) * kMmaDepth<T>,
                          static_cast<int>(rows)};
      if (shared_bytes<Shape, T>(slices) > limit) continue;
      // In multiply-adds of one filter and channel: a row brought in counts as one, the barrier of a slice as 16 (not
      // measured on a GPU). Of equals the narrowest, where fewer rows of 8 locations go over an edge: at an edge two
      // locations meet in one bank.
      const int64_t brought = slices.depth + (Shape::kGathered ? rows / kWarpFilters : rows);
      const int64_t cost = int64_t{slices.count()} * (slices.depth * Shape::kTaps + brought + 16);
      if (best.count() == 0 || cost <= best_cost) best = slices, best_cost = cost;
    }
  }
  return best;
}

// The same for as many blocks as the registers allow on a multiprocessor, or for one where no slice is that small.
template <class Shape, class T, class TileRows>
Slices cut_for(int out_height, int out_width, int device, TileRows tile_rows) {
  constexpr int kReserved = 1024;  // bytes that CUDA takes for itself, of every block
  const int limit = shared_limit(device), share = (limit + kReserved) / Shape::kBlocks - kReserved;
  const Slices shared = cut<Shape, T>(out_height, out_width, share, tile_rows);
  return shared.count() > 0 ? shared : cut<Shape, T>(out_height, out_width, limit, tile_rows);
}

// ---- multiplying -----------------------------------------------------------------------------------------

// How many offsets of columns a lane keeps: one a tap or, gathered, one for every 8 columns.
template <class Shape>
constexpr int kOffsets = Shape::kGathered ? Shape::kChunks : Shape::kTaps;

// A warp's share of one slice: product[m][(chunk, tap)] += δ·B of 16 filters and 8 columns each.
template <class Shape, class T>
__device__ __forceinline__ void multiply(float (&product)[kFilterTiles][Shape::kChunks * Shape::kTaps][4],
                                         const T* delta_tile,    // [depth, kFilterPitch], from the warp's filters on
                                         const T* column_tile,   // [tile_rows, kChannelPitch], from its channels on
                                         const int* row_offset,  // [depth], in bytes: additions are enough then
                                         const int (&offset)[kOffsets<Shape>],  // in bytes
                                         int depth) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int kColumns = Shape::kChunks * Shape::kTaps;
#pragma unroll 1  // a second copy would want more registers than there are
  for (int k = 0; k < depth; k += kMmaDepth<T>) {
    uint32_t a[kFilterTiles][4];
#pragma unroll
    for (int m = 0; m < kFilterTiles; ++m)
      load_a<Shape::kFilterPitch>(a[m], delta_tile + k * Shape::kFilterPitch + m * 16, lane);
    const unsigned char* row[kRowsOfB<T>];
#pragma unroll
    for (int j = 0; j < kRowsOfB<T>; ++j)
      row[j] = reinterpret_cast<const unsigned char*>(column_tile) + row_offset[k + row_of_b<T>(lane, j)];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      uint32_t b[2];
      if constexpr (Shape::kGathered)
        load_b<T>(b, row, offset[c]);
      else
        load_b<T>(b, row, offset[c % Shape::kTaps] + c / Shape::kTaps * 8 * static_cast<int>(sizeof(T)));
#pragma unroll
      for (int m = 0; m < kFilterTiles; ++m) mma<T>(product[m][c], a[m], b);
    }
  }
}

// row_sum[m][half] += Σ over a warp's columns of T² or T·weight, for the filters filter_of(m, half, lane / 4). T is 0
// for filters and channels that do not exist.
template <class Shape, class T, class Exists>
__device__ __forceinline__ void add_columns(float (&row_sum)[kFilterTiles][2],
                                            const float (&product)[kFilterTiles][Shape::kChunks * Shape::kTaps][4],
                                            const T* weights,  // [kChannels, kFilterPitch], from the warp's first on
                                            Exists exists) {   // (c, g): column g of product c counts
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int c = 0; c < Shape::kChunks * Shape::kTaps; ++c)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int g = lane % 4 * 2 + j % 2;
      const bool counts = exists(c, g);
#pragma unroll
      for (int m = 0; m < kFilterTiles; ++m) {
        const float value = product[m][c][j];
        if constexpr (Shape::kWeighted)
          row_sum[m][j / 2] += value * weights[(c * 8 + g) * Shape::kFilterPitch + filter_of<T>(m, j / 2, lane / 4)];
        else
          row_sum[m][j / 2] += counts ? value * value : 0.f;
      }
    }
}

// ---- the kernel ------------------------------------------------------------------------------------------

// The sum over columns is of T² or, with Shape::kWeighted, of T times a weight. Columns must offer:
//   Operand                   type of the tiles in shared memory
//   kVectorDelta              δ is loaded by vectors
//   Cursor cursor(n, g, tile)                  what stays fixed while q runs; cursor.channels, cursor.taps: that exist
//   void fill(tile, cursor, oh, ow, slices)    starts bringing in the slice whose first location is (oh, ow)
//   int row(h, w, slices)                      row(q) of the location (h, w) of a slice
//   int offset(cursor, i, column)              row(r) of tap i or, gathered, where that column of the tile is; any row
//                                              of the tile if it does not exist
//   bool exists(cursor, c, column)             whether a column, the result of product c of a warp, counts
//   void weights(tile, cursor, n, o, filters)  starts bringing in [kChannels, kFilters] weights from filter o on
template <class Shape, class Delta, class Columns>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    mma_tile_kernel(View4<Delta> delta,  // [N, groups·group_filters, out_height, out_width]
                    Columns columns,
                    Slices slices,
                    int group_filters,
                    int filter_tiles,  // of one group
                    int64_t groups,
                    int out_height,
                    int out_width,
                    int column_tiles,
                    int splits,
                    float* __restrict__ out) {       // [N, splits, groups·group_filters]
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // kernels/cuda.py asks older GPUs for none of this
  using T = typename Columns::Operand;
  constexpr int kTaps = Shape::kTaps, kChunks = Shape::kChunks;
  constexpr int kRowBytes = Shape::kChannelPitch * static_cast<int>(sizeof(T));  // of the column tile
  static_assert(!Shape::kWeighted || kTaps == 1);
  static_assert(!Shape::kGathered || (sizeof(T) == 4 && kTaps == 1));
  TASK2VEC_DYNAMIC_SHARED(shared);
  int* const row_offset = reinterpret_cast<int*>(shared);  // [depth] of a location in the column tile
  T* const stages = reinterpret_cast<T*>(shared + kTableBytes);
  const int delta_size = slices.depth * Shape::kFilterPitch;
  const int stage_size = delta_size + slices.tile_rows * Shape::kChannelPitch;

  // 32 bits are enough for each of these, the grid's own limit; 64 would cost registers.
  unsigned block = blockIdx.x;
  const int split = static_cast<int>(block % splits);
  block /= splits;
  const int first_filter = static_cast<int>(block % filter_tiles) * Shape::kFilters;  // in the group
  block /= filter_tiles;
  const int g = static_cast<int>(block % static_cast<unsigned>(groups));
  const int n = static_cast<int>(block / static_cast<unsigned>(groups));

  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int warp_filter = warp % Shape::kFilterWarps * kWarpFilters;
  const int warp_channel = warp / Shape::kFilterWarps * kChunks * 8;

  static_assert(Shape::kThreads >= kMaxSlice && Shape::kThreads >= Shape::kFilters);
  if (thread < slices.depth)  // δ is 0 at the locations that fill the slice up: any row will do
    row_offset[thread] = thread < slices.height * slices.width
                             ? columns.row(thread / slices.width, thread % slices.width, slices) * kRowBytes
                             : 0;

  // Slices are brought in ahead of their use, over the end of a column tile too, unless its weights need the room.
  int tile = split, next_tile = split, next_h = 0, next_w = 0, next_stage = 0;
  auto next_cursor = columns.cursor(n, g, split);
  const auto bring_in = [&] {
    if (Shape::kWeighted ? next_tile == tile : next_tile < column_tiles) {
      T* const stage = stages + next_stage * stage_size;
      const Pixels<Delta> pixels{delta.plane(n, int64_t{g} * group_filters + first_filter),
                                 delta.stride_c,
                                 delta.stride_h,
                                 delta.stride_w,
                                 out_height,
                                 out_width,
                                 group_filters - first_filter,
                                 next_h,
                                 next_w,
                                 slices.height,
                                 slices.width,
                                 1,
                                 1};
      load_pixels<Shape::kThreads, Columns::kVectorDelta, Shape::kFilters>(stage, pixels, slices.depth);
      columns.fill(stage + delta_size, next_cursor, next_h, next_w, slices);
      next_stage = next_stage + 1 == Shape::kStages ? 0 : next_stage + 1;
      next_w += slices.width;
      if (next_w >= out_width) next_w = 0, next_h += slices.height;
      if (next_h >= out_height) {
        next_h = 0, next_tile += splits;
        if (next_tile < column_tiles) next_cursor = columns.cursor(n, g, next_tile);
      }
    }
    copies_commit();  // empty at the end, so that the count below holds
  };

  float row_sum[kFilterTiles][2] = {};
  int stage_in_use = 0;
  for (; tile < column_tiles; tile += splits) {
    const auto cursor = columns.cursor(n, g, tile);
    int offset[kOffsets<Shape>];
    const int lane_bytes = sizeof(T) == 2 || Shape::kGathered ? 0 : lane / 4 * static_cast<int>(sizeof(T));
#pragma unroll
    for (int i = 0; i < kOffsets<Shape>; ++i)
      offset[i] = columns.offset(cursor, i, warp_channel + i * 8 + lane / 4) * kRowBytes + lane_bytes;
    const bool live = warp_channel < cursor.channels && first_filter + warp_filter < group_filters;
    if (Shape::kWeighted || tile == split)
      for (int j = 0; j < Shape::kStages - 1; ++j) bring_in();

    float product[kFilterTiles][kChunks * kTaps][4] = {};
    for (int slice = 0; slice < slices.count(); ++slice) {
      copies_wait<Shape::kStages - 2>();
      __syncthreads();  // everyone's copies are here, and everyone is done with the stage that is filled next
      // Half of the warps multiply first, so that a scheduler's tensor core is not idle while addresses are computed.
#pragma unroll 1
      for (int turn = 0; turn < 2; ++turn) {
        if (turn == warp * 2 / Shape::kWarps) {
          bring_in();
        } else if (live) {
          const T* const stage = stages + stage_in_use * stage_size;
          multiply<Shape>(product, stage + warp_filter, stage + delta_size + (Shape::kGathered ? 0 : warp_channel),
                          row_offset, offset, slices.depth);
        }
      }
      stage_in_use = stage_in_use + 1 == Shape::kStages ? 0 : stage_in_use + 1;
    }

    T* const weights = stages;
    if constexpr (Shape::kWeighted) {
      __syncthreads();  // everyone is done with the stages
      columns.weights(weights, cursor, n, int64_t{g} * group_filters + first_filter, group_filters - first_filter);
      copies_commit();
      copies_wait<0>();
      __syncthreads();
    }
    if (live)
      add_columns<Shape>(row_sum, product, weights + warp_channel * Shape::kFilterPitch + warp_filter,
                         [&](int c, int g) { return columns.exists(cursor, c, warp_channel + c * 8 + g); });
    if constexpr (Shape::kWeighted) __syncthreads();
  }

  // The 4 lanes of a quad share their filters, then the warps that stand side by side, in order.
  __syncthreads();  // everyone is done with the stages
  float (*const sums)[Shape::kFilters] = reinterpret_cast<float (*)[Shape::kFilters]>(stages);  // [kChannelWarps]
#pragma unroll
  for (int m = 0; m < kFilterTiles; ++m)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float sum = row_sum[m][j];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (lane % 4 == 0) sums[warp / Shape::kFilterWarps][warp_filter + filter_of<T>(m, j, lane / 4)] = sum;
    }
  __syncthreads();
  if (thread < Shape::kFilters && first_filter + thread < group_filters) {
    float sum = 0.f;
    for (int w = 0; w < Shape::kChannelWarps; ++w) sum += sums[w][thread];
    out[(int64_t{n} * splits + split) * groups * group_filters + g * group_filters + first_filter + thread] = sum;
  }
#endif
}

template <class Shape, class Delta, class Columns>
void launch_mma_tile(View4<Delta> delta,
                     Columns columns,
                     const Slices& slices,
                     int64_t samples,
                     int64_t groups,
                     int group_filters,
                     int out_height,
                     int out_width,
                     int column_tiles,
                     int splits,
                     float* out,
                     Place at) {
  const int filter_tiles = static_cast<int>(ceil_div(group_filters, Shape::kFilters));
  const int bytes = shared_bytes<Shape, typename Columns::Operand>(slices);
  const dim3 grid = grid_of(samples * groups * filter_tiles * splits);
  DeviceGuard guard(at.device);
  // More than 48 KiB must be allowed, on every device. All that there is, once: a smaller number, set by another thread
  // between this one's permission and its launch, would refuse the launch.
  static OncePerDevice allow;
  allow(at.device, [&] {
    check(cudaFuncSetAttribute(mma_tile_kernel<Shape, Delta, Columns>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               shared_limit(at.device)));
  });
  TASK2VEC_LAUNCH((mma_tile_kernel<Shape, Delta, Columns>), grid, dim3(Shape::kThreads), bytes, stream_of(at), delta,
                  columns, slices, group_filters, filter_tiles, groups, out_height, out_width, column_tiles, splits,
                  out);
  check(cudaGetLastError());
}

}  // namespace task2vec
