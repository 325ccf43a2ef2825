// The device: CUDA's headers, how a kernel starts, and the instructions that CUDA C++ has no function for.
//
// Sources include it as "cuda/device.h", relative to csrc/, and use nothing of CUDA that does not come from here. A
// build that puts another folder with a cuda/device.h before csrc/ in its include path gets another device.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#define TASK2VEC_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
#define TASK2VEC_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

namespace task2vec {

// ---- arithmetic ------------------------------------------------------------------------------------------

// Of normal numbers whose reciprocal is normal: one instruction, off by up to one unit in the last place.
__device__ __forceinline__ float reciprocal(float value) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

// ---- asynchronous copies (sm_80) -------------------------------------------------------------------------

// Copies kBytes into shared memory, or zeros without reading anything. Nothing is there before copies_wait and a
// barrier.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool zeros) {
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
}

// Closes a group of this thread's copies.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all of this thread's groups but the last kPending.
template <int kPending>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- tensor cores (sm_80): fragments as in mma.cuh -------------------------------------------------------

// To the nearest TF32; the bits of a float. Ties go to even where that is one instruction (sm_90), else away from zero,
// which takes two: a comparison, so that NaN stays, and an addition.
__device__ __forceinline__ uint32_t round_to_tf32(float value) {
  uint32_t bits;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#else
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#endif
  return bits;
}

// 8 × 8 matrices of 16-bit values, transposed; lanes 8·j … 8·j + 7 give the addresses of the rows of matrix j: so many
// bytes behind row.
template <int kMatrices>
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&fragment)[kMatrices], const void* row, int bytes) {
  static_assert(kMatrices == 2 || kMatrices == 4);
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row)) + bytes;
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
}

// C [16, 8] += A·B, 32 bytes of depth; T is the operands' type, float rounded to TF32.
#define TASK2VEC_MMA(shape_and_types)                                                                                 \
  asm volatile("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, float>)
    TASK2VEC_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
  else if constexpr (std::is_same_v<T, __half>)
    TASK2VEC_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  else
    TASK2VEC_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
#undef TASK2VEC_MMA

}  // namespace task2vec
