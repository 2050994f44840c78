// What a CUDA source names that C++ does not know, on the emulator: the same .cu through g++ and its
// sanitizers.
#pragma once
#include <math.h>
#include <string.h>

#include <algorithm>

#include "runtime.h"

namespace shim {
static thread_local emulator::Context* now;

template <class T>
static inline T shuffle(unsigned mask, T value, int source, const char* where) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = emulator::emulator_collective(now, emulator::SHUFFLE, mask, bits, source, where);
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline unsigned votes(unsigned mask, bool vote, const char* where) {
    return (unsigned)emulator::emulator_collective(now, emulator::BALLOT, mask, vote, 0, where);
}
template <class To, class From>
static inline To bits(From from) {
    To to;
    static_assert(sizeof to == sizeof from, "widths differ");
    memcpy(&to, &from, sizeof to);
    return to;
}
}  // namespace shim

#define SHIM_TEXT(x) #x
#define SHIM_LINE(x) SHIM_TEXT(x)
#define SHIM_WHERE __FILE__ ":" SHIM_LINE(__LINE__)
#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static  // one block runs at a time
#define threadIdx (emulator::Dim{shim::now->thread, 0, 0})
#define blockIdx (shim::now->block_id)
#define blockDim (shim::now->block_dim)
#define gridDim (shim::now->grid_dim)
#define __syncthreads() emulator::emulator_barrier(shim::now, 0, SHIM_WHERE)
#define __syncwarp() emulator::emulator_collective(shim::now, emulator::SYNC, 0xffffffffu, 0, 0, SHIM_WHERE)
#define __shfl_xor_sync(mask, value, step) \
    shim::shuffle(mask, value, (shim::now->thread % 32) ^ (step), SHIM_WHERE)
#define __ballot_sync(mask, vote) shim::votes(mask, vote, SHIM_WHERE)
#define __any_sync(mask, vote) (shim::votes(mask, vote, SHIM_WHERE) != 0)
#define BICEP_DYNAMIC_SHARED(type, name) type* name = (type*)shim::now->shared

using std::max;
using std::min;
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline unsigned __float_as_uint(float x) { return shim::bits<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return shim::bits<float>(x); }
static inline double __longlong_as_double(long long x) { return shim::bits<double>(x); }
static inline float cospif(float x) { return (float)cos(M_PI * (double)x); }
static inline float sinpif(float x) { return (float)sin(M_PI * (double)x); }
static inline unsigned atomicAdd(unsigned* at, unsigned value) {
    return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}

#define BICEP_SYSTEM_WORDS
static inline long long load_acquire(const char* at) {
    return __atomic_load_n((const long long*)at, __ATOMIC_ACQUIRE);
}
static inline void store_release(char* at, long long value) {
    __atomic_store_n((long long*)at, value, __ATOMIC_RELEASE);
}
static inline void rest(unsigned) { emulator::emulator_rest(shim::now); }
