// Every host entry point on one page: numbers in, numbers out. Nothing here knows of Python or torch.
//
// Index letters (CONTRIBUTING.md): n sample, g group, i input channel, o filter, p = (i, kh, kw) position in a
// patch, q = (oh, ow) output location. Strides count elements, so that any layout is read where it lies.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#ifdef __CUDACC__
#define TASK2VEC_BOTH __host__ __device__
#else
#define TASK2VEC_BOTH
#endif

// Inlined always: loops over it must become vectors.
#if defined(__CUDACC__)
#define TASK2VEC_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define TASK2VEC_INLINE inline __attribute__((always_inline))
#else
#define TASK2VEC_INLINE __forceinline
#endif

namespace task2vec {

// ---- where and what ------------------------------------------------------------------------------------

struct Place {
  int device;
  void* stream;
};

enum class Scalar : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat64 = 3 };  // float64 on the CPU alone

// A strided array [N, C, H, W] on the device.
struct Array4 {
  const void* data;
  std::array<int64_t, 4> stride;
};

// One convolution. Filters of group g are o = g·group_filters … (g+1)·group_filters − 1.
struct Conv {
  int64_t samples, groups;
  int group_channels, group_filters;  // input channels and filters of one group
  int height, width;                  // of the input
  int out_height, out_width;
  int kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;

  int positions() const { return out_height * out_width; }                 // Q
  int patch_size() const { return group_channels * kernel_h * kernel_w; }  // P
};

// ---- filter_grad_sq: s[n,o] = ‖g_n[o,·]‖²,  g_n[o,p] = Σ_q δ_n[o,q] · patch(x_n)[p,q] ------------------------

// Direct route. Tiles of g_n are formed in registers, squared and summed there; g_n is never written.
// Block (n, split) covers the p-tiles split, split + splits, …; the caller adds the splits up, in order.
void filter_grad_sq_direct(Array4 input,        // [N, groups·group_channels, H, W]
                           Array4 grad_output,  // [N, groups·group_filters, H_out, W_out]
                           Scalar scalar,       // of both
                           const Conv& conv,
                           int splits,
                           float* partial,  // [N, splits, groups·group_filters]
                           Place at);

// The same on tensor cores, of sm_80 and later: products of float16, bfloat16, or float32 rounded to TF32; sums in
// float32. Tiles of filters and of columns of one group, or {0, 0} where the window is too large for shared memory;
// block (n, split) covers the column tiles split, split + splits, ….
std::array<int, 2> filter_grad_sq_direct_mma_tiles(Scalar scalar, const Conv& conv, int device);
void filter_grad_sq_direct_mma(Array4 input,
                               Array4 grad_output,
                               Scalar scalar,
                               const Conv& conv,
                               int splits,
                               float* partial,  // [N, splits, groups·group_filters]
                               Place at);

// The same for groups of few filters (depthwise, ResNeXt): one warp a filter, no tile that would stay empty.
void filter_grad_sq_narrow(Array4 input,
                           Array4 grad_output,
                           Scalar scalar,
                           const Conv& conv,
                           float* out,  // [N, groups·group_filters]
                           Place at);

// Epilogue of both Gram routes, for output rows I (rows) against output rows J (columns) of every sample:
//   out[n,o] = Σ_{q∈I, q'∈J} δ[o,q] · A[q,q'] · δ[o,q'].
// Gram route: A = UᵀU of the unfolded input. Shifted Gram: A is gathered from the Gram matrix of the padded input's
// pixels through the conv's window,
//   A[q,q'] = Σ_{r∈window} gram[pixel(q,r), pixel(q',r)],
// with pixel(q,r) = (oh·stride_h + kh·dilation_h)·gram_width + ow·stride_w + kw·dilation_w, oh counted from the strip's
// first row.
struct GramWindow {
  int kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  int gram_width;  // pixels in one row of a strip
  int out_width;   // output locations in one row of a strip
};
void filter_grad_sq_gather(const float* gram,     // [N·groups, row_pixels, column_pixels], contiguous
                           int64_t matrices,      // N·groups
                           int row_positions,     // locations in I
                           int column_positions,  // locations in J
                           int row_pixels,
                           int column_pixels,
                           const GramWindow& window,
                           int pitch,  // numbers in a row of A: what is behind the columns becomes 0
                           float* a,   // [N·groups, row_positions, pitch]
                           Place at);
void filter_grad_sq_gram(const float* a,              // [N, groups, row_positions, pitch]
                         Array4 grad_output_rows,     // [N, groups·group_filters, rows of I, out_width]
                         Array4 grad_output_columns,  // [N, groups·group_filters, rows of J, out_width]
                         Scalar scalar,               // of grad_output
                         int64_t samples,
                         int64_t groups,
                         int group_filters,
                         int row_positions,
                         int column_positions,
                         int pitch,  // a multiple of 4 on tensor cores
                         int out_width,
                         bool tensor_cores,  // δ·A in TF32 (sm_80 and later)
                         float* out,         // [N, groups·group_filters]
                         Place at);

// ---- bias_relu: output[q,o] = max(output[q,o] + bias[o] + other[q,o], 0), q over the locations of all samples
// ----------

void bias_relu(void* output,       // [rows, filters], rounded after each sum; 16-byte aligned, as other
               Scalar scalar,      // of output and other
               const float* bias,  // [filters]
               const void* other,  // [rows, filters]; null: 0
               int64_t rows,
               int filters,  // a multiple of the numbers in 16 bytes
               Place at);

// ---- noise: ε is standard normal and drawn again wherever it is needed (philox.h) ----------------------------------

struct NoiseKey {
  uint64_t seed;
  uint32_t stream, step;
};

// local_noise: out[n,o,q] = output[n,o,q] + σ[o]·norm[n,q]·ε[n,o,q]. ε[n,o,q] is number o mod 4 of block
// (n·Q + q)·⌈C/4⌉ + ⌊o/4⌋, whatever the layout.
struct NoiseShape {
  int64_t samples;
  int filters, positions;  // C, Q
  bool channels_last;      // arrays are dense, [N, Q, C] instead of [N, C, Q]
  bool norm_of_filter;     // norm is an array like output, not one number a location
};

void local_noise(const void* output,  // [N, C, Q]
                 Scalar scalar,       // of output and out
                 const float* norm,   // [N, Q] or [N, C, Q]
                 const float* sigma,  // [C]
                 const NoiseShape& shape,
                 const NoiseKey& key,
                 void* out,  // [N, C, Q]
                 Place at);

// sums[n,t,o] = Σ_{q∈tile t} grad·norm·ε, kNoiseTile locations at a time, and grad_norm[n,q] = Σ_o grad·σ·ε, on a GPU
// kNoiseFilters filters at a time: the caller adds them up, in order. If norm is of every filter, grad_norm[n,o,q] =
// grad·σ·ε.
constexpr int kNoiseTile = 64, kNoiseFilters = 128;
void local_noise_backward(const void* grad,  // [N, C, Q]
                          Scalar scalar,
                          const float* norm,
                          const float* sigma,
                          const NoiseShape& shape,
                          const NoiseKey& key,
                          float* sums,       // [N, ⌈Q/kNoiseTile⌉, C]
                          float* grad_norm,  // [⌈C/kNoiseFilters⌉, N, Q] or [N, C, Q]; null: not asked for
                          Place at);

// weight_noise: out[o,j] = weight[o,j] + σ[o]·ε[o,j], filters of all layers end to end. ε[o,j] is number j mod 4 of
// block o·2³² + ⌊j/4⌋.
void weight_noise(const float* weight,
                  const float* sigma,     // [K]
                  const int64_t* starts,  // [K + 1], where each filter's weights begin; on the device
                  int64_t filters,
                  const NoiseKey& key,
                  float* out,
                  Place at);

// sums[o] = Σ_j grad[o,j]·ε[o,j].
void weight_noise_backward(const float* grad,
                           const int64_t* starts,
                           int64_t filters,
                           const NoiseKey& key,
                           float* sums,  // [K]
                           Place at);

// The same on the CPU; grad_norm is [N, Q] or [N, C, Q].
template <class T>
void local_noise(const T* output, const T* norm, const T* sigma, const NoiseShape& shape, const NoiseKey& key, T* out);
template <class T>
void local_noise_backward(const T* grad,
                          const T* norm,
                          const T* sigma,
                          const NoiseShape& shape,
                          const NoiseKey& key,
                          T* sums,
                          T* grad_norm);
template <class T>
void weight_noise(const T* weight, const T* sigma, const int64_t* starts, int64_t filters, const NoiseKey& key, T* out);
template <class T>
void weight_noise_backward(const T* grad, const int64_t* starts, int64_t filters, const NoiseKey& key, T* sums);

// ---- distances: d_sym(a,b) = 1 − Σ r·q / √(Σ r² · Σ q²),  r = a/(a+b), q = b/(a+b), sums over the filters -----------

// Two passes over out. The fast one, in float32, from Σ r and Σ r² alone (Σ r·q = Σ r − Σ r², Σ q² = Σ 1 − 2 Σ r + Σ
// r²), writes what it is sure of to 1e-6; the exact one, in float64, whatever is negative. Fill out with −1 before.
// symmetric: b is a; pairs j > i are computed and written twice.

// Of what the fast pass is sure. Exponents are those after all entries were multiplied by 2**shift.
struct SymFast {
  static constexpr int kMostExponent = 60;    // above the largest entry: a product of two sums is a float32
  static constexpr int kLeastExponent = -36;  // below the least entry that is not 0: 26 bits above a dead filter's
  static constexpr int kDeadExponent = -62;   // stands for 0 in a denominator
  // Least mean of q² and of r²: the float32 errors are divided by them.
  static constexpr double kLeastOther = 0.24, kLeastNumerator = 1. / (1 << 20);
  static constexpr double kLeastDistance = 1e-3;  // what is small is exact: near neighbours, and 0 for equal rows
};

void sym_distances_fast(const double* a,  // [A, K], none negative, no row all zero
                        const double* b,  // [B, K]
                        int64_t count_a,
                        int64_t count_b,
                        int64_t filters,
                        int shift,  // 2**shift times the largest entry of both is in [½, 1) · 2**kMostExponent
                        bool symmetric,
                        double* out);  // [A, B]

void sym_distances_exact(const double* a,            // [A, K]
                         const double* b,            // [B, K]
                         const int64_t* exponent_a,  // [A], each row's largest entry is in [½, 1) · 2**exponent
                         const int64_t* exponent_b,  // [B]
                         int64_t count_a,
                         int64_t count_b,
                         int64_t filters,
                         bool symmetric,
                         double* out);  // [A, B]

// The same on a GPU, where the caller has sorted the rows by their mean.
struct SymRows {
  const float* numerators;  // [count, K], times 2**shift
  const float* others;      // [count, K], the same with 2**kDeadExponent for 0
  const float* mean;        // [count]
  int64_t count;
};
void sym_distances_fast(const SymRows& a,
                        const SymRows& b,
                        int64_t filters,
                        bool symmetric,
                        const float* live,  // [A, B] filters that are not dead in both; null: all
                        double* out,        // [A, B]
                        Place at);

void sym_distances_exact(const double* a,            // [A, K]
                         const double* b,            // [B, K]
                         const int64_t* exponent_a,  // [A]
                         const int64_t* exponent_b,  // [B]
                         int64_t count_a,
                         int64_t count_b,
                         int64_t filters,
                         bool symmetric,
                         double* out,  // [A, B]
                         Place at);

// ---- filter_grad_sq on the CPU (T = float or double; threads are OpenMP's) ----------------------------------------

// The loops are compiled for several instruction sets; the first of those that the processor has is used, or another.
std::vector<std::string> instruction_sets();
void use_instruction_set(const std::string& name);

// The most bytes that the threads' buffers held together since the last call: they are kept between calls.
int64_t scratch_peak();

// Direct route: blocks of g_n in the cache, squared and summed there.
template <class T>
void filter_grad_sq_direct(Array4 input,        // [N, groups·group_channels, H, W]
                           Array4 grad_output,  // [N, groups·group_filters, H_out, W_out]
                           const Conv& conv,
                           T* out);  // [N, groups·group_filters]

// The same for 3×3, stride 1, dilation 1 in the Winograd domain: a quarter of the multiplications.
template <class T>
void filter_grad_sq_winograd(Array4 input, Array4 grad_output, const Conv& conv, T* out);

// ‖g_o‖² = δ_o A δ_oᵀ, A gathered from the Gram matrices of pixels as above; any stride and dilation.
template <class T>
void filter_grad_sq_shifted_gram(Array4 input, Array4 grad_output, const Conv& conv, T* out);

}  // namespace task2vec
