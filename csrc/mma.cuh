// What the tensor-core tile needs of sm_80 and later, one function an instruction, each with its twin for the emulation
// (simt.h): asynchronous copies into shared memory, fragments, and the matrix product of a warp.
//
// Fragments are those of mma.sync m16n8 (PTX ISA): lane = 4·g + t holds
//   A [16, depth]  rows g, g + 8; 16-bit: k = 2t, 2t + 1, 2t + 8, 2t + 9; TF32: k = t, t + 4
//   B [depth, 8]   column g, the same k
//   C [16, 8]      rows g, g + 8, columns 2t, 2t + 1.
// Both operands lie in shared memory with k as the row: the layout of channels-last arrays, k an output location.
#pragma once
#include "scalar.cuh"

namespace task2vec {

// Depth of one mma: 32 bytes of an operand. A float operand is rounded to TF32.
template <class T>
constexpr int kMmaDepth = 32 / sizeof(T);

// ---- asynchronous copies ---------------------------------------------------------------------------------

// Copies kBytes, or zeros without reading anything. Nothing is there before copies_wait and a barrier.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool zeros) {
#ifdef __CUDACC__
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16)  // past L1: that memory is the tile's
    asm volatile(
        "{ .reg .pred zeros; setp.ne.b32 zeros, %2, 0; cp.async.cg.shared.global [%0], [%1], 16, zeros; }" ::"r"(
            address),
        "l"(global), "r"(static_cast<int>(zeros))
        : "memory");
  else
    asm volatile(
        "{ .reg .pred zeros; setp.ne.b32 zeros, %2, 0; cp.async.ca.shared.global [%0], [%1], %3, zeros; }" ::"r"(
            address),
        "l"(global), "r"(static_cast<int>(zeros)), "n"(kBytes)
        : "memory");
#else
  simt::copy_async(shared, global, kBytes, zeros);
#endif
}

// Closes a group of this thread's copies.
__device__ __forceinline__ void copies_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  simt::copies_commit();
#endif
}

// Waits for all of this thread's groups but the last kPending.
template <int kPending>
__device__ __forceinline__ void copies_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  simt::copies_wait(kPending);
#endif
}

// ---- fragments -------------------------------------------------------------------------------------------

// To the nearest TF32, ties away from zero; the bits of a float.
__device__ __forceinline__ uint32_t round_to_tf32(float value) {
  uint32_t bits;
#ifdef __CUDACC__
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#else
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x1000u) & ~0x1fffu;
#endif
  return bits;
}

// 8 × 8 matrices of 16-bit values, transposed; lanes 8·j … 8·j + 7 give the addresses of the rows of matrix j.
template <int kMatrices>
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&fragment)[kMatrices], const void* row) {
  static_assert(kMatrices == 2 || kMatrices == 4);
#ifdef __CUDACC__
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kMatrices == 4)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(fragment[0]), "=r"(fragment[1])
                 : "r"(address)
                 : "memory");
#else
  simt::load_matrices_transposed(fragment, kMatrices, row);
#endif
}

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

// ---- C += A·B --------------------------------------------------------------------------------------------

#ifdef __CUDACC__
#define TASK2VEC_MMA(shape_and_types)                                                                                 \
  asm volatile("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#endif

template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDACC__
  if constexpr (std::is_same_v<T, float>)
    TASK2VEC_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
  else if constexpr (std::is_same_v<T, __half>)
    TASK2VEC_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  else
    TASK2VEC_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
#else
  simt::mma<T>(c, a, b, [](T value) { return to_float(value); });
#endif
}
#undef TASK2VEC_MMA

}  // namespace task2vec
