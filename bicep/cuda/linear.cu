// The masked linear layer in training: forward with fused activation and dropout, and its backward in parts.
// Shapes as torch has them: x [n][inputs], weights and mask [outputs][inputs], y and pre [n][outputs].
// Dropout of element (n, output): bit n % 32 of keep_word(output, n / 32, number, 0, key), so the words are
// mask_bank(key, outputs, rows=ceil(n / 32), number) of bicep/masks.py.
#include "common.cuh"

#define TILE 32
#define ROWS 4  // rows of a tile per thread: 256 threads

__device__ __forceinline__ f32 masked(const f32* weights, const u8* mask, i64 at) {
    return mask[at] ? weights[at] : 0.0f;
}

// pre = x (W.M)' + bias; y = dropout(gelu(pre)).  A block makes a tile of 32 rows by 32 outputs.
extern "C" __global__ void masked_linear(const f32* x, const f32* weights, const u8* mask, const f32* bias,
                                         i32 n, i32 inputs, i32 outputs, i32 activate, i32 drop, u32 number,
                                         u32 left, u32 right, f32* pre, f32* y) {
    __shared__ f32 rows[TILE][TILE + 1], kept[TILE][TILE + 1];
    i32 tx = threadIdx.x % TILE, ty = threadIdx.x / TILE;
    i32 first = blockIdx.y * TILE, output = blockIdx.x * TILE + tx;
    f32 sums[ROWS] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (i32 k = 0; k < inputs; k += TILE) {
#pragma unroll
        for (i32 r = 0; r < ROWS; ++r) {
            i32 row = ty + r * (TILE / ROWS), weight_row = blockIdx.x * TILE + row;
            rows[row][tx] =
                first + row < n && k + tx < inputs ? x[(i64)(first + row) * inputs + k + tx] : 0.0f;
            kept[row][tx] = weight_row < outputs && k + tx < inputs
                                ? masked(weights, mask, (i64)weight_row * inputs + k + tx)
                                : 0.0f;
        }
        __syncthreads();
        for (i32 i = 0; i < TILE; ++i)
#pragma unroll
            for (i32 r = 0; r < ROWS; ++r)
                sums[r] = fmaf(rows[ty + r * (TILE / ROWS)][i], kept[tx][i], sums[r]);
        __syncthreads();
    }
    if (output >= outputs) return;
    u32 word = drop ? keep_word(output, blockIdx.y, number, 0, left, right) : FULL;
    f32 scale = drop ? KEEP_SCALE : 1.0f, offset = bias ? bias[output] : 0.0f;
#pragma unroll
    for (i32 r = 0; r < ROWS; ++r) {
        i32 row = ty + r * (TILE / ROWS);
        if (first + row >= n) continue;
        f32 sum = sums[r] + offset;
        i64 at = (i64)(first + row) * outputs + output;
        if (pre) pre[at] = sum;
        y[at] = word >> row & 1 ? (activate ? gelu(sum) : sum) * scale : 0.0f;
    }
}

// inner = grad * keep * scale * gelu'(pre): the gradient in front of activation and dropout.
extern "C" __global__ void masked_linear_inner(const f32* grad, const f32* pre, i32 n, i32 outputs,
                                               i32 activate, i32 drop, u32 number, u32 left, u32 right,
                                               f32* inner) {
    i64 count = (i64)n * outputs;
    for (i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += (i64)gridDim.x * blockDim.x) {
        i32 row = at / outputs, output = at % outputs;
        u32 word = drop ? keep_word(output, row / WARP, number, 0, left, right) : FULL;
        f32 slope = (activate ? gelu_slope(pre[at]) : 1.0f) * (drop ? KEEP_SCALE : 1.0f);
        inner[at] = word >> (row % WARP) & 1 ? grad[at] * slope : 0.0f;
    }
}

// dx [n][inputs] = inner [n][outputs] (W.M).
extern "C" __global__ void masked_linear_dx(const f32* inner, const f32* weights, const u8* mask, i32 n,
                                            i32 inputs, i32 outputs, f32* dx) {
    __shared__ f32 rows[TILE][TILE + 1], kept[TILE][TILE + 1];
    i32 tx = threadIdx.x % TILE, ty = threadIdx.x / TILE;
    i32 first = blockIdx.y * TILE, input = blockIdx.x * TILE + tx;
    f32 sums[ROWS] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (i32 k = 0; k < outputs; k += TILE) {
#pragma unroll
        for (i32 r = 0; r < ROWS; ++r) {
            i32 row = ty + r * (TILE / ROWS);
            rows[row][tx] =
                first + row < n && k + tx < outputs ? inner[(i64)(first + row) * outputs + k + tx] : 0.0f;
            kept[row][tx] = k + row < outputs && input < inputs
                                ? masked(weights, mask, (i64)(k + row) * inputs + input)
                                : 0.0f;
        }
        __syncthreads();
        for (i32 i = 0; i < TILE; ++i)
#pragma unroll
            for (i32 r = 0; r < ROWS; ++r)
                sums[r] = fmaf(rows[ty + r * (TILE / ROWS)][i], kept[i][tx], sums[r]);
        __syncthreads();
    }
#pragma unroll
    for (i32 r = 0; r < ROWS; ++r) {
        i32 row = ty + r * (TILE / ROWS);
        if (first + row < n && input < inputs) dx[(i64)(first + row) * inputs + input] = sums[r];
    }
}

// dw[j] = sum_n inner[n][row of j] * x[n][columns[j]] for the kept weights alone, and db[row] = sum_n inner.
// A block takes a row: the row's gradients are staged once per 128 samples, a thread takes a kept weight.
extern "C" __global__ void masked_linear_dw(const f32* inner, const f32* x, const i32* rows,
                                            const i32* columns, i32 n, i32 inputs, i32 outputs, f32* dw,
                                            f32* db) {
    BICEP_DYNAMIC_SHARED(f32, stage);  // [blockDim.x]
    i32 row = blockIdx.x, end = rows[row + 1];
    for (i32 base = rows[row]; base < end; base += blockDim.x) {
        i32 j = base + threadIdx.x;
        f32 sum = 0.0f;
        for (i32 first = 0; first < n; first += blockDim.x) {
            i32 chunk = min((i32)blockDim.x, n - first);
            __syncthreads();  // the chunk before has been read
            if ((i32)threadIdx.x < chunk)
                stage[threadIdx.x] = inner[(i64)(first + threadIdx.x) * outputs + row];
            __syncthreads();
            if (j < end) {
                const f32* column = x + (i64)first * inputs + columns[j];
                for (i32 i = 0; i < chunk; ++i) sum = fmaf(stage[i], column[(i64)i * inputs], sum);
            }
        }
        if (j < end) dw[j] = sum;
    }
    if (threadIdx.x < WARP) {
        f32 sum = 0.0f;
        for (i32 i = threadIdx.x; i < n; i += WARP) sum += inner[(i64)i * outputs + row];
        sum = warp_sum(sum);
        if (threadIdx.x == 0) db[row] = sum;
    }
}
