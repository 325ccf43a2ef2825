// The CUDA sources as plain C++, for tests on machines without a GPU (see simt.h).
#include "filter_grad_sq_direct.cu"
#include "filter_grad_sq_direct_mma.cu"
#include "filter_grad_sq_gram.cu"
#include "filter_grad_sq_narrow.cu"
#include "noise.cu"
#include "pairwise.cu"
