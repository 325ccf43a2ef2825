// Fragments of the tensor-core tile: which numbers a lane holds for one matrix product of a warp (device.h).
//
// They are those of mma.sync m16n8 (PTX ISA): lane = 4·g + t holds
//   A [16, depth]  rows g, g + 8; 16-bit: k = 2t, 2t + 1, 2t + 8, 2t + 9; TF32: k = t, t + 4
//   B [depth, 8]   column g, the same k
//   C [16, 8]      rows g, g + 8, columns 2t, 2t + 1.
// Both operands lie in shared memory with k as the row: the layout of channels-last arrays, k an output location.
#pragma once
#include "cuda/scalar.cuh"

namespace task2vec {

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

// A[m, k] = tile[k][m] for 16 m's and one mma's k's. kPitch: numbers from one row of the tile to the next.
template <int kPitch, class T>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const T* tile, int lane) {
  if constexpr (sizeof(T) == 2) {
    load_matrices_transposed(a, tile + (lane % 8 + lane / 16 * 8) * kPitch + lane / 8 % 2 * 8);
  } else {
    const T* mine = tile + lane % 4 * kPitch + lane / 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) a[j] = round_to_tf32(mine[j / 2 * 4 * kPitch + j % 2 * 8]);
  }
}

// B[k, c] = row(k)[c] for 8 c's; row[j] is where row_of_b(lane, j) starts.
template <class T>
__device__ __forceinline__ void load_b(uint32_t (&b)[2], const T* const (&row)[kRowsOfB<T>], int offset, int lane) {
  if constexpr (sizeof(T) == 2) {
    load_matrices_transposed(b, row[0] + offset);
  } else {
#pragma unroll
    for (int j = 0; j < 2; ++j) b[j] = round_to_tf32(row[j][offset + lane / 4]);
  }
}

}  // namespace task2vec
