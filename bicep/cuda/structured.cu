// 2:4 pruning: of four neighbours in a row the two of largest magnitude stay (of equals the first).
// A compressed group is two values and a nibble: position of the first kept | position of the second << 2.
#include "common.cuh"

// Positions of the two that stay, the smaller first, as the nibble above.
__device__ __forceinline__ u32 best_two(const f32* four) {
    f32 a = fabsf(four[0]), b = fabsf(four[1]), c = fabsf(four[2]), d = fabsf(four[3]);
    // how many of the others are preferred to each: an earlier one wins a tie
    i32 above_a = (b > a) + (c > a) + (d > a);
    i32 above_b = (a >= b) + (c > b) + (d > b);
    i32 above_c = (a >= c) + (b >= c) + (d > c);
    bool keep_a = above_a < 2, keep_b = above_b < 2, keep_c = above_c < 2;
    u32 first = keep_a ? 0 : keep_b ? 1 : 2;
    u32 second = keep_a && keep_b ? 1 : (keep_a || keep_b) && keep_c ? 2 : 3;
    return first | second << 2;
}

// mask[4 * group + i] = stays.  groups = weights / 4; a row holds whole groups.
extern "C" __global__ void mask_2_4(const f32* weights, i32 groups, u8* mask) {
    for (i32 g = blockIdx.x * blockDim.x + threadIdx.x; g < groups; g += gridDim.x * blockDim.x) {
        u32 pair = best_two(weights + 4 * g);
        for (u32 i = 0; i < 4; ++i) mask[4 * g + i] = i == (pair & 3) || i == pair >> 2;
    }
}

// values[2 * group ..] and one byte of positions per group.
extern "C" __global__ void compress_2_4(const f32* weights, i32 groups, f32* values, u8* positions) {
    for (i32 g = blockIdx.x * blockDim.x + threadIdx.x; g < groups; g += gridDim.x * blockDim.x) {
        u32 pair = best_two(weights + 4 * g);
        values[2 * g] = weights[4 * g + (pair & 3)];
        values[2 * g + 1] = weights[4 * g + (pair >> 2)];
        positions[g] = pair;
    }
}

// The inverse: pruned places are 0.
extern "C" __global__ void expand_2_4(const f32* values, const u8* positions, i32 groups, f32* weights) {
    for (i32 g = blockIdx.x * blockDim.x + threadIdx.x; g < groups; g += gridDim.x * blockDim.x) {
        u32 pair = positions[g];
        for (u32 i = 0; i < 4; ++i)
            weights[4 * g + i] = i == (pair & 3)        ? values[2 * g]
                                 : i == (pair >> 2 & 3) ? values[2 * g + 1]
                                                        : 0.0f;
    }
}

// bad[0] += groups with more than two weights that are not zero.
extern "C" __global__ void check_2_4(const f32* weights, i32 groups, u32* bad) {
    i32 total = (groups + WARP - 1) / WARP * WARP;  // whole warps vote
    for (i32 g = blockIdx.x * blockDim.x + threadIdx.x; g < total; g += gridDim.x * blockDim.x) {
        i32 live = 0;
        for (i32 i = 0; g < groups && i < 4; ++i) live += weights[4 * g + i] != 0.0f;
        u32 votes = __ballot_sync(FULL, live > 2);
        if ((threadIdx.x & (WARP - 1)) == 0 && votes) atomicAdd(bad, (u32)__popc(votes));
    }
}
