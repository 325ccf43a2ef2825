// Fragments of the tensor-core tile: which numbers a lane holds for the matrix products of a warp (device.h).
//
// They are those of mma.sync m16n8 (PTX ISA): lane = 4·g + t holds
//   A [16, depth]  rows g, g + 8; 16-bit: k = 2t, 2t + 1, 2t + 8, 2t + 9; TF32: k = t, t + 4
//   B [depth, 8]   column g, the same k
//   C [16, 8]      rows g, g + 8, columns 2t, 2t + 1.
// Both operands lie in shared memory with k as the row: the layout of channels-last arrays, k an output location.
//
// ldmatrix transposes 16-bit numbers. Of 32-bit numbers a lane loads two filters that lie side by side: they become
// rows g and g + 8 of one product, whose registers they must be (filter_of).
#pragma once
#include "cuda/scalar.cuh"

namespace task2vec {

constexpr int kWarpFilters = 64, kFilterTiles = kWarpFilters / 16;

// Depth of one mma: 32 bytes of an operand. A float operand is rounded to TF32.
template <class T>
constexpr int kMmaDepth = 32 / sizeof(T);

// Which rows (k) of a tile a lane addresses for one fragment of B: 16-bit lanes give ldmatrix its rows, TF32 lanes
// read their own two values.
template <class T>
constexpr int kRowsOfB = sizeof(T) == 2 ? 1 : 2;
template <class T>
__device__ __forceinline__ int row_of_b(int lane, int j) {
  return sizeof(T) == 2 ? lane % 16 : lane % 4 + 4 * j;
}

// The filter of a warp's 64 that is row 8·half + g of product m.
template <class T>
__device__ __forceinline__ int filter_of(int m, int half, int g) {
  return m * 16 + (sizeof(T) == 2 ? half * 8 + g : g * 2 + half);
}

// A of 16 filters: A[m, k] = tile[k][filter]. kPitch: numbers from one row of the tile to the next.
template <int kPitch, class T>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const T* tile, int lane) {
  if constexpr (sizeof(T) == 2) {
    load_matrices_transposed(a, tile + (lane % 8 + lane / 16 * 8) * kPitch + lane / 8 % 2 * 8, 0);
  } else {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const auto pair = *reinterpret_cast<const Vector<float, 2>*>(tile + (lane % 4 + 4 * j) * kPitch + lane / 4 * 2);
#pragma unroll
      for (int half = 0; half < 2; ++half) a[j * 2 + half] = round_to_tf32(pair.value[half]);
    }
  }
}

// B of 8 columns: B[k, c] = what lies so many bytes behind row(k): of 16-bit numbers the first column, else the
// lane's own.
template <class T>
__device__ __forceinline__ void load_b(uint32_t (&b)[2], const unsigned char* const (&row)[kRowsOfB<T>], int bytes) {
  if constexpr (sizeof(T) == 2) {
    load_matrices_transposed(b, row[0], bytes);
  } else {
#pragma unroll
    for (int j = 0; j < 2; ++j) b[j] = round_to_tf32(*reinterpret_cast<const float*>(row[j] + bytes));
  }
}

}  // namespace task2vec
