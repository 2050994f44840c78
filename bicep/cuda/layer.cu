// One sparse layer for all Monte-Carlo samples: CSR product, bias, tanh-GELU and dropout in one launch.
#include "common.cuh"

// y[unit][sample] = keep * scale * gelu(sum_j weights[j] * x[columns[j]][sample] + bias[unit]).
// x has one value per input (x_samples = 1: the product is done once, across the lanes) or one per sample
// (x_samples = samples: a lane is a sample).  A warp takes a unit; samples is a multiple of 32.
// Dropout words: keep_word(first_unit + unit, row, number, sample / 32, key); scale = 8/7.
extern "C" __global__ void csr_layer_mc(const i32* rows, const i32* columns, const f32* weights,
                                        const f32* bias, const f32* x, i32 x_samples, i32 units, i32 samples,
                                        u32 first_unit, u32 row, u32 number, u32 left, u32 right, f32* y) {
    i32 lane = threadIdx.x & (WARP - 1), warps = gridDim.x * (blockDim.x / WARP);
    for (i32 unit = (blockIdx.x * blockDim.x + threadIdx.x) / WARP; unit < units; unit += warps) {
        i32 begin = rows[unit], end = rows[unit + 1];
        f32 shared_by_all = 0.0f;
        if (x_samples == 1) {
            f32 sum = 0.0f;
            for (i32 j = begin + lane; j < end; j += WARP) sum = fmaf(weights[j], x[columns[j]], sum);
            shared_by_all = gelu(warp_sum(sum) + bias[unit]);
        }
        for (i32 group = 0; group < samples / WARP; ++group) {
            i32 sample = group * WARP + lane;
            f32 value = shared_by_all;
            if (x_samples != 1) {
                f32 sum = bias[unit];
                for (i32 j = begin; j < end; ++j)
                    sum = fmaf(weights[j], x[columns[j] * samples + sample], sum);
                value = gelu(sum);
            }
            u32 word = keep_word(first_unit + unit, row, number, group, left, right);
            y[unit * samples + sample] = word >> lane & 1 ? value * KEEP_SCALE : 0.0f;
        }
    }
}
