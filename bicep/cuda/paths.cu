// Monte-Carlo price paths: geometric Brownian motion, a thread per path, four steps per Philox call.
#include "common.cuh"

// Two normals from two words (Box-Muller).  A word w is the uniform (w + 1/2) / 2^32: never 0.
__device__ __forceinline__ void normals(u32 radius_word, u32 angle_word, f32* first, f32* second) {
    f32 uniform = fmaf((f32)radius_word, 2.3283064365386963e-10f, 1.1641532182693481e-10f);
    f32 radius = sqrtf(-2.0f * logf(uniform));
    f32 turn = fmaf((f32)angle_word, 4.6566128730773926e-10f, 2.3283064365386963e-10f);  // 2 * uniform
    *first = radius * cospif(turn);
    *second = radius * sinpif(turn);
}

// Of each path: the last price, the lowest and the highest (the start included); all [asset][path].
// Counter of the steps 4b .. 4b + 3 of a path: (path, b, asset, number).  drift and volatility are per step:
// log price += drift - volatility^2 / 2 + volatility * normal.
extern "C" __global__ void price_paths(const f32* spot, const f32* drift, const f32* volatility, i32 assets,
                                       i32 paths, i32 steps, u32 number, u32 left, u32 right, f32* last,
                                       f32* lowest, f32* highest) {
    i32 asset = blockIdx.y;
    if (asset >= assets) return;
    f32 noise = volatility[asset], trend = drift[asset] - 0.5f * noise * noise;
    for (i32 path = blockIdx.x * blockDim.x + threadIdx.x; path < paths; path += gridDim.x * blockDim.x) {
        f32 price = 0.0f, least = 0.0f, most = 0.0f;  // as logarithms of a multiple of the start
        for (i32 step = 0; step < steps; step += 4) {
            Words counter = {(u32)path, (u32)step / 4, (u32)asset, number};
            Words drawn = philox(counter, left, right);
            f32 a, b, c, d;
            normals(drawn.a, drawn.b, &a, &b);
            normals(drawn.c, drawn.d, &c, &d);
            i32 live = steps - step;  // steps of this call that count
#pragma unroll
            for (i32 n = 0; n < 4; ++n) {
                f32 normal = n == 0 ? a : n == 1 ? b : n == 2 ? c : d;
                if (n < live) {
                    price += fmaf(noise, normal, trend);
                    least = fminf(least, price);
                    most = fmaxf(most, price);
                }
            }
        }
        i64 at = (i64)asset * paths + path;
        last[at] = spot[asset] * expf(price);
        lowest[at] = spot[asset] * expf(least);
        highest[at] = spot[asset] * expf(most);
    }
}
