// Masks: the words of the generator, banks of dropout words, and which weights a pruning keeps.
#include "common.cuh"

// words[n] = Philox of counters[n]; what the known-answer vectors of the generator are compared with.
extern "C" __global__ void philox_words(const u32* counters, i32 count, u32 left, u32 right, u32* words) {
    for (i32 n = blockIdx.x * blockDim.x + threadIdx.x; n < count; n += gridDim.x * blockDim.x) {
        Words counter = {counters[4 * n], counters[4 * n + 1], counters[4 * n + 2], counters[4 * n + 3]};
        Words drawn = philox(counter, left, right);
        words[4 * n] = drawn.a;
        words[4 * n + 1] = drawn.b;
        words[4 * n + 2] = drawn.c;
        words[4 * n + 3] = drawn.d;
    }
}

// words[row][unit]: the bank that bicep/masks.py calls mask_bank(key, units, rows, number), for one group.
extern "C" __global__ void mask_words(i32 rows, i32 units, u32 number, u32 group, u32 left, u32 right,
                                      u32* words) {
    i32 count = rows * units;
    for (i32 n = blockIdx.x * blockDim.x + threadIdx.x; n < count; n += gridDim.x * blockDim.x)
        words[n] = keep_word(n % units, n / units, number, group, left, right);
}

// What a pruning compares: |weight|, times the norm of its input (Wanda) when norms are given.  As bits:
// those of floats that are not negative are ordered like the floats; a NaN is above all of them and is kept.
__device__ __forceinline__ u32 score_bits(const f32* weights, const f32* norms, i32 n, i32 columns) {
    f32 score = fabsf(weights[n]);
    if (norms) score *= fabsf(norms[n % columns]);
    return __float_as_uint(score) & 0x7fffffffu;
}

// One digit of a radix selection: counts[d] += scores whose bits above the digit are `prefix` and whose digit
// is d.  Digits have 11, 11 and 10 bits from the top, so three launches find the exact k-th score.
extern "C" __global__ void score_histogram(const f32* weights, const f32* norms, i32 count, i32 columns,
                                           u32 prefix, i32 shift, i32 bits, u32* counts) {
    BICEP_DYNAMIC_SHARED(u32, bins);  // [1 << bits]
    for (i32 d = threadIdx.x; d < 1 << bits; d += blockDim.x) bins[d] = 0;
    __syncthreads();
    for (i32 n = blockIdx.x * blockDim.x + threadIdx.x; n < count; n += gridDim.x * blockDim.x) {
        u64 score = score_bits(weights, norms, n, columns);
        if (score >> (shift + bits) == prefix) atomicAdd(&bins[(score >> shift) & ((1u << bits) - 1)], 1u);
    }
    __syncthreads();
    for (i32 d = threadIdx.x; d < 1 << bits; d += blockDim.x)
        if (bins[d]) atomicAdd(&counts[d], bins[d]);
}

// mask[n] = score >= the score with these bits; kept[0] += how many.  Equal scores live or die together.
extern "C" __global__ void score_mask(const f32* weights, const f32* norms, i32 count, i32 columns, u32 least,
                                      u8* mask, u32* kept) {
    i32 total = (count + WARP - 1) / WARP * WARP;  // whole warps vote
    for (i32 n = blockIdx.x * blockDim.x + threadIdx.x; n < total; n += gridDim.x * blockDim.x) {
        bool keep = n < count && score_bits(weights, norms, n, columns) >= least;
        if (n < count) mask[n] = keep;
        u32 votes = __ballot_sync(FULL, keep);
        if ((threadIdx.x & (WARP - 1)) == 0) atomicAdd(kept, (u32)__popc(votes));
    }
}
