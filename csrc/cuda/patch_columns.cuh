// Columns of the tensor-core tile for groups of few channels (a network's first layer): a column is one number of the
// patch, and B[q, p] is read where it lies in a tile of pixels, so that no unfolded input is ever written.
#pragma once
#include "cuda/filter_tile_mma.cuh"

namespace task2vec {

// 64 filters × 160 numbers of the patch (7×7 windows of 3 channels have 147): 80 accumulators a thread.
struct PatchShape : TileShape<4, 1, 1, 5, 2, kMaxSlice * 4, 3> {
  static constexpr bool kGathered = true;
  static constexpr int kChannelPitch = 1;  // the column tile's rows are single numbers
};

// The pixels of all channels that a slice reads: [channels, height, pitch].
struct PatchTile {
  int height, width, pitch;

  PatchTile(const Conv& conv, int64_t rows, int64_t columns) {
    const auto span = [](int64_t outputs, int stride, int kernel, int dilation) {
      return (outputs - 1) * stride + int64_t{kernel - 1} * dilation + 1;
    };
    constexpr int64_t kTooMany = 1 << 20;  // more than any shared memory has
    height = static_cast<int>(std::min(span(rows, conv.stride_h, conv.kernel_h, conv.dilation_h), kTooMany));
    width = static_cast<int>(std::min(span(columns, conv.stride_w, conv.kernel_w, conv.dilation_w), kTooMany));
    // 16 more than a multiple of 32: of the 8 columns that lanes read, those in another row are in other banks.
    pitch = static_cast<int>(ceil_div(width - 16, 32)) * 32 + 16;
  }
  int64_t numbers(const Conv& conv) const {  // a multiple of 16 bytes
    return ceil_div(int64_t{conv.group_channels} * height * pitch, 4) * 4;
  }
};

template <class T, bool kVector>
struct PatchColumns {
  using Operand = float;  // 16-bit numbers are TF32 numbers
  static constexpr bool kVectorDelta = kVector;
  struct Cursor {
    const T* origin;      // pixel (0, 0) of the group's first channel
    int channels, first;  // columns from this tile's first one on, and that one
  };

  View4<T> input;
  Conv conv;
  PatchTile pixels;
  int height, width;  // of the input, without what no output location reads (it may be anything)

  __device__ __forceinline__ Cursor cursor(int64_t n, int64_t g, int tile) const {
    const int first = tile * PatchShape::kChannels;
    return {input.plane(n, g * conv.group_channels), conv.group_channels * conv.kernel_h * conv.kernel_w - first,
            first};
  }
  __device__ __forceinline__ void fill(float* tile, const Cursor& cursor, int oh, int ow, const Slices&) const {
    constexpr int kTogether = std::is_same_v<T, float> ? 1 : 8;  // rows whose loads are waited for
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int top = oh * conv.stride_h - conv.padding_h, left = ow * conv.stride_w - conv.padding_w;
    const int rows = conv.group_channels * pixels.height;
    for (int first = warp; first < rows; first += PatchShape::kWarps * kTogether)
      for (int w = lane; w < pixels.width; w += 32) {
        float value[kTogether];
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
          const int row = first + j * PatchShape::kWarps, i = row / pixels.height, h = top + row - i * pixels.height;
          const bool exists = (row < rows) & (static_cast<unsigned>(h) < static_cast<unsigned>(height)) &
                              (static_cast<unsigned>(left + w) < static_cast<unsigned>(width));
          const T* source = cursor.origin;
          if (exists) source += i * input.stride_c + h * input.stride_h + (left + w) * input.stride_w;
          if constexpr (std::is_same_v<T, float>)
            copy_async<4>(tile + row * pixels.pitch + w, source, !exists);
          else
            value[j] = exists ? to_float(*source) : 0.f;
        }
        if constexpr (!std::is_same_v<T, float>)
#pragma unroll
          for (int j = 0; j < kTogether; ++j)
            if (const int row = first + j * PatchShape::kWarps; row < rows) tile[row * pixels.pitch + w] = value[j];
      }
  }
  __device__ __forceinline__ int row(int h, int w, const Slices&) const {
    return h * conv.stride_h * pixels.pitch + w * conv.stride_w;
  }
  __device__ __forceinline__ int offset(const Cursor& cursor, int, int column) const {
    if (column >= cursor.channels) return 0;
    const int p = cursor.first + column, window = conv.kernel_h * conv.kernel_w;
    const int i = p / window, kh = p % window / conv.kernel_w, kw = p % conv.kernel_w;
    return (i * pixels.height + kh * conv.dilation_h) * pixels.pitch + kw * conv.dilation_w;
  }
  __device__ __forceinline__ bool exists(const Cursor& cursor, int, int column) const {
    return column < cursor.channels;
  }
};

}  // namespace task2vec
