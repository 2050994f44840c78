// What an instruction of PTX computes, for translated code: registers are bits, a type is how they are read.
#pragma once
#include <math.h>
#include <string.h>

#include "runtime.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef uint8_t b8;
typedef uint16_t b16;
typedef uint32_t b32;
typedef uint64_t b64;
typedef float f32;
typedef double f64;

// The low bytes of a register as a value of type T.
template <class T, class Register>
static inline T as(Register bits) {
    static_assert(sizeof(T) <= sizeof(Register), "a register is too narrow");
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// A value as the bits of a register: integers are extended by their sign, floats keep their bits.
template <class Register, class T>
static inline Register put(T value) {
    return (Register)value;
}
template <>
inline u32 put<u32, f32>(f32 value) {
    return as<u32>(value);
}
template <>
inline u64 put<u64, f64>(f64 value) {
    return as<u64>(value);
}

static inline f32 flush(f32 x) { return fabsf(x) < 1.17549435e-38f ? copysignf(0.0f, x) : x; }
static inline f32 ex2(f32 x) { return flush(exp2f(flush(x))); }
// A NaN is the smaller and the greater of nothing, as in IEEE 754-2008 minNum and maxNum.
template <class T>
static inline T smaller(T a, T b) {
    return a != a ? b : b != b ? a : a < b ? a : b;
}
template <class T>
static inline T greater(T a, T b) {
    return a != a ? b : b != b ? a : a > b ? a : b;
}
static inline f32 saturate(f32 x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

// fma rounded towards minus infinity: exact in double but for its last bits, then down.
static inline f32 fma_down(f32 a, f32 b, f32 c) {
    f64 exact = fma((f64)a, (f64)b, (f64)c);
    f32 near = (f32)exact;
    return (f64)near > exact ? nextafterf(near, -INFINITY) : near;
}

// To an integer, rounded by the caller, clamped as the device does; NaN is 0.
template <class T>
static inline T to_integer(f64 x, f64 least, f64 most) {
    return x != x ? (T)0 : x <= least ? (T)least : x >= most ? (T)(most) : (T)x;
}

template <class T>
static inline T shift_left(T x, u32 n) {
    return n >= 8 * sizeof(T) ? (T)0 : (T)(x << n);
}
template <class T>
static inline T shift_right(T x, u32 n) {
    if (n >= 8 * sizeof(T)) return x < 0 ? (T)-1 : (T)0;
    return (T)(x >> n);
}
template <class T>
static inline T divide(T a, T b) {
    return b ? (T)(a / b) : (T)-1;
}
template <class T>
static inline T remainder_of(T a, T b) {
    return b ? (T)(a % b) : a;
}

template <class T>
static inline T field_insert(T from, T into, u32 at, u32 length) {
    at &= 255, length &= 255;
    for (u32 n = 0; n < length && at + n < 8 * sizeof(T); ++n)
        into = (T)((into & ~((T)1 << (at + n))) | ((T)(from >> n & 1) << (at + n)));
    return into;
}
template <class T>
static inline T field_extract(T from, u32 at, u32 length) {
    at &= 255, length &= 255;
    return length == 0 || at >= 8 * sizeof(T) ? (T)0
           : length >= 8 * sizeof(T) - at     ? (T)(from >> at)
                                              : (T)(from >> at & (((T)1 << length) - 1));
}

static inline u32 permute(u32 low, u32 high, u32 selector) {
    u64 bytes = (u64)high << 32 | low;
    u32 result = 0;
    for (int n = 0; n < 4; ++n) {
        u32 choice = selector >> 4 * n & 15, byte = bytes >> 8 * (choice & 7) & 255;
        if (choice & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << 8 * n;
    }
    return result;
}

// Lane that a shuffle reads, from PTX's operands; *inside says that it lies in the segment.
static inline u32 shuffle_source(char mode, u32 lane, u32 operand, u32 control, bool* inside) {
    u32 segment = control >> 8 & 31, bound = (lane & segment) | (control & 31 & ~segment);
    u32 least = lane & segment;
    int source = mode == 'b'   ? (int)(lane ^ operand)
                 : mode == 'd' ? (int)(lane + operand)
                 : mode == 'u' ? (int)lane - (int)operand
                               : (int)(least | (operand & ~segment & 31));
    *inside = mode == 'u' ? source >= (int)bound : source <= (int)bound;
    return *inside ? (u32)source : lane;
}
