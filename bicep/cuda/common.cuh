// What every kernel shares: types, the generator of dropout masks, the activation, sums over a warp.
// Each .cu file of this folder is compiled unchanged by NVRTC and, for tests, by g++ (which brings its own
// definitions of what the three #ifndef blocks below define).
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef short i16;
typedef int i32;
typedef long long i64;
typedef float f32;
typedef double f64;

#include "layouts.cuh"  // the records of bicep/cuda/layout.py and the words of a ring, written by it

#ifndef BICEP_DYNAMIC_SHARED
#define BICEP_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif

#define WARP 32
#define FULL 0xffffffffu
#define KEEP_SCALE 1.142857142857142857f  // 1 / (1 - 1/8)

// ---- words that the host shares: system scope, the order is in the name
#ifndef BICEP_SYSTEM_WORDS
__device__ __forceinline__ i64 load_acquire(const char* at) {
    i64 value;
    asm volatile("ld.acquire.sys.global.b64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
    return value;
}
__device__ __forceinline__ void store_release(char* at, i64 value) {
    asm volatile("st.release.sys.global.b64 [%0], %1;" : : "l"(at), "l"(value) : "memory");
}
__device__ __forceinline__ void rest(u32 ns) { __nanosleep(ns); }
#endif

// ---- Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011): a word is a pure function of counter and key
struct Words {
    u32 a, b, c, d;
};

__device__ __forceinline__ Words philox(Words counter, u32 left, u32 right) {
#pragma unroll
    for (i32 round = 0; round < 10; ++round) {
        u32 high_a = __umulhi(0xD2511F53u, counter.a), low_a = 0xD2511F53u * counter.a;
        u32 high_c = __umulhi(0xCD9E8D57u, counter.c), low_c = 0xCD9E8D57u * counter.c;
        counter.a = high_c ^ counter.b ^ left;
        counter.c = high_a ^ counter.d ^ right;
        counter.b = low_c;
        counter.d = low_a;
        left += 0x9E3779B9u;
        right += 0xBB67AE85u;
    }
    return counter;
}

// The keep bits of one unit for 32 samples, as bicep/masks.py draws them: counter (unit, row, bank number,
// group), each bit 0 with probability 1/8.  Group g holds the samples 32g .. 32g + 31; masks.py has group 0.
__device__ __forceinline__ u32 keep_word(u32 unit, u32 row, u32 number, u32 group, u32 left, u32 right) {
    Words counter = {unit, row, number, group};
    Words drawn = philox(counter, left, right);
    return drawn.a | drawn.b | drawn.c;
}

// ---- tanh-GELU as x * sigmoid(2u), u = sqrt(2/pi) * (x + 0.044715 x^3): one exp, no cancellation in the
// tail. The clamp bounds the exponential as the CPU plan does; a NaN passes through x.
__device__ __forceinline__ f32 gelu_gate(f32 x) {
    f32 twice = -1.5957691216057308f * x * fmaf(x * x, 0.044715f, 1.0f);
    twice = fminf(fmaxf(twice, -87.0f), 87.0f);
    return 1.0f / (1.0f + expf(twice));
}

__device__ __forceinline__ f32 gelu(f32 x) { return x * gelu_gate(x); }

__device__ __forceinline__ f32 gelu_slope(f32 x) {
    f32 gate = gelu_gate(x);
    return gate + x * gate * (1.0f - gate) * 1.5957691216057308f * fmaf(x * x, 0.134145f, 1.0f);
}

// ---- sums over a warp, in one fixed order
__device__ __forceinline__ f32 warp_sum(f32 value) {
#pragma unroll
    for (i32 step = WARP / 2; step > 0; step >>= 1) value += __shfl_xor_sync(FULL, value, step);
    return value;
}

__device__ __forceinline__ f64 warp_sum(f64 value) {
#pragma unroll
    for (i32 step = WARP / 2; step > 0; step >>= 1) value += __shfl_xor_sync(FULL, value, step);
    return value;
}

__device__ __forceinline__ bool is_finite(f64 value) { return value - value == 0.0; }
